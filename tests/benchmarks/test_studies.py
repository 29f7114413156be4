"""The studies of the recipe's choices measure what they say, and lose nothing when one of them fails."""

import json
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file

from benchmarks import studies
from evaluate import load_model

FEW = studies.Points(rows=2, tokens=16, lengths=(16, 24, 32), batch_sizes=(1, 2))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned(base):
    return studies.with_adapters(load_model(base, "cpu")[0])


@pytest.fixture
def quick(monkeypatch):
    """One step a point."""
    monkeypatch.setattr(studies, "WARM_UP", 0)
    monkeypatch.setattr(studies, "TIMED", 1)


def test_nf4_is_nearer_to_the_weights_than_fp4_and_double_quantisation_needs_fewer_bits(base, quick):
    found = studies.study_quantization(base, CPU, FEW)
    errors = {name: row["relative_error"] for name, row in found.items()}
    assert errors["none"] == 0 < errors["nf4"] < errors["fp4"]
    assert errors["nf4_double"] == pytest.approx(errors["nf4"], rel=0.02)
    bits = {name: row["bits_per_weight"] for name, row in found.items()}
    assert bits["none"] == 32  # a CPU computes in fp32
    assert bits["nf4"] == bits["fp4"] == 4 + 32 / 64  # a constant of 32 bits for 64 weights
    assert 4 + 8 / 64 < bits["nf4_double"] < 4.2
    assert all(row["peak_gib"] is None and row["seconds"] > 0 and row["load_seconds"] > 0 for row in found.values())
    assert found["nf4"]["weights_gib"] < found["none"]["weights_gib"]


def test_the_quantisation_error_is_that_of_the_decoders_linear_weights(base):
    model, _ = load_model(base, "cpu", quantization="fp4")
    saved = [weight.float() for name, weight in load_file(f"{base}/model.safetensors").items() if "proj.weight" in name]
    changed = [dequantize_4bit(*quantize_4bit(weight, quant_type="fp4")) - weight for weight in saved]
    expected = torch.cat([part.flatten() for part in changed]).norm() / torch.cat([w.flatten() for w in saved]).norm()
    assert studies.storage_of_linear_weights(model, base)["relative_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_both_losses_are_the_same_number(tuned):
    batch = studies.random_batch(tuned.eval(), rows=3, tokens=20)
    ours, models_own = studies.label_position_loss(tuned, **batch), studies.all_logits_loss(tuned, **batch)
    assert ours.item() == pytest.approx(models_own.item(), abs=1e-5)
    assert (batch["labels"] != -100).sum() == 3 * studies.ANSWER_TOKENS


def test_a_point_that_does_not_fit_is_null_and_the_others_are_measured(tuned, quick, monkeypatch):
    def fits_24_tokens(model, input_ids, labels):
        if input_ids.shape[1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return studies.all_logits_loss(model, input_ids, labels)

    monkeypatch.setattr(studies, "label_position_loss", fits_24_tokens)
    found = studies.study_lengths(tuned, studies.Points(rows=2, lengths=(16, 32, 24)))
    assert found["32"]["label_positions"] is None
    for measured in (found["16"]["label_positions"], found["24"]["label_positions"], found["32"]["all_logits"]):
        assert measured["seconds"] > 0
    assert "out of memory" in studies.table({"lengths": found})


def test_all_logits_are_left_out_beyond_their_limit(tuned, quick, monkeypatch):
    monkeypatch.setattr(studies, "ALL_LOGITS_UP_TO", 24)
    found = studies.study_lengths(tuned, FEW)
    assert {tokens: list(point) for tokens, point in found.items()} == {
        "16": ["all_logits", "label_positions"], "24": ["all_logits", "label_positions"], "32": ["label_positions"]}


def test_an_optimisers_state_is_two_numbers_a_parameter(tuned):
    n = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    found = studies.study_optimizers(tuned, ["adamw_torch", "adamw_torch_fused"])
    assert all(row["state_bytes_on_device"] == 2 * 4 * n for row in found.values())


def test_8_bit_states_are_smaller_where_tensors_are_large_enough_for_them():
    model = torch.nn.Linear(64, 128, bias=False)  # bitsandbytes leaves tensors below 4,096 numbers in 32 bit
    model.device = CPU
    found = studies.study_optimizers(model, ["adamw_torch", "adamw_8bit"])
    assert found["adamw_torch"]["state_bytes_on_device"] == 8 * 64 * 128
    assert 2 * 64 * 128 < found["adamw_8bit"]["state_bytes_on_device"] < 3 * 64 * 128


def test_managed_memory_is_counted_apart_and_shared_tables_once():
    paged, table = torch.zeros(1000, dtype=torch.uint8), torch.zeros(256)
    paged.is_paged = True
    states = {0: {"step": 1, "state1": paged, "qmap1": table}, 1: {"step": torch.tensor(1.0), "qmap1": table}}
    assert studies.state_bytes(SimpleNamespace(state=states)) == {
        "state_bytes_on_device": 1024, "state_bytes_managed": 1000}


def test_the_report_is_written_after_each_study(base, quick, monkeypatch, tmp_path):
    def fails(model, points):
        raise RuntimeError("the GPU fell off the bus")

    monkeypatch.setattr(studies, "study_batch_sizes", fails)
    with pytest.raises(RuntimeError, match="fell off"):
        studies.run(base, tmp_path / "studies.json", studies=("batch_sizes", "lengths"), device="cpu", points=FEW)
    written = json.loads((tmp_path / "studies.json").read_text())
    assert list(written["lengths"]) == ["16", "24", "32"] and "batch_sizes" not in written


def test_the_command_writes_report_and_picture_and_prints_a_table(base, quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(studies.POINTS, "cpu", FEW)
    path = tmp_path / "studies.json"
    assert studies.main(["--model", base, "--device", "cpu", "--output", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [study for study in report if study in studies.STUDIES] == list(studies.STUDIES)
    assert report["device"] == "cpu" and report["provenance"]["versions"]["torch"]
    two = report["batch_sizes"]["2"]
    assert two["samples_per_second"] == pytest.approx(2 / two["seconds"])
    assert path.with_suffix(".png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("nf4_double", "paged_adamw_8bit", "label_positions", "samples/s"))


def test_a_missing_model_is_refused_in_one_line(tmp_path, capsys):
    missing, output = str(tmp_path / "missing"), tmp_path / "studies.json"
    assert studies.main(["--model", missing, "--device", "cpu", "--output", str(output)]) == 2
    assert capsys.readouterr().err.strip() == f"{missing}: no such folder"
    assert not output.exists()


def test_the_figure_is_drawn_without_the_points_that_did_not_fit():
    step = {"peak_gib": 3.0, "seconds": 0.5}
    report = {"lengths": {"64": {"all_logits": step, "label_positions": step},
                          "128": {"all_logits": None, "label_positions": step}},
              "batch_sizes": {"1": {**step, "samples_per_second": 2.0}, "2": None}}
    lengths = studies.studies_figure(report).axes[0]
    assert [list(line.get_xdata()) for line in lengths.get_lines()] == [[64], [64, 128]]
