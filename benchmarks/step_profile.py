"""Where the time and the memory of a training step go, before and after: a picture of each.

    python -m benchmarks.step_profile --model MODEL --data train.jsonl --output results/step_profile.json

Kernel times are torch.profiler's, the wall time is of steps that are not profiled; what is left is the GPU waiting for
the CPU. Memory is what the allocator recorded, every allocation of one step; a captured step has its own set apart for
good, and no curve. On a GPU only.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from datasets import Dataset, disable_progress_bars
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from antifraud.provenance import code_provenance
from benchmarks import refusing_in_a_line
from benchmarks.training import RECIPES, article_trainer, choose_rows, folder_and_rows, free_memory
from data.files import write_json
from evaluate import load_model
from trainer import build_loraconfig, build_train_arguments, build_trainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RECIPES_SHOWN = ("article", "plain", "small", "fast")
STEPS = 8
POINTS = 2000  # of a memory curve
# The first pattern that a kernel's name matches says what it is.
KINDS = {
    "dequantise": r"equantize|gemm_4bit",
    "attention": r"flash|sdpa|fmha|attention",
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitK|xmma",
    "loss": r"softmax|nll_loss|cross_entropy",
    "optimiser": r"adam|optimizer|multi_tensor",
    "copies": r"memcpy|memset",
    "elementwise": r"",
}


def kind_of(kernel: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE))


class StepProbe(TrainerCallback):
    """Times two steps plainly, profiles the kernels of two more, and records every allocation of one."""

    def __init__(self, first: int) -> None:
        self.first = first  # steps before it warm up
        self.profiler = profile(activities=[ProfilerActivity.CUDA])

    def on_step_begin(self, args, state, control, **kwargs):
        step = state.global_step - self.first
        torch.cuda.synchronize()
        if step == 0:
            self.started = time.perf_counter()
        elif step == 2:
            self.profiler.start()
        elif step == 4:
            self.allocated = torch.cuda.memory_allocated()
            torch.cuda.memory._record_memory_history(context=None)

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step - self.first
        torch.cuda.synchronize()
        if step == 2:
            self.step_seconds = (time.perf_counter() - self.started) / 2
        elif step == 4:
            self.profiler.stop()
        elif step == 5:
            self.events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
            torch.cuda.memory._record_memory_history(enabled=None)


def milliseconds_by_kind(profiler: profile, steps: int, step_seconds: float) -> dict[str, float]:
    """Of one step: its kernels by kind, and the GPU waiting."""
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        found[kind_of(event.key)] += event.self_device_time_total / 1000 / steps
    return {**found, "waiting for the CPU": max(0.0, 1000 * step_seconds - sum(found.values()))}


def memory_curve(events: Sequence[dict], allocated: int) -> dict[str, list[float]]:
    """Milliseconds and GiB allocated through one step, at most `POINTS` of each; peaks are kept."""
    times, sizes = [0.0], [allocated / 2**30]
    for event in events:
        sign = {"alloc": 1, "free_completed": -1}.get(event["action"])
        if sign:
            allocated += sign * event["size"]
            times.append((event["time_us"] - events[0]["time_us"]) / 1000)
            sizes.append(allocated / 2**30)
    chunk = max(1, len(times) // (POINTS // 2))
    kept = []
    for start in range(0, len(times), chunk):
        part = range(start, min(start + chunk, len(times)))
        kept += sorted({min(part, key=sizes.__getitem__), max(part, key=sizes.__getitem__)})
    return {"milliseconds": [round(times[i], 3) for i in kept], "gib": [round(sizes[i], 4) for i in kept]}


def measure(recipe: str, folder: str, rows: Dataset) -> dict:
    free_memory()
    model, tokenizer = load_model(folder, "cuda")
    epoch = len(rows) // 16
    with tempfile.TemporaryDirectory() as output:
        train_args = build_train_arguments(output, max_steps=epoch + STEPS, eval_strategy="no", save_strategy="no",
                                           load_best_model_at_end=False, disable_tqdm=True, logging_steps=1000,
                                           **RECIPES[recipe])
        if recipe == "article":
            trainer = article_trainer(model, tokenizer, train_args, rows)
        else:
            trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(), rows, rows)
        probe = StepProbe(first=epoch)
        trainer.add_callback(probe)
        trainer.train()
    return {"step_milliseconds": 1000 * probe.step_seconds,
            "kernels_a_step": sum(event.count for event in probe.profiler.key_averages()) // 2,
            "milliseconds": milliseconds_by_kind(probe.profiler, 2, probe.step_seconds),
            "memory": None if train_args.cuda_graphs else memory_curve(probe.events, probe.allocated),
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30}


def save_pictures(report: dict, path: Path) -> None:
    """Stacked bars of a step's time, and curves of its memory, by recipe."""
    recipes = report["recipes"]
    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(12, 4.2))
    left = dict.fromkeys(recipes, 0.0)
    for kind in next(iter(recipes.values()))["milliseconds"]:
        values = [found["milliseconds"][kind] for found in recipes.values()]
        time_axes.barh(list(recipes), values, left=list(left.values()), label=kind,
                       color="lightgrey" if kind.startswith("waiting") else None)
        left = {recipe: left[recipe] + value for recipe, value in zip(recipes, values)}
    time_axes.invert_yaxis()
    time_axes.set_xlabel("milliseconds a step, batch 16")
    time_axes.set_title("Where a step's time goes")
    time_axes.legend(fontsize=8)
    for name, found in recipes.items():
        if found["memory"] is None:  # a CUDA graph replays in memory that was set apart when it was captured
            memory_axes.axhline(found["peak_allocated_gib"], linestyle="--", color="grey",
                                label=f"{name}: {found['peak_allocated_gib']:.1f} GiB, set apart")
            continue
        times = found["memory"]["milliseconds"]
        memory_axes.plot([t / (times[-1] or 1) for t in times], found["memory"]["gib"],
                         label=f"{name}: {max(found['memory']['gib']):.1f} GiB at most")
    memory_axes.set_xlabel("share of the step")
    memory_axes.set_ylabel("GiB allocated")
    memory_axes.set_title("Memory through one step")
    memory_axes.set_ylim(bottom=0)
    memory_axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--data", required=True, help="JSONL records to train on")
    parser.add_argument("--output", default="results/step_profile.json")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("step_profile: needs a GPU", file=sys.stderr)
        return 2
    disable_progress_bars()
    report = {"recipes": {}, "device": torch.cuda.get_device_name(),
              "provenance": {"model": Path(args.model).name, "data": Path(args.data).name, **code_provenance()}}
    with folder_and_rows(args.model, args.data, "cuda") as (folder, dataset):
        for recipe in RECIPES_SHOWN:
            report["recipes"][recipe] = measure(recipe, folder, choose_rows(dataset, "first", 64))
            write_json(args.output, report)
    save_pictures(report, Path(args.output).with_suffix(".png"))
    for recipe, found in report["recipes"].items():
        print(recipe, f"{found['step_milliseconds']:.0f} ms, {found['kernels_a_step']} kernels,",
              {kind: round(value, 1) for kind, value in found["milliseconds"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
