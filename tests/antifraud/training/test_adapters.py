"""Adapters are those that were asked for, whatever a notebook did with the model before."""

import pytest
import torch
from peft import LoraConfig

from antifraud.training.adapters import TARGET_MODULES, with_adapters
from data.files import DataError
from trainer import build_loraconfig, load_model


def adapted(model) -> set[str]:
    return {name.partition(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}


def test_a_second_build_with_fewer_layers_leaves_nothing_of_the_first(base, capsys):
    model, _ = load_model(base, "cpu")
    tokens = torch.tensor([[5, 6, 7]])
    untuned = model(input_ids=tokens).logits
    first = with_adapters(model, build_loraconfig(modules_to_save=["lm_head"]), 0)
    assert adapted(first) == set(TARGET_MODULES)
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)  # as if trained
    second = with_adapters(model, build_loraconfig(target_modules=["q_proj"], lora_dropout=0.0), 0)
    assert "were taken off" in capsys.readouterr().err
    assert adapted(second) == {"q_proj"}
    assert not any("modules_to_save" in name for name, _ in second.named_modules())
    torch.testing.assert_close(second(input_ids=tokens).logits, untuned)  # new adapters change nothing


def test_a_model_with_an_adapter_is_trained_further_or_refused_if_frozen(base, capsys):
    model, _ = load_model(base, "cpu")
    model = with_adapters(model, LoraConfig(r=2, task_type="CAUSAL_LM"), 0)  # PEFT knows the layers of Qwen2
    assert adapted(model) == {"q_proj", "v_proj"}
    assert with_adapters(model, build_loraconfig(), 0) is model
    assert "the given LoRA settings are not used" in capsys.readouterr().err
    model.requires_grad_(False)
    with pytest.raises(DataError, match="is_trainable=True"):
        with_adapters(model, build_loraconfig(), 0)
