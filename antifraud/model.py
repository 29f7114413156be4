"""Causal language models, for training and evaluating alike: where they come from, how they load, what they compute."""

import contextlib
import os
import sys
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from data.files import DataError, one_line

from .checkpoint import TASK_FILE, Lineage, find_checkpoint, read_checkpoint, read_task_file, require_same_base
from .compiling import NOT_COMPILED, can_compile, compile_layers
from .provenance import describe_base

MODELSCOPE = "modelscope:"
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
CODE_FILES = ["*.py"]
OTHER_FORMATS = ["*/*", "consolidated*"]  # in subfolders, and in Mistral's layout: the same weights a second time


def load_base(model_path: str, device: str = "cuda", *, quantization: str = "nf4", double_quantization: bool = False,
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


def load_tuned(model_path: str, checkpoint_path: str = "", device: str = "cuda", *, quantization: str | None = None,
               fast: bool = False, trust_remote_code: bool = False):
    """Loads a base model and, if given, the adapter of a checkpoint (or of the best one of a training run).

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        checkpoint_path: ``outputs/run/checkpoint-N`` or ``outputs/run``; empty for the untuned model.
        quantization: of the base weights, ``nf4``, ``fp4`` or ``none``; default: as the adapter was trained.
        fast: for many dialogues. The weights are kept in 16 bit, the adapter is merged into them, and on a GPU the
            layers are compiled, where a C compiler is there, which takes a while at first. Probabilities change by
            16-bit rounding, the answers of borderline cases with them: see results/scoring_benchmark.json.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        DataError: no model or checkpoint there, or an adapter that is truncated, altered, not finite, or was
            trained on another base.
    """
    if not checkpoint_path:
        folder = locate_model(model_path, with_code=trust_remote_code)
        exported = read_task_file(Path(folder) / TASK_FILE)  # by export.py: knows its task, is not quantised again
        model, tokenizer = load_base(folder, device, trust_remote_code=trust_remote_code, dequantize=fast,
                                           quantization=quantization or ("none" if exported else "nf4"))
        if exported:
            model.lineage.task, model.lineage.decision = exported.task, exported.decision
            model.lineage.train_data = exported.train_data
            model.lineage.calibration = exported.calibration
        return _for_many(model) if fast else model.eval(), tokenizer
    folder = find_checkpoint(checkpoint_path)
    lineage = read_checkpoint(folder)
    base_folder = locate_model(model_path, with_code=trust_remote_code)
    loaded = {**describe_base(base_folder), "name": Path(model_path).name}
    require_same_base(lineage, loaded, folder)  # before gigabytes are loaded
    saved = lineage.quantization or {"type": "nf4", "double": False}
    base, tokenizer = load_base(base_folder, device, quantization=quantization or saved["type"],
                                      double_quantization=saved["double"], dequantize=fast,
                                      trust_remote_code=trust_remote_code)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: adapter does not fit {model_path}: {one_line(error)}") from None
    model.lineage = lineage
    lineage.base = base.lineage.base
    lineage.quantization = base.lineage.quantization
    return _for_many(model) if fast else model.eval(), tokenizer


def _for_many(model):
    """`model` with its adapter merged, and compiled on a GPU; it remembers its task."""
    lineage = model.lineage
    lineage.quantization = {**lineage.quantization, "merged": True}  # other probabilities: say so in every report
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        model.lineage = lineage
    if model.device.type == "cuda" and can_compile():
        compile_layers(model)
    elif model.device.type == "cuda":
        print(NOT_COMPILED, file=sys.stderr)
    return model.eval()
