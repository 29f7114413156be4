"""What a report is about, read before a model is; another format is refused with the command that converts it."""

import json
import shlex

import numpy as np
import pytest

import data.inspection
import trainer
from antifraud.evaluation import calibration
from antifraud.evaluation.calibration import quiet_above
from antifraud.evaluation.calls import ordinary_report
from antifraud.evaluation.inputs import read_inputs
from data.records import write_records
from evaluate import main

ALPACA = [{"instruction": "？", "input": "转账", "output": "是"},
          {"instruction": "？", "input": "爬山", "output": "否"}]


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "我的 数据"
    folder.mkdir()
    (folder / "f.json").write_text(json.dumps(ALPACA, indent=1), encoding="utf-8")
    return str(folder / "f.json")


def test_a_case_of_two_ordinary_files_is_two_calls(tmp_path):
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for file in files:
        write_records(file, [{"input": "甲: 好", "label": False, "case": "1"}, {"input": "乙: 好", "label": False}])
    ordinary = read_inputs(files[0], ordinary=files).ordinary
    assert ordinary_report(ordinary, np.zeros(4), 0.5)["all"]["calls"] == 4
    chosen_on = calibration._read(files[0], files)[1]
    assert quiet_above(chosen_on, np.array([0.9, 0.1, 0.8, 0.1]), 25) == 0.8  # one of four calls may alarm


JOBS = {"report": ["--data", "{path}"], "predict": ["--predict", "{path}", "--output", "{path}.out"],
        "calibrate": ["--data", "{path}", "--calibrate", "--checkpoint", "none", "--best-f1"]}


@pytest.mark.parametrize("job", JOBS)
def test_another_format_is_refused_with_a_command_that_leads_to_one_that_converts_it(path, capsys, job):
    assert main(["--model", "none", *(word.format(path=path) for word in JOBS[job])]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    inspect = shlex.split(said.partition("python -m data.prepare ")[2])
    assert data.inspection.main(inspect) == 0
    said = capsys.readouterr().out
    convert = shlex.split(said.partition("to convert it: python -m data.prepare ")[2])
    assert data.inspection.main(convert) == 0
    inputs = read_inputs(convert[-1])
    assert [(record["input"], record["label"]) for record in inputs.records] == [("转账", True), ("爬山", False)]


def test_the_trainer_refuses_another_format_in_the_same_way(path, tmp_path, capsys):
    assert trainer.main(["--model", "none", "--train", path, "--eval", path, "--output", str(tmp_path / "run")]) == 2
    assert shlex.join(["--inspect", path]) in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--answers", "是", "否"], ["--max-length", "many"],
                                     ["--calibrate", "--checkpoint", "none", "--best-f1", "--instruction", "？"]])
def test_a_question_that_cannot_be_asked_ends_before_a_model_is_looked_for(tmp_path, options, capsys):
    good = tmp_path / "good.jsonl"
    good.write_text('{"input": "甲: 好", "label": true}\n', encoding="utf-8")
    try:
        code = main(["--model", "none", "--data", str(good), *options])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and "no such folder" not in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--calibrate", "--checkpoint", "none", "--best-f1"], ["--ordinary", "F"]])
def test_no_output_takes_the_place_of_an_input_or_of_its_own_picture(tmp_path, more, capsys):
    given = tmp_path / "given.jsonl"
    given.write_text('{"input": "甲: 好", "label": true}\n', encoding="utf-8")
    data = ["--data", str(given)] if "--ordinary" not in more else ["--data", str(tmp_path / "other.jsonl")]
    more = [str(given) if word == "F" else word for word in more]
    assert main(["--model", "none", *data, *more, "--output", str(given)]) == 2
    assert capsys.readouterr().err == f"{given}: is the input; name another file for the output\n"
    with pytest.raises(SystemExit):
        main(["--model", "none", "--data", str(given), "--output", str(tmp_path / "report.png")])


@pytest.mark.parametrize("peer", ["other=theirs/given.jsonl", "other=theirs/none.jsonl,theirs/given.jsonl",
                                  "encoder=theirs"])
def test_no_output_takes_the_place_of_another_classifiers_predictions(tmp_path, peer, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    for file in (tmp_path / "given.jsonl", tmp_path / "theirs" / "given.jsonl"):
        file.write_text('{"input": "甲: 好", "label": true}\n', encoding="utf-8")
    given = "theirs/given.jsonl"
    assert main(["--model", "none", "--data", "given.jsonl", "--peer", peer, "--output", given]) == 2
    assert capsys.readouterr().err == f"{given}: is the input; name another file for the output\n"


def test_no_stamp_of_predictions_takes_the_place_of_what_is_predicted(tmp_path, capsys):
    given = tmp_path / "out.jsonl.meta.json"
    given.write_text('{"input": "甲: 好"}\n', encoding="utf-8")
    assert main(["--model", "none", "--predict", str(given), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err == f"{given}: is the input; name another file for the output\n"
