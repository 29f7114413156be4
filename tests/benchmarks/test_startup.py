"""The start's parts add up to its total, and are what the two commands do."""

import json
import time

import pytest

from benchmarks import startup
from data.files import DataError


def test_the_parts_add_up_to_the_total_which_begins_with_the_process():
    parts = {"imports": "import time", "model": "time.sleep(0.3)",
             "first step": "time.sleep(float(PAUSE)); print('a loss')"}
    before = time.perf_counter()
    found = startup.start(parts, {"PAUSE": "0.1"})
    wall = time.perf_counter() - before
    assert list(found["parts"]) == [startup.INTERPRETER, "imports", "model", "first step"]
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"], abs=1e-6)
    assert found["parts"]["model"] >= 0.3 and 0.1 <= found["parts"]["first step"] < found["seconds"] <= wall
    assert found["parts"][startup.INTERPRETER] > 0


def test_modules_are_counted_for_their_package():
    log = ("import time: self [us] | cumulative | imported package\n"
           "import time:       250 |        900 |   torch.nn\n"
           "import time:      1750 |       1750 | torch\n"
           "a warning\n"
           "import time:      3000 |       5000 |     peft.auto\n")
    assert startup.seconds_by_package(log) == {"peft": 0.003, "torch": 0.002}


def test_imports_are_in_the_report_whichever_part_makes_them(monkeypatch):
    monkeypatch.setattr(startup, "PACKAGES_SHOWN", 1000)
    imports = startup.start({"imports": "import colorsys", "model": "", "data": "import wave"})["imports"]
    assert {"colorsys", "wave"} <= set(imports) and "torch" not in imports
    assert list(imports.values()) == sorted(imports.values(), reverse=True)


def test_a_start_that_fails_says_why():
    with pytest.raises(DataError, match="a start failed: ZeroDivisionError: division by zero"):
        startup.start({"imports": "import colorsys", "model": "1 / 0", "data": "import wave"})


def test_the_second_of_two_starts_is_reported(monkeypatch):
    seconds = iter([9.0, 4.0])
    monkeypatch.setattr(startup, "start", lambda parts, names: {"seconds": next(seconds), "parts": {}, "imports": {}})
    assert startup.measure({}, {}) == {"seconds": 4.0, "parts": {}, "imports": {}, "seconds_of_a_first_start": 9.0}


@pytest.mark.parametrize("parts", [startup.TRAINING, startup.SCORING], ids=["training", "scoring"])
def test_the_parts_train_a_step_and_score_a_row(parts, base, train_file, eval_file, tmp_path):
    names = {"MODEL": base, "CHECKPOINT": "", "TRAIN": train_file, "DATA": eval_file, "DEVICE": "cpu",
             "OUTPUT": str(tmp_path)}
    for code in parts.values():  # here, where everything is imported already
        exec(code, names)
    if "built" in names:
        assert names["built"].state.global_step == 1
        assert not any(tmp_path.iterdir())  # nothing else is done, nothing is saved
    else:
        assert len(names["prompts"]) == 1


def test_the_command_writes_both_starts_and_prints_their_parts(monkeypatch, base, eval_file, tmp_path, capsys):
    monkeypatch.setattr(startup, "TRAINING", {"imports": "import json", "first step": "assert TRAIN and OUTPUT"})
    monkeypatch.setattr(startup, "SCORING", {"imports": "import json", "first row": "assert DATA"})
    path = tmp_path / "startup.json"
    options = ["--train", eval_file, "--data", eval_file, "--device", "cpu", "--output", str(path)]
    assert startup.main(["--model", base, *options]) == 0
    report = json.loads(path.read_text())
    assert report["training"]["seconds"] > 0 and report["scoring"]["seconds_of_a_first_start"] > 0
    assert report["provenance"]["versions"]["torch"] and report["device"] == "cpu"
    printed = capsys.readouterr().out
    assert "| first step |" in printed and "| first row | - |" in printed
