"""A prediction that was killed is continued to the same bytes; what is not its own is left alone."""

import errno
import fcntl
import json
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import make_records
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import read_lines, run, stubbed, write_lines
from processes import run_together
from tqdm.auto import tqdm

from antifraud.checkpoint import Decision, Lineage
from antifraud.serving import predict
from antifraud.serving.predict import predict_file
from data.files import DataError
from data.prompt import Task
from evaluate import load_model


@pytest.fixture
def stub():
    with stubbed() as model:
        yield model


# ------------------------------------------------------------------------------------- killed and continued


@pytest.fixture
def job(stub, tmp_path) -> SimpleNamespace:
    """A file of 50 rows, some bad, in chunks of 7, and what an uninterrupted run makes of it."""
    lines = [b"{" if i % 11 == 5 else {"input": "x" * (1 + i * 37 % 99), "id": f"号{i}"} for i in range(50)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    done = run(stub, source, tmp_path / "whole.jsonl", batch_rows=7)
    return SimpleNamespace(model=stub, source=source, target=tmp_path / "out.jsonl", done=done,
                           whole=(tmp_path / "whole.jsonl").read_bytes())


def killed(work) -> bool:
    """Does `work` in a process of its own; whether that was ended by SIGKILL."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # the default one is shared between processes: killed with it, all would wait
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die_at(step: int) -> None:
    """Ends this process, as kill -9 does, at the `step`-th of the places where something was half done."""
    count = iter(range(1, 1000))

    def passing():
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, rows, whole=predict.Output._write):
        passing()
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        self.file.write(text[:len(text) * 2 // 3])  # the kernel may take any part of it before the end comes
        self.file.flush()
        passing()
        os.ftruncate(self.file.fileno(), os.fstat(self.file.fileno()).st_size - len(text) * 2 // 3)
        whole(self, rows)
        passing()

    def write_stamp(path, facts, whole=predict.write_stamp):
        passing()
        whole(path, facts)
        passing()

    predict.Output._write, predict.write_stamp = write, write_stamp  # in the child only


def test_a_run_killed_anywhere_and_started_again_writes_the_same_bytes(job):
    def attempt(step):
        die_at(step)
        run(job.model, job.source, job.target, batch_rows=7)

    steps = 2 + 3 * 8  # the stamp and eight chunks
    for step in range(1, steps + 1):
        for leftover in job.target.parent.glob("out.jsonl*"):
            leftover.unlink()
        assert killed(lambda step=step: attempt(step))
        again = run(job.model, job.source, job.target, batch_rows=7)
        assert job.target.read_bytes() == job.whole
        assert again["resumed_at"] == min(50, 7 * max(0, (step - 2) // 3))
        assert [again[key] for key in ("rows", "errors", "fraud")] == [50, 5, job.done["fraud"]]
    assert not killed(lambda: attempt(steps + 1))


def test_a_run_killed_again_and_again_still_ends(job):
    def attempt():
        die_at(6)  # each run gets one or two chunks done
        run(job.model, job.source, job.target, batch_rows=7)

    kills = 0
    while killed(attempt):
        kills += 1
        assert kills < 20
    assert kills > 3 and job.target.read_bytes() == job.whole


@given(cut=st.floats(0, 1))
@settings(max_examples=40)
def test_an_output_cut_at_any_byte_is_continued_to_the_same_bytes(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    source = write_lines(folder / "in", [{"input": "x" * (i % 9)} for i in range(30)])
    with stubbed() as model:
        run(model, source, folder / "out", batch_rows=4)
        whole = (folder / "out").read_bytes()
        left = int(cut * len(whole))
        os.truncate(folder / "out", left)
        done = run(model, source, folder / "out", batch_rows=4)
    assert (folder / "out").read_bytes() == whole
    assert done["resumed_at"] == (30 if left == len(whole) else whole[:left].count(b"\n") // 4 * 4)
    assert (done["rows"], done["errors"]) == (30, 4)


def test_zeros_that_a_crashed_disk_left_behind_are_cut_off(job):
    run(job.model, job.source, job.target, batch_rows=7)
    job.target.write_bytes(job.whole[:1000] + bytes(500))
    run(job.model, job.source, job.target, batch_rows=7)
    assert job.target.read_bytes() == job.whole


def test_a_finished_output_is_left_alone(job, monkeypatch, capsys):
    run(job.model, job.source, job.target, batch_rows=7)
    before = job.target.stat().st_mtime_ns
    monkeypatch.setattr(predict, "predict_readings", None)  # nothing may be scored
    capsys.readouterr()
    again = run(job.model, job.source, job.target, batch_rows=7)
    assert again == {**job.done, "resumed_at": 50, "rows_per_second": None}
    assert job.target.stat().st_mtime_ns == before and job.target.read_bytes() == job.whole
    assert re.search(f"{job.target}: .*50 rows", capsys.readouterr().out)


def test_a_full_disk_is_said_in_one_line_and_what_was_written_is_kept(job, monkeypatch):
    calls = iter(range(100))

    def fsync(file, real=os.fsync):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="out.jsonl: .*No space left"):
        patch.setattr(os, "fsync", fsync)
        run(job.model, job.source, job.target, batch_rows=7)
    assert run(job.model, job.source, job.target, batch_rows=7)["resumed_at"] >= 14
    assert job.target.read_bytes() == job.whole


def test_a_second_process_on_the_same_output_is_refused(job):
    run(job.model, job.source, job.target, batch_rows=7)
    with open(job.target, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="^[^\n]*out.jsonl: [^\n]+$"):
            run(job.model, job.source, job.target, batch_rows=7)
    run(job.model, job.source, job.target, batch_rows=7)


# ------------------------------------------------------------------------------------- what is not continued


@pytest.mark.parametrize("changed, options", [
    ("input", {}), ("model", {}), ("adapter", {}), ("quantization", {}), ("task", {}), ("versions", {}),
    ("threshold", {"threshold": 0.7}), ("batch_rows", {"batch_rows": 8}),
])
def test_an_output_of_another_job_is_refused_until_restart_is_asked_for(job, monkeypatch, changed, options):
    run(job.model, job.source, job.target, batch_rows=7)
    os.truncate(job.target, 1000)
    kept = job.target.read_bytes()
    lineage = {"model": Lineage(base={"fingerprint": "other"}), "task": Lineage(task=Task(max_length=100)),
               "adapter": Lineage(adapter_sha256="0" * 64), "quantization": Lineage(quantization={"type": "nf4"})}
    if changed in lineage:
        new = lineage[changed]
        new.base = new.base or {"fingerprint": "stub"}
        job.model = SimpleNamespace(lineage=new, device=job.model.device)
    elif changed == "input":
        job.source.write_bytes(job.source.read_bytes().replace(b"x", b"y"))
    elif changed == "versions":
        monkeypatch.setattr(predict, "versions", lambda: {"stub": "2"})
    options = {"batch_rows": 7, **options}
    with pytest.raises(DataError, match=rf"out.jsonl: .*\b{changed}\b.* --restart "):
        run(job.model, job.source, job.target, **options)
    assert job.target.read_bytes() == kept
    assert run(job.model, job.source, job.target, restart=True, **options)["resumed_at"] == 0
    assert len(read_lines(job.target)) == 50
    assert run(job.model, job.source, job.target, **options)["resumed_at"] == 50


def test_a_checkpoint_calibrated_anew_is_said_in_these_words_and_another_one_by_its_name(job):
    run(job.model, job.source, job.target, batch_rows=7)
    decision = Decision(threshold=0.7, temperature=1.5, line_weight=0.3)
    for adapter, said in (("", "the checkpoint was calibrated anew since this was begun"),
                          ("0" * 64, r"was begun with another adapter \([^)]*\)")):  # which has its own calibration
        lineage = Lineage(base={"fingerprint": "stub"}, adapter_sha256=adapter, decision=decision)
        job.model = SimpleNamespace(lineage=lineage, device=job.model.device)
        with pytest.raises(DataError, match=f"out.jsonl: {said}; add --restart to start over$"):
            run(job.model, job.source, job.target, batch_rows=7)
    assert run(job.model, job.source, job.target, batch_rows=7, restart=True)["resumed_at"] == 0
    assert run(job.model, job.source, job.target, batch_rows=7)["resumed_at"] == 50


def test_what_was_begun_before_a_decision_had_a_bias_goes_on_where_it_was(job):
    run(job.model, job.source, job.target, batch_rows=7)
    os.truncate(job.target, 1000)
    stamp = Path(f"{job.target}.meta.json")
    facts = json.loads(stamp.read_text())
    del facts["decision"]["bias"]
    stamp.write_text(json.dumps(facts))
    assert run(job.model, job.source, job.target, batch_rows=7)["resumed_at"] > 0
    assert job.target.read_bytes() == job.whole


@pytest.mark.parametrize("sidecar", [None, "", "[]", "\x00"])
def test_a_file_that_no_run_is_known_to_have_written_is_never_overwritten(job, sidecar):
    job.target.write_text("my notes\n")
    if sidecar is not None:
        Path(f"{job.target}.meta.json").write_text(sidecar)
    with pytest.raises(DataError, match="out.jsonl.* --restart"):
        run(job.model, job.source, job.target, batch_rows=7)
    assert job.target.read_text() == "my notes\n"


@pytest.mark.parametrize("spoil", [lambda lines: lines[1:], lambda lines: [lines[0], *lines],
                                   lambda lines: [b"note\n", *lines[1:]], lambda lines: [b"[]\n", *lines[1:]]])
def test_an_output_whose_lines_were_changed_is_not_continued(job, spoil):
    run(job.model, job.source, job.target, batch_rows=7)
    job.target.write_bytes(b"".join(spoil(job.whole.splitlines(keepends=True))))
    with pytest.raises(DataError, match=r"out.jsonl:[12]: .* --restart"):
        run(job.model, job.source, job.target, batch_rows=7)


# ------------------------------------------------------------------------------------------- several processes


def test_two_processes_write_what_one_does_and_continue_what_one_began(base, run_folder, tmp_path):
    loaded = load_model(base, run_folder, "cpu")
    lines = [b"?" if i == 20 else {**record, "id": i} for i, record in enumerate(make_records(45))]
    source = write_lines(tmp_path / "in.jsonl", lines)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    predict_file(*loaded, source, one, batch_rows=8, progress=False)
    predict_file(*loaded, source, two, batch_rows=8, progress=False)
    os.truncate(two, 2000)  # what one process had done when it was killed
    begun = two.read_bytes().count(b"\n") // 8
    assert 0 < begun < 5
    command = ["--model", base, "--checkpoint", run_folder, "--device", "cpu", "--predict", str(source),
               "--output", str(two), "--batch-rows", "8"]
    codes = run_together(command, tmp_path / "log", 2, script="evaluate.py")
    first, second = ((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert codes == [2, 2], first
    assert two.read_bytes() == one.read_bytes()
    assert "45 rows" in first and "1 of 45 rows" in first
    assert "rows" not in second and "predicting" not in second
