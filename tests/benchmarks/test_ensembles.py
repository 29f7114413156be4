"""Ensembles of kept scores: what is averaged, what is stacked, and what they are refused for."""

import json

import numpy as np
import pytest
from scipy.special import expit

from benchmarks import ensembles
from benchmarks.ablations import Job, prepared, write_scores
from data.files import DataError
from data.records import Skipped, read_records, write_records
from data.sample import write_sample

ROWS = {"train": 40, "eval": 40, "test": 60}


@pytest.fixture
def data(tmp_path):
    """Splits whose words tell nothing: TF-IDF is of no use."""
    for name, number in ROWS.items():
        write_records(tmp_path / "data" / f"{name}.jsonl", [
            {"input": "甲: 您好。\n乙: 好。", "label": i % 2 == 0, "case": f"{name}-{i // 4}"} for i in range(number)])
    return tmp_path / "data"


def test_without_labels_of_lines_there_is_no_tfidf_that_knows_them(data, tmp_path):
    with pytest.raises(DataError, match="not all records have 'line_labels'"):
        ensembles.judge_ensembles({0: data}, {0: [save_model(tmp_path / "model.npz", 3)]}, with_lines=True)


def save_model(path, wrong: int):
    """Scores that are right except on every tenth row, the `wrong`-th of the ten, where they are less sure."""
    scores = {}
    for name in ("eval", "test"):
        row = np.arange(ROWS[name])
        sure = np.where(row % 10 == wrong, -1.0, 3.0)
        scores[name] = expit(np.where(row % 2 == 0, sure, -sure))
    write_scores(path, scores)
    return str(path)


def test_log_odds_are_averaged():
    found = ensembles.average([expit(np.array([1.0, -2.0])), expit(np.array([3.0, 0.0]))])
    assert found == pytest.approx([2.0, -1.0])
    assert np.isfinite(ensembles.average([np.array([0.0, 1.0], dtype=np.float32)])).all()


def test_models_that_err_on_different_rows_are_right_together_and_the_stack_passes_over_a_useless_tfidf(data, tmp_path):
    files = [save_model(tmp_path / f"{wrong}.npz", wrong) for wrong in (3, 4)]
    report = ensembles.judge_ensembles({0: data}, {0: files})
    assert report["judged_on"].keys() == {"test", ensembles.CHOSEN_THRESHOLDS, ensembles.WHOLE_DIALOGUES}
    whole = report["judged_on"][ensembles.WHOLE_DIALOGUES]["average"]["seeds"][0]
    assert whole["n"] == 15 and whole["tp"] + whole["fn"] == 15  # four pieces each, and a fraud among them
    for found in report["judged_on"]["test"].values():
        assert found["seeds"][0]["f1"] == found["seeds"][0]["average_precision"] == 1.0
        difference = found["seeds"][0]["tfidf"]["model_average_precision_minus_this"]
        assert difference["value"] == pytest.approx(0.5) and difference["interval"][0] > 0.4
        assert found["mean_difference_to_tfidf"]["average_precision"] == difference  # of a single seed
    assert report["stack_weights"][0]["model"] > 0.5 > abs(report["stack_weights"][0]["tfidf"])
    alone = ensembles.judge_ensembles({0: data}, {0: files[:1]})["judged_on"]["test"]["average"]["seeds"][0]
    assert (alone["tp"], alone["fp"]) == (30, 6)  # an odd row in ten is called a fraud


def test_a_whole_dialogue_is_judged_by_the_mean_log_odds_of_its_pieces():
    odds = np.array([2.0, -1.0, -3.0, 1.0, -1.0])
    records = [{"case": case, "label": label} for case, label in zip("aabba", [True, False, False, False, False])]
    found = ensembles.by_dialogue({"records": records, **dict.fromkeys(("tfidf", "average", "stack"), expit(odds))})
    assert found["records"] == [{"case": "a", "label": True}, {"case": "b", "label": False}]
    for name in ("tfidf", "average", "stack"):
        assert ensembles.log_odds(found[name]) == pytest.approx([0.0, -1.0])


def test_a_threshold_from_eval_moves_the_line_and_leaves_the_order():
    def split(odds):
        return {"records": [{"label": label} for label in (True, True, False, False)],
                **dict.fromkeys(("tfidf", "average", "stack"), expit(np.array(odds)))}

    found = ensembles.at_chosen_thresholds(split([1.0, -0.9, -2.0, -1.5]), split([2.0, -1.0, -2.0, -3.0]))
    for name in ("tfidf", "average", "stack"):
        assert (found[name] >= 0.5).tolist() == [True, True, False, False]  # between -1 and -2, not at 0
        assert found[name].argsort().tolist() == [2, 3, 1, 0]


def test_a_dialogue_of_several_seeds_is_drawn_for_all_of_them_together():
    """Two seeds on the same rows are no more than one: the interval must not shrink as of independent ones."""
    records = [{"label": i % 2 == 0, "case": str(i // 4)} for i in range(80)]
    found = np.where(np.arange(80) % 10 == 0, 0.1, [0.9, 0.2] * 40)
    seed = {"records": records, "average": found, "tfidf": np.full(80, 0.9)}
    once, twice = (ensembles.mean_differences([seed] * n, "average") for n in (1, 2))
    assert once == twice and once["f1"]["interval"][0] < once["f1"]["value"] < once["f1"]["interval"][1]
    other = {**seed, "average": np.full(80, 0.9)}  # as TF-IDF: no difference
    mean = ensembles.mean_differences([seed, other], "average")
    assert mean["f1"]["value"] == pytest.approx(once["f1"]["value"] / 2)


def test_the_command_finds_data_and_scores_of_each_seed_and_shows_their_mean(tmp_path, capsys):
    write_sample(tmp_path / "dialogs", 400)
    job = Job("", str(tmp_path / "dialogs"), tmp_path / "scratch", "cpu")
    for seed in (0, 1):
        data = prepared(job, {}, seed)
        records = {name: read_records(data / f"{name}.jsonl", Skipped()) for name in ("eval", "test")}
        write_scores(tmp_path / f"as-it-is-{seed}.npz", {
            name: np.array([0.9 if record["label"] else 0.1 for record in rows]) for name, rows in records.items()})
    command = ["--source", str(tmp_path / "dialogs"), "--scores", str(tmp_path), "--scratch", str(tmp_path / "scratch"),
               "--output", str(tmp_path / "ensembles.json"), "--seeds", "0", "1"]
    assert ensembles.main([*command, "--variants", "as it is"]) == 0
    shown = [line.split(" | ")[:4] for line in capsys.readouterr().out.splitlines()]
    assert shown[2:5] == [["| test", "average", seed, "1.0000"] for seed in ("0", "1", "**mean**")]
    report = json.loads((tmp_path / "ensembles.json").read_text())
    assert report["variants"] == ["as it is"] and report["provenance"]["versions"]
    assert ensembles.main([*command, "--variants", "as it was"]) == 2
    assert capsys.readouterr().err.startswith("no variant 'as it was'; there are 'as it is', ")


def test_parts_of_what_was_kept_are_averaged_instead(data, tmp_path):
    right, wrong = ({name: expit(np.where(np.arange(ROWS[name]) % 2 == 0, odds, -odds)) for name in ("eval", "test")}
                    for odds in (3.0, -1.0))
    write_scores(tmp_path / "all.npz", {
        **wrong, **{f"{name}, training {n}": scores for n, made in enumerate((right, wrong)) for name, scores in
                    made.items()}})
    f1 = {parts: ensembles.judge_ensembles({0: data}, {0: [tmp_path / "all.npz"]}, parts=parts)
          ["judged_on"]["test"]["average"]["seeds"][0]["f1"]
          for parts in ((), ("training 0",), ("training 1",), ("training 0", "training 1"))}
    assert list(f1.values()) == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(DataError, match="all.npz: has no scores of eval, lines$"):
        ensembles.judge_ensembles({0: data}, {0: [tmp_path / "all.npz"]}, parts=["lines"])


def test_scores_of_other_data_are_refused_in_one_line(data, tmp_path):
    (tmp_path / "bad.npz").write_text("no scores")
    write_scores(tmp_path / "short.npz", {"eval": np.zeros(40), "test": np.zeros(59)})
    write_scores(tmp_path / "less.npz", {"eval": np.zeros(40)})
    for name, message in (("bad", "not a file of scores"), ("none", "not a file of scores"),
                          ("short", "has 59 scores of test, which has 60 records: it was made on other data"),
                          ("less", "has no scores of test")):
        with pytest.raises(DataError, match=f"{name}.npz: {message}$"):
            ensembles.judge_ensembles({0: data}, {0: [tmp_path / f"{name}.npz"]})
