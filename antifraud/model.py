"""Causal language models, for training and evaluating alike: where they come from, how they load, what they compute."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data.files import DataError, one_line, refuse_lfs_pointer
from data.prompt import Task

from .checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    TASK_FILE,
    Lineage,
    checkpoints_in,
    find_checkpoint,
    quantization_of,
    read_checkpoint,
    read_task_file,
    require_same_base,
)
from .compiling import NOT_COMPILED, can_compile, compile_layers, compiling_put_off
from .provenance import describe_base

with compiling_put_off():
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

QUANTIZATIONS = ("nf4", "fp4", "none")
MODELSCOPE = "modelscope:"
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
CODE_FILES = ["*.py"]
OTHER_FORMATS = ["*/*", "consolidated*"]  # in subfolders, and in Mistral's layout: the same weights a second time
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
SMALL = 2**30  # bytes of weights: turning more into 32 bit costs a CPU more than it saves
CAUSAL_HEADS = ("CausalLM", "LMHead", "ConditionalGeneration")  # in the names of architectures that have one


def load_base(model_path: str, device: str = "cuda", *, quantization: str = "nf4", double_quantization: bool = False,
              storage: torch.dtype | None = None, dequantize: bool | None = False, trust_remote_code: bool = False):
    """Loads a causal LM with 4-bit base weights, and its tokenizer.

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        device: ``cuda``, ``cuda:N`` or ``cpu``; ``cuda`` means the CPU where there is no GPU, and says so.
        quantization: ``nf4`` or ``fp4`` (Dettmers et al., QLoRA, 2023), or ``none`` for 16-bit weights.
        double_quantization: quantise the quantisation constants too (0.4 bit a weight less).
        storage: what 4-bit weights lie in; default: bytes.
        dequantize: keep the values that 4 bits can hold in 16 bit (in 32 on a CPU): the same results, faster, 2 (or 4)
            bytes a weight. None, for scoring: a small model on a CPU.

    Returns:
        (model, tokenizer); the computation is in bf16 where the GPU has it, else fp16, and fp32 on a CPU.

    Raises:
        DataError: no such device; no model there, or one whose files are missing, damaged or do not fit each other.
    """
    if quantization not in QUANTIZATIONS:
        raise DataError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, not {quantization!r}")
    device = pick_device(device)
    # cuDNN plans its attention anew for every shape of a batch, and our rows are of many lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    folder = locate_model(model_path, with_code=trust_remote_code)
    require_model_files(folder, with_code=trust_remote_code)
    if quantization == "none":
        _refuse_quantised(folder)
    dtype = compute_dtype(device)
    four_bit = None if quantization == "none" else BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=storage)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with _without("transformers.modeling_utils", "LOAD REPORT"), warnings.catch_warnings():  # see `_require_whole`
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # a base in 4 bit keeps its own
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, quantization_config=four_bit, device_map={"": device}, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=trust_remote_code)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the files are the user's, and each model's code fails on bad ones in its own way
        raise DataError(f"{model_path}: not a causal language model that loads: {one_line(error)}") from error
    _require_whole(model_path, model, tokenizer, loading)
    lineage = Lineage(base={**describe_base(folder), "name": _name_of(folder)}, quantization=quantization_of(model))
    compute_in_eval_as_in_training(model)
    if four_bit is not None and (_is_small_on_cpu(model) if dequantize is None else dequantize):
        with _without("transformers.integrations.bitsandbytes", "dequantized"):
            model = model.dequantize(dtype=dtype)
    model.lineage = lineage
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding comes after the last token and is never attended to
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is not None:  # the prompt is cut to it; some tokenizers name no limit, or a longer one
        tokenizer.model_max_length = min(tokenizer.model_max_length, window)
    return model, tokenizer


def require_model_files(folder: str | Path, *, with_code: bool = False) -> None:
    """Refuses, before gigabytes are loaded, a folder whose files cannot be those of a whole causal LM.

    Args:
        with_code: whether Python code of its own may be run, which then knows its own architecture and tokenizer.

    Raises:
        DataError: an adapter, no causal LM, no tokenizer, no weights, or a file that is cut short or only a pointer.
    """
    folder = Path(folder)
    read = MODEL_FILES + CODE_FILES * with_code  # no file that is not going to be loaded is opened
    for path in sorted(path for pattern in read for path in folder.glob(pattern) if path.is_file()):
        refuse_lfs_pointer(path)
    _require_causal_config(folder, with_code)
    if not with_code and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(f"{folder}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}; copy it from where "
                        "the model comes from")
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt"):  # reads the header, and compares it with the size
                pass
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cut short, or no safetensors file ({one_line(error)}); fetch it again") from None


def _require_causal_config(folder: Path, with_code: bool) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = config.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'config.json'}: not a model's configuration ({one_line(error)})") from None
    if architectures and not with_code and not any(kind in name for name in architectures for kind in CAUSAL_HEADS):
        raise DataError(f"{folder}: {architectures[0]} is not a causal language model (its config.json, architectures);"
                        " name one such as Qwen2ForCausalLM")


def _refuse_quantised(folder: str | Path) -> None:
    """Refuses weights in few bits where 16 are asked for: transformers would take them for damaged ones."""
    if json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("quantization_config"):
        raise DataError(f"{folder}: is quantised already (its config.json, quantization_config), so its weights cannot "
                        "be loaded without quantization; leave --quantization none out, or name the 16-bit model that "
                        "it was made from")


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, all of those that its index names.

    Raises:
        DataError: there are none, or one of them is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise DataError(f"{folder}: no {WEIGHTS_FILE}, and weights in other formats are not loaded; where they are of "
                        f"torch, transformers makes it of them: AutoModelForCausalLM.from_pretrained({str(folder)!r}, "
                        f"dtype='auto').save_pretrained({str(folder)!r})")
    try:
        names = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / INDEX_FILE}: not an index of weights ({one_line(error)}); fetch it again") from None
    missing = sorted(name for name in set(names) if not (folder / name).is_file())
    if missing:
        raise DataError(f"{folder}: lacks {_listed(missing)}, named in {INDEX_FILE}; fetch the model again")
    return [folder / name for name in sorted(set(names))]


@contextlib.contextmanager
def _without(module: str, words: str):
    """Within this context a module logs nothing that holds these words."""
    def other(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger = logging.getLogger(module)
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _is_small_on_cpu(model) -> bool:
    """Whether `model` is on a CPU, and the values of its 4-bit weights are few."""
    weights = sum(layer.in_features * layer.out_features for layer in model.modules() if isinstance(layer, Linear4bit))
    return model.device.type == "cpu" and weights * compute_dtype("cpu").itemsize <= SMALL


def _require_whole(model_path: str, model, tokenizer, loading: dict) -> None:
    """Refuses weights that transformers completed with random ones, or left out, and another model's tokenizer."""
    reshaped = [key[0] for key in loading["mismatched_keys"]] + [
        f"{name}.weight" for name, layer in model.named_modules()  # 4-bit weights are not compared on loading
        if isinstance(layer, Linear4bit) and getattr(layer.weight, "quant_state", None)
        and tuple(layer.weight.quant_state.shape) != (layer.out_features, layer.in_features)]
    for what, names in (("lack", loading["missing_keys"]), ("have in another shape", reshaped),
                        ("have besides", loading["unexpected_keys"])):
        if names:
            raise DataError(f"{model_path}: compared with its config.json, the weights {what} "
                            f"{_listed(sorted(names))}; fetch the model again")
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 < tokenizer.vocab_size <= len(tokenizer) <= rows:
        raise DataError(f"{model_path}: the tokenizer knows {len(tokenizer)} tokens, the model {rows}; they must be of "
                        "one model: fetch it again")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
            if (path / ADAPTER_CONFIG).is_file() or checkpoints_in(path):
                raise DataError(f"{model_path}: holds an adapter, not a whole model; name its base with --model, and "
                                f"this folder with --checkpoint {shlex.quote(model_path)}")
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
        raise DataError(f"{model_path}: no folder, nor fetched ({why}); give a folder, or modelscope:ID") from error


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
    """`device` with its index; ``cuda`` means ``cpu`` where there is no GPU, and says so.

    Raises:
        DataError: no device of that name or number.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: using the CPU", file=sys.stderr)
        return "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    require_device(device)
    return device


def require_device(device: str) -> None:
    """Raises DataError for a device that this machine has not; ``cuda`` may mean the CPU."""
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not named:
        raise DataError(f"--device must be cuda, cuda:N or cpu, not {device!r}")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named[1] and int(named[1]) >= n_gpus:
        raise DataError(f"--device {device} is not there: this machine has {n_gpus} GPUs; take "
                        + (f"cuda:0 to cuda:{n_gpus - 1}" if n_gpus else "--device cpu"))


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


def load_tuned(model_path: str, checkpoint_path: str = "", device: str = "cuda", *, task: Task | None = None,
               quantization: str | None = None, fast: bool = False, trust_remote_code: bool = False):
    """Loads a base model and, if given, the adapter of a checkpoint (or of the best one of a training run).

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        checkpoint_path: ``outputs/run/checkpoint-N`` or ``outputs/run``; empty for the untuned model.
        task: what to ask; only where no ``fraud_task.json`` says what the model was taught. Default: `Task()`.
        quantization: of the base weights, ``nf4``, ``fp4`` or ``none``; default: as the adapter was trained. On a CPU
            the 4-bit weights of a small model are dequantised once, to the same scores.
        fast: for many dialogues. The weights are kept in 16 bit, the adapter is merged into them, and on a GPU the
            layers are compiled, where a C compiler is there, which takes a while at first. Probabilities change by
            16-bit rounding, and with them the answers of borderline cases.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        DataError: no model or checkpoint there; an adapter that is truncated, altered, not finite, or was trained on
            another base; a task where the checkpoint has its own.
    """
    device = pick_device(device)
    folder = find_checkpoint(checkpoint_path) if checkpoint_path else None
    lineage = read_checkpoint(folder) if folder else Lineage()
    base_folder = locate_model(model_path, with_code=trust_remote_code)
    if folder:
        described = (folder / TASK_FILE).is_file()
        require_same_base(lineage, {**describe_base(base_folder), "name": Path(model_path).name}, folder)
    else:  # what export wrote knows its task, and is not quantised again
        exported = read_task_file(Path(base_folder) / TASK_FILE)
        described, lineage = exported is not None, exported or lineage
    if described and task is not None:
        raise DataError(f"{folder or model_path}: its {TASK_FILE} says what it was taught; leave the task out")
    if folder and not described and task is None:
        print(f"{folder}: no {TASK_FILE}, so that nothing says what it was taught: asking the default question, with "
              f"the answers {' and '.join(lineage.task.answers)}; copy {TASK_FILE} too, or say it with --instruction "
              "and --answers",
              file=sys.stderr)
    saved = lineage.quantization or {"type": "nf4", "double": False}
    if not folder and described:
        saved = {"type": "none", "double": False}
    model, tokenizer = load_base(base_folder, device, quantization=quantization or saved["type"],
                                 double_quantization=saved["double"], dequantize=fast or None,
                                 trust_remote_code=trust_remote_code)
    lineage = dataclasses.replace(lineage, task=task or lineage.task, base=model.lineage.base,
                                  quantization=model.lineage.quantization)
    if folder:
        model = with_adapter(model, folder, model_path)
    model.lineage = lineage
    return _for_many(model) if fast else model.eval(), tokenizer


def with_adapter(base, folder: str | Path, model_path: str | Path) -> PeftModel:
    """`base` with the adapter of a checkpoint on it, all of it.

    Raises:
        DataError: the adapter, its settings and `base` do not fit together.
    """
    path = Path(folder) / ADAPTER_FILE
    try:
        with warnings.catch_warnings():  # PEFT only warns of an adapter that lacks layers
            warnings.filterwarnings("error", ".*missing adapter keys")
            model = PeftModel.from_pretrained(base, str(folder))
        # And it drops what the settings name no place for, which only this function tells.
        dropped = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu")).unexpected_keys
    except (ValueError, KeyError, RuntimeError, TypeError, UserWarning) as error:
        sizes = (line.strip() for line in str(error).splitlines() if "size mismatch" in line)  # after a title
        raise DataError(f"{path}: adapter does not fit {model_path}: {next(sizes, one_line(error))}") from None
    if dropped:
        raise DataError(f"{path}: adapter does not fit {model_path} with its {ADAPTER_CONFIG}, which has no place for "
                        f"{_listed(sorted(dropped))}; copy both files again")
    return model


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
