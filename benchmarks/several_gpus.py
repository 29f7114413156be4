"""Do several GPUs learn the same as one, and how much faster?

    python -m benchmarks.several_gpus --model MODEL --train F --eval F [--predict F]

Each layout is a command of the README in processes of its own: one GPU, a copy of the model on each of several
(``configs/ddp.yaml``), one model sharded over them (``configs/fsdp.yaml``), with the recipe that ``auto`` chooses.
Losses are those of 16 rows a step, however many GPUs share them, without LoRA dropout, which each process would draw
for itself. Samples a second are those of 16 rows a step on each GPU, by when a run prints its losses: the median, so
that start, compiling and capturing are not in it. With --predict, the rows a second that ``evaluate.py --predict`` says
it scored, by the base. FSDP is not timed: it is for models that do not fit otherwise. MODEL may be config and tokenizer
alone, as for `benchmarks.training`.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from antifraud.model import default_device, locate_model
from antifraud.provenance import code_provenance, device_name
from benchmarks import execute, folder_with_weights, seconds_a_step, trainer_state
from benchmarks.training import ROWS_A_STEP
from data.command import command
from data.files import write_json

ROOT = Path(__file__).parents[1]
LAYOUTS = {"one": None, "ddp": ROOT / "configs" / "ddp.yaml", "fsdp": ROOT / "configs" / "fsdp.yaml"}
STEPS = 24
LINES = 8  # that a timed run prints


def launched(layout: str, processes: int, script: str, options: Sequence[str]) -> list[str]:
    """What a user types to run a script of the project in `layout`."""
    config = LAYOUTS[layout]
    launch = [] if config is None else ["-m", "accelerate.commands.launch", "--config_file", str(config),
                                        "--num_processes", str(processes)]
    return [*launch, str(ROOT / script), *options]


def words_of(layout: str, processes: int, options: Sequence[str], rows: int | None = None) -> list[str]:
    """What a user types to train in `layout`, with so many rows a step on each GPU, or 16 on all together."""
    rows = rows or (ROWS_A_STEP if LAYOUTS[layout] is None else ROWS_A_STEP // processes)
    return launched(layout, processes, "trainer.py", [*options, "--per-device-train-batch-size", str(rows)])


def train(layout: str, processes: int, options: Sequence[str], output: str, device: str) -> dict:
    """Trains in `layout`.

    Returns:
        ``losses``, one a step; ``eval_loss`` after the last; ``seconds`` of the whole command.

    Raises:
        DataError: the command failed; says what it wrote last.
    """
    began = time.time()
    execute(*words_of(layout, processes, [*options, "--output", output, "--device", device]), env=environment(device))
    history = trainer_state(output)["log_history"]
    return {"losses": [row["loss"] for row in history if "loss" in row],
            "eval_loss": next(row["eval_loss"] for row in reversed(history) if "eval_loss" in row),
            "seconds": time.time() - began}


def samples_per_second(layout: str, processes: int, options: Sequence[str], output: str, device: str,
                       steps: int) -> float:
    """Rows that all GPUs of `layout` learn from in a second, 16 a step on each, once everything is compiled."""
    never = [word for name in ("eval", "save") for word in (f"--{name}-strategy", "no")]
    a_line = max(1, steps // LINES)
    words = [*options, *never, "--load-best-model-at-end", "false", "--max-steps", str(steps), "--logging-steps",
             str(a_line), "--output", output, "--device", device]
    printed = execute(*words_of(layout, processes, words, rows=ROWS_A_STEP), env=environment(device))
    return ROWS_A_STEP * (1 if LAYOUTS[layout] is None else processes) / seconds_a_step(printed, a_line)


def rows_per_second(layout: str, processes: int, model: str, file: str, output: str, device: str) -> float:
    """Rows of `file` that all GPUs of `layout` score in a second, from the first one read to the last one written."""
    words = ["--model", model, "--predict", file, "--output", output, "--device", device]
    printed = execute(*launched(layout, processes, "evaluate.py", words), env=environment(device))
    return next(float(found[1]) for _, line in printed if (found := re.search(r"([\d.]+) rows/s$", line)))


def environment(device: str) -> dict[str, str]:
    return {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}


def against_one(found: dict, one: dict) -> dict:
    """`found` with how far its losses lie from those of one GPU."""
    differences = [abs(loss - other) for loss, other in zip(found["losses"], one["losses"], strict=True)]
    return {**found, "largest_loss_difference": max(differences),
            "eval_loss_difference": found["eval_loss"] - one["eval_loss"]}


def run(model: str, train_file: str, eval_file: str, *, layouts: Sequence[str], processes: int, steps: int,
        timed_steps: int, compiled: bool, device: str, output: str, predict: str | None = None) -> dict:
    """The layouts one after the other, ``one`` first; written after each."""
    report = {"layouts": {}, "processes": processes,
              "device": device_name(device),
              "provenance": {"model": Path(model).resolve().name, "train": Path(train_file).name,
                             "eval": Path(eval_file).name, "steps": steps, "timed_steps": timed_steps,
                             "predicted": Path(predict).name if predict else None,
                             "compiled": compiled, **code_provenance()}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(locate_model(model), f"{scratch}/model", device)
        if device != "cpu":
            torch.cuda.empty_cache()  # the processes that follow shall have the GPU's memory
        options = ["--model", folder, "--train", train_file, "--eval", eval_file, "--disable-tqdm", "true"]
        alike = ["--lora-dropout", "0", "--learning-rate", "1e-3", "--logging-steps", "1",
                 *(word for name in ("max", "eval", "save") for word in (f"--{name}-steps", str(steps)))]
        for layout in tqdm(layouts, desc="layouts"):
            found = train(layout, processes, [*options, *alike], f"{scratch}/{layout}", device)
            report["layouts"][layout] = against_one(found, report["layouts"].get("one", found))
            if timed_steps and layout != "fsdp":
                report["layouts"][layout]["samples_per_second"] = samples_per_second(
                    layout, processes, [*options, *["--compile-layers", "true"] * compiled],
                    f"{scratch}/{layout}-timed", device, timed_steps)
            if predict and layout != "fsdp":
                report["layouts"][layout]["predicted_per_second"] = rows_per_second(
                    layout, processes, folder, predict, f"{scratch}/{layout}.jsonl", device)
            write_json(output, report)
    return report


def table(report: dict) -> str:
    """The layouts as a Markdown table."""
    lines = ["| layout | processes | loss, first step | last step | eval loss | largest difference of a step's loss to "
             "that of one process | whole command, s | samples/s | --predict, rows/s |",
             "|---|---|---|---|---|---|---|---|---|"]
    for layout, found in report["layouts"].items():
        speeds = [f"{found[name]:.0f}" if name in found else "not measured"
                  for name in ("samples_per_second", "predicted_per_second")]
        lines.append(f"| {layout} | {1 if layout == 'one' else report['processes']} | {found['losses'][0]:.4f} "
                     f"| {found['losses'][-1]:.4f} | {found['eval_loss']:.4f} "
                     f"| {found['largest_loss_difference']:.1e} | {found['seconds']:.0f} | {' | '.join(speeds)} |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_gpus", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or one with config and tokenizer alone")
    parser.add_argument("--train", required=True, help="JSONL records to train on")
    parser.add_argument("--eval", required=True, help="JSONL records for the eval loss")
    parser.add_argument("--predict", help="JSONL records to score, too, in one process and in several")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, help="default: all; on a CPU, all but fsdp")
    parser.add_argument("--processes", type=int, default=2, help="GPUs; 16 is a multiple of it")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--timed-steps", type=int, help="0: no samples a second; default: 160, on a CPU 0")
    parser.add_argument("--compile-layers", action="store_true", help="compiled in the timed runs")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/speed/several_gpus.json")
    args = parser.parse_args(argv)
    if ROWS_A_STEP % args.processes:
        parser.error(f"--processes: {ROWS_A_STEP} rows a step cannot be dealt to {args.processes} evenly")
    layouts = args.layouts or [layout for layout in LAYOUTS if layout != "fsdp" or args.device != "cpu"]
    if args.device == "cpu" and "fsdp" in layouts:
        parser.error("--layouts fsdp: Accelerate shards models on GPUs only; on a CPU it would train as ddp does")
    report = run(args.model, args.train, args.eval, layouts=layouts, processes=args.processes, predict=args.predict,
                 steps=args.steps, device=args.device, output=args.output, compiled=args.compile_layers,
                 timed_steps=160 * (args.device != "cpu") if args.timed_steps is None else args.timed_steps)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
