"""What notebooks show: pictures that are also said in words, and tables whose texts are whole."""

import pytest

from antifraud import figures

PICTURES = {
    "bars": lambda: figures.bars({"tfidf": 0.9, "untuned": 0.25}, "F1", "F1", intervals={"tfidf": [0.8, 0.95]},
                                 marked=["tfidf"]),
    "grouped_bars": lambda: figures.grouped_bars({"names, kept": {"before": 0.9, "after": 0.25}}, "Renamed", "F1"),
    "histogram": lambda: figures.histogram({"fraud": [0.25, 0.9]}, "Scores", "probability", log=True, mark=("at", 0.5)),
    "curves": lambda: figures.curves({"0.9": ([0, 1], [0, 1]), "0.25": ([0, 1], [1, 0])}, "Curves", "x", "y",
                                     points={"0.9": ([1], [1])}, lines={"level": 0.5}),
    "intervals": lambda: figures.intervals({"a": (0.9, [0.8, 1.0]), "b": (0.25, None)}, "Changes", "change",
                                           hollow=["b"], line=("none", 0.0)),
    "stacks": lambda: figures.stacks({"article 0.9": {"weights": 0.25, "logits": 0.65}}, "Memory", "GiB",
                                     measured={"article 0.9": 1.0}),
    "growing_dialogue": lambda: figures.growing_dialogue({"scam": [0.25, 0.9]}, "0.25 first", shaded={"scam": [2]},
                                                         lines={"alarm": 0.5}),
    "loss_curve": lambda: figures.loss_curve([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 0.9},
                                              {"step": 25, "eval_loss": 1.25}]),
}


SAID = {"histogram": "median 0.575", "stacks": "article 0.9: 0.9", "loss_curve": "0.9000, at step 1"}


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_gets_the_picture_and_its_words_with_their_numbers(name):
    picture = PICTURES[name]()
    data, metadata = picture._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"] == picture.alt
    assert SAID.get(name, "0.25") in picture.alt


def test_what_costs_nothing_is_seen_on_a_logarithmic_axis():
    def scale(*values):
        return figures.curves({"cost": ([0, 1], values)}, "Cost", "x", "y", yscale="log").panels.get_yscale()

    assert (scale(0.0, 9.0), scale(0.5, 9.0)) == ("symlog", "log")


@pytest.mark.parametrize("picture", [
    figures.curves({"a": ([0, 1], [1, 1]), "b": ([0, 1], [1, 1])}, "Two", "x", "y"),
    figures.growing_dialogue({"a": [0.0, 0.0], "b": [0.0, 0.0]}, "Two")], ids=["curves", "growing_dialogue"])
def test_a_curve_under_another_is_seen_around_it(picture):
    below, above = picture.panels.get_lines()
    assert below.get_linewidth() > above.get_linewidth()


def test_a_table_shows_texts_whole_and_numbers_as_asked_for():
    table = figures.table([("<b>" + "长" * 100, 0.12345, 7, None)], ("said", "p", "n", "none"), form=".2f")
    html = table._repr_html_()
    assert "&lt;b&gt;" + "长" * 100 in html and "<b>" not in html
    assert '<td style="text-align: right">0.12</td>' in html and ">7</td>" in html and ">-</td>" in html
    assert repr(table).split("\n")[0] == "said\tp\tn\tnone"


def test_a_mapping_of_rows_is_a_table_by_their_names():
    table = figures.table({"tfidf": {"f1": 0.5}, "untuned": {"f1": 0.25}})
    assert list(table.columns) == ["", "f1"] and table.rows == [["tfidf", 0.5], ["untuned", 0.25]]
