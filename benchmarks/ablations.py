"""What each part of the recipe buys: the data or the training changed in one way, every change with several seeds.

    python -m benchmarks.ablations --model M --source DIALOGS [--seeds 0 1 2] [--variants NAME ...] [--also F.jsonl ...]

A row is one variant with one seed, which deals the dialogues and begins the training: within a seed all variants are
judged on the same test dialogues. Rows are added to --output as they are done, and those that are there are not made
again; a run that was killed goes on when it is started again. ``--prepare-only`` makes the data of all rows, which
needs no GPU, so that none waits for it later.
"""

import argparse
import dataclasses
import hashlib
import inspect
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import disable_progress_bars
from peft import LoraConfig

from calibration import calibrate, calibrated
from checkpoints import code_provenance, describe_base, file_sha256, source_commit
from data.prepare import prepare
from data.prompt import PromptEncoder, Task
from data.records import DataError, Skipped, read_records, write_json
from metrics import classification_metrics, confidence_intervals
from models import default_device, load_model, locate_model
from probes import probe_report
from scoring import score_prompts
from trainer import (
    FraudTrainingArguments,
    build_loraconfig,
    build_train_arguments,
    build_trainer,
    load_dataset,
)

# Each changes one part: of data.prepare, of the task, of the training arguments, or of LoRA.
VARIANTS = {
    "as it is": {},
    "speaker names kept": {"task": {"neutral_speakers": False}},
    "no hard negatives": {"data": {"keep_hard_negatives": False}},
    "near-duplicates of held-out pieces kept": {"data": {"near_duplicate": 2.0}},
    "half as many negatives": {"data": {"negatives_per_positive": 0.5}},
    "half as many, balanced by source": {"data": {"negatives_per_positive": 0.5, "balance_sources": True}},
    "noisy copies of half the train set": {"data": {"augment": 0.5}},
    "one epoch": {"training": {"num_train_epochs": 1}},
    "learning rate 3e-4": {"training": {"learning_rate": 3e-4}},
    "learning rate 1e-3": {"training": {"learning_rate": 1e-3}},
    "rank 64": {"lora": {"r": 64, "lora_alpha": 128}},
    "no dropout": {"lora": {"lora_dropout": 0.0}},
}
OPTIONS = {
    "data": set(inspect.signature(prepare).parameters) - {"source", "output", "seed"},
    "task": {field.name for field in dataclasses.fields(Task)},
    "training": {field.name for field in dataclasses.fields(FraudTrainingArguments)} | {"gradient_checkpointing"},
    "lora": {field.name for field in dataclasses.fields(LoraConfig)},
}
FIGURES = ("precision", "recall", "f1", "average_precision")


@dataclasses.dataclass(frozen=True)
class Job:
    """What all rows have in common.

    Attributes:
        source: the dialogues (CSV).
        scratch: folder for prepared data, which rows share where they can.
        also: further JSONL files to judge every row on.
        training: arguments of every row; a variant's own come on top.
    """

    model: str
    source: str
    scratch: Path
    device: str
    also: tuple[str, ...] = ()
    training: dict = dataclasses.field(default_factory=dict)


def run(job: Job, variants: dict[str, dict], seeds: Sequence[int], output: str | Path) -> dict:
    """Adds the rows that `output` lacks; returns all it then holds.

    Raises:
        DataError: a row of that name was made with other settings.
    """
    report = _read_report(output)
    made_of = {"model": describe_base(locate_model(job.model))["fingerprint"], "source": _fingerprint(job.source),
               "also": {Path(path).name: file_sha256(path) for path in job.also}, "training": job.training}
    for seed in seeds:
        for name, variant in variants.items():
            settings = json.loads(json.dumps({**made_of, "variant": variant}))  # as it is read back
            if _has_row(report, name, seed, settings, output):
                continue
            print(f"{name}, seed {seed}", flush=True)
            report["rows"].append({"variant": name, "seed": seed, "settings": settings,
                                   **make_row(job, variant, seed), "commit": source_commit()})
            report["provenance"] = _provenance(job)
            write_json(output, report)
    return report


def _read_report(output: str | Path) -> dict:
    if not Path(output).exists():
        return {"rows": [], "provenance": {}}
    try:
        report = json.loads(Path(output).read_text(encoding="utf-8"))
        report["rows"] = list(report["rows"])
        return report
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{output}: not a file of this command; name another --output") from None


def _has_row(report: dict, name: str, seed: int, settings: dict, output: str | Path) -> bool:
    row = next((row for row in report["rows"] if (row["variant"], row["seed"]) == (name, seed)), None)
    if row is None:
        return False
    changed = [key for key in settings if row["settings"].get(key) != settings[key]]
    if changed:
        raise DataError(f"{output}: {name!r} with seed {seed} was made with another {changed[0]}; "
                        "name another --output")
    return True


def make_row(job: Job, variant: dict, seed: int) -> dict:
    """Trains one variant and judges it; its checkpoints are not kept."""
    data = prepared(job, variant.get("data", {}), seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        model, tokenizer = load_model(job.model, job.device)
        train, held_out = load_dataset(str(data / "train.jsonl"), str(data / "eval.jsonl"), tokenizer,
                                       task=Task(**variant.get("task", {})))
        options = {"seed": seed, "use_cpu": job.device == "cpu", "disable_tqdm": True, **job.training,
                   **variant.get("training", {})}
        trainer = build_trainer(model, tokenizer, build_train_arguments(folder, **options),
                                build_loraconfig(**variant.get("lora", {})), train, held_out)
        trainer.train()
        seconds = time.perf_counter() - started
        tuned = trainer.model
        task = fit_task(tuned, tokenizer, str(data / "eval.jsonl"))
        paths = {"test": str(data / "test.jsonl"), **{Path(path).name: path for path in job.also}}
        return {
            "train_rows": len(train),
            "eval_loss": trainer.state.best_metric,
            "steps": trainer.state.global_step,
            "training_seconds": seconds,
            "temperature": task.temperature,
            "judged_on": {name: judge(tuned, tokenizer, task, path) for name, path in paths.items()},
        }


def fit_task(model, tokenizer, eval_path: str) -> Task:
    """The model's task with a temperature from the eval split; the threshold stays, so that rows can be compared."""
    records = read_records(eval_path, Skipped())
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    scores = score_prompts(model, encoder, encoder.prompts([record["input"] for record in records]))
    return calibrate([record["label"] for record in records], scores, model.lineage.task)[0]


def judge(model, tokenizer, task: Task, path: str) -> dict:
    """Metrics with intervals, and each probe's precision, recall and F1 with their changes."""
    records = read_records(path, Skipped())
    encoder = PromptEncoder(tokenizer, task)
    prompts = encoder.prompts([record["input"] for record in records])
    scores = calibrated(score_prompts(model, encoder, prompts), task.temperature)
    y_true, y_pred = [record["label"] for record in records], scores >= task.threshold
    groups = [record["case"] for record in records] if all("case" in record for record in records) else None
    probes = probe_report(model, encoder, records, prompts, scores, threshold=task.threshold, groups=groups)
    return {"n": len(records), **classification_metrics(y_true, y_pred, scores),
            "intervals": confidence_intervals(y_true, y_pred, scores, groups),
            "probes": {name: {key: probe[key] for key in (*FIGURES, "change")} for name, probe in probes.items()}}


def prepared(job: Job, options: dict, seed: int) -> Path:
    """The folder with the data of a row, made unless it is there from a row that needs the same."""
    wanted = {**options, "seed": seed, "source": _fingerprint(job.source), "code": _fingerprint(PREPARING)}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    folder = job.scratch / f"data-{digest}"
    if not (folder / "leakage.json").is_file():  # which is written last
        prepare(job.source, folder, seed=seed, **options)
    return folder


PREPARING = Path(__file__).parents[1] / "data"


def _fingerprint(path: str | Path) -> str:
    """sha256 over the files that dialogues are read from, or that prepare them."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted([*path.glob("*.csv"), *path.glob("*.py")])
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def _provenance(job: Job) -> dict:
    return {"model": {**describe_base(locate_model(job.model)), "name": Path(job.model).name}, "quantization": "nf4",
            "device": torch.cuda.get_device_name() if job.device.startswith("cuda") else "cpu", **code_provenance()}


def table(report: dict, judged_on: str = "test") -> str:
    """Each variant's mean over its seeds, with the lowest and the highest, as a Markdown table."""
    names = list(dict.fromkeys(row["variant"] for row in report["rows"]))
    lines = ["| variant | seeds | precision | recall | F1 | average precision | recall under noise |",
             "|---|---|---|---|---|---|---|"]
    for name in names:
        rows = [row["judged_on"][judged_on] for row in report["rows"] if row["variant"] == name]
        cells = [_spread([row[figure] for row in rows]) for figure in FIGURES]
        noisy = _spread([row["probes"]["asr_noise"]["recall"] for row in rows])
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} | {noisy} |")
    return "\n".join(lines)


def _spread(values: Sequence[float | None]) -> str:
    if None in values:
        return "undefined"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# ------------------------------------------------------------------------------------------ the command line


def read_variants(path: str) -> dict[str, dict]:
    """Variants of one's own: a JSON object, name -> {"data" | "task" | "training" | "lora": {option: value}}."""
    try:
        variants = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(variants, dict):
        raise DataError(f"{path}: expected a JSON object of variants")
    for name, variant in variants.items():
        if not isinstance(variant, dict) or not all(isinstance(variant[part], dict) for part in variant):
            raise DataError(f"{path}: variant {name!r} must be an object of objects named {', '.join(OPTIONS)}")
        for part, options in variant.items():
            if part not in OPTIONS:
                raise DataError(f"{path}: variant {name!r} has {part!r}; there are {', '.join(OPTIONS)}")
            require_known(part, options, f"{path}: variant {name!r}")
    return variants


def require_known(part: str, options: Iterable[str], place: str) -> None:
    unknown = [option for option in options if option not in OPTIONS[part]]
    if unknown:
        raise DataError(f"{place}: {part} has no option {unknown[0]!r}")


def _option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--source", required=True, help="folder of dialogue CSVs")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--more-variants", metavar="FILE", help="JSON with variants of your own, run besides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--also", nargs="*", default=[], metavar="JSONL", help="judge every row on these, too")
    parser.add_argument("--training", type=_option, nargs="*", default=[], metavar="NAME=VALUE",
                        help="training arguments of every row, as max_steps=100")
    parser.add_argument("--scratch", default="outputs/ablations", help="where prepared data is kept")
    parser.add_argument("--prepare-only", action="store_true", help="make the data of all rows and stop")
    parser.add_argument("--output", default="results/ablations.json")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    disable_progress_bars()
    job = Job(args.model, args.source, Path(args.scratch), args.device, tuple(args.also), dict(args.training))
    try:
        require_known("training", job.training, "--training")
        variants = {**VARIANTS, **(read_variants(args.more_variants) if args.more_variants else {})}
        unknown = [name for name in args.variants or () if name not in variants]
        if unknown:
            raise DataError(f"no variant {unknown[0]!r}; there are {', '.join(map(repr, variants))}")
        variants = {name: variants[name] for name in args.variants or variants}
        for path in job.also:
            read_records(path, Skipped())  # what is wrong with it is said now, not after hours
        if args.prepare_only:
            for seed in args.seeds:
                for variant in variants.values():
                    print(prepared(job, variant.get("data", {}), seed), flush=True)
            return 0
        report = run(job, variants, args.seeds, args.output)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
