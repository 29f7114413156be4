"""What does a user wait for? The README's own commands, and where every second of them goes.

    python -m benchmarks.end_to_end --model MODEL --data PREPARED --evaluate eval0819.jsonl [--full]

PREPARED is a folder of `data.prepare`. trainer.py trains by the recipe of the README, evaluate.py judges its best
checkpoint, core and, with --full, with everything: once when the baselines must be fitted, and again. With --max-steps
the training is cut short, and the figure to keep is ``beside_steps_seconds``: what start, compiling, evaluations and
checkpoints cost, however many steps there are.
Seconds inside a command are those that it says itself: a step's by when losses are printed, ``eval_runtime``, and the
report's rows a second. Run it twice to see what compiled kernels save that are kept on disk.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from antifraud.compiling import kernels_kept
from antifraud.model import default_device
from antifraud.provenance import code_provenance, device_name, file_sha256
from benchmarks import TRAIN, execute, seconds_a_step, trainer_state
from data.command import command
from data.files import require_input, write_json

LOGGING_STEPS = 10
COMMANDS = {"evaluate": "evaluate", "full": "evaluate --full", "full_again": "evaluate --full, baselines kept"}


def of_training(run: Path, printed: list[tuple[float, str]]) -> dict:
    """Where the seconds of a training went.

    Returns:
        ``train_seconds`` of the whole command; ``steps``, ``seconds_a_step`` and ``steps_seconds``, those of the steps
        alone; ``beside_steps_seconds``, all others; of these, ``start_seconds`` up to the first step, which is
        compiled, ``evaluating_seconds`` of so many ``evaluations``, and ``rest_seconds``: graphs of shapes that come
        later, checkpoints, the end.
    """
    state = trainer_state(run)
    evaluations = [row["eval_runtime"] for row in state["log_history"] if "eval_runtime" in row]
    a_step, steps = seconds_a_step(printed, LOGGING_STEPS), state["global_step"]
    found = {"train_seconds": printed[-1][0], "steps": steps, "seconds_a_step": a_step, "steps_seconds": steps * a_step,
             "beside_steps_seconds": printed[-1][0] - steps * a_step, "evaluations": len(evaluations),
             "evaluating_seconds": sum(evaluations),
             "start_seconds": next(at for at, line in printed if line.startswith("{'loss'")) - LOGGING_STEPS * a_step}
    return {**found, "rest_seconds": found["beside_steps_seconds"] - found["start_seconds"] - sum(evaluations)}


def run(model: str, data: Path, judged: str, *, full: bool, train: Sequence[str], device: str, output: str) -> dict:
    """Trains, judges, and writes `output` after each command."""
    report = {"commands": {}, "device": device_name(device),
              "provenance": {"model": Path(model).name, "train": file_sha256(data / "train.jsonl"),
                             "evaluated": file_sha256(judged), "train_options": shlex.join(train),
                             "kernels_kept": kernels_kept(),
                             **code_provenance()}}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "run"
        report |= of_training(checkpoint, execute(
            "trainer.py", "--model", model, "--train", data / "train.jsonl", "--eval", data / "eval.jsonl", "--output",
            checkpoint, "--device", device, "--disable-tqdm", "true", "--logging-steps", LOGGING_STEPS, *train))
        write_json(output, report)
        everything = ["--full", "--train", data / "train.jsonl"]
        for name in COMMANDS if full else ("evaluate",):
            started = time.perf_counter()
            execute("evaluate.py", "--model", model, "--checkpoint", checkpoint, "--device", device,
                    "--data", judged, "--output", f"{scratch}/{name}.json",
                    *(everything if name != "evaluate" else ()))
            seconds = time.perf_counter() - started
            judged_report = json.loads(Path(f"{scratch}/{name}.json").read_text(encoding="utf-8"))
            report[f"{name}_seconds"] = seconds
            report["commands"][name] = by_part(judged_report, seconds)
            write_json(output, report)
    return report


def by_part(judged: dict, seconds: float) -> dict[str, float]:
    """Seconds of a report that its rows' scores took, and all others: start, loading, statistics, side dishes."""
    scoring = judged["n"] / judged["rows_per_second"]
    return {"scoring": scoring, "rest": seconds - scoring}


def table(report: dict) -> str:
    """Commands and their insides as a Markdown table."""
    lines = ["| command | seconds | of it |", "|---|---|---|"]
    evaluations = f"{report['evaluations']} evaluation" + "s" * (report["evaluations"] != 1)
    inside = {"start": "start", "steps": "steps", "evaluating": evaluations, "rest": "rest"}
    said = ", ".join(f"{words} {report[f'{name}_seconds']:.0f}" for name, words in inside.items())
    lines.append(f"| train, {report['steps']} steps | {report['train_seconds']:.0f} | {said} |")
    for name, parts in report["commands"].items():
        parts = sorted(parts.items(), key=lambda part: -part[1])
        said = ", ".join(f"{part} {value:.1f}" for part, value in parts)
        lines.append(f"| {COMMANDS[name]} | {report[f'{name}_seconds']:.1f} | {said} |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and eval.jsonl")
    parser.add_argument("--evaluate", required=True, metavar="JSONL", help="records to judge")
    parser.add_argument("--full", action="store_true", help="judge twice more, with everything")
    parser.add_argument("--train", default=TRAIN, help="options of trainer.py (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, help="end the training after so many, with one evaluation")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/speed/end_to_end.json")
    args = parser.parse_args(argv)
    for path in (args.data / "train.jsonl", args.data / "eval.jsonl", args.evaluate):
        require_input(path)
    short = [word for name in ("max", "eval", "save") for word in (f"--{name}-steps", str(args.max_steps))]
    print(table(run(args.model, args.data, args.evaluate, full=args.full, device=args.device, output=args.output,
                    train=shlex.split(args.train) + short * (args.max_steps is not None))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
