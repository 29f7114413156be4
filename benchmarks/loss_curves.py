"""Whether the recipes learn alike: their loss curves on the same rows, several seeds each.

    python -m benchmarks.loss_curves --model MODEL --train train.jsonl --eval eval.jsonl --output loss_curves.json

A seed fixes the adapters' first values, the order of the rows and the dropout. Two recipes draw dropout differently, so
their curves differ as two seeds do; more would mean that one of them computes something else. Curves that ``--output``
holds, of the same code, data and settings, are not made again.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from datasets import disable_progress_bars

from antifraud.model import default_device
from antifraud.provenance import code_provenance, device_name
from benchmarks import refusing_in_a_line
from benchmarks.training import RECIPES, free_memory
from data.files import write_json
from evaluate import load_model
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def curve(recipe: str, seed: int, args: argparse.Namespace) -> dict[str, list]:
    """Train loss every 10 steps, and eval loss at the end; the checkpoint goes to ``--checkpoints``, if given."""
    free_memory()
    model, tokenizer = load_model(args.model, args.device)
    train, held_out = load_dataset(args.train, args.eval, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        output = f"{args.checkpoints}/{recipe}-{seed}" if args.checkpoints else scratch
        train_args = build_train_arguments(
            output, max_steps=args.steps, learning_rate=args.learning_rate, seed=seed, eval_steps=args.steps,
            save_steps=args.steps, logging_steps=10, disable_tqdm=True, use_cpu=args.device == "cpu",
            **(RECIPES[recipe] if args.device != "cpu" else {}))
        trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(), train, held_out)
        trainer.train()
    log = trainer.state.log_history
    logged = [row for row in log if "loss" in row]
    return {"step": [row["step"] for row in logged], "loss": [row["loss"] for row in logged],
            "eval_loss": [row["eval_loss"] for row in log if "eval_loss" in row][-1]}


def spread(curves: dict[str, dict[str, dict]]) -> dict[str, float]:
    """Mean distance of two curves: of two seeds of one recipe, and of two recipes with one seed."""
    def distance(one: dict, other: dict) -> float:
        return statistics.fmean(abs(a - b) for a, b in zip(one["loss"], other["loss"], strict=True))

    recipes, seeds = list(curves), list(next(iter(curves.values())))
    pairs = [(a, b) for i, a in enumerate(seeds) for b in seeds[i + 1:]]
    return {"between_seeds": statistics.fmean(distance(curves[r][a], curves[r][b]) for r in recipes for a, b in pairs),
            "between_recipes": statistics.fmean(distance(curves[recipes[0]][s], curves[r][s])
                                                for r in recipes[1:] for s in seeds)}


def save_picture(report: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for color, (recipe, runs) in zip(("tab:blue", "tab:orange", "tab:green"), report["curves"].items()):
        for seed, run in runs.items():
            axes.plot(run["step"], run["loss"], color=color, alpha=0.8, label=recipe if seed == min(runs) else None)
    axes.set_xlabel("step")
    axes.set_ylabel("train loss")
    axes.set_yscale("log")
    axes.set_title("The recipes learn alike: one line a seed")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves_of_the_same(report: dict, path: str) -> dict[str, dict[str, dict]]:
    """The curves in the file at `path`, if there is one, and its device, versions, commit and settings are the same."""
    if not Path(path).is_file():
        return {}
    other = json.loads(Path(path).read_text(encoding="utf-8"))

    def made_of(what: dict) -> dict:
        return {"device": what["device"], **what["provenance"], "date": None}
    return other["curves"] if made_of(other) == made_of(report) else {}


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_curves", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True, help="JSONL records")
    parser.add_argument("--eval", required=True, help="JSONL records")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["plain_not_checkpointed", "fast"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--checkpoints", help="folder to keep the last checkpoint of each run in")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/loss_curves.json")
    args = parser.parse_args(argv)
    disable_progress_bars()
    report = {"curves": {},
              "device": device_name(args.device),
              "provenance": {"model": Path(args.model).name, "train": Path(args.train).name, "steps": args.steps,
                             "learning_rate": args.learning_rate, **code_provenance()}}
    found = curves_of_the_same(report, args.output)
    for recipe in args.recipes:
        for seed in map(str, args.seeds):
            made = found.get(recipe, {}).get(seed) or curve(recipe, int(seed), args)
            report["curves"].setdefault(recipe, {})[seed] = made
            write_json(args.output, report)
    if len(args.recipes) > 1 and len(args.seeds) > 1:
        report["mean_distance"] = spread(report["curves"])
    write_json(args.output, report)
    save_picture(report, Path(args.output).with_suffix(".png"))
    print(report.get("mean_distance"), {recipe: {seed: run["eval_loss"] for seed, run in runs.items()}
                                    for recipe, runs in report["curves"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
