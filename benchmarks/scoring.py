"""How many dialogues a second does each way of scoring make, and do all of them agree?

    python -m benchmarks.scoring --model MODEL [--checkpoint DIR] --data F --output results/speed/scoring.json

MODEL may be config and tokenizer alone, as for `benchmarks.training`; the adapter is then random too, and what is
measured is speed. Tokenising is part of every figure, and reading and writing of that of ``predict_file``.
``generate`` is the article's way; it runs on a few rows. ``beginnings`` are those of a few dialogues, each up to one
of its lines, as the early warning reads them.
``score_32_bit`` shows how far 16-bit arithmetic itself moves a probability, on a CPU with ``--compute-dtype bfloat16``.
"""

import argparse
import contextlib
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
import torch._inductor.config
from datasets import disable_progress_bars
from peft import get_peft_model
from tqdm.auto import tqdm

from antifraud import model as models
from antifraud.checkpoint import find_checkpoint, lineage_of, read_checkpoint
from antifraud.compiling import compile_layers
from antifraud.evaluation import scoring
from antifraud.evaluation.scoring import generate_answers, score_prompts
from antifraud.logits import replaced
from antifraud.model import compute_dtype, default_device, with_adapter
from antifraud.provenance import code_provenance, device_name
from antifraud.serving.predict import predict_file
from benchmarks import GIB, folder_with_weights, free_memory
from benchmarks.training import whole_rows
from data.command import command
from data.files import write_json
from data.prompt import PromptEncoder
from data.records import Skipped, read_records, write_records
from trainer import build_loraconfig, load_model

GENERATED_ROWS = 32
ROWS_OF_THE_ARTICLE = 8  # generated at a time
BEGINNINGS_OF = 128  # dialogues
RUNS = 3
PREDICT_ROWS = 100_000
WARM_UP_ROWS = 256  # layers are compiled as they first run
BORDERLINE = (0.49, 0.51)  # where rounding may decide
# How the model is prepared for each method.
METHODS = {
    "generate": {},
    "score": {},
    "score_32_bit": {"dequantize": True, "exact": True},  # the same weights and adapter, computed without rounding
    "score_smaller_batches": {},  # the same sums in another order
    "score_whole_rows": {},  # what all rows begin with computed in each of them
    "score_dequantized": {"dequantize": True},
    "score_dequantized_compiled": {"dequantize": True, "compile": True},
    "score_merged": {"dequantize": True, "merge": True},
    "score_merged_compiled": {"dequantize": True, "merge": True, "compile": True},
    "score_merged_compiled_as_eager": {"dequantize": True, "merge": True, "compile": True, "as_eager": True},
    "predict_file": {"dequantize": True, "merge": True, "compile": True},  # what --predict --fast does
    "beginnings_apart": {},  # each in a row of its own
    "beginnings": {},  # those of a dialogue in one row, where what they share is computed once
}
OPTIONS = {"score_smaller_batches": {"tokens_a_batch": 4096}, "beginnings": {"grown": True}}  # of `score_prompts`
COMPARED_WITH = {"beginnings_apart": "beginnings_apart", "beginnings": "beginnings_apart"}  # others: with `score`


def prepare(folder: str, checkpoint: str, device: str, *, dequantize: bool = False, merge: bool = False,
            compile: bool = False, as_eager: bool = False, exact: bool = False):
    """(model, encoder): base and adapter as a method wants them.

    Args:
        exact: keep the 16-bit values in 32 bit; see `computing_in`.
        as_eager: let compiled kernels round to 16 bit wherever eager ones do, instead of keeping 32 bit in between.
    """
    base, tokenizer = load_model(folder, device, dequantize=dequantize)
    if checkpoint:
        found = find_checkpoint(checkpoint)
        model, lineage = with_adapter(base, found, folder), read_checkpoint(found)
    else:
        torch.manual_seed(0)
        model = get_peft_model(base, build_loraconfig())
        lineage = lineage_of(base)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.005)
    if merge:
        model = model.merge_and_unload()
    model.lineage = lineage  # says whether lines count and, to `predict_file`, what is asked
    if exact:
        model = model.float()
    if compile:
        torch._dynamo.reset()  # else the kernels of the method before would be taken
        torch._inductor.config.emulate_precision_casts = as_eager
        compile_layers(model)
    return model.eval(), PromptEncoder(tokenizer, lineage.task)


@contextlib.contextmanager
def computing_in(dtype: torch.dtype | None):
    """Within this context models are loaded for, and scored in, `dtype`; None for the device's own."""
    if dtype is None:
        yield
        return
    with (replaced(models, compute_dtype=lambda _: dtype), replaced(scoring, compute_dtype=lambda _: dtype)):
        yield


def time_generate(model, encoder: PromptEncoder, dialogues: Sequence[str]) -> dict:
    """Rows a second of writing the answer out, as many rows at a time as the article does, on the first rows."""
    some = dialogues[:GENERATED_ROWS]
    started = time.perf_counter()
    prompts = sorted(encoder.prompts(some), key=len)
    for first in range(0, len(prompts), ROWS_OF_THE_ARTICLE):
        generate_answers(model, encoder, prompts[first:first + ROWS_OF_THE_ARTICLE])
    return {"rows": len(some), "rows_per_second": len(some) / (time.perf_counter() - started)}


def time_score(model, encoder: PromptEncoder, prompts: Callable[[], Sequence[Sequence[int]]], **options
               ) -> tuple[dict, np.ndarray]:
    """Rows a second of scoring, the median of a few runs after one that warms up; and the scores.

    Args:
        prompts: makes them, which is part of every run.
        options: of `score_prompts`.
    """
    seconds = []
    for _ in range(1 + RUNS):
        started = time.perf_counter()
        scores = score_prompts(model, encoder, prompts(), **options)
        seconds.append(time.perf_counter() - started)
    return {"rows": len(scores), "rows_per_second": len(scores) / statistics.median(seconds[1:]),
            "first_run_seconds": seconds[0]}, scores


def beginnings(encoder: PromptEncoder, dialogues: Sequence[str]) -> list[list[int]]:
    """A prompt for every line of the first few dialogues, of what was said up to it."""
    return [prompt for dialogue in dialogues[:BEGINNINGS_OF] for prompt in encoder.newest_prompts(dialogue)]


def time_predict_file(model, encoder: PromptEncoder, dialogues: Sequence[str], rows: int) -> dict:
    """Rows a second from a file of so many rows, to the file of their predictions; few dialogues are repeated."""
    time_score(model, encoder, functools.partial(encoder.prompts, dialogues[:WARM_UP_ROWS]))
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "in.jsonl"
        write_records(given, ({"input": text} for text in itertools.islice(itertools.cycle(dialogues), rows)))
        summary = predict_file(model, encoder.tokenizer, given, Path(scratch) / "out.jsonl", progress=False)
    return {"rows": summary["rows"], "rows_per_second": summary["rows_per_second"]}


def run(model: str, checkpoint: str, data: str, *, methods: Sequence[str], device: str, output: str,
        rows: int | None = None, predict_rows: int = PREDICT_ROWS, dtype: torch.dtype | None = None) -> dict:
    """Every method on the first `rows` of `data` (default: all), predict_file on all of it; written after each."""
    known = [record["input"] for record in read_records(data, Skipped())]
    dialogues = known[:rows]
    report = {"methods": {}, "device": device_name(device),
              "provenance": {"model": Path(model).name, "checkpoint": Path(checkpoint).name if checkpoint else "random",
                             "data": Path(data).name, "compute_dtype": str(dtype or compute_dtype(device)),
                             **code_provenance()}}
    plain: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(model, scratch, device)
        for method in tqdm(methods, desc="methods"):
            free_memory()
            with computing_in(dtype):
                loaded, encoder = prepare(folder, checkpoint, device, **METHODS[method])
            with computing_in(torch.float32 if METHODS[method].get("exact") else dtype):
                if method == "generate":
                    found = time_generate(loaded, encoder, dialogues)
                elif method == "predict_file":
                    found = time_predict_file(loaded, encoder, known, predict_rows)
                else:
                    asked = functools.partial(beginnings, encoder) if "beginnings" in method else encoder.prompts
                    with whole_rows() if method == "score_whole_rows" else contextlib.nullcontext():
                        found, scores = time_score(loaded, encoder, functools.partial(asked, dialogues),
                                                   **OPTIONS.get(method, {}))
                    found.update(agreement(scores, plain.setdefault(COMPARED_WITH.get(method, "score"), scores)))
            if device != "cpu":
                found["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
            report["methods"][method] = found
            del loaded
            write_json(output, report)
    return report


def agreement(scores: np.ndarray, plain: np.ndarray) -> dict:
    """How far probabilities lie apart, and how many labels differ that are no borderline cases in `plain`."""
    difference = np.abs(scores - plain)
    flipped = (scores >= 0.5) != (plain >= 0.5)
    clear = (plain < BORDERLINE[0]) | (plain > BORDERLINE[1])
    return {"max_probability_difference": float(difference.max()),
            "p99_probability_difference": float(np.quantile(difference, 0.99)),
            "labels_flipped": int(flipped.sum()),
            "labels_flipped_beyond_borderline": int((flipped & clear).sum())}


def table(report: dict) -> str:
    """The methods as a Markdown table."""
    lines = ["| method | rows/s | against generate | peak, GiB | largest change of a probability | labels flipped |",
             "|---|---|---|---|---|---|"]
    base = report["methods"].get("generate", {}).get("rows_per_second")
    for name, found in report["methods"].items():
        ratio = f"{found['rows_per_second'] / base:.0f}x" if base else "-"
        memory = f"{found['peak_allocated_gib']:.1f}" if "peak_allocated_gib" in found else "-"
        change = f"{found['max_probability_difference']:.4f}" if "max_probability_difference" in found else "-"
        flipped = found.get("labels_flipped", "-")
        lines.append(f"| {name} | {found['rows_per_second']:.1f} | {ratio} | {memory} | {change} | {flipped} |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with a model, or with its config and tokenizer")
    parser.add_argument("--checkpoint", default="", help="folder of a run or of an adapter; default: a random one")
    parser.add_argument("--data", required=True, help="JSONL records to score")
    parser.add_argument("--rows", type=int, help="how many of them (default: all)")
    parser.add_argument("--predict-rows", type=int, default=PREDICT_ROWS,
                        help="of the file of predict_file, from all of --data and over again; a dialogue that comes "
                             "twice in 4,096 is scored once (default: %(default)s)")
    parser.add_argument("--compute-dtype", choices=("bfloat16", "float16", "float32"), help="default: the device's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/speed/scoring.json")
    args = parser.parse_args(argv)
    disable_progress_bars()
    report = run(args.model, args.checkpoint, args.data, methods=args.methods, device=args.device,
                 output=args.output, rows=args.rows, predict_rows=args.predict_rows,
                 dtype=getattr(torch, args.compute_dtype) if args.compute_dtype else None)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
