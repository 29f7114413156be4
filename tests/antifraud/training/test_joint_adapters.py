"""A matrices in one product: the loss and gradients of one by one, whatever the order and the way it is computed."""

import pytest
import torch
from helpers import train_briefly
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import dropout
from transformers import AutoModelForCausalLM, Qwen2Config

from antifraud.compiling import compile_layers
from antifraud.training.joint_adapters import ADAPTER, join_adapters
from antifraud.training.loss import label_position_loss
from trainer import build_loraconfig


@pytest.fixture
def make():
    def make(p: float = 0.0, layers: int = 2, **lora):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen2Config(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, pad_token_id=0), dtype=torch.float32)
        model = get_peft_model(model, build_loraconfig(lora_dropout=p, **lora)).train()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model
    return make


def loss_and_gradients(model) -> tuple[float, dict[str, torch.Tensor]]:
    rows = torch.randint(99, (3, 16), generator=torch.Generator().manual_seed(0))
    loss = label_position_loss(model, rows, torch.where(torch.arange(16) < 9, -100, rows))
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_product_gives_the_loss_and_gradients_of_three(make, checkpointed):
    model = make(r=3)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    expected, saved = loss_and_gradients(model), set(model.state_dict())
    assert join_adapters(model) == 2 * 4  # of 7 a layer: q, k, v; o; gate, up; down
    assert_same(loss_and_gradients(model), expected)
    assert set(model.state_dict()) == saved
    assert all(layer.shared_input.input is None for layer in model.modules() if hasattr(layer, "shared_input"))


def test_whoever_asks_first_has_all_of_them_computed(make):
    model = make()
    attention = model.get_submodule("base_model.model.model.layers.0.self_attn")
    x = torch.randn(2, 5, 32)
    expected = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    join_adapters(model)
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for place in order:
            layer = (attention.q_proj, attention.k_proj, attention.v_proj)[place]
            torch.testing.assert_close(layer(x), expected[place])
            torch.testing.assert_close(layer(2 * x), layer.base_layer(2 * x) + 2 * (
                expected[place] - layer.base_layer(x)), rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_once_for_all_and_not_in_eval_mode(make):
    model = make(p=0.5)
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")
    x = torch.randn(2, 5, 32)
    in_eval = [layer.eval()(x) for layer in (mlp.gate_proj, mlp.up_proj)]
    join_adapters(model.train())
    torch.manual_seed(1)
    found = [layer(x) for layer in (mlp.gate_proj, mlp.up_proj)]
    torch.manual_seed(1)
    dropped = dropout(x, 0.5)
    for layer, output, whole in zip((mlp.gate_proj, mlp.up_proj), found, in_eval):
        expected = layer.base_layer(x) + layer.lora_B[ADAPTER](layer.lora_A[ADAPTER](dropped)) * layer.scaling[ADAPTER]
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(layer.eval()(x), whole, rtol=0, atol=0)


def test_layers_with_other_adapters_are_left_alone(make):
    model = make(use_dora=True)
    assert join_adapters(model) == 2 * 7
    model = make(target_modules=["q_proj", "v_proj", "up_proj"])
    expected = loss_and_gradients(model)
    assert join_adapters(model) == sum(isinstance(module, LoraLayer) for module in model.modules()) == 2 * 3
    assert_same(loss_and_gradients(model), expected)


def test_joined_layers_are_compiled_once_for_all(make, monkeypatch):
    """The usual backend takes a minute to write kernels; what is traced, and how often, is the same."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = make()
    model.enable_input_require_grads()
    expected = loss_and_gradients(model)
    join_adapters(model)
    monkeypatch.setattr(type(model.get_submodule("base_model.model.model.layers.0")), "compile",
                        lambda layer, dynamic: torch.nn.Module.compile(layer, backend=backend, dynamic=dynamic,
                                                                       fullgraph=True))
    torch._dynamo.reset()
    compile_layers(model)
    assert_same(loss_and_gradients(model), expected)
    assert len(graphs) == 1


def test_a_training_with_joint_adapters_ends_where_one_without_does(base, train_file, eval_file, tmp_path):
    options = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "lora_dropout": 0.0, "learning_rate": 1e-2}
    weights = []
    for joint in (False, True):
        trainer = train_briefly(base, train_file, eval_file, tmp_path / str(joint), joint_adapters=joint, **options)
        assert any(hasattr(layer, "shared_input") for layer in trainer.model.modules()) == joint
        weights.append(load_file(tmp_path / str(joint) / "checkpoint-3" / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
