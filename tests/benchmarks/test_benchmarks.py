"""The benchmarks run on a CPU too, and count right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import gradients, loss_curves, scoring, step_profile, training


def test_the_training_benchmark_runs_each_recipe_on_the_same_rows(base, train_file, tmp_path):
    output = tmp_path / "training.json"
    report = training.run(base, train_file, output=str(output), rows=32, steps=1, rounds=2, device="cpu",
                          recipes=["article", "small", "fast", "small_longest_rows", "fast_whole_rows"])
    assert json.loads(output.read_text()) == report
    assert {name: len(runs) for name, runs in report["rounds"].items()} == {
        "article": 2, "small": 2, "fast": 2, "small_longest_rows": 1, "fast_whole_rows": 1}
    shared, whole = (report["rounds"][name][0]["loss"] for name in ("fast", "fast_whole_rows"))
    assert whole == pytest.approx(shared, rel=0.1)  # they draw their dropout otherwise
    assert 0 < report["max_loss_difference_on_the_same_batches"] < 1e-4
    for found in report["recipes"].values():
        assert found["samples_per_second"] > 0
        assert found["real_tokens_per_second"] / found["samples_per_second"] == pytest.approx(
            np.mean(lengths_of(base, train_file)), rel=0.2)
    assert training.table(report).count("\n") == 6


def lengths_of(base, train_file):
    _, tokenizer = training.load_model(base, "cpu")
    return [len(ids) for ids in training.load_dataset(train_file, train_file, tokenizer)[0]["input_ids"]]


def test_rounds_take_turns_through_the_rows_and_the_longest_are_the_longest(base, train_file):
    _, tokenizer = training.load_model(base, "cpu")
    rows, _ = training.load_dataset(train_file, train_file, tokenizer)
    ids = rows["input_ids"]
    assert training.choose_rows(rows, "first", 16)["input_ids"] == ids[:16]
    assert training.choose_rows(rows, "first", 16, round_=1)["input_ids"] == ids[16:32]
    longest = training.choose_rows(rows, "longest", 32)["input_ids"]
    assert sorted(map(len, longest))[::2] == sorted(map(len, ids))[-16:]


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
    assert scoring.table(report).count("\n") == 7


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


@pytest.mark.parametrize("kernel, kind", [
    ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "dequantise"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
    ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
    ("void cublasLt::splitKreduce_kernel", "matrix products"),
    ("void multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
    ("Memcpy DtoD (Device -> Device)", "copies"),
    ("triton_poi_fused_add_mul_native_dropout_silu_10", "elementwise"),
])
def test_kernels_are_told_apart_by_name(kernel, kind):
    assert step_profile.kind_of(kernel) == kind


def test_a_steps_time_is_its_kernels_and_the_waiting():
    events = [SimpleNamespace(key="nvjet", self_device_time_total=30_000),
              SimpleNamespace(key="triton_add", self_device_time_total=10_000)]
    found = step_profile.milliseconds_by_kind(SimpleNamespace(key_averages=lambda: events), 2, 0.05)
    assert found["matrix products"] == 15 and found["elementwise"] == 5 and found["waiting for the CPU"] == 30


def test_the_memory_curve_adds_up_allocations_and_keeps_the_peak():
    gib = 2**30
    events = [{"action": "alloc", "size": 2 * gib, "time_us": 1000},
              {"action": "segment_alloc", "size": 9, "time_us": 1500},
              {"action": "alloc", "size": 3 * gib, "time_us": 2000},
              {"action": "free_completed", "size": 3 * gib, "time_us": 4000}]
    curve = step_profile.memory_curve(events, gib)
    assert curve == {"milliseconds": [0.0, 0.0, 1.0, 3.0], "gib": [1.0, 3.0, 6.0, 3.0]}


def test_gradients_are_compared_by_the_norm_of_their_difference():
    found = gradients._relative_difference((1.1, torch.tensor([3.0, 4.0])), (1.0, torch.tensor([3.0, 4.5])))
    assert found["loss"] == pytest.approx(0.1) and found["gradients"] == pytest.approx(0.5 / 29.25**0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [gradients, step_profile])
def test_what_needs_a_gpu_says_so(benchmark, base, train_file, tmp_path, capsys):
    assert benchmark.main(["--model", base, "--data", train_file, "--output", str(tmp_path / "out.json")]) == 2
    assert "needs a GPU" in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_the_spread_of_seeds_is_told_from_that_of_recipes():
    curves = {"plain": {"0": {"loss": [4, 2]}, "1": {"loss": [5, 1]}},
              "fast": {"0": {"loss": [4, 3]}, "1": {"loss": [5, 1]}}}
    assert loss_curves.spread(curves) == {"between_seeds": 1.25, "between_recipes": 0.25}


def test_loss_curves_that_are_there_are_not_made_again_unless_a_setting_differs(tmp_path, monkeypatch):
    made = []

    def curve(recipe, seed, args):
        made.append((recipe, seed))
        return {"step": [10], "loss": [1.0 + seed], "eval_loss": 1.0}

    monkeypatch.setattr(loss_curves, "curve", curve)
    output = tmp_path / "curves.json"
    command = ["--model", "M", "--train", "T", "--eval", "E", "--device", "cpu", "--output", str(output)]
    assert loss_curves.main([*command, "--seeds", "0"]) == 0 and "mean_distance" not in json.loads(output.read_text())
    assert loss_curves.main(command) == 0
    assert made == [("plain_not_checkpointed", 0), ("fast", 0), ("plain_not_checkpointed", 1), ("fast", 1)]
    assert json.loads(output.read_text())["mean_distance"] == {"between_seeds": 1.0, "between_recipes": 0.0}
    assert output.with_suffix(".png").is_file()
    assert loss_curves.main([*command, "--learning-rate", "1e-3"]) == 0 and len(made) == 8
