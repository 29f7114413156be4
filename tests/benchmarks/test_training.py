"""The training benchmark on a CPU: every recipe runs on the same rows, and what is counted is counted right."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from helpers import make_records
from safetensors.torch import load_file

import benchmarks
from benchmarks import training
from data.files import DataError
from data.records import write_records
from trainer import load_dataset, load_model

OURS = [name for name, recipe in training.RECIPES.items() if recipe.package is None]
PEERS = [name for name in training.RECIPES if name not in OURS]


@pytest.fixture(scope="module")
def line_file(tmp_path_factory):
    """Records that label their lines, as data.prepare writes them."""
    path = tmp_path_factory.mktemp("lines") / "train.jsonl"
    write_records(path, [{**record, "line_labels": [record["label"], False]} for record in make_records(32)])
    return str(path)


def rows_of(base, path):
    _, tokenizer = load_model(base, "cpu")
    return load_dataset(path, path, tokenizer)[0]


@pytest.mark.parametrize("name", OURS)
def test_every_recipe_makes_a_step_on_records_that_label_their_lines(name, base, line_file):
    rows = rows_of(base, line_file)
    assert "line_labels" in rows.column_names
    found = training.measure(name, base, training.choose_rows(rows, training.RECIPES[name].longest, 16), "cpu", 1)
    assert found["samples_per_second"] > 0 and np.isfinite(found["loss"])


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_skipped_where_its_package_is_missing(name, base, line_file, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    report = training.run(base, line_file, output=str(tmp_path / "training.json"), rows=16, steps=1, rounds=1,
                          device="cpu", recipes=[name])
    assert list(report["skipped"]) == [name] and report["recipes"] == {}


def test_a_peer_that_fails_costs_the_others_nothing(base, line_file, tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("trl: no such argument")

    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    monkeypatch.setattr(training, "measure_apart", fails)
    monkeypatch.setattr(training, "measure", lambda *_: {"samples_per_second": 1.0})
    report = training.run(base, line_file, output=str(tmp_path / "training.json"), rows=16, steps=1, rounds=1,
                          device="cpu", recipes=["trl", "small"])
    assert list(report["recipes"]) == ["small"] and report["skipped"] == {"trl": "trl: no such argument"}
    output = tmp_path / "alone.json"
    assert training.main(["--model", base, "--data", line_file, "--recipes", "trl", "--rows", "16", "--device", "cpu",
                          "--output", str(output)]) == 0
    assert json.loads(output.read_text())["skipped"] == {"trl": "trl: no such argument"}


def test_rounds_take_turns_and_each_figure_is_their_median(base, line_file, tmp_path, monkeypatch):
    speeds = iter([1.0, 10.0, 100.0, 4.0, 2.0])
    monkeypatch.setattr(training, "measure", lambda *_: {"samples_per_second": next(speeds)})
    output = tmp_path / "training.json"
    report = training.run(base, line_file, output=str(output), rows=16, steps=1, rounds=2, device="cpu",
                          recipes=["article", "fast", "fast_6_gb"])
    assert json.loads(output.read_text()) == report and len(report["rounds"]["fast_6_gb"]) == 1
    assert report["recipes"]["article"]["samples_per_second"] == 2.5  # first and fourth
    assert report["recipes"]["fast"]["samples_per_second"] == 6


def test_rounds_take_turns_through_the_rows_and_the_longest_are_the_longest(base, line_file):
    rows = rows_of(base, line_file)
    ids = rows["input_ids"][:]
    assert training.choose_rows(rows, False, 16)["input_ids"][:] == ids[:16]
    assert training.choose_rows(rows, False, 16, round_=1)["input_ids"][:] == ids[16:32]
    longest = training.choose_rows(rows, True, 32)["input_ids"][:]
    assert sorted(map(len, longest))[::2] == sorted(map(len, ids))[-16:]


# ------------------------------------------------------------------------------------------------- a single step


@pytest.fixture
def quick(monkeypatch):
    """One step a point."""
    monkeypatch.setattr(benchmarks, "WARM_UP", 0)
    monkeypatch.setattr(benchmarks, "TIMED", 1)


def test_nf4_is_nearer_to_the_weights_than_fp4_and_double_quantisation_needs_fewer_bits(base, quick):
    found = training.study_quantization(base, "cpu", rows=2, tokens=16)
    errors = {name: row["relative_error"] for name, row in found.items()}
    assert errors["none"] == 0 < errors["nf4"] < errors["fp4"]
    assert errors["nf4_double"] == pytest.approx(errors["nf4"], rel=0.02)
    bits = {name: row["bits_per_weight"] for name, row in found.items()}
    assert bits["none"] == 32  # a CPU computes in fp32
    assert bits["nf4"] == bits["fp4"] == 4 + 32 / 64  # a constant of 32 bits for 64 weights
    assert 4 + 8 / 64 < bits["nf4_double"] < 4.2
    assert all(row["peak_gib"] is None and row["seconds"] > 0 and row["load_seconds"] > 0 for row in found.values())
    assert found["nf4"]["weights_gib"] < found["none"]["weights_gib"]


def test_the_quantisation_error_is_that_of_the_decoders_linear_weights(base, tmp_path):
    model, _ = load_model(base, "cpu", quantization="fp4")
    saved = [weight.float() for name, weight in load_file(f"{base}/model.safetensors").items() if "proj.weight" in name]
    changed = [dequantize_4bit(*quantize_4bit(weight, quant_type="fp4")) - weight for weight in saved]
    expected = torch.cat([part.flatten() for part in changed]).norm() / torch.cat([w.flatten() for w in saved]).norm()
    assert training.storage_of_linear_weights(model, base)["relative_error"] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(DataError):
        training.storage_of_linear_weights(model, str(tmp_path))


def test_a_length_that_does_not_fit_is_null_and_all_logits_are_left_out_beyond_their_limit(base, quick, monkeypatch):
    def fits_24_tokens(model, input_ids, labels):
        assert (labels != -100).sum() == 2 * benchmarks.ANSWER_TOKENS
        if input_ids.shape[1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return benchmarks.all_logits_loss(model, input_ids, labels)

    monkeypatch.setattr(training, "label_position_loss", fits_24_tokens)
    monkeypatch.setattr(training, "ALL_LOGITS_UP_TO", 24)
    found = training.study_lengths(base, "cpu", rows=2, lengths=(16, 24, 32))
    assert list(found["16"]) == list(found["24"]) == ["all_logits", "label_positions"]
    assert found["32"] == {"label_positions": None} and found["24"]["label_positions"]["seconds"] > 0
