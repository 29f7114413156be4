"""Ablations: a row is made once, survives a kill of the next, and says what it was made of."""

import json
import random

import pytest

from benchmarks import ablations
from data.records import Dialogue, Line, write_dialogues

STEPS = ["max_steps=2", "eval_steps=2", "save_steps=2", "learning_rate=0.01", "per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty frauds with a harmless opening and twenty meetings, of random characters: none resembles another."""
    folder = tmp_path_factory.mktemp("dialogs")
    rng = random.Random(0)

    def line(speaker: str, is_fraud: bool) -> Line:
        return Line(speaker, "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)) + "，好。", is_fraud)

    write_dialogues(folder / "退款.csv", [Dialogue(f"退款/{i}", "退款", (
        line("客服", False), *(line("客服", True) for _ in range(8)))) for i in range(20)])
    write_dialogues(folder / "会议.csv", [Dialogue(f"会议/{i}", "会议", tuple(
        line("发言人1", False) for _ in range(8))) for i in range(20)])
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Prepared data, which tests share as rows do."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def command(base, source, scratch, tmp_path):
    def run(*options: str) -> int:
        return ablations.main(["--model", base, "--source", str(source), "--scratch", str(scratch), "--device", "cpu",
                               "--output", str(tmp_path / "ablations.json"), "--seeds", "3", "--training", *STEPS,
                               *options])
    return run


def test_rows_are_made_one_by_one_and_never_twice(command, eval_file, tmp_path, monkeypatch, capsys):
    names = ["as it is", "noisy copies of half the train set"]
    options = ["--variants", *names, "--also", eval_file]
    make_row = ablations.make_row
    made = []

    def killed_after_one(job, variant, seed):
        if made:
            raise KeyboardInterrupt
        made.append(variant)
        return make_row(job, variant, seed)

    monkeypatch.setattr(ablations, "make_row", killed_after_one)
    assert command(*options) == 130
    first = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert [row["variant"] for row in first] == names[:1]
    monkeypatch.setattr(ablations, "make_row", make_row)
    assert command(*options) == 0
    report = json.loads((tmp_path / "ablations.json").read_text())
    assert report["rows"][:1] == first and [row["variant"] for row in report["rows"]] == names
    plain, noisy = report["rows"]
    assert noisy["train_rows"] == pytest.approx(1.5 * plain["train_rows"], abs=1) and plain["steps"] == 2
    assert plain["judged_on"].keys() == {"test", "eval.jsonl"} and plain["judged_on"]["eval.jsonl"]["n"] == 20
    assert plain["judged_on"]["test"]["n"] == noisy["judged_on"]["test"]["n"]  # the same test dialogues
    assert plain["judged_on"]["test"]["probes"]["speakers_renamed"]["change"]["recall"]["value"] in (0.0, None)
    assert report["provenance"]["device"] == "cpu" and report["provenance"]["versions"]["torch"]
    assert len(capsys.readouterr().out.split("| as it is | 1 |")) == 2

    monkeypatch.setattr(ablations, "make_row", None)  # nothing is left to do
    assert command(*options) == 0
    assert command(*options, "--training", "max_steps=3") == 2
    assert "was made with another training; name another --output" in capsys.readouterr().err


def test_data_is_prepared_ahead_and_shared_by_what_needs_the_same(command, monkeypatch, capsys):
    assert command("--prepare-only", "--variants", "as it is", "rank 64", "no hard negatives") == 0
    first, second, third = capsys.readouterr().out.split()
    assert first == second != third
    monkeypatch.setattr(ablations, "prepare", None)
    assert command("--prepare-only", "--variants", "as it is") == 0


def test_the_table_shows_the_mean_and_the_spread_over_seeds():
    def row(seed: int, f1: float) -> dict:
        figures = {"precision": 0.5, "recall": f1, "f1": f1, "average_precision": 1.0}
        return {"variant": "x", "seed": seed, "judged_on": {"test": {**figures, "probes": {"asr_noise": figures}}}}

    lines = ablations.table({"rows": [row(0, 0.8), row(1, 0.9)]}).split("\n")
    assert lines[2] == ("| x | 2 | 0.500 (0.500 to 0.500) | 0.850 (0.800 to 0.900) | 0.850 (0.800 to 0.900) "
                        "| 1.000 (1.000 to 1.000) | 0.850 (0.800 to 0.900) |")


@pytest.mark.parametrize("content, message", [
    ("[]", "expected a JSON object of variants"), ("{", "not JSON"),
    ('{"x": []}', "variant 'x' must be an object of objects named data, task, training, lora"),
    ('{"x": {"trainer": {}}}', "variant 'x' has 'trainer'; there are data, task, training, lora"),
    ('{"x": {"lora": {"rank": 4}}}', "variant 'x': lora has no option 'rank'"),
    ('{"x": {"data": {"seed": 4}}}', "variant 'x': data has no option 'seed'"),
])
def test_a_bad_file_of_variants_is_said_in_one_line(command, tmp_path, content, message, capsys):
    (tmp_path / "more.json").write_text(content)
    assert command("--more-variants", str(tmp_path / "more.json")) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/more.json: {message}")


def test_unknown_variants_and_missing_files_are_said_before_anything_is_made(command, tmp_path, capsys):
    assert command("--variants", "none such") == 2
    assert capsys.readouterr().err.startswith("no variant 'none such'; there are 'as it is', ")
    assert command("--training", "no_such=1") == 2
    assert capsys.readouterr().err == "--training: training has no option 'no_such'\n"
    assert command("--also", str(tmp_path / "none.jsonl")) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.jsonl: no such file\n"
