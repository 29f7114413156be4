"""Decoder layers compiled by torch.compile, for training and scoring alike."""

import importlib.util
import os
import shutil

import torch._functorch.config as partitioning
from transformers.modeling_layers import GradientCheckpointingLayer

NOT_COMPILED = "layers not compiled for want of a C compiler (gcc or clang) or Triton"


def compile_layers(model, keep_fewer: bool = False) -> None:
    """Compiles the decoder layers of `model`, for every length at once; takes effect with the next pass.

    Args:
        keep_fewer: keep a third less for the backward pass, which computes dropped inputs, norms and activations again
            from what went into them. What dropout drew is kept in any case, so that the gradients are the same.
    """
    # Read when a layer is compiled, at its next pass.
    partitioning.ban_recompute_materialized_backward = partitioning.ban_recompute_used_far_apart = not keep_fewer
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)


def can_compile() -> bool:
    """Whether a GPU's layers can be compiled here: that takes Triton, which builds its launchers with a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler and importlib.util.find_spec("triton"))
