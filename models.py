"""Causal language models, for training and evaluating alike: where they come from, how they load, what they compute."""

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from checkpoints import Lineage, describe_base
from data.records import DataError

MODELSCOPE = "modelscope:"
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
CODE_FILES = ["*.py"]
OTHER_FORMATS = ["*/*", "consolidated*"]  # in subfolders, and in Mistral's layout: the same weights a second time
PADDING_MULTIPLE = 8  # tensor cores work on tiles of eight


def load_model(model_path: str, device: str = "cuda", *, quantization: str = "nf4", double_quantization: bool = False,
               dequantize: bool = False, shardable: bool = False, trust_remote_code: bool = False):
    """Loads a causal LM with 4-bit base weights, and its tokenizer.

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        device: ``cuda``, ``cuda:N`` or ``cpu``; ``cuda`` means the CPU where there is no GPU, and says so.
        quantization: ``nf4`` or ``fp4`` (Dettmers et al., QLoRA, 2023), or ``none`` for 16-bit weights.
        double_quantization: quantise the quantisation constants too (0.4 bit a weight less).
        dequantize: keep the values that 4 bits can hold in 16 bit: the same results, faster, 2 bytes a weight.
        shardable: keep the 4-bit weights in tensors of the compute dtype, without which FSDP cannot shard them.

    Returns:
        (model, tokenizer); the computation is in bf16 where the GPU has it, else fp16, and fp32 on a CPU.

    Raises:
        DataError: no model there, or files that are none.
    """
    folder = locate_model(model_path, with_code=trust_remote_code)
    device = pick_device(device)
    dtype = compute_dtype(device)
    config = None
    if quantization != "none":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization,
                                    bnb_4bit_use_double_quant=double_quantization, bnb_4bit_compute_dtype=dtype,
                                    bnb_4bit_quant_storage=dtype if shardable else None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=config, device_map={"": device},
            use_safetensors=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DataError(f"{model_path}: not a causal language model that loads: {one_line(error)}") from error
    compute_in_eval_as_in_training(model)
    if dequantize and config is not None:
        model = model.dequantize(dtype=dtype)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding comes after the last token and is never attended to
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is not None:  # the prompt is cut to it; some tokenizers name no limit, or a longer one
        tokenizer.model_max_length = min(tokenizer.model_max_length, window)
    model.lineage = Lineage(base={**describe_base(folder), "name": _name_of(folder)},
                            quantization={"type": quantization, "double": double_quantization})
    return model, tokenizer


def locate_model(model_path: str, *, with_code: bool = False) -> str:
    """The folder of a model, fetched from its hub unless it lies on this machine.

    Fetches config, tokenizer and safetensors, and Python files only `with_code`. Where the hub cannot be reached, a
    copy fetched earlier will do.

    Raises:
        DataError: no model there, and no copy of it here.
    """
    path = Path(model_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{model_path}: no config.json in this folder; a model is config, tokenizer and "
                            "*.safetensors")
        return str(path)
    if model_path.startswith(("/", ".", "~")) or path.exists():
        raise DataError(f"{model_path}: no such folder")
    download = _downloader(model_path)
    model_id = model_path.removeprefix(MODELSCOPE)
    files = {"allow_patterns": MODEL_FILES + CODE_FILES * with_code, "ignore_patterns": OTHER_FORMATS}
    try:
        return download(model_id, **files)
    except Exception as error:  # the hubs' libraries raise errors of a dozen unrelated types
        why = f"{type(error).__name__}: {one_line(error)}"
        with contextlib.suppress(Exception):
            folder = download(model_id, local_files_only=True, **files)
            print(f"{model_path}: using the copy on this machine ({why})", file=sys.stderr)
            return folder
        raise DataError(f"{model_path}: no such folder, and no such model to fetch: {why}") from error


def _downloader(model_path: str):
    """The ``snapshot_download`` of the hub that `model_path` names; both hubs' take the same arguments."""
    if not model_path.startswith(MODELSCOPE):
        from huggingface_hub import snapshot_download
        return snapshot_download
    try:
        from modelscope import snapshot_download  # optional, and large
        return snapshot_download
    except ImportError:
        raise DataError(f"{model_path}: models from ModelScope need: pip install modelscope") from None


def _name_of(folder: str) -> str:
    """What a model is called: its folder's name; both hubs keep theirs in ``OWNER--NAME/snapshots/REVISION``."""
    path = Path(folder).resolve()
    return path.parents[1].name.split("--")[-1] if path.parent.name == "snapshots" else path.name


def pick_device(device: str) -> str:
    """`device` with its index, or ``cpu`` where a GPU is asked for and there is none."""
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            print("no CUDA device here: using the CPU", file=sys.stderr)
            return "cpu"
        if device == "cuda":
            return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return device


def compute_dtype(device: str) -> torch.dtype:
    """bf16 where the GPU computes in it, fp16 on older ones (T4), fp32 on a CPU."""
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def compute_in_eval_as_in_training(model) -> None:
    """Keeps bitsandbytes from computing in bf16 on CPUs that can (AVX512_BF16), which it does in eval mode only."""
    if model.device.type == "cpu":
        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = False


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str | torch.device) -> str:
    """Where a figure was measured: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def unwrapped(model):
    """The model that DDP or FSDP wrapped, or itself."""
    return getattr(model, "module", model)


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = PADDING_MULTIPLE,
              after: int = 0) -> torch.Tensor:
    """[rows, tokens] of ids, padded with `value` to `padded_length`."""
    padded = np.full((len(rows), padded_length(max(map(len, rows)), multiple, after)), value)
    for row, ids in zip(padded, rows):
        row[:len(ids)] = ids
    return torch.from_numpy(padded)


def padded_length(tokens: int, multiple: int, after: int = 0) -> int:
    """At least `tokens`, such that with `after` tokens before them they are a multiple of so many."""
    return math.ceil((after + tokens) / multiple) * multiple - after


@contextlib.contextmanager
def logits_only_at(model, positions: torch.Tensor, after: int = 0):
    """Within this context `model` computes logits only at `positions`: [n] token numbers, counted through the batch.

    Of each row the first `after` tokens are not counted.

    The logits of Qwen2 are 151,936 numbers a token, several copies of them in training: 16 rows of 530 tokens
    fill tens of GB, and all but the label positions are thrown away. A hook on the output layer selects its
    inputs, so the model's own forward runs unchanged, inside autocast, PEFT and DDP; ``.logits`` becomes
    [n, vocabulary].
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: (_selected(inputs[0], positions, after),))
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def hidden_states_at(model, positions: torch.Tensor, after: int = 0):
    """Yields a list, to which `model` adds its last hidden states at `positions`, [n, numbers]."""
    found = []

    def select(module, inputs):
        found.append(_selected(inputs[0], positions, after))
        return (found[-1],)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield found
    finally:
        hook.remove()


@contextlib.contextmanager
def label_logits_at(model, positions: torch.Tensor, token_ids: Sequence[int], after: int = 0):
    """Like `logits_only_at`, of a few words only, and in 32 bit: ``.logits`` becomes [n, token_ids].

    In bf16 a logit of 20 is rounded to an eighth, so that scores would stand on a grid, three hundredths wide at 0.5.
    """
    head, words = model.get_output_embeddings(), list(token_ids)
    if type(head) is torch.nn.Linear:
        with patch.object(head, "forward",
                          lambda hidden: _word_logits(head, _selected(hidden, positions, after), words)):
            yield
        return
    hook = head.register_forward_hook(lambda module, inputs, logits: logits[:, words])  # one with an adapter, say
    try:
        with logits_only_at(model, positions, after):
            yield
    finally:
        hook.remove()


@contextlib.contextmanager
def word_logits_besides(model, positions: torch.Tensor, token_ids: Sequence[int], after: int = 0):
    """Yields a list, to which `model` adds the logits of a few words at `positions`, [n, token_ids], in 32 bit.

    Besides what it computes anyway; to be entered before `logits_only_at`.
    """
    found = []

    def compute(head, inputs):
        found.append(_word_logits(head, _selected(inputs[0], positions, after), token_ids))

    hook = model.get_output_embeddings().register_forward_pre_hook(compute)
    try:
        yield found
    finally:
        hook.remove()


def _word_logits(head: torch.nn.Module, hidden: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """[n, words] logits in 32 bit of `hidden`, [n, numbers]."""
    if type(head) is not torch.nn.Linear:  # one with an adapter, say
        return head.forward(hidden)[:, words].float()
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else torch.stack([head.bias[word] for word in words]).float()
        weight = torch.stack([head.weight[word] for word in words])  # one by one: a list would travel to the GPU
        return torch.nn.functional.linear(hidden.float(), weight.float(), bias)


def _selected(hidden: torch.Tensor, positions: torch.Tensor, after: int) -> torch.Tensor:
    return hidden[:, after:].flatten(0, 1)[positions]
