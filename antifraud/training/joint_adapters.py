"""A matrices of adapters that read the same input, in one product: those of q, k and v, and those of gate and up.

Loss and gradients are those of the products one by one, but that LoRA's dropout is drawn once for all of them. PEFT's
layers, weights and checkpoints stay as they are.
"""

import types

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear

READ_ALIKE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ADAPTER = "default"


class SharedInput:
    """Layers that read the same input, and what their A matrices make of it."""

    def __init__(self, layers: list[LoraLayer]) -> None:
        self.layers = layers
        self.input: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()

    def part(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """[..., r] what layer number `place` has for `x`; computed for all of them by the first that asks."""
        if self.input is not x:
            weight = torch.cat([layer.lora_A[ADAPTER].weight for layer in self.layers])
            self.input = x
            self.parts = linear(self.layers[0].lora_dropout[ADAPTER](x), weight).split(
                [layer.r[ADAPTER] for layer in self.layers], -1)
        part = self.parts[place]
        if place == len(self.layers) - 1:  # nobody asks again, and memory is short
            self.input, self.parts = None, ()
        return part


def join_adapters(model) -> int:
    """Lets layers of `model` share a product in training, in which they are alone; returns how many products remain."""
    products = sum(isinstance(module, LoraLayer) for module in model.modules())
    for parent in model.modules():
        for names in READ_ALIKE:
            layers = [getattr(parent, name, None) for name in names]
            if all(map(_is_plain, layers)) and len({_dropout(layer) for layer in layers}) == 1:
                shared = SharedInput(layers)
                for place, layer in enumerate(layers):
                    layer.shared_input, layer.place = shared, place
                    layer.forward = types.MethodType(_forward, layer)
                products -= len(layers) - 1
    return products


def _forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    if not layer.training:
        return type(layer).forward(layer, x)
    return layer.base_layer(x) + layer.lora_B[ADAPTER](layer.shared_input.part(layer.place, x)) * layer.scaling[ADAPTER]


def _is_plain(layer) -> bool:
    """Whether a layer has one adapter that is nothing but two matrices."""
    return (isinstance(layer, LoraLayer) and list(layer.lora_A) == [ADAPTER] and not layer.lora_variant
            and layer.lora_A[ADAPTER].bias is None)


def _dropout(layer: LoraLayer) -> float:
    return getattr(layer.lora_dropout[ADAPTER], "p", 0.0)
