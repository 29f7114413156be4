"""Where a user's seconds go: the commands' own, and what their logs and reports say of them."""

import json

import pytest

from benchmarks import end_to_end
from data.records import write_records


@pytest.fixture
def commands(monkeypatch):
    """Commands that write what the real ones do, at once."""
    def execute(script, *words):
        options = dict(zip(map(str, words[::2]), words[1::2]))
        if script == "trainer.py":
            folder = options["--output"] / "checkpoint-4"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": [
                {"loss": 1.0}, {"eval_loss": 1.0, "eval_runtime": 1.5}, {"eval_loss": 1.0, "eval_runtime": 2.5}]}))
            return "{'loss': '1.0'}\n{'train_runtime': '10.0', 'train_loss': '1.0'}\n"
        parts = {"scoring": 2.0, "probes": 3.0} if "--full" in words else {"scoring": 2.0}
        with open(options["--output"], "w") as file:
            json.dump({"n": 20, "rows_per_second": 10.0, "seconds": parts}, file)
        return ""

    monkeypatch.setattr(end_to_end, "execute", execute)


def test_seconds_are_split_into_what_they_are_spent_on(commands, tmp_path):
    for name in ("train", "eval", "judged"):
        write_records(tmp_path / f"{name}.jsonl", [{"input": "甲: 好", "label": True}])
    output = tmp_path / "end_to_end.json"
    assert end_to_end.main(["--model", "M", "--data", str(tmp_path), "--evaluate", str(tmp_path / "judged.jsonl"),
                            "--full", "--device", "cpu", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert (report["steps"], report["evaluations"], report["evaluating_seconds"]) == (4, 2, 4.0)
    assert report["steps_seconds"] == 6.0 and report["scoring_seconds"] == 2.0
    for name, parts in report["commands"].items():
        assert sum(parts.values()) == pytest.approx(report[f"{name}_seconds"])
    assert report["commands"]["full"]["probes"] == 3.0 and "probes" not in report["commands"]["evaluate"]
    assert report["train_seconds"] >= 0 and report["device"] == "cpu"


def test_a_missing_file_is_refused_before_anything_runs(commands, tmp_path):
    assert end_to_end.main(["--model", "M", "--data", str(tmp_path), "--evaluate", "missing.jsonl", "--device", "cpu",
                            "--output", str(tmp_path / "out.json")]) == 2
    assert not (tmp_path / "out.json").exists()
