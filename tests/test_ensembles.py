"""Ensembles of kept scores: what is averaged, what is stacked, and what they are refused for."""

import json

import numpy as np
import pytest
from scipy.special import expit

from benchmarks import ensembles
from benchmarks.ablations import write_scores
from data.records import write_records

ROWS = {"train": 40, "eval": 40, "test": 60}


@pytest.fixture
def data(tmp_path):
    """Splits whose words tell nothing: TF-IDF is of no use."""
    for name, number in ROWS.items():
        write_records(tmp_path / "data" / f"{name}.jsonl", [
            {"input": "甲: 您好。\n乙: 好。", "label": i % 2 == 0, "case": f"{name}-{i // 4}"} for i in range(number)])
    return tmp_path / "data"


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


def test_models_that_err_on_different_rows_are_right_together_and_the_stack_passes_over_a_useless_tfidf(
        data, tmp_path, capsys):
    files = [save_model(tmp_path / f"{wrong}.npz", wrong) for wrong in (3, 4)]
    output = tmp_path / "ensembles.json"
    assert ensembles.main(["--data", str(data), "--scores", *files, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["judged_on"].keys() == {"test"} and report["scores"] == ["3.npz", "4.npz"]
    for found in report["judged_on"]["test"].values():
        assert found["f1"] == found["average_precision"] == 1.0
        difference = found["tfidf"]["model_average_precision_minus_this"]
        assert difference["value"] == pytest.approx(0.5) and difference["interval"][0] > 0.4
    assert report["stack_weights"]["model"] > 0.5 > abs(report["stack_weights"]["tfidf"])
    alone = ensembles.judge_ensembles(data, files[:1])["judged_on"]["test"]["average"]
    assert (alone["tp"], alone["fp"]) == (30, 6)  # an odd row in ten is called a fraud
    assert capsys.readouterr().out.splitlines()[2].startswith("| test | average | 1.0000 | 1.0000 | +")


def test_scores_of_other_data_are_refused_in_one_line(data, tmp_path, capsys):
    (tmp_path / "bad.npz").write_text("no scores")
    write_scores(tmp_path / "short.npz", {"eval": np.zeros(40), "test": np.zeros(59)})
    write_scores(tmp_path / "less.npz", {"eval": np.zeros(40)})
    for name, message in (("bad", "not a file of scores"), ("none", "not a file of scores"),
                          ("short", "has 59 scores of test, which has 60 records: it was made on other data"),
                          ("less", "has no scores of test")):
        assert ensembles.main(["--data", str(data), "--scores", str(tmp_path / f"{name}.npz")]) == 2
        assert capsys.readouterr().err == f"{tmp_path}/{name}.npz: {message}\n"
