"""Ablations: a row is made once, survives a kill of the next, and says what it was made of."""

import json
import random

import numpy as np
import pytest
import torch

from antifraud.evaluation.metrics import average_precision
from benchmarks import ablations
from data.records import Dialogue, Line, read_records, write_dialogues

STEPS = ["max_steps=2", "eval_steps=2", "save_steps=2", "learning_rate=0.01", "per_device_train_batch_size=4"]
MINUS = ("model_f1_minus_this", "model_average_precision_minus_this")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty frauds with a harmless opening and twenty meetings, of random characters: none resembles another."""
    folder = tmp_path_factory.mktemp("dialogs")
    rng = random.Random(0)

    def line(speaker: str, is_fraud: bool) -> Line:
        return Line(speaker, "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)) + "，好。", is_fraud)

    write_dialogues(folder / "退款.csv", [Dialogue(f"退款/{i}", "退款", (
        line("客服", False), *(line("客服", True) for _ in range(8)))) for i in range(20)])
    write_dialogues(folder / "会议.csv", [Dialogue(f"会议/{i}", "会议", tuple(
        line("发言人1", False) for _ in range(8))) for i in range(20)])
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Prepared data, which tests share as rows do."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def command(base, source, scratch, tmp_path):
    def run(*options: str) -> int:
        return ablations.main(["--model", base, "--source", str(source), "--scratch", str(scratch), "--device", "cpu",
                               "--output", str(tmp_path / "ablations.json"), "--seeds", "3", "--training", *STEPS,
                               *options])
    return run


def test_rows_are_made_one_by_one_and_never_twice(command, eval_file, tmp_path, monkeypatch, capsys):
    names = ["as it is", "noisy copies of half the train set"]
    options = ["--variants", *names, "--also", eval_file]
    make_row = ablations.make_row
    made = []

    def killed_after_one(job, variant, seed):
        if made:
            raise KeyboardInterrupt
        made.append(variant)
        return make_row(job, variant, seed)

    monkeypatch.setattr(ablations, "make_row", killed_after_one)
    assert command(*options) == 130
    first = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert [row["variant"] for row in first] == names[:1]
    monkeypatch.setattr(ablations, "make_row", make_row)
    assert command(*options) == 0
    report = json.loads((tmp_path / "ablations.json").read_text())
    assert report["rows"][:1] == first and [row["variant"] for row in report["rows"]] == names
    plain, noisy = report["rows"]
    assert noisy["train_rows"] == pytest.approx(1.5 * plain["train_rows"], abs=1) and plain["steps"] == 2
    assert plain["judged_on"].keys() == {"eval", "test", "eval.jsonl"}
    assert plain["judged_on"]["eval.jsonl"]["n"] == 20 and "probes" not in plain["judged_on"]["eval"]
    assert plain["judged_on"]["test"]["n"] == noisy["judged_on"]["test"]["n"]  # the same test dialogues
    assert plain["judged_on"]["test"]["probes"]["speakers_renamed"]["change"]["recall"]["value"] in (0.0, None)
    assert report["provenance"]["device"] == "cpu" and report["provenance"]["versions"]["torch"]
    assert len(capsys.readouterr().out.split("| as it is | 1 |")) == 4  # of eval, test and eval.jsonl

    monkeypatch.setattr(ablations, "make_row", None)  # nothing is left to do
    assert command(*options) == 0
    assert command(*options, "--training", "max_steps=3") == 2
    assert "was made with another training; name another --output" in capsys.readouterr().err


def test_scores_are_kept_and_are_those_that_were_judged(command, scratch, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"One step!": {"training": {"max_steps": 1, "eval_steps": 1, "save_steps": 1,
                                                          "recipe": "small"}}}))
    assert command("--more-variants", str(own), "--variants", "One step!", "--scores", str(tmp_path / "scores")) == 0
    row, = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert row["steps"] == 1
    kept = np.load(tmp_path / "scores" / "one-step-3.npz")
    assert set(kept) == {"eval", "test"}
    for name in kept:
        labels = [record["label"] for record in read_records(scratch / row["data"] / f"{name}.jsonl")]
        judged, tfidf = row["judged_on"][name], row["judged_on"][name]["tfidf"]
        assert kept[name].dtype == np.float32 and len(kept[name]) == judged["n"] == len(labels)
        assert average_precision(labels, kept[name]) == pytest.approx(judged["average_precision"])
        for figure, key in zip(("f1", "average_precision"), MINUS):
            assert tfidf[key]["value"] == pytest.approx((judged[figure] or 0) - (tfidf[figure] or 0))


def test_what_answer_and_lines_say_is_kept_where_lines_were_learned(command, scratch, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"lines": {"training": {"max_steps": 1, "eval_steps": 1, "save_steps": 1,
                                                      "line_loss_weight": 0.5}}}))
    assert command("--more-variants", str(own), "--variants", "lines", "--scores", str(tmp_path / "scores")) == 0
    kept = np.load(tmp_path / "scores" / "lines-3.npz")
    assert set(kept) == {f"{name}{part}" for name in ("eval", "test") for part in ("", ", answer", ", lines")}
    assert kept["test, lines"].shape == kept["test"].shape and (kept["test, lines"] != kept["test"]).any()


def test_several_trainings_are_averaged_in_their_weights(command, scratch, tmp_path, monkeypatch):
    averaged = []
    scores_alone = ablations.scores_alone
    monkeypatch.setattr(ablations, "scores_alone",
                        lambda model, *args: averaged.append(model) or scores_alone(model, *args))
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"two": {"average": {"trainings": 2}, "training": {
        "max_steps": 2, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-2}}}))
    assert command("--more-variants", str(own), "--variants", "two", "--scores", str(tmp_path / "scores")) == 0
    layer = averaged[0].base_model.model.model.layers[0].self_attn.q_proj
    first, second, mean = (layer.get_delta_weight(name) for name in ("training 0", "training 1", "average"))
    assert not torch.equal(first, second)
    torch.testing.assert_close(mean, (first + second) / 2, rtol=1e-4, atol=1e-7)
    kept = np.load(tmp_path / "scores" / "two-3.npz")
    assert set(kept) == {f"{name}{of}" for name in ("eval", "test") for of in ("", ", training 0", ", training 1")}
    assert (kept["test"] != kept["test, training 0"]).any() and (
        kept["test, training 0"] != kept["test, training 1"]).any()
    row, = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert len(row["eval_loss"]) == 2 and row["steps"] == [2, 2]


def test_a_linear_probe_is_judged_like_a_trained_variant(command, tmp_path, monkeypatch):
    lengths = []  # as hidden states: what is scored is then known

    def states(model, encoder, rows):
        lengths.append([len(row) for row in rows])
        return np.array(lengths[-1])[:, None]

    monkeypatch.setattr(ablations, "last_hidden_states", states)
    assert command("--variants", "no training, linear probe", "--scores", str(tmp_path / "scores")) == 0
    row, = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert "steps" not in row and row["train_rows"] > 0 and "probes" not in row["judged_on"]["test"]
    scores = np.load(tmp_path / "scores" / "no-training-linear-probe-3.npz")["test"]
    assert row["judged_on"]["test"]["n"] == len(scores) and len(lengths) == 3  # train, eval, test
    assert abs(np.corrcoef(np.log(scores / (1 - scores)), lengths[-1])[0, 1]) == pytest.approx(1, abs=1e-3)


def test_tfidf_is_fitted_once_for_all_that_is_judged(command, eval_file, source, scratch, monkeypatch):
    fitted = []
    build_tfidf = ablations.build_tfidf
    monkeypatch.setattr(ablations, "build_tfidf", lambda: fitted.append(1) or build_tfidf())
    options = ["--prepare-only", "--variants", "half as many negatives"]
    assert command(*options) == command(*options) == 0 and len(fitted) == 1
    assert command(*options, "--also", eval_file) == 0 and len(fitted) == 2
    data = ablations.prepared(ablations.Job("", str(source), scratch, "cpu"),
                              ablations.VARIANTS["half as many negatives"]["data"], 3)
    scores = ablations.tfidf_scores(data, ablations.judged_paths(data, [eval_file]))
    assert {name: len(rows) for name, rows in scores.items()}["eval.jsonl"] == 20 and len(fitted) == 2
    with_lines = ablations.tfidf_scores(data, ablations.judged_paths(data, []), with_lines=True)
    assert len(fitted) == 3 and with_lines["test"].shape == scores["test"].shape
    assert not np.allclose(with_lines["test"], scores["test"])


def test_data_is_prepared_ahead_and_shared_by_what_needs_the_same(command, monkeypatch, capsys):
    assert command("--prepare-only", "--variants", "as it is", "rank 64", "no hard negatives") == 0
    first, second, third = capsys.readouterr().out.split()
    assert first == second != third
    monkeypatch.setattr(ablations, "prepare", None)
    assert command("--prepare-only", "--variants", "as it is") == 0


def made_row(variant: str, seed: int, f1: float) -> dict:
    """A row as far as tables read it, with two probes."""
    probes = {"asr_noise": {"recall": f1, "change": {"recall": {"value": f1 - 1}}},
              "meeting_style": {"recall": f1 - 0.5}}
    judged = {"f1": f1, "average_precision": 1.0,
              "tfidf": dict(zip(MINUS, ({"value": f1 - 0.6}, {"value": 0.0})))}
    return {"variant": variant, "seed": seed, "judged_on": {"eval": judged, "test": {**judged, "probes": probes}}}


def test_the_tables_show_the_mean_and_the_spread_over_seeds():
    made = ablations.tables({"rows": [made_row("x", 0, 0.8), made_row("x", 1, 0.9)]})
    of_eval, of_test = (text.split("\n")[2] for text in made.split("\n\n"))
    same = "| x | 2 | 0.850 (0.800 to 0.900) | 1.000 | 0.250 (0.200 to 0.300) | 0.000 "
    assert of_eval == same + "| - | - |"
    assert of_test == same + "| 0.350 (0.300 to 0.400) | -0.150 (-0.200 to -0.100) |"


def test_reports_made_side_by_side_are_merged_unless_they_contradict_each_other(tmp_path, capsys):
    def report(name: str, *rows: dict) -> str:
        (tmp_path / name).write_text(json.dumps({"rows": rows, "provenance": {"made by": name}}))
        return str(tmp_path / name)

    first, second = report("a", made_row("x", 0, 0.8)), report("b", made_row("x", 1, 0.9), made_row("x", 0, 0.8))
    output = ["--output", str(tmp_path / "all")]
    assert ablations.main(["--merge", first, second, *output]) == 0
    merged = json.loads((tmp_path / "all").read_text())
    assert [(row["variant"], row["seed"]) for row in merged["rows"]] == [("x", 0), ("x", 1)]
    assert merged["provenance"] == {"made by": "b"} and "| x | 2 | 0.850" in capsys.readouterr().out
    for name, message in ((report("c", made_row("x", 1, 0.7)), "'x' with seed 1 is another row than the one merged"),
                          (str(tmp_path / "none"), "no such file"), (report("d", {}), "not a file of this command")):
        before = (tmp_path / "all").read_text()
        assert ablations.main(["--merge", name, *output]) == 2
        line, = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{name}: {message}") and (tmp_path / "all").read_text() == before
    with pytest.raises(SystemExit):
        ablations.main(["--model", "m"])


@pytest.mark.parametrize("content, message", [
    ("[]", "expected a JSON object of variants"), ("{", "not JSON"),
    ('{"x": []}', "variant 'x' must be an object of objects named data, task, training, lora"),
    ('{"x": {"trainer": {}}}', "variant 'x' has 'trainer'; there are data, task, training, lora"),
    ('{"x": {"lora": {"rank": 4}}}', "variant 'x': lora has no option 'rank'"),
    ('{"x": {"data": {"seed": 4}}}', "variant 'x': data has no option 'seed'"),
])
def test_a_bad_file_of_variants_is_said_in_one_line(command, tmp_path, content, message, capsys):
    (tmp_path / "more.json").write_text(content)
    assert command("--more-variants", str(tmp_path / "more.json")) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/more.json: {message}")


def test_unknown_variants_and_missing_files_are_said_before_anything_is_made(command, tmp_path, capsys):
    assert command("--variants", "none such") == 2
    assert capsys.readouterr().err.startswith("no variant 'none such'; there are 'as it is', ")
    assert command("--training", "no_such=1") == 2
    assert capsys.readouterr().err == "--training: training has no option 'no_such'\n"
    (tmp_path / "more.json").write_text('{"Rank-64": {}}')
    assert command("--more-variants", str(tmp_path / "more.json"), "--variants", "rank 64", "Rank-64") == 2
    assert capsys.readouterr().err == "two variants would keep their scores in one file: rank 64, Rank-64\n"
    assert command("--also", str(tmp_path / "none.jsonl")) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.jsonl: no such file\n"
