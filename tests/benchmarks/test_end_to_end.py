"""Where a user's seconds go: the commands' own, and what their logs and reports say of them."""

import json

import pytest

from benchmarks import end_to_end
from data.records import write_records


@pytest.fixture
def commands(monkeypatch):
    """Commands that write what the real ones do, at once; yields the options of each."""
    given = []

    def execute(script, *words):
        given.append((script, *map(str, words)))
        options = dict(zip(map(str, words[::2]), words[1::2]))
        if script == "trainer.py":
            folder = options["--output"] / "checkpoint-40"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": 40, "log_history": [
                {"loss": 1.0}, {"eval_loss": 1.0, "eval_runtime": 1.5}, {"eval_loss": 1.0, "eval_runtime": 2.5}]}))
            return [(1.0, "trainable params: 1"), (29.0, "{'loss': '1.0'}"), (32.0, "{'loss': '1.0'}"),
                    (34.0, "{'eval_loss': '1.0'}"), (45.0, "{'loss': '1.0'}"), (47.0, "{'loss': '1.0'}"),
                    (51.0, "{'eval_loss': '1.0'}"), (60.0, "next: python evaluate.py")]
        with open(options["--output"], "w") as file:
            json.dump({"n": 20, "rows_per_second": 10.0}, file)
        return []

    monkeypatch.setattr(end_to_end, "execute", execute)
    return given


@pytest.fixture
def arguments(tmp_path):
    for name in ("train", "eval", "judged"):
        write_records(tmp_path / f"{name}.jsonl", [{"input": "甲: 好", "label": True}])
    return ["--model", "M", "--data", str(tmp_path), "--evaluate", str(tmp_path / "judged.jsonl"), "--device", "cpu",
            "--output", str(tmp_path / "end_to_end.json")]


def test_seconds_are_split_into_what_they_are_spent_on(commands, arguments):
    assert end_to_end.main([*arguments, "--full"]) == 0
    with open(arguments[-1]) as file:
        report = json.load(file)
    assert report["seconds_a_step"] == pytest.approx(0.2)  # the later lines are 2 s apart, 10 steps
    assert (report["steps"], report["steps_seconds"]) == (40, pytest.approx(8.0))
    assert (report["evaluations"], report["evaluating_seconds"]) == (2, 4.0)
    assert report["start_seconds"] == pytest.approx(27.0)  # the first line comes after 10 steps
    assert (report["train_seconds"], report["beside_steps_seconds"]) == (60.0, pytest.approx(52.0))
    assert report["rest_seconds"] == pytest.approx(52 - 27 - 4)
    assert list(report["commands"]) == ["evaluate", "full", "full_again"]
    for name, parts in report["commands"].items():
        assert parts["scoring"] == 2.0 and sum(parts.values()) == pytest.approx(report[f"{name}_seconds"])
    assert report["device"] == "cpu"


def test_a_training_cut_short_is_evaluated_once_at_its_end(commands, arguments):
    assert end_to_end.main([*arguments, "--max-steps", "40"]) == 0
    words = list(commands[0])
    for name in ("max", "eval", "save"):  # the last one counts
        place = len(words) - words[::-1].index(f"--{name}-steps")
        assert words[place] == "40"


def test_a_missing_file_is_refused_before_anything_runs(commands, tmp_path):
    assert end_to_end.main(["--model", "M", "--data", str(tmp_path), "--evaluate", "missing.jsonl", "--device", "cpu",
                            "--output", str(tmp_path / "out.json")]) == 2
    assert not (tmp_path / "out.json").exists()
