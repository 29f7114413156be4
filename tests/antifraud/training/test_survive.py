"""A run may be killed at any moment, run out of disk or of memory: it goes on where it was, and loses nothing."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import train_briefly
from processes import kill_at_write, limit_file_size, run, snapshot_each_write, start
from safetensors.torch import load_file
from transformers import TrainerCallback

import trainer as trainer_module
from antifraud.checkpoint import checkpoints_in, newest_complete_checkpoint, require_complete, seal_checkpoint
from antifraud.training import checkpoints

ADAPTER = "adapter_model.safetensors"
STEPS = 6


@pytest.fixture(scope="module")
def arguments(base, train_file, eval_file):
    """The command's arguments for two epochs of three steps into `output`: a checkpoint a step, the last two kept."""
    def build(output, *more: str) -> list[str]:
        return ["--model", base, "--train", train_file, "--eval", eval_file, "--output", str(output), "--device", "cpu",
                "--max-steps", str(STEPS), "--eval-steps", "1", "--save-steps", "1", "--logging-steps", "1",
                "--save-total-limit", "2", "--learning-rate", "1e-2", "--per-device-train-batch-size", "16",
                "--disable-tqdm", "true", "--resume", *more]
    return build


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> Path:
    """The uninterrupted run, and in ``snapshots/`` what a kill at each of its writes would have left."""
    folder = tmp_path_factory.mktemp("whole")
    output = folder / "run"
    output.mkdir()
    (folder / "snapshots").mkdir()
    before = (snapshot_each_write, str(output), str(folder / "snapshots"))
    assert run(arguments(output), folder / "log", before=before) == 0, (folder / "log").read_text()
    return folder


def history(output: Path) -> list[dict]:
    """The log history at the last step, without what a clock measured."""
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [{name: value for name, value in row.items() if not re.search("runtime|per_second", name)}
            for row in state["log_history"]]


def assert_same_end(whole: Path, output: Path) -> None:
    one, other = (load_file(folder / f"checkpoint-{STEPS}" / ADAPTER) for folder in (whole / "run", output))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert history(whole / "run") == history(output) and len(history(output)) == 2 * STEPS


def newest_step(output: Path) -> int:
    folder, _ = newest_complete_checkpoint(output)
    return int(folder.name.split("-")[1]) if folder else 0


# ----------------------------------------------------------------------------------------------- being killed


def test_a_run_killed_again_and_again_ends_as_the_uninterrupted_one(whole, arguments, tmp_path):
    output = tmp_path / "run"
    reached = 0
    for number, write in enumerate([1, 31, 18, 70]):
        log = tmp_path / f"log.{number}"
        assert run(arguments(output), log, before=(kill_at_write, str(output), write)) == -9, log.read_text()
        assert newest_step(output) >= reached  # nothing is lost
        reached = newest_step(output)
    assert 0 < reached < STEPS
    assert run(arguments(output), tmp_path / "log") == 0
    said = (tmp_path / "log").read_text()
    assert f"{output}/checkpoint-{reached}\n" in said
    assert_same_end(whole, output)
    assert len(checkpoints_in(output)) == 2


def test_at_every_moment_of_writing_a_complete_checkpoint_is_found_and_never_an_older_one_than_before(whole):
    """Snapshots before each write: what is half written is passed over with a reason."""
    steps, half_written = [], 0
    for snapshot in sorted((whole / "snapshots").iterdir()):
        folder, passed_over = newest_complete_checkpoint(snapshot)
        steps.append(newest_step(snapshot))
        half_written += bool(passed_over)
        assert all(re.search(r"checkpoint-\d: .+", line) for line in passed_over)
        assert folder is None or (folder / "optimizer.pt").is_file()
    assert steps == sorted(steps) and set(steps) == set(range(STEPS + 1))
    assert half_written > 10 * STEPS


def test_what_a_kill_left_is_written_anew_where_it_lies(whole, arguments, tmp_path):
    """A file that only the killed run wrote does not end up in the new checkpoint."""
    output = tmp_path / "run"
    half_written = (folder for folder in sorted((whole / "snapshots").iterdir())
                    if newest_step(folder) == 4 and (folder / "checkpoint-5" / "optimizer.pt").exists())
    shutil.copytree(next(half_written), output)
    (output / "checkpoint-5" / "left.bin").write_bytes(b"half")
    assert run(arguments(output), tmp_path / "log") == 0
    assert_same_end(whole, output)
    assert not (output / "checkpoint-5" / "left.bin").exists()
    require_complete(output / "checkpoint-5")


def test_resuming_a_run_that_had_ended_changes_nothing(whole, arguments, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(whole / "run", output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert run(arguments(output), tmp_path / "log") == 0
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.suffix != ".png"} == before


def test_early_stopping_counts_on_after_an_interruption(base, train_file, eval_file, tmp_path):
    options = {"eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "logging_steps": 1}
    train_briefly(base, train_file, eval_file, tmp_path, max_steps=4, **options)
    for _ in range(2):  # the second time it had already stopped
        folder, _ = newest_complete_checkpoint(tmp_path)
        resumed = train_briefly(base, train_file, eval_file, tmp_path, max_steps=40, resume=str(folder), **options)
        assert resumed.state.global_step == 6  # the first evaluation is the best, then patience 5


def test_sigterm_stops_like_ctrl_c_and_says_how_to_go_on(arguments, tmp_path):
    output = tmp_path / "run"
    process = start(arguments(output, "--max-steps", "500"), tmp_path / "log")
    for _ in range(600):
        if newest_step(output):
            break
        time.sleep(0.1)
    process.terminate()
    process.join(60)
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert process.exitcode == 130
    assert re.search(rf"{output}/checkpoint-\d+ .* --resume --output {output}$", last)


# ------------------------------------------------------------------------------------ sealed in the background


def test_training_goes_on_while_a_checkpoint_is_sealed_and_ends_once_it_is(base, train_file, eval_file, tmp_path,
                                                                          monkeypatch):
    next_step, in_time = threading.Event(), []

    def seal_slowly(folder):
        in_time.append(next_step.wait(60))
        seal_checkpoint(folder)

    class TellsOfStep3(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                assert not checkpoint_is_sealed(tmp_path / "checkpoint-2")
                next_step.set()

    monkeypatch.setattr(checkpoints, "seal_checkpoint", seal_slowly)
    train_briefly(base, train_file, eval_file, tmp_path, max_steps=4, save_steps=2, callbacks=[TellsOfStep3()])
    assert in_time == [True, True]
    assert checkpoint_is_sealed(tmp_path / "checkpoint-2") and checkpoint_is_sealed(tmp_path / "checkpoint-4")


def checkpoint_is_sealed(folder: Path) -> bool:
    return "files" in json.loads((folder / "fraud_task.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_that_cannot_be_sealed_stops_the_run_at_the_next_or_at_its_end(
        base, train_file, eval_file, tmp_path, monkeypatch, step):
    def refuse(folder):
        if folder.name == f"checkpoint-{step}":
            raise OSError(28, "No space left on device")
        seal_checkpoint(folder)

    monkeypatch.setattr(checkpoints, "seal_checkpoint", refuse)
    with pytest.raises(checkpoints.CheckpointNotWritten, match=f"checkpoint-{step}: "):
        train_briefly(base, train_file, eval_file, tmp_path, max_steps=4, save_steps=2)
    assert (tmp_path / "checkpoint-4").exists() == (step == 4)


# ----------------------------------------------------------------------------------------- disk and memory


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(whole, arguments, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(next(folder for folder in sorted((whole / "snapshots").iterdir()) if newest_step(folder) == 3),
                    output)
    for n_bytes, not_whole in ((5000, "README.md"), (100_000, ADAPTER), (200_000, "optimizer.pt")):
        assert run(arguments(output), log, before=(limit_file_size, n_bytes)) == 2, log.read_text()
        last = log.read_text().splitlines()[-1]
        assert last.startswith(f"{output}/checkpoint-4: ")
        assert f"{output}/checkpoint-3 " in last and "--resume" in last
        assert "Traceback" not in log.read_text() and newest_step(output) == 3
        written = output / "checkpoint-4" / not_whole
        assert not written.exists() or written.stat().st_size in (0, n_bytes)


def test_running_out_of_memory_in_training_is_one_line_that_says_what_to_change(
        arguments, tmp_path, monkeypatch, capsys):
    class OutOfMemoryAtStep3(trainer_module.LabelPositionTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "LabelPositionTrainer", OutOfMemoryAtStep3)
    assert trainer_module.main(arguments(tmp_path / "run")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--recipe small" in last and "--tokens-per-micro-batch" in last
    assert f"{tmp_path}/run/checkpoint-2 " in last and "--resume" in last


def test_running_out_of_memory_in_loading_is_one_line_too(arguments, tmp_path, monkeypatch, capsys):
    def load_model(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer_module, "load_model", load_model)
    assert trainer_module.main(arguments(tmp_path / "run")) == 2
    *_, resuming, error = capsys.readouterr().err.splitlines()  # there is nothing to resume from, and it ends
    assert f"{tmp_path}/run" in resuming and "out of memory" in error and "checkpoint-" not in error
