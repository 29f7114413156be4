"""The layouts are what the README says, train the same, and a failure is told in a line. CPU processes over gloo."""

import json
from pathlib import Path

import pytest
from processes import ROOT, launched, run, run_together

import benchmarks
import evaluate
from benchmarks import several_gpus
from benchmarks.training import ROWS_A_STEP
from data.files import DataError


@pytest.mark.parametrize("layout", several_gpus.LAYOUTS)
def test_every_layout_takes_the_same_rows_a_step(layout):
    words = several_gpus.words_of(layout, 4, ["--max-steps", "1"])
    rows = int(words[words.index("--per-device-train-batch-size") + 1])
    processes = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else 1
    assert rows * processes == ROWS_A_STEP
    assert ("accelerate.commands.launch" in words) == (processes > 1) == (layout != "one")


def test_what_starts_several_processes_tells_them_what_the_tests_processes_are_told(tmp_path):
    told = tmp_path / "told.py"
    told.write_text("import json, os, sys\n"
                    "json.dump(dict(os.environ), open(f'{sys.argv[1]}/' + os.environ['RANK'], 'w'))\n")
    words = several_gpus.words_of("ddp", 2, [str(tmp_path)])
    words[words.index(str(ROOT / "trainer.py"))] = str(told)
    several_gpus.execute(*words, env=several_gpus.environment("cpu"))
    for rank in (0, 1):
        environment = json.loads((tmp_path / str(rank)).read_text())
        assert launched(rank, 2).items() <= environment.items() and environment["MASTER_PORT"].isdecimal()


def train_in_forks(folder: Path):
    """What `execute` does, without starting Python anew for each process."""
    def execute(*words, env):
        script = words.index(str(ROOT / "trainer.py"))
        args = list(words[script + 1:])
        if "--num_processes" in words:
            n = int(words[words.index("--num_processes") + 1])
            assert run_together(args, folder / "log", n, env=env) == [0] * n, (folder / "log.0").read_text()
        else:
            assert run(args, folder / "log", env=env) == 0, (folder / "log").read_text()
    return execute


def test_two_processes_learn_as_one_does(base, train_file, eval_file, tmp_path, monkeypatch):
    monkeypatch.setattr(several_gpus, "execute", train_in_forks(tmp_path))
    output = tmp_path / "report.json"
    assert several_gpus.main(["--model", base, "--train", train_file, "--eval", eval_file, "--layouts", "one", "ddp",
                              "--steps", "3", "--device", "cpu", "--output", str(output)]) == 0
    one, ddp = json.loads(output.read_text())["layouts"].values()
    assert len(one["losses"]) == 3 and one["losses"][-1] < one["losses"][0]
    assert one["largest_loss_difference"] == 0
    assert ddp["losses"] == pytest.approx(one["losses"], abs=1e-3)
    assert ddp["largest_loss_difference"] == max(abs(a - b) for a, b in zip(ddp["losses"], one["losses"]))


@pytest.mark.parametrize(("layout", "rate"), [("one", 80), ("ddp", 160)])
def test_samples_a_second_are_those_of_all_gpus_between_two_lines(layout, rate, monkeypatch):
    """20 steps of 16 rows on each GPU in 4 s; one interval, in which a graph was captured, took longer."""
    monkeypatch.setattr(several_gpus, "execute", lambda *words, env: [
        (at, "{'loss': '1.0'}") for at in (50.0, 54.0, 63.0, 67.0, 71.0)])
    assert several_gpus.samples_per_second(layout, 2, [], "run", "cuda", 160) == pytest.approx(rate)


@pytest.mark.parametrize("layout", ["one", "ddp"])
def test_rows_a_second_are_those_that_the_command_says(layout, base, eval_file, tmp_path, monkeypatch, capsys):
    commands = []

    def execute(*words, env):
        commands.append(words)
        assert evaluate.main(words[words.index(str(ROOT / "evaluate.py")) + 1:]) == 0
        return [(1.0, line) for line in capsys.readouterr().out.splitlines()]

    monkeypatch.setattr(several_gpus, "execute", execute)
    assert several_gpus.rows_per_second(layout, 2, base, eval_file, str(tmp_path / "scores.jsonl"), "cpu") > 0
    assert ("accelerate.commands.launch" in commands[0]) == (layout == "ddp")


def test_a_run_that_printed_too_little_is_not_timed():
    with pytest.raises(DataError):
        benchmarks.seconds_a_step([(1.0, "{'loss': 1}"), (2.0, "{'eval_loss': 1}"), (3.0, "{'loss': 1}")], 10)


def test_on_a_cpu_nothing_passes_for_sharded():
    with pytest.raises(SystemExit):
        several_gpus.main(["--model", "M", "--train", "F", "--eval", "F", "--device", "cpu", "--layouts", "fsdp"])


def test_rows_that_cannot_be_dealt_evenly_are_refused():
    with pytest.raises(SystemExit):
        several_gpus.main(["--model", "M", "--train", "F", "--eval", "F", "--processes", "3"])
