"""Decoder layers compiled by torch.compile, for training and scoring alike."""

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._functorch.config as partitioning
from transformers.modeling_layers import GradientCheckpointingLayer

NOT_COMPILED = "layers not compiled for want of a C compiler (gcc or clang) or Triton"


@contextlib.contextmanager
def compiling_put_off() -> Iterator[None]:
    """What is given to torch.compile within this context is given to the compiler when it is first called.

    Importing the compiler takes a second or several. bitsandbytes would have it imported with itself, for functions
    that neither a CPU nor a GPU with kernels of its own ever calls.
    """
    compile_now = torch.compile

    def compile_later(function: Callable | None = None, **options) -> Callable:
        if function is None:
            return functools.partial(compile_later, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))
        return functools.wraps(function)(lambda *args, **named: compiled()(*args, **named))

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now


def compile_layers(model) -> None:
    """Compiles the decoder layers of `model`, for every length at once; takes effect with the next forward pass.

    Kernels are kept in the user's cache folder for the next run, unless ``TORCHINDUCTOR_CACHE_DIR`` names another.
    """
    _keep_kernels()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)


def _keep_kernels() -> None:
    """Torch itself keeps them in /tmp, which many machines empty."""
    with contextlib.suppress(OSError):  # a home that cannot be written: then in /tmp
        kernel_folder().mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernel_folder()))


def kernel_folder() -> Path:
    """Where compiled kernels are kept; torch tells those of other devices, versions and settings apart."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache / "antifraud" / "torchinductor")


def kernels_kept() -> bool:
    """Whether an earlier run left kernels there."""
    return kernel_folder().is_dir() and any(kernel_folder().iterdir())


def selective_recomputation(wanted: bool) -> contextlib.AbstractContextManager:
    """Layers that are compiled within this context keep a third less for the backward pass.

    It computes dropped inputs, norms and activations again from what went into them. What dropout drew is kept in any
    case, so that the gradients are the same.
    """
    if not wanted:
        return contextlib.nullcontext()
    return partitioning.patch(ban_recompute_materialized_backward=False, ban_recompute_used_far_apart=False)


def can_compile() -> bool:
    """Whether a GPU's layers can be compiled here: that takes Triton, which builds its launchers with a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler and importlib.util.find_spec("triton"))
