"""Measurements that anyone can repeat; each module answers one question and writes one JSON under results/.

Here is what they share: a folder with weights, free memory, and one training step measured by itself.
"""

import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from antifraud.checkpoint import STATE_FILE, checkpoints_in
from antifraud.model import compute_dtype
from antifraud.training.recipes import CHECKPOINTING
from data.files import DataError
from trainer import build_loraconfig

TRAIN = "--max-steps 1400 --learning-rate 2e-4 --line-loss-weight 0.3 --eval-steps 350 --save-steps 350"  # README's
ANSWER_TOKENS = 7  # with labels, at the end of a row
WARM_UP, TIMED = 1, 3  # steps of a point
GIB = 2**30


def folder_with_weights(model: str, scratch: str, device: str) -> str:
    """`model`, or a copy of it with random 16-bit weights where it holds none."""
    if not (Path(model) / "config.json").is_file() or any(Path(model).glob("*.safetensors")):
        return model
    torch.manual_seed(0)
    with torch.device(device):
        random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    random.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(model).save_pretrained(scratch)
    return scratch


def free_memory() -> None:
    """Gives back what nothing refers to any more, and starts the peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def with_adapters(model: nn.Module) -> nn.Module:
    """`model` with the article's LoRA and checkpointed activations, ready to train."""
    model = get_peft_model(model, build_loraconfig())
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    return model.train()


def all_logits_loss(model: nn.Module, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's own loss, for which it computes the logits of every token: what the article's recipe does."""
    return model(input_ids=input_ids, labels=labels, use_cache=False).loss


def measure_step(model: nn.Module, loss: Callable[..., torch.Tensor], rows: int, tokens: int) -> dict | None:
    """Peak memory and time of forward and backward over random rows with labels on the last few tokens.

    Returns:
        ``peak_gib``: allocated at most, weights included, in GiB (None on a CPU); ``seconds``: the median of the
        timed steps. None where the memory does not suffice.
    """
    free_memory()
    try:
        input_ids = torch.randint(model.config.vocab_size, (rows, tokens), device=model.device)
        labels = input_ids.clone()
        labels[:, :-ANSWER_TOKENS] = -100
        seconds = [_step_seconds(model, loss, input_ids, labels) for _ in range(WARM_UP + TIMED)]
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad()
    on_gpu = model.device.type == "cuda"
    return {"peak_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
            "seconds": statistics.median(seconds[WARM_UP:])}


def _step_seconds(model: nn.Module, loss: Callable[..., torch.Tensor], input_ids: torch.Tensor,
                  labels: torch.Tensor) -> float:
    model.zero_grad()
    dtype = compute_dtype(str(model.device))
    wait_for(model.device)
    started = time.perf_counter()
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        value = loss(model, input_ids, labels)
    value.backward()
    wait_for(model.device)
    return time.perf_counter() - started


def trainer_state(run: str | Path) -> dict:
    """What the newest checkpoint of a run says of its steps and evaluations."""
    return json.loads((checkpoints_in(run)[-1] / STATE_FILE).read_text(encoding="utf-8"))


def wait_for(device: str | torch.device) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def execute(*words: object, env: dict[str, str] | None = None) -> list[tuple[float, str]]:
    """Runs a Python command of this project, in its root.

    Returns:
        what it printed, line by line, each with the seconds after which it did.

    Raises:
        DataError: it failed; with the last line that it wrote on standard error.
    """
    started = time.perf_counter()
    with (tempfile.TemporaryFile("w+", encoding="utf-8") as said,
          subprocess.Popen([sys.executable, *map(str, words)], text=True, encoding="utf-8", stdout=subprocess.PIPE,
                           stderr=said, env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}) as process):
        printed = [(time.perf_counter() - started, line.rstrip("\n")) for line in process.stdout]
        code = process.wait()
        said.seek(0)
        last = [line for line in said.read().splitlines() if line.strip()] or ["nothing on standard error"]
    if code:
        raise DataError(f"exit code {code} from python {shlex.join(map(str, words))}: {last[-1]}")
    return printed


def seconds_a_step(printed: list[tuple[float, str]], steps_a_line: int) -> float:
    """The median over the later half of what a training printed of its steps' losses, by when it did.

    Evaluations are not in it. In the first half most graphs are captured.

    Raises:
        DataError: it did not print twice between two evaluations.
    """
    times = [[]]
    for seconds, line in printed:
        if line.startswith("{'loss'"):
            times[-1].append(seconds)
        elif line.startswith("{'eval_loss'"):
            times.append([])
    between = [later - earlier for part in times for earlier, later in zip(part, part[1:])]
    if not between:
        raise DataError(f"a training too short to time: take more than {2 * steps_a_line} steps")
    return statistics.median(between[len(between) // 2:]) / steps_a_line
