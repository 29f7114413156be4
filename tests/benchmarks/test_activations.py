"""What a layer keeps for the backward pass is counted: all of it, and no parameter."""

import json

import torch

from benchmarks import activations


def test_kept_bytes_are_those_of_the_activations_and_not_of_parameters():
    counted = {}
    weight, given = torch.nn.Parameter(torch.ones(8)), torch.ones(4, 8, requires_grad=True)
    with activations.keeping(counted, but=[weight]):
        (given * weight).sigmoid()  # keeps `given` (128 bytes), `weight` (not counted) and its own output (128 bytes)
    assert counted == {"float32": 256}


def test_each_way_is_counted_and_checkpointing_keeps_the_least(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(activations, "WAYS", {way: activations.WAYS[way] for way in ("eager", "checkpointed")})
    output = tmp_path / "activations.json"
    assert activations.main(["--model", base, "--device", "cpu", "--output", str(output)]) == 0
    eager, checkpointed = (sum(found.values()) for found in json.loads(output.read_text())["ways"].values())
    assert 0 < checkpointed < 0.2 * eager
    assert f"| eager | {eager / 1024:.1f} |" in capsys.readouterr().out


def test_a_folder_without_a_model_is_refused_in_a_line(tmp_path, capsys):
    assert activations.main(["--model", str(tmp_path), "--device", "cpu", "--output", "x.json"]) == 2
    assert "no config.json" in capsys.readouterr().err
