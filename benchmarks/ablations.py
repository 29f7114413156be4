"""What does each part of the recipe buy, judged on the eval split?

    python -m benchmarks.ablations --model M --data PREPARED --source DIALOGS [--ordinary DIR ...]
                                   [--ordinary-eval DIR ...] [--ordinary-judge DIR ...] [--train-only DIR ...]
                                   [--variants base ...] [--variant 'NAME=TRAIN OPTIONS' ...]
    python -m benchmarks.ablations --merge A.json B.json ... [--output ALL.json]

A row is one variant with one seed. It is made with the commands as a user types them: `data.prepare`, trainer.py, and
``evaluate.py --calibrate`` on the base's eval split, with at most `FALSE_ALARMS` of a hundred alarming of the ordinary
calls kept for choosing: its figures are those that this command finds. The test split is never read. Rows are added to
--output as they are done, and rows that are there are not made again. Several GPUs: one process each with its own
--output, then ``--merge``. ``--prepare-only`` makes the data of all rows, without a GPU.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antifraud.model import default_device, locate_model
from antifraud.provenance import code_provenance, describe_base, device_name, file_sha256
from benchmarks import TRAIN, execute, trainer_state
from data.command import command
from data.files import DataError, require_input, write_json

PREPARE = "--augment 0.5 --ordinary-share all"
FALSE_ALARMS = 5
MORE = ("ordinary", "ordinary_eval", "ordinary_judge", "train_only")  # dialogues beside the source's
FIGURES = ("precision", "recall", "f1", "average_precision", "threshold", "line_weight", "top_lines", "ordinary")


@dataclass(frozen=True)
class Variant:
    """How a row differs from the base: options of the commands, which override the base's.

    Attributes:
        ordinary: whether train has the ordinary talk of --ordinary.
        trainings: how many trainings, apart in their seeds, are averaged to one adapter (a model soup).
    """

    train: str = ""
    prepare: str = ""
    ordinary: bool = True
    trainings: int = 1


VARIANTS = {
    "base": Variant(),
    "lr-1e-4": Variant("--learning-rate 1e-4"),
    "lr-4e-4": Variant("--learning-rate 4e-4"),
    "steps-700": Variant("--max-steps 700 --eval-steps 175 --save-steps 175"),
    "steps-2800": Variant("--max-steps 2800 --eval-steps 700 --save-steps 700"),
    "rank-8": Variant("--lora-r 8 --lora-alpha 16"),
    "rank-64": Variant("--lora-r 64 --lora-alpha 128"),
    "dropout-0.05": Variant("--lora-dropout 0.05"),
    "lines-0": Variant("--line-loss-weight 0"),
    "lines-1": Variant("--line-loss-weight 1"),
    "label-smoothing-0.1": Variant("--label-smoothing-factor 0.1"),
    "batch-32": Variant("--per-device-train-batch-size 32 --max-steps 700 --eval-steps 175 --save-steps 175"),
    "augment-0": Variant(prepare="--augment 0"),
    "augment-1": Variant(prepare="--augment 1"),
    "ordinary-first-0": Variant(prepare="--ordinary-first 0"),
    "ordinary-first-0.2": Variant(prepare="--ordinary-first 0.2"),
    "whole-dialogues": Variant(prepare="--lengths 100 300 500 2000"),
    "no-ordinary": Variant(ordinary=False),
    "soup-of-3": Variant(trainings=3),
}


@dataclass(frozen=True)
class Job:
    """What all rows have in common.

    Attributes:
        data: folder of prepared data: ``base-0`` and so on, for variant and seed.
        source, more: dialogues to prepare data from that is not there yet; the latter by options of data.prepare.
        prepare, train: options of every row, before a variant's own.
        variants: by name, all that a row may be.
    """

    model: str
    data: Path
    source: str | None
    more: Mapping[str, Sequence[str]]
    prepare: tuple[str, ...]
    train: tuple[str, ...]
    device: str
    variants: Mapping[str, Variant]


def run(job: Job, names: Sequence[str], seeds: Sequence[int], output: str | Path) -> dict:
    """Adds the rows that `output` lacks; returns all it then holds.

    Raises:
        DataError: a row of that name was made with other options, or a command failed.
    """
    report = read_report(output)
    model = describe_base(locate_model(job.model))
    for seed in seeds:
        for name in names:
            variant = job.variants[name]
            settings = {"model": model, "prepare": [*job.prepare, *shlex.split(variant.prepare)],
                        "train": [*job.train, *shlex.split(variant.train)],
                        **{option: [Path(path).name for path in paths] for option, paths in job.more.items()}}
            row = next((row for row in report["rows"] if (row["variant"], row["seed"]) == (name, seed)), None)
            if row is None:
                row = {"variant": name, "seed": seed, "settings": settings, **make_row(job, name, seed)}
                report["rows"].append(row)
                write_json(output, report)
                print(f"{name}, seed {seed}: F1 {row['f1']:.4f}, average precision {row['average_precision']:.4f}, "
                      f"{row['train_seconds']:.0f} s", flush=True)
            elif row["settings"] != settings:
                raise DataError(f"{output}: {name} with seed {seed} was made with another model or other options; "
                                "name another --output")
    return report


def read_report(output: str | Path) -> dict:
    if not Path(output).exists():
        return {"rows": []}
    try:
        return {"rows": [{"variant": row["variant"], "seed": row["seed"], **row}
                         for row in json.loads(Path(output).read_text(encoding="utf-8"))["rows"]]}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{output}: not a file of this command; name another --output") from None


def make_row(job: Job, name: str, seed: int) -> dict:
    """Trains one variant and judges it; its checkpoints are not kept."""
    variant = job.variants[name]
    train, judged = prepared(job, name, seed) / "train.jsonl", prepared(job, "base", seed)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        runs = [Path(scratch) / f"run-{number}" for number in range(variant.trainings)]
        for number, folder in enumerate(runs):
            execute("trainer.py", "--model", job.model, "--train", train, "--eval", judged / "eval.jsonl",
                    "--output", folder, "--seed", seed + 1000 * number, "--device", job.device,
                    *job.train, *shlex.split(variant.train))
        checkpoint = runs[0]
        if len(runs) > 1:
            checkpoint = Path(scratch) / "soup"
            execute("-m", "antifraud.training.average", "--checkpoints", *runs, "--output", checkpoint)
        seconds = {"train_seconds": time.perf_counter() - started}
        started = time.perf_counter()
        found = calibrated(job, checkpoint, judged, Path(scratch))
        seconds["evaluate_seconds"] = time.perf_counter() - started
        states = [trainer_state(folder) for folder in runs]
    return {**{name: found[name] for name in FIGURES if name in found}, **seconds,
            "eval_loss": statistics.fmean(state["best_metric"] for state in states),
            "steps": sum(state["global_step"] for state in states),
            "provenance": {"train": file_sha256(train), "eval": file_sha256(judged / "eval.jsonl"),
                           "device": device_name(job.device), **code_provenance()}}


def prepared(job: Job, name: str, seed: int) -> Path:
    """The folder with a row's data, prepared unless it is there; variants that only train otherwise use the base's."""
    variant = job.variants[name]
    own = variant.prepare or not variant.ordinary
    folder = job.data / f"{name if own else 'base'}-{seed}"
    if not (folder / "leakage.json").is_file():  # which is written last
        if job.source is None:
            raise DataError(f"{folder}: no prepared data; name the dialogues to prepare it from with --source")
        more = [word for option, paths in job.more.items() if paths and (variant.ordinary or option != "ordinary")
                for word in (f"--{option.replace('_', '-')}", *paths)]
        execute("-m", "data.prepare", "--source", job.source, "--output", folder, "--seed", seed, *job.prepare,
                *shlex.split(variant.prepare), *more)
    return folder


def calibrated(job: Job, checkpoint: Path, judged: Path, scratch: Path) -> dict:
    """What calibrating finds on the eval split, at the best F1 within the bound on alarms in ordinary calls."""
    calls = judged / "ordinary_eval.jsonl"
    bound = ("--ordinary", calls, "--false-alarms", FALSE_ALARMS) if calls.is_file() else ()
    execute("evaluate.py", "--model", job.model, "--checkpoint", checkpoint, "--device", job.device, "--data",
            judged / "eval.jsonl", "--calibrate", "--best-f1", *bound, "--output", scratch / "found.json")
    return json.loads((scratch / "found.json").read_text(encoding="utf-8"))


def merge(files: Sequence[str], output: str | Path) -> dict:
    """Adds the rows of several reports to those of `output`; returns all it then holds.

    Raises:
        DataError: a file is no report, or two rows of one name and seed differ.
    """
    rows = {(row["variant"], row["seed"]): row for row in read_report(output)["rows"]}
    for path in files:
        require_input(path)
        for row in read_report(path)["rows"]:
            key = row["variant"], row["seed"]
            if rows.setdefault(key, row) != row:
                raise DataError(f"{path}: {key[0]} with seed {key[1]} is another row than the one merged before; "
                                "leave one out, or name another --output")
    report = {"rows": list(rows.values())}
    write_json(output, report)
    return report


def table(report: dict) -> str:
    """Each variant's mean over its seeds as a Markdown table, best average precision first."""
    by_name: dict[str, list[dict]] = {}
    for row in report["rows"]:
        by_name.setdefault(row["variant"], []).append(row)
    figures = ("f1", "precision", "recall", "average_precision", "eval_loss", "train_seconds")
    means = [{"variant": name, "seeds": len(rows), **{key: statistics.fmean(row[key] for row in rows)
                                                      for key in figures}} for name, rows in by_name.items()]
    means.sort(key=lambda row: -row["average_precision"])
    return "\n".join(["| variant | seeds | F1 | precision | recall | average precision | eval loss | train, s |",
                      "|---|---|---|---|---|---|---|---|",
                      *("| {variant} | {seeds} | {f1:.4f} | {precision:.4f} | {recall:.4f} | {average_precision:.4f} "
                        "| {eval_loss:.4f} | {train_seconds:.0f} |".format(**row) for row in means)])


def _own_variant(text: str) -> tuple[str, Variant]:
    name, equals, options = text.partition("=")
    if not (name and equals) or name in VARIANTS:
        raise argparse.ArgumentTypeError(f"expected NAME=TRAIN OPTIONS with a name that is not yet taken, found {text}")
    return name, Variant(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--data", type=Path, help="folder of prepared data, a folder for each variant and seed")
    parser.add_argument("--source", help="folder of dialogue CSVs, to prepare what --data lacks")
    for option in MORE:
        parser.add_argument(f"--{option.replace('_', '-')}", nargs="+", default=[], metavar="DIR_OR_CSV",
                            help="more dialogues, as data.prepare takes them")
    parser.add_argument("--prepare", default=PREPARE, help="options of data.prepare, every row (default: %(default)s)")
    parser.add_argument("--train", default=TRAIN, help="options of trainer.py for every row (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME",
                        help=f"of {', '.join(VARIANTS)} (default: all, with --variant none)")
    parser.add_argument("--variant", type=_own_variant, action="append", default=[], metavar="'NAME=TRAIN OPTIONS'",
                        help="another, by options of trainer.py; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prepare-only", action="store_true", help="make the data of all rows and stop; no --model")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="add the rows of these to --output, make none")
    parser.add_argument("--output", default="results/ablations.json")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = (parser := _parser()).parse_args(argv)
    if args.merge:
        print(table(merge(args.merge, args.output)))
        return 0
    if args.data is None or (args.model is None and not args.prepare_only):
        parser.error("--model and --data are needed, unless for --merge")
    own = dict(args.variant)
    names = [*((args.variants or ()) if own else args.variants or VARIANTS), *own]
    job = Job(model=args.model, data=args.data, source=args.source,
              more={option: getattr(args, option) for option in MORE}, prepare=tuple(shlex.split(args.prepare)),
              train=tuple(shlex.split(args.train)), device=args.device, variants={**VARIANTS, **own})
    if args.prepare_only:
        for seed in args.seeds:
            for name in names:
                print(prepared(job, name, seed), flush=True)
        return 0
    print(table(run(job, names, args.seeds, args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
