"""What a warm-up runs: as many of the first layers as there are kinds of them, in every architecture."""

import pytest
import torch
import transformers
from helpers import ARCHITECTURES, SIZES
from peft import get_peft_model

from antifraud.training.cuda_graphs import first_layers
from trainer import build_loraconfig

LAYERS = 6
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def layers_that_run(model) -> int:
    """How many layers one forward pass runs."""
    ran = []
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in model.get_base_model().model.layers]
    model(input_ids=torch.arange(8)[None], use_cache=False).logits.sum().backward()
    for hook in hooks:
        hook.remove()
    return len(ran)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_warm_up_runs_two_layers_or_up_to_the_last_kind_and_one_more(architecture):
    model_name, options = ARCHITECTURES[architecture]
    kinds = {"layer_types": KINDS} if "layer_types" in options else {}
    model_class = getattr(transformers, model_name)
    config = model_class.config_class(vocab_size=64, pad_token_id=0,
                                      **{**SIZES, **options, **kinds, "num_hidden_layers": LAYERS})
    model = get_peft_model(model_class(config), build_loraconfig())
    with first_layers(model):
        assert layers_that_run(model) == (4 if kinds else 2)
    learnt = {name.split(".layers.")[1][0] for name, one in model.named_parameters() if one.grad is not None}
    assert learnt == set("0123" if kinds else "01")
    assert layers_that_run(model) == LAYERS and model.config.num_hidden_layers == LAYERS


def test_after_an_error_all_layers_run_again():
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=64, **{**SIZES, "num_hidden_layers": 3}))
    with pytest.raises(RuntimeError), first_layers(model):
        assert model.config.num_hidden_layers == 2
        raise RuntimeError("no memory")
    assert model.config.num_hidden_layers == 3
