"""Two ways to tell fraud: differences paired, seeds together."""

import json

import numpy as np
import pytest

from benchmarks import compare
from data.records import write_records


def records_of(labels):
    return [{"input": f"甲: 第{i}句", "label": label, "case": f"case-{i}"} for i, label in enumerate(labels)]


def write(path, labels, scores, other):
    write_records(path / "data.jsonl", records_of(labels))
    for name, values in (("model", scores), ("other", other)):
        write_records(path / f"{name}.jsonl", [{"line": i + 1, "probability": p} for i, p in enumerate(values)])
    return ["--data", str(path / "data.jsonl"), "--model", str(path / "model.jsonl"), "--other",
            str(path / "other.jsonl")]


def test_differences_are_the_first_minus_the_second(tmp_path):
    labels = [True, False] * 30
    right = [0.9 if label else 0.1 for label in labels]
    always = [0.8] * 60
    output = tmp_path / "compared.json"
    assert compare.main([*write(tmp_path, labels, right, always), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    # Whoever says fraud always has precision 1/2 and recall 1: F1 2/3, average precision 1/2.
    assert found["mean_difference"]["f1"]["value"] == pytest.approx(1 / 3)
    assert found["mean_difference"]["average_precision"]["value"] == pytest.approx(1 / 2)
    low, high = found["mean_difference"]["f1"]["interval"]
    assert 0 < low < 1 / 3 < high
    assert len(found["provenance"]["files"]["data"][0]) == 64


def test_a_mean_over_seeds_is_that_of_their_differences_and_the_same_seed_twice_is_no_surer():
    rng = np.random.default_rng(0)
    records = records_of(rng.random(80) < 0.5)
    scores = [np.array([record["label"] for record in records]) * 0.4 + rng.random(80) * 0.6 for _ in range(2)]
    once, twice = compare.compare([(records, scores)]), compare.compare([(records, scores)] * 2)
    for name in compare.COMPARED:
        one, two = once["mean_difference"][name], twice["mean_difference"][name]
        assert two["value"] == pytest.approx(one["value"]) and two["interval"] == pytest.approx(one["interval"])
    swapped = compare.compare([(records, scores), (records, scores[::-1])])
    assert swapped["mean_difference"]["f1"]["value"] == pytest.approx(0)


def test_thresholds_are_of_seed_and_model():
    records = records_of([True, False])
    found = compare.compare([(records, [np.array([0.3, 0.1]), np.array([0.3, 0.1])])], [(0.2, 0.5)])["seeds"][0]
    assert (found["model"]["f1"], found["other"]["f1"]) == (1, 0)


def test_predictions_of_another_file_are_refused(tmp_path, capsys):
    options = write(tmp_path, [True, False], [0.9, 0.1], [0.8])
    assert compare.main(options) == 2
    assert "other.jsonl" in capsys.readouterr().err
