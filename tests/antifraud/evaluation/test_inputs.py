"""What a report is about, read before a model is: files of other formats, as asked for."""

import json

import pytest

from antifraud.evaluation.inputs import read_inputs
from data.files import DataError
from data.formats import Reading
from evaluate import main

ALPACA = [{"instruction": "？", "input": "转账", "output": "是"},
          {"instruction": "？", "input": "爬山", "output": "否"}]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(ALPACA, indent=1), encoding="utf-8")
    return str(tmp_path / "f.json")


def test_data_of_another_format_is_read_as_asked_and_refused_otherwise(path):
    inputs = read_inputs(path, reading=Reading("alpaca", label_values={"是": True, "否": False}))
    assert [(record["input"], record["label"]) for record in inputs.records] == [("转账", True), ("爬山", False)]
    assert [number for number, _ in inputs.numbered] == [2, 7]
    with pytest.raises(DataError, match="--inspect"):
        read_inputs(path)


@pytest.mark.parametrize("job", [["--predict", "{path}", "--output", "{path}.out"],
                                 ["--data", "{path}", "--calibrate", "--checkpoint", "none", "--best-f1"]])
def test_only_a_report_reads_other_formats(path, job):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "none", "--layout", "alpaca", *(word.format(path=path) for word in job)])
    assert ended.value.code == 2


def test_predict_names_the_command_that_converts_another_format(path, capsys):
    assert main(["--model", "none", "--predict", path, "--output", f"{path}.out"]) == 2
    assert f"--inspect {path}" in capsys.readouterr().err


def test_a_bad_option_ends_before_a_model_is_looked_for(path, capsys):
    assert main(["--model", "none", "--data", path, "--layout", "alpaca", "--label-values", "是=true"]) == 2
    assert capsys.readouterr().err.startswith(f"{path}:7: ")
