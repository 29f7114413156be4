"""The scoring benchmark compares every method with the plain one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from antifraud.checkpoint import Decision, lineage_of, read_checkpoint, save_task_file
from benchmarks import scoring
from data.files import DataError
from data.prompt import Task
from data.records import read_records


def test_the_scoring_benchmark_compares_every_method_with_the_plain_one(base, run_folder, eval_file, tmp_path):
    output = tmp_path / "scoring.json"
    methods = ["generate", "score", "score_smaller_batches", "score_whole_rows", "score_dequantized", "score_merged"]
    report = scoring.run(base, f"{run_folder}/checkpoint-80", eval_file, methods=methods, device="cpu",
                         output=str(output))
    assert json.loads(output.read_text()) == report and list(report["methods"]) == methods
    assert report["methods"]["score"]["max_probability_difference"] == 0
    assert report["methods"]["score_smaller_batches"]["max_probability_difference"] < 1e-5
    assert report["methods"]["score_whole_rows"]["max_probability_difference"] < 1e-5
    assert report["methods"]["score_dequantized"]["max_probability_difference"] < 1e-6
    assert 0 < report["methods"]["score_merged"]["max_probability_difference"] < 1e-3


def test_beginnings_of_a_dialogue_in_one_row_are_compared_with_each_in_its_own(base, run_folder, eval_file, tmp_path):
    report = scoring.run(base, str(run_folder), eval_file, methods=["beginnings_apart", "beginnings"], device="cpu",
                         rows=3, output=str(tmp_path / "scoring.json"))
    apart, together = report["methods"].values()
    lines = sum(record["input"].count("\n") + 1 for record in read_records(eval_file)[:3])
    assert apart["rows"] == together["rows"] == lines
    assert 0 < together["max_probability_difference"] < 1e-5


def test_an_adapter_that_lacks_a_layer_is_refused_as_everywhere(base, run_folder, eval_file, tmp_path):
    checkpoint = shutil.copytree(f"{run_folder}/checkpoint-80", tmp_path / "checkpoint")
    weights = load_file(checkpoint / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, checkpoint / "adapter_model.safetensors")
    with pytest.raises(DataError, match="adapter does not fit"):  # else the speed of another model would be measured
        scoring.run(base, str(checkpoint), eval_file, methods=["score"], device="cpu", rows=2,
                    output=str(tmp_path / "scoring.json"))


def test_predicting_a_file_is_timed_over_as_many_rows_as_are_asked_for(base, eval_file, tmp_path, monkeypatch):
    monkeypatch.setitem(scoring.METHODS, "predict_file", {})  # nothing compiled
    report = scoring.run(base, "", eval_file, methods=["predict_file"], device="cpu", rows=6, predict_rows=20,
                         output=str(tmp_path / "scoring.json"))
    assert report["methods"]["predict_file"]["rows"] == 20 and report["methods"]["predict_file"]["rows_per_second"] > 0


@pytest.mark.parametrize("merged", [{}, {"dequantize": True, "merge": True}])
def test_a_checkpoint_is_timed_with_its_own_question_and_decision(base, checkpoint, merged):
    lineage = read_checkpoint(checkpoint)
    lineage.task, lineage.decision = Task(instruction="是诈骗吗？"), Decision(threshold=0.3, line_weight=0.5)
    save_task_file(checkpoint, lineage)
    model, encoder = scoring.prepare(base, str(checkpoint), "cpu", **merged)
    assert lineage_of(model).decision == lineage.decision
    assert encoder.task == lineage_of(model).task == lineage.task


def test_16_bit_arithmetic_is_what_tells_plain_scores_from_those_in_32_bit(base, eval_file, tmp_path):
    found = {}
    for dtype in (None, torch.bfloat16):
        report = scoring.run(base, "", eval_file, methods=["score", "score_32_bit"], device="cpu",
                             output=str(tmp_path / "scoring.json"), rows=6, dtype=dtype)
        assert report["methods"]["score"]["rows"] == 6
        found[report["provenance"]["compute_dtype"]] = report["methods"]["score_32_bit"]["max_probability_difference"]
    assert found["torch.float32"] < 1e-6 < 1e-5 < found["torch.bfloat16"] < 0.1


def test_flipped_labels_are_counted_beyond_the_borderline():
    plain = np.array([0.1, 0.495, 0.6, 0.9, 0.48])
    scores = np.array([0.1, 0.505, 0.4, 0.9, 0.52])
    found = scoring.agreement(scores, plain)
    assert found["labels_flipped"] == 3 and found["labels_flipped_beyond_borderline"] == 2
    assert found["max_probability_difference"] == pytest.approx(0.2)
