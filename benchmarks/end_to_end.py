"""What does a user wait for? The README's own commands, and where every second of them goes.

    python -m benchmarks.end_to_end --model MODEL --data PREPARED --evaluate eval0819.jsonl [--full]

PREPARED is a folder of `data.prepare`. trainer.py trains for one epoch, evaluate.py judges its best checkpoint, core
and, with --full, with everything. Seconds inside a command are those that it says itself: ``train_runtime`` and
``eval_runtime`` of the trainer, ``seconds`` by part in the report. The rest is start, loading and compiling.
"""

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from antifraud.model import default_device
from antifraud.provenance import code_provenance, device_name, file_sha256
from benchmarks import execute
from data.command import command
from data.files import require_input, write_json

TRAIN = "--num-train-epochs 1 --learning-rate 1e-4 --line-loss-weight 0.3 --eval-steps 480 --save-steps 480"


def timed(*words: object) -> tuple[float, str]:
    """Seconds that a Python command of this project takes, and what it prints."""
    started = time.perf_counter()
    printed = execute(*words)
    return time.perf_counter() - started, printed


def of_training(run: Path, printed: str) -> dict:
    """What a training says of its inside.

    Returns:
        ``steps``, ``evaluations``, ``evaluating_seconds``, and ``steps_seconds``: those of `Trainer.train` less those
        of the evaluations in it, checkpoints included.
    """
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    evaluations = [row["eval_runtime"] for row in state["log_history"] if "eval_runtime" in row]
    found = {"steps": state["global_step"], "evaluations": len(evaluations), "evaluating_seconds": sum(evaluations)}
    trained = re.search(r"'train_runtime': '?([0-9.]+)", printed)
    return {**found, "steps_seconds": float(trained[1]) - sum(evaluations)} if trained else found


def run(model: str, data: Path, judged: str, *, full: bool, train: Sequence[str], device: str, output: str) -> dict:
    """Trains, judges, and writes `output` after each command."""
    report = {"commands": {}, "device": device_name(device),
              "provenance": {"model": Path(model).name, "train": file_sha256(data / "train.jsonl"),
                             "evaluated": file_sha256(judged), "train_options": shlex.join(train),
                             **code_provenance()}}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "run"
        report["train_seconds"], printed = timed(
            "trainer.py", "--model", model, "--train", data / "train.jsonl", "--eval", data / "eval.jsonl",
            "--output", checkpoint, "--device", device, *train)
        report |= of_training(checkpoint, printed)
        write_json(output, report)
        for name, options in (("evaluate", []), *([("full", ["--full", "--train", data / "train.jsonl"])] * full)):
            seconds, _ = timed("evaluate.py", "--model", model, "--checkpoint", checkpoint, "--device", device,
                               "--data", judged, "--output", f"{scratch}/{name}.json", *options)
            judged_report = json.loads(Path(f"{scratch}/{name}.json").read_text(encoding="utf-8"))
            report[f"{name}_seconds"] = seconds
            report["commands"][name] = by_part(judged_report, seconds)
            if name == "evaluate":
                report["scoring_seconds"] = judged_report["n"] / judged_report["rows_per_second"]
            write_json(output, report)
    return report


def by_part(judged: dict, seconds: float) -> dict[str, float]:
    """Seconds of a report's parts, and what is left: start, loading, and whatever the report does not time."""
    parts = dict(judged.get("seconds") or {})
    return {**parts, "rest": seconds - sum(parts.values())}


def table(report: dict) -> str:
    """Commands and their insides as a Markdown table."""
    lines = ["| command | seconds | of it |", "|---|---|---|"]
    inside = [f"steps {report['steps_seconds']:.0f}"] if "steps_seconds" in report else []
    inside.append(f"{report['evaluations']} evaluations {report['evaluating_seconds']:.0f}")
    lines.append(f"| train, {report['steps']} steps | {report['train_seconds']:.0f} | {', '.join(inside)} |")
    for name, parts in report["commands"].items():
        said = sorted(parts.items(), key=lambda part: -part[1])
        lines.append(f"| {'evaluate' if name == 'evaluate' else 'evaluate --full'} | {report[f'{name}_seconds']:.1f} "
                     f"| {', '.join(f'{part} {value:.1f}' for part, value in said)} |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and eval.jsonl")
    parser.add_argument("--evaluate", required=True, metavar="JSONL", help="records to judge")
    parser.add_argument("--full", action="store_true", help="judge once more with everything")
    parser.add_argument("--train", default=TRAIN, help="options of trainer.py (default: %(default)s)")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/speed/end_to_end.json")
    args = parser.parse_args(argv)
    for path in (args.data / "train.jsonl", args.data / "eval.jsonl", args.evaluate):
        require_input(path)
    print(table(run(args.model, args.data, args.evaluate, full=args.full, train=shlex.split(args.train),
                    device=args.device, output=args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
