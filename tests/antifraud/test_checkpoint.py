"""Checkpoints: a finished one proves it, a damaged one is passed over, and the right one is kept and found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from antifraud.checkpoint import (
    Decision,
    checkpoints_in,
    find_checkpoint,
    newest_complete_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    require_complete,
    rotate_checkpoints,
    save_calibration,
)
from antifraud.evaluation.scoring import rows_of, score_rows, score_single_lines
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import read_records
from evaluate import evaluate_with_model, load_model, predict


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of a training run with checkpoint-40 and checkpoint-80."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unfinish(folder: Path) -> None:
    """What a kill leaves that comes just before the list of files."""
    path = folder / "fraud_task.json"
    saved = json.loads(path.read_text())
    del saved["files"]
    path.write_text(json.dumps(saved))


def test_a_finished_checkpoint_lists_every_other_file(run):
    saved = json.loads((run / "checkpoint-80" / "fraud_task.json").read_text())
    assert sorted([*saved["files"], "fraud_task.json"]) == files_of(run / "checkpoint-80")
    assert saved["files"]["adapter_model.safetensors"] == saved["adapter_sha256"]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(saved["files"])


def test_a_copy_that_lacks_any_file_or_half_of_it_is_passed_over_with_the_file_named(run):
    newest = run / "checkpoint-80"
    for name in files_of(newest):
        path = newest / name
        content = path.read_bytes()
        for damaged in (None, content[:len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            folder, passed_over = newest_complete_checkpoint(run)
            assert folder == run / "checkpoint-40", (name, damaged is None)
            assert len(passed_over) == 1 and passed_over[0].startswith("passing over checkpoint-80: ")
            assert name in passed_over[0] and "\n" not in passed_over[0]
            path.write_bytes(content)
    assert newest_complete_checkpoint(run) == (newest, [])


def test_a_checkpoint_that_was_not_finished_is_passed_over_but_can_be_evaluated(run):
    unfinish(run / "checkpoint-80")
    with pytest.raises(DataError, match="fraud_task.json"):
        require_complete(run / "checkpoint-80")
    assert newest_complete_checkpoint(run)[0] == run / "checkpoint-40"
    assert read_checkpoint(run / "checkpoint-80").checkpoint == "checkpoint-80"


def test_an_adapter_from_plain_peft_can_be_evaluated(run):
    for path in (run / "checkpoint-80").iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    assert read_checkpoint(run / "checkpoint-80").task == Task()


def test_the_best_checkpoint_is_found_from_the_newest_complete_one(run):
    state_file = run / "checkpoint-40" / "trainer_state.json"
    assert json.loads(state_file.read_text())["best_global_step"] == 40
    assert json.loads((run / "checkpoint-80" / "trainer_state.json").read_text())["best_global_step"] == 80
    assert find_checkpoint(run) == run / "checkpoint-80"
    (run / "checkpoint-80" / "trainer_state.json").write_text("{")  # half written: what it says does not count
    assert find_checkpoint(run) == run / "checkpoint-40"


@pytest.mark.parametrize("damaged", ["", "null", "5"])
def test_a_checkpoint_with_a_damaged_task_file_is_passed_over(run, damaged):
    (run / "checkpoint-80" / "fraud_task.json").write_text(damaged)
    assert find_checkpoint(run) == run / "checkpoint-40"


def test_where_the_best_step_was_not_saved_the_best_of_those_saved_is_found(run):
    newest = run / "checkpoint-80" / "trainer_state.json"
    state = json.loads(newest.read_text())
    newest.write_text(json.dumps({**state, "best_global_step": 60, "best_model_checkpoint": "elsewhere/checkpoint-40"}))
    assert find_checkpoint(run) == run / "checkpoint-40"


def test_a_damaged_best_checkpoint_gives_way_to_the_newest_complete_one(run):
    shutil.copytree(run / "checkpoint-80", run / "checkpoint-120")
    adapter = run / "checkpoint-80" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-100])
    assert find_checkpoint(run) == run / "checkpoint-120"


@pytest.mark.parametrize("best", ["checkpoint-80", "checkpoint-120"])
def test_where_the_newest_checkpoint_is_damaged_an_older_one_says_which_is_the_best(run, best):
    newest = Path(shutil.copytree(run / "checkpoint-80", run / "checkpoint-120"))
    state = json.loads((newest / "trainer_state.json").read_text())
    (newest / "trainer_state.json").write_text(json.dumps({**state, "best_model_checkpoint": best}))
    (newest / "adapter_model.safetensors").unlink()
    assert find_checkpoint(run) == run / "checkpoint-80"


def test_where_all_are_damaged_the_newest_is_named(run):
    for folder in checkpoints_in(run):
        (folder / "adapter_model.safetensors").unlink()
    assert find_checkpoint(run) == run / "checkpoint-80"


def test_of_a_run_of_another_program_the_best_checkpoint_is_found_if_it_is_there(run):
    for folder in checkpoints_in(run):
        (folder / "fraud_task.json").unlink()  # what Trainer and PEFT write alone
    newest = run / "checkpoint-80" / "trainer_state.json"
    state = json.loads(newest.read_text())
    newest.write_text(json.dumps({**state, "best_model_checkpoint": "D:\\\\runs\\\\checkpoint-40"}))
    assert find_checkpoint(run) == run / "checkpoint-40"
    for best in ("out/checkpoint-60", None):
        newest.write_text(json.dumps({**state, "best_model_checkpoint": best}))
        assert find_checkpoint(run) == run / "checkpoint-80"
    newest.write_text("[]")
    assert find_checkpoint(run) == run / "checkpoint-40"  # which said that it was the best when it was written


def as_of_acf9a58(folder: Path) -> None:
    """Rewrites a checkpoint as that commit left one: the decision among the task's fields, no arguments, no stamp."""
    saved = json.loads((folder / "fraud_task.json").read_text())
    (folder / "training_args.bin").unlink()
    (folder.parent / "stamp.json").unlink(missing_ok=True)
    task = {name: saved["task"][name] for name in ("instruction", "answers", "neutral_speakers", "max_length")}
    old = {"task": {**task, "threshold": 0.25, "temperature": 1.5, "learned_lines": True},
           **{name: saved[name] for name in ("base", "quantization", "train_data", "averaged", "adapter_sha256")},
           "calibration": {"wish": {"wanted_recall": 0.95}, "n": 9}, "run": "20261101T00",
           "versions": {"python": "3.11.0"},
           "files": {name: sha256 for name, sha256 in saved["files"].items() if name != "training_args.bin"}}
    (folder / "fraud_task.json").write_text(json.dumps(old))


def test_a_checkpoint_of_an_earlier_version_is_read_calibrated_and_found(run, base):
    folder = run / "checkpoint-80"
    as_of_acf9a58(folder)
    lineage = read_checkpoint(folder)
    assert lineage.task == Task(normaliser=0)  # its texts were asked as they were
    assert lineage.decision == Decision(threshold=0.25, temperature=1.5, line_weight=0.5, top_lines=1)
    assert (lineage.base["name"], lineage.checkpoint) == (Path(base).name, "checkpoint-80")
    assert lineage.calibration == {"target": {"wanted_recall": 0.95}, "n": 9}
    require_complete(folder)
    save_calibration(folder, Decision(threshold=0.5), {"n": 1})
    assert read_checkpoint(folder).decision == Decision(threshold=0.5)
    assert find_checkpoint(run) == folder


def test_a_checkpoint_of_an_earlier_version_is_judged_by_its_own_threshold_temperature_and_lines(run, base, eval_file):
    as_of_acf9a58(run / "checkpoint-80")
    model, tokenizer = load_model(base, str(run / "checkpoint-80"), "cpu")
    dialogues = [record["input"] for record in read_records(eval_file)]
    encoder = PromptEncoder(tokenizer, Task(normaliser=0))
    prompts = encoder.prompts(dialogues)
    lines = np.array([scores.max() for scores in score_single_lines(model, encoder, prompts)])
    answers = score_rows(model, rows_of(encoder, prompts))
    expected = expit((logit(answers) + logit(lines)) / 2 / 1.5)
    np.testing.assert_allclose(predict(model, tokenizer, dialogues), expected, atol=1e-4)
    report = evaluate_with_model(model, tokenizer, eval_file, "cpu", progress=False)
    assert (report["threshold"], report["temperature"]) == (0.25, 1.5)
    assert report["tp"] + report["fp"] == int((expected >= 0.25).sum())


@pytest.mark.parametrize("field, value", [("temperature", 0), ("temperature", float("inf")), ("temperature", "1"),
                                          ("bias", float("nan")), ("bias", None),
                                          ("threshold", 60), ("threshold", float("nan")), ("threshold", None),
                                          ("line_weight", 1.5), ("line_weight", "0.3"), ("top_lines", 0)])
def test_a_decision_that_decides_nothing_is_refused_in_memory_and_in_a_task_file(run, field, value):
    with pytest.raises(DataError, match=field):
        Decision(**{field: value})
    path = run / "checkpoint-80" / "fraud_task.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "decision": {**saved["decision"], field: value}}))
    with pytest.raises(DataError, match=field):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("field, value", [
    ("base", None), ("base", {"fingerprint": 1}), ("adapter_sha256", None), ("adapter_sha256", 7), ("averaged", None),
    ("quantization", None), ("quantization", {"type": "nf4"}), ("quantization", {"type": None, "double": False}),
    ("train_data", []), ("task", {**vars(Task()), "max_length": None}), ("task", {**vars(Task()), "instruction": 7})])
def test_a_task_file_damaged_by_an_edit_is_refused_in_one_line_that_names_it(run, field, value):
    path = run / "checkpoint-80" / "fraud_task.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(DataError, match=f"^{path}: not a task file") as caught:
        read_checkpoint(path.parent)
    assert "\n" not in str(caught.value)


def test_a_list_of_files_that_is_none_proves_nothing(run):
    path = run / "checkpoint-80" / "fraud_task.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": None}))
    assert newest_complete_checkpoint(run)[0] == run / "checkpoint-40"


def test_of_a_line_aware_checkpoint_of_november_2026_one_line_counts_as_much_as_the_answer(run):
    path = run / "checkpoint-80" / "fraud_task.json"
    saved = json.loads(path.read_text())
    for line_aware, line_weight in ((True, 0.5), (False, 0.0)):
        decision = {"threshold": 0.4, "temperature": 1.0, "line_aware": line_aware}
        path.write_text(json.dumps({**saved, "decision": decision}))
        found = read_checkpoint(path.parent).decision
        assert (found.threshold, found.line_weight) == (0.4, line_weight)
        assert not line_aware or found.top_lines == 1
    path.write_text(json.dumps({**saved, "decision": {"line_aware": "false"}}))
    with pytest.raises(DataError):
        read_checkpoint(path.parent)


def test_a_decision_may_call_everything_fraud_or_nothing():
    assert [Decision(threshold=threshold).threshold for threshold in (0, 1.0)] == [0, 1.0]


def test_a_run_without_any_finished_checkpoint_is_still_found_for_evaluation(run):
    for folder in checkpoints_in(run):
        unfinish(folder)
    assert newest_complete_checkpoint(run)[0] is None
    assert find_checkpoint(run) == run / "checkpoint-80"


def test_rotation_takes_unfinished_checkpoints_first_then_the_oldest_and_never_the_newest_or_the_best(run):
    for step in (120, 160, 200):
        shutil.copytree(run / "checkpoint-80", run / f"checkpoint-{step}")
    unfinish(run / "checkpoint-160")

    def kept(limit: int | None) -> list[int]:
        rotate_checkpoints(run, run / "checkpoint-120", str(run / "checkpoint-40"), limit)
        return [int(folder.name.split("-")[1]) for folder in checkpoints_in(run)]

    assert kept(None) == [40, 80, 120, 160, 200]
    assert kept(4) == [40, 80, 120, 200]
    assert kept(3) == [40, 120, 200]
    assert kept(1) == [40, 120]


def test_of_a_checkpoint_that_is_linked_to_only_the_link_is_deleted(run, tmp_path):
    kept = (run / "checkpoint-80").rename(tmp_path / "archive")
    before = files_of(kept)
    (run / "checkpoint-80").symlink_to(kept)
    remove_checkpoint(run / "checkpoint-80")
    assert checkpoints_in(run) == [run / "checkpoint-40"] and files_of(kept) == before


def test_a_checkpoint_that_one_stands_in_has_its_name(run, monkeypatch):
    monkeypatch.chdir(run / "checkpoint-80")
    assert read_checkpoint(find_checkpoint(".")).checkpoint == "checkpoint-80"


def test_a_task_file_that_is_not_readable_for_all_is_named_in_one_line(run, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DataError, match="fraud_task.json: Permission denied"):
        read_checkpoint(run / "checkpoint-80")


def test_a_sealed_checkpoint_is_readable_for_others(run_folder):
    files = [path for path in Path(run_folder, "checkpoint-80").iterdir() if path.name != "fraud_task.json"]
    assert files and all(path.stat().st_mode & 0o044 == 0o044 for path in files)
