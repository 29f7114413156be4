"""What a change of the recipe buys: paired with the base, seed by seed, on the same test records."""

import json

import numpy as np
import pytest

from benchmarks import gains
from benchmarks.ablations import Job, prepared, slug, write_scores
from data.records import Skipped, read_records, write_records
from data.sample import write_sample

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Scores of two seeds: the base errs on a fifth of the rows, one variant on a tenth, another as the base does."""
    folder = tmp_path_factory.mktemp("gains")
    write_sample(folder / "dialogs", 400)
    job = Job("", str(folder / "dialogs"), folder / "scratch", "cpu")
    for seed in SEEDS:
        data = prepared(job, {}, seed)
        labels = {name: np.array([record["label"] for record in read_records(data / f"{name}.jsonl", Skipped())])
                  for name in ("eval", "test")}
        for name, every in {"as it is": 5, "one epoch": 10, "rank 64": 5, "three epochs": 10}.items():
            if (name, seed) != ("three epochs", 1):
                write_scores(folder / f"{slug(name)}-{seed}.npz", {
                    split: np.where((np.arange(len(y)) % every == 0) ^ y, 0.8, 0.2) for split, y in labels.items()})
    return folder


def run(kept, *options: str) -> int:
    return gains.main(["--source", str(kept / "dialogs"), "--scores", str(kept), "--scratch", str(kept / "scratch"),
                       "--output", str(kept / "gains.json"), *options])


def test_a_variant_that_errs_less_gains_and_one_that_errs_alike_does_not(kept, capsys):
    assert run(kept) == 0
    report = json.loads((kept / "gains.json").read_text())
    found = report["gains"]
    assert list(found) == ["one epoch", "three epochs", "rank 64"]  # in the order of the ablations
    assert found["one epoch"]["seeds"] == [0, 1] and found["three epochs"]["seeds"] == [0]
    assert found["one epoch"]["f1"]["interval"][0] > 0 and found["one epoch"]["average_precision"]["value"] > 0
    assert found["rank 64"]["f1"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert report["base"] == "as it is" and report["provenance"]["versions"]
    assert "| rank 64 | 0, 1 | +0.000 (+0.000 to +0.000) |" in capsys.readouterr().out


def test_another_base_turns_the_differences_round(kept):
    assert run(kept, "--base", "one epoch") == 0
    found = json.loads((kept / "gains.json").read_text())["gains"]
    assert found["as it is"]["f1"]["interval"][1] < 0 and found["three epochs"]["f1"]["value"] == 0


def test_scores_on_other_test_records_are_refused(kept, tmp_path):
    data = prepared(Job("", str(kept / "dialogs"), kept / "scratch", "cpu"), {}, 0)
    other = tmp_path / "data"
    other.mkdir()
    for split in ("eval", "test"):
        records = read_records(data / f"{split}.jsonl", Skipped())
        label = records.pop()["label"]
        write_records(other / f"{split}.jsonl", [*records, {"input": "甲: 另一句话。", "label": label}])
    base, changed = (gains.Row(folder, kept / "as-it-is-0.npz") for folder in (data, other))
    with pytest.raises(gains.DataError, match="'rank 64' with seed 0 was judged on other test records than the base"):
        gains.gains({"rank 64": {0: changed}}, {0: base})


def test_a_base_without_scores_is_refused_in_a_line(kept, tmp_path, capsys):
    assert run(kept, "--base", "no dropout") == 2
    assert "no scores of 'no dropout' and of another variant with the same seed" in capsys.readouterr().err
    assert run(kept, "--base", "no such thing") == 2
    assert capsys.readouterr().err.startswith("no variant 'no such thing'")
