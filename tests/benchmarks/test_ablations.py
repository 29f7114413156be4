"""Ablations: a row is made once, by the eval split alone, and says what it was made of."""

import json
import random
import shlex

import pytest

import evaluate
import trainer
from antifraud.training.command import parser
from benchmarks import ablations
from data import prepare
from data.files import DataError
from data.records import Dialogue, Line, read_records, write_dialogues, write_records

STEPS = "--max-steps 2 --eval-steps 2 --save-steps 2 --learning-rate 0.01 --per-device-train-batch-size 4"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty frauds with a non-fraud opening and twenty meetings, of random characters: none resembles another."""
    folder = tmp_path_factory.mktemp("dialogs")
    rng = random.Random(0)

    def line(speaker: str, is_fraud: bool) -> Line:
        return Line(speaker, "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)) + "，好。", is_fraud)

    write_dialogues(folder / "退款.csv", [Dialogue(f"退款/{i}", "退款", (
        line("客服", False), *(line("客服", True) for _ in range(8)))) for i in range(20)])
    write_dialogues(folder / "会议.csv", [Dialogue(f"会议/{i}", "会议", tuple(
        line("发言人1", False) for _ in range(8))) for i in range(20)])
    return folder


@pytest.fixture
def command(base, tmp_path):
    def run(*options: str) -> int:
        return ablations.main(["--model", base, "--data", str(tmp_path / "data"), "--device", "cpu", "--output",
                               str(tmp_path / "ablations.json"), "--seeds", "3", "--train", STEPS, *options])
    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """The same commands without a process each: starting one takes longer than its work."""
    mains = {"trainer.py": trainer.main, "evaluate.py": evaluate.main, "data.prepare": prepare.main}

    def execute(*words):
        words = [str(word) for word in words if word != "-m"]
        assert mains[words[0]](words[1:]) == 0
    monkeypatch.setattr(ablations, "execute", execute)


def test_a_row_is_made_by_the_real_commands_once_and_never_reads_test(command, source, tmp_path, monkeypatch,
                                                                      in_this_process):
    assert command("--source", str(source), "--variants", "augment-1", "--prepare-only") == 0
    assert command("--source", str(source), "--variants", "base", "--prepare-only") == 0
    base, augmented = tmp_path / "data" / "base-3", tmp_path / "data" / "augment-1-3"
    assert len(read_records(augmented / "train.jsonl")) > len(read_records(base / "train.jsonl"))
    assert read_records(augmented / "eval.jsonl") == read_records(base / "eval.jsonl")
    for folder in base, augmented:
        (folder / "test.jsonl").unlink()
    write_records(base / "ordinary_eval.jsonl", [
        {"input": "甲: 你好\n乙: 再见", "label": False, "case": f"call-{i}", "source": "chat"} for i in range(2)])
    assert command("--variants", "augment-1") == 0
    report = json.loads((tmp_path / "ablations.json").read_text())
    row = report["rows"][0]
    assert (row["variant"], row["seed"], row["steps"]) == ("augment-1", 3, 2)
    assert row["settings"]["prepare"] == [*shlex.split(ablations.PREPARE), "--augment", "1"]
    assert row["ordinary"]["by_source"]["chat"]["calls"] == 2 and row["ordinary"]["at_most_per_hundred_calls"] == 5
    assert row["ordinary"]["by_source"]["chat"]["false_alarms_per_hundred_calls"] == 0  # 5 in 100 of two are none
    assert 0 < row["f1"] <= 1 and 0 < row["average_precision"] <= 1 and row["eval_loss"] > 0
    assert len(row["provenance"]["eval"]) == 64 and row["provenance"]["device"] == "cpu"
    monkeypatch.setattr(ablations, "make_row", lambda *_: pytest.fail("a row was made twice"))
    assert command("--variants", "augment-1") == 0
    assert command("--variants", "augment-1", "--prepare", "--augment 0.25") == 2  # the same name, other options
    assert command("--variants", "augment-1", "--ordinary-eval", "talk.csv") == 2
    assert json.loads((tmp_path / "ablations.json").read_text()) == report


def test_a_variant_may_come_with_the_command(command, monkeypatch):
    made = []

    def make_row(job, name, seed):
        made.append((name, job.variants[name].train))
        return dict.fromkeys(("f1", "precision", "recall", "average_precision", "eval_loss", "train_seconds"), 0.5)
    monkeypatch.setattr(ablations, "make_row", make_row)
    assert command("--variant", "fast=--learning-rate 2e-4 --seed 9", "--variant", "slow=--learning-rate 1e-6") == 0
    assert made == [("fast", "--learning-rate 2e-4 --seed 9"), ("slow", "--learning-rate 1e-6")]
    assert command("--variants", "base", "--variant", "fast=--learning-rate 2e-4 --seed 9") == 0
    assert made[2:] == [("base", "")]  # fast is there already
    for wrong in ("base=--learning-rate 1", "--learning-rate 1", "=x"):
        with pytest.raises(SystemExit):
            command("--variant=" + wrong)


def test_ordinary_talk_for_choosing_is_prepared_with_the_rest(command, source, tmp_path, in_this_process):
    talk = [Dialogue(f"聊天/{i}", "聊天", (Line("甲", chr(0x4E00 + i) * 12, False),)) for i in range(3)]
    write_dialogues(tmp_path / "聊天.csv", talk)
    assert command("--source", str(source), "--ordinary-eval", str(tmp_path / "聊天.csv"), "--variants", "base",
                   "--prepare-only") == 0
    calls = read_records(tmp_path / "data" / "base-3" / "ordinary_eval_calls.jsonl")
    assert {record["case"] for record in calls} == {dialogue.case for dialogue in talk}


def test_data_that_is_not_there_is_refused_before_a_training(command, capsys):
    assert command("--variants", "base") == 2
    assert "base-3" in capsys.readouterr().err


def test_a_command_that_fails_is_named_with_what_it_said():
    with pytest.raises(DataError, match="exit code 3 .* no room"):
        ablations.execute("-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)")


@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_every_variant_has_options_that_the_trainer_knows(name):
    options = [*shlex.split(ablations.TRAIN), *shlex.split(ablations.VARIANTS[name].train)]
    parser().parse_args(["--model", "m", "--train", "t", "--eval", "e", "--output", "o", *options])


def _report(path, *rows):
    path.write_text(json.dumps({"rows": [{"variant": name, "seed": seed, "f1": f1, "precision": f1, "recall": f1,
                                          "average_precision": f1, "eval_loss": 0.1, "train_seconds": 1.0}
                                         for name, seed, f1 in rows]}))
    return str(path)


def test_merging_adds_rows_and_refuses_two_that_differ(tmp_path):
    one = _report(tmp_path / "1.json", ("base", 0, 0.90), ("base", 1, 0.92))
    other = _report(tmp_path / "2.json", ("rank-8", 0, 0.95), ("base", 0, 0.90))
    output = str(tmp_path / "all.json")
    assert ablations.main(["--merge", one, other, "--output", output]) == 0
    assert len(json.loads((tmp_path / "all.json").read_text())["rows"]) == 3
    first, second = [line.split(" | ") for line in ablations.table(ablations.read_report(output)).splitlines()[2:]]
    assert first[0] == "| rank-8" and second[:3] == ["| base", "2", "0.9100"]
    assert ablations.main(["--merge", _report(tmp_path / "3.json", ("base", 0, 0.5)), "--output", output]) == 2
    assert ablations.main(["--merge", str(tmp_path / "absent.json"), "--output", output]) == 2
