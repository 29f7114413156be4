"""What each part of the recipe buys: the data or the training changed in one way, every change with several seeds.

    python -m benchmarks.ablations --model M --source DIALOGS [--seeds 0 1 2] [--variants NAME ...] [--also F.jsonl ...]
    python -m benchmarks.ablations --merge A.json B.json ... [--output ALL.json]

A row is one variant with one seed, which deals the dialogues and begins the training: within a seed all variants are
judged on the same test dialogues. Recipes are to be chosen by the eval split, so that test stays unseen until then.
Rows are added to --output as they are done, and those that are there are not made again; a run that was killed goes on
when it is started again. Several may run side by side, each with its own --output; ``--merge`` puts these together.
``--prepare-only`` makes the data of all rows and TF-IDF's scores, which needs no GPU, so that none waits for it later.
"""

import argparse
import dataclasses
import hashlib
import inspect
import io
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars
from peft import LoraConfig, PeftModel
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from antifraud.checkpoint import lineage_of, save_task_file
from antifraud.evaluation.baselines import against_scores, build_tfidf, fit_tfidf_with_lines, fraud_probability
from antifraud.evaluation.calibration import calibrate, calibrated
from antifraud.evaluation.metrics import classification_metrics, confidence_intervals
from antifraud.evaluation.probes import probe_report
from antifraud.evaluation.scoring import last_hidden_states, score_prompts, score_single_lines
from antifraud.model import default_device, locate_model
from antifraud.provenance import code_provenance, describe_base, device_name, file_sha256, source_commit
from antifraud.training.average import average_checkpoints
from antifraud.training.recipes import FraudTrainingArguments
from benchmarks import refusing_in_a_line
from data.files import DataError, write_bytes, write_json
from data.prepare import prepare
from data.prompt import PromptEncoder, Task
from data.records import Skipped, groups_of, read_records
from evaluate import load_model
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset

SIX_LENGTHS = [100, 150, 200, 300, 400, 500]
# Each changes one part, or two: of data.prepare, of the task, of the training arguments, or of LoRA. A linear probe is
# a logistic regression on the hidden states of the base, which is not trained. Averaged are the weight changes of
# several trainings that begin and draw differently (Wortsman et al., Model soups, 2022). What was learned of lines is
# heeded where the task says so; else the answer alone is judged.
VARIANTS = {
    "as it is": {},
    "speaker names kept": {"task": {"neutral_speakers": False}},
    "no hard negatives": {"data": {"keep_hard_negatives": False}},
    "near-duplicates of held-out pieces kept": {"data": {"near_duplicate": 2.0}},
    "half as many negatives": {"data": {"negatives_per_positive": 0.5}},
    "half as many, balanced by source": {"data": {"negatives_per_positive": 0.5, "balance_sources": True}},
    "noisy copies of half the train set": {"data": {"augment": 0.5}},
    "balanced by source, noisy copies": {
        "data": {"negatives_per_positive": 0.5, "balance_sources": True, "augment": 0.5}},
    "pieces of six lengths": {"data": {"train_lengths": SIX_LENGTHS}},
    "six lengths, noisy copies": {"data": {"train_lengths": SIX_LENGTHS, "augment": 0.5}},
    "one epoch": {"training": {"num_train_epochs": 1}},
    "three epochs": {"training": {"num_train_epochs": 3}},
    "learning rate 1e-4": {"training": {"learning_rate": 1e-4}},
    "learning rate 3e-4": {"training": {"learning_rate": 3e-4}},
    "learning rate 2e-3": {"training": {"learning_rate": 2e-3}},
    "rank 64": {"lora": {"r": 64, "lora_alpha": 128}},
    "six lengths, rank 64": {"data": {"train_lengths": SIX_LENGTHS}, "lora": {"r": 64, "lora_alpha": 128}},
    "six lengths, three epochs": {"data": {"train_lengths": SIX_LENGTHS}, "training": {"num_train_epochs": 3}},
    "no dropout": {"lora": {"lora_dropout": 0.0}},
    "loss on the label word only": {"training": {"label_word_only": True}},
    "lines learned, weight 0.1": {"training": {"line_loss_weight": 0.1}},
    "lines learned, weight 0.3": {"training": {"line_loss_weight": 0.3}},
    "lines learned, weight 1": {"training": {"line_loss_weight": 1.0}},
    "lines learned, weight 0.3, noisy copies": {
        "data": {"augment": 0.5}, "training": {"line_loss_weight": 0.3}},
    "lines learned, weight 1, noisy copies": {
        "data": {"augment": 0.5}, "training": {"line_loss_weight": 1.0}},
    "lines learned and heeded": {"task": {"learned_lines": True}, "training": {"line_loss_weight": 0.3}},
    "lines learned and heeded, noisy copies": {
        "data": {"augment": 0.5}, "task": {"learned_lines": True}, "training": {"line_loss_weight": 0.3}},
    "no training, linear probe": {"linear_probe": {"C": 0.01}},
    "three trainings, weights averaged": {"average": {"trainings": 3}},
    "three averaged, lines heeded, noisy copies": {
        "average": {"trainings": 3}, "data": {"augment": 0.5}, "task": {"learned_lines": True},
        "training": {"line_loss_weight": 0.3}},
}
OPTIONS = {
    "data": set(inspect.signature(prepare).parameters) - {"source", "output", "seed"},
    "task": {field.name for field in dataclasses.fields(Task)},
    "training": {field.name for field in dataclasses.fields(FraudTrainingArguments)}
                | {"gradient_checkpointing", "recipe"},  # which build_train_arguments reads besides
    "lora": {field.name for field in dataclasses.fields(LoraConfig)},
    "linear_probe": set(LogisticRegression().get_params()),
    "average": {"trainings"},
}
FIGURES = ("precision", "recall", "f1", "average_precision")
ROOT = Path(__file__).parents[1]
PREPARING = ROOT / "data"
BASELINES = ROOT / "antifraud" / "evaluation" / "baselines.py"


@dataclasses.dataclass(frozen=True)
class Job:
    """What all rows have in common.

    Attributes:
        source: the dialogues (CSV).
        scratch: folder for prepared data, which rows share where they can.
        also: further JSONL files to judge every row on.
        training: arguments of every row; a variant's own come on top.
        scores: folder for the probabilities of every row; None to keep none.
    """

    model: str
    source: str
    scratch: Path
    device: str
    also: tuple[str, ...] = ()
    training: dict = dataclasses.field(default_factory=dict)
    scores: Path | None = None


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
            row, scores = make_row(job, variant, seed)
            if job.scores is not None:
                write_scores(job.scores / f"{slug(name)}-{seed}.npz", scores)
            report["rows"].append({"variant": name, "seed": seed, "settings": settings, **row,
                                   "commit": source_commit()})
            report["provenance"] = _provenance(job)
            write_json(output, report)
    return report


def _read_report(output: str | Path) -> dict:
    if not Path(output).exists():
        return {"rows": [], "provenance": {}}
    try:
        report = json.loads(Path(output).read_text(encoding="utf-8"))
        report["rows"] = [{**row, "variant": row["variant"], "seed": row["seed"]} for row in report["rows"]]
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


def make_row(job: Job, variant: dict, seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Trains one variant and judges it; its checkpoints are not kept.

    Returns:
        the row, and the calibrated probabilities of each set that it was judged on.
    """
    data = prepared(job, variant.get("data", {}), seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_model(job.model, job.device)
        task = Task(**variant.get("task", {}))
        score = None
        if "linear_probe" in variant:
            score, made = fit_linear_probe(model, tokenizer, task, data, variant["linear_probe"])
        elif "average" in variant:
            model, made = train_and_average(model, tokenizer, task, data, folder, job, variant, seed)
        else:
            model, made = train_variant(model, tokenizer, task, data, folder, job, variant, seed)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        with torch.compiler.set_stance("force_eager"):  # as the checkpoint would be, were it loaded again
            task, judged_on, scores = judge_model(model, tokenizer, task, data, job.also, score)
    return {"data": data.name, **made, "training_seconds": seconds, "judging_seconds": time.perf_counter() - started,
            "temperature": task.temperature, "judged_on": judged_on}, scores


def train_variant(model, tokenizer, task: Task, data: Path, folder: str, job: Job, variant: dict,
                  seed: int) -> tuple[PeftModel, dict]:
    """The best checkpoint of a training in `folder`, and what there is to say about it."""
    train, held_out = load_dataset(str(data / "train.jsonl"), str(data / "eval.jsonl"), tokenizer, task=task)
    options = {"seed": seed, "use_cpu": job.device == "cpu", "disable_tqdm": True, **job.training,
               **variant.get("training", {})}
    trainer = build_trainer(model, tokenizer, build_train_arguments(folder, **options),
                            build_loraconfig(**variant.get("lora", {})), train, held_out)
    trainer.train()
    return trainer.model, {"train_rows": len(train), "eval_loss": trainer.state.best_metric,
                           "steps": trainer.state.global_step}


def train_and_average(model, tokenizer, task: Task, data: Path, folder: str, job: Job, variant: dict,
                      seed: int) -> tuple[PeftModel, dict]:
    """Several trainings of one variant, each with its own seed, and the mean of their weight changes as one adapter.

    The trainings' own adapters stay beside it, under ``training N``.
    """
    best, made = [f"{folder}/best-{run}" for run in range(variant["average"]["trainings"])], []
    for run, path in enumerate(best):
        base = load_model(job.model, job.device)[0] if run else model
        model, found = train_variant(base, tokenizer, task, data, f"{folder}/{run}", job, variant, seed + 1000 * run)
        model.save_pretrained(path)
        save_task_file(path, lineage_of(model))
        made.append(found)
    average_checkpoints(best, f"{folder}/average")
    for run, path in enumerate(best):
        model.load_adapter(path, f"training {run}")
    model.load_adapter(f"{folder}/average", "average")
    model.set_adapter("average")
    return model, {"train_rows": made[0]["train_rows"], "eval_loss": [found["eval_loss"] for found in made],
                   "steps": [found["steps"] for found in made]}


def scores_alone(model: PeftModel, encoder: PromptEncoder, prompts: dict[str, list]) -> dict[str, np.ndarray]:
    """Under ``NAME, training N``: [records] the probabilities of each training that was averaged, not calibrated."""
    found = {}
    for adapter in [name for name in model.peft_config if name.startswith("training ")]:
        model.set_adapter(adapter)
        found |= {f"{name}, {adapter}": score_prompts(model, encoder, rows) for name, rows in prompts.items()}
    model.set_adapter("average")
    return found


def fit_linear_probe(model, tokenizer, task: Task, data: Path, options: dict) -> tuple[Callable, dict]:
    """How a logistic regression on the model's hidden states scores prompts, and what there is to say about it."""
    encoder = PromptEncoder(tokenizer, task)
    train = read_records(data / "train.jsonl", Skipped())
    states = last_hidden_states(model, encoder, encoder.prompts([record["input"] for record in train]))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **options))
    probe.fit(states, [record["label"] for record in train])

    def score(rows: Sequence[Sequence[int]]) -> np.ndarray:
        return probe.predict_proba(last_hidden_states(model, encoder, rows))[:, 1]

    return score, {"train_rows": len(train)}


def judge_model(model, tokenizer, task: Task, data: Path, also: Sequence[str],
                score: Callable | None = None) -> tuple[Task, dict[str, dict], dict]:
    """The task with a temperature from the eval split, and figures and probabilities on every set.

    The threshold stays, so that rows can be compared. The eval split is judged without probes: it is there to choose.

    Args:
        score: gives the probabilities of prompts; None for the model's own, which the probes are then made with, too.
    """
    paths = judged_paths(data, also)
    sets = {name: read_records(path, Skipped()) for name, path in paths.items()}
    encoder = PromptEncoder(tokenizer, task)
    prompts = {name: encoder.prompts([record["input"] for record in records]) for name, records in sets.items()}
    raw_scores = {name: score(rows) if score else score_prompts(model, encoder, rows)
                  for name, rows in prompts.items()}
    task = calibrate([record["label"] for record in sets["eval"]], raw_scores["eval"], task)[0]
    scores = {name: calibrated(raw, task.temperature) for name, raw in raw_scores.items()}
    parts = scores_by_part(model, encoder, prompts) if lineage_of(model).task.learned_lines else {}
    if "average" in getattr(model, "peft_config", {}):
        parts |= scores_alone(model, encoder, prompts)
    tfidf = tfidf_scores(data, paths)
    judged = {name: judge(sets[name], scores[name], task.threshold, tfidf[name]) for name in sets}
    encoder = PromptEncoder(tokenizer, task)
    for name in sets.keys() - {"eval"} if score is None else ():
        probes = probe_report(model, encoder, sets[name], prompts[name], scores[name], threshold=task.threshold,
                              groups=groups_of(sets[name]))
        judged[name]["probes"] = {probe: {key: found[key] for key in (*FIGURES, "change")}
                                  for probe, found in probes.items()}
    return task, judged, {**scores, **parts}


def scores_by_part(model, encoder: PromptEncoder, prompts: dict[str, list]) -> dict[str, np.ndarray]:
    """Of a model that learned of lines, [records] under ``NAME, answer`` and ``NAME, lines``: the score of the answer
    alone, and that of the most suspicious line.
    """
    return {f"{name}, {part}": scores for name, rows in prompts.items() for part, scores in (
        ("answer", score_prompts(model, encoder.heeding_no_lines(), rows)),
        ("lines", np.array([of_lines.max() for of_lines in score_single_lines(model, encoder, rows)])))}


def judged_paths(data: Path, also: Sequence[str]) -> dict[str, Path]:
    """What a row is judged on, by name."""
    return {"eval": data / "eval.jsonl", "test": data / "test.jsonl", **{Path(path).name: Path(path) for path in also}}


def judge(records: Sequence[dict], scores: np.ndarray, threshold: float, tfidf: np.ndarray) -> dict:
    """Metrics with intervals, and TF-IDF's with the differences to it.

    Args:
        scores, tfidf: [records] probabilities of the model and of TF-IDF, whose threshold is 0.5.
    """
    y_true, y_pred, groups = [record["label"] for record in records], scores >= threshold, groups_of(records)
    return {"n": len(records), **classification_metrics(y_true, y_pred, scores),
            "intervals": confidence_intervals(y_true, y_pred, scores, groups),
            "tfidf": against_scores(y_true, y_pred, scores, tfidf, groups)}


def tfidf_scores(data: Path, paths: dict[str, Path], with_lines: bool = False) -> dict[str, np.ndarray]:
    """[records] probabilities of TF-IDF fitted on the train split of `data`, by the names of `paths`.

    They lie in `data` once they are made, in a file for each set that is named after what was scored, and by what.

    Args:
        with_lines: of `baselines.TfidfWithLines` instead.
    """
    code = file_sha256(BASELINES) + ("with lines" if with_lines else "")
    kept = {name: data / f"tfidf-{hashlib.sha256((code + file_sha256(path)).encode()).hexdigest()[:16]}.npy"
            for name, path in paths.items()}
    missing = [name for name in paths if not kept[name].is_file()]
    if missing:
        train = read_records(data / "train.jsonl", Skipped())
        fitted = build_tfidf().fit([record["input"] for record in train], [record["label"] for record in train])
        if with_lines:
            fitted = fit_tfidf_with_lines(train, fitted)
            if fitted is None:
                raise DataError(f"{data / 'train.jsonl'}: not all records have 'line_labels' of both kinds")
        for name in missing:
            dialogues = [record["input"] for record in read_records(paths[name], Skipped())]
            scores = fraud_probability(fitted, dialogues).astype(np.float32)
            file = io.BytesIO()
            np.save(file, scores)
            write_bytes(kept[name], file.getvalue())
    return {name: np.load(path) for name, path in kept.items()}


def write_scores(path: Path, scores: dict[str, np.ndarray]) -> None:
    """Writes the probabilities of a row, in float32 and in the order of the records, an array a set."""
    file = io.BytesIO()
    np.savez(file, **{name: rows.astype(np.float32) for name, rows in scores.items()})
    write_bytes(path, file.getvalue())


def slug(name: str) -> str:
    """A variant's name as part of a file's."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def prepared(job: Job, options: dict, seed: int) -> Path:
    """The folder with the data of a row, made unless it is there from a row that needs the same."""
    wanted = {**options, "seed": seed, "source": _fingerprint(job.source), "code": _fingerprint(PREPARING)}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    folder = job.scratch / f"data-{digest}"
    if not (folder / "leakage.json").is_file():  # which is written last
        prepare(job.source, folder, seed=seed, **options)
    return folder


def _fingerprint(path: str | Path) -> str:
    """sha256 over the files that dialogues are read from, or that prepare them."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted([*path.glob("*.csv"), *path.glob("*.py")])
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def _provenance(job: Job) -> dict:
    return {"model": {**describe_base(locate_model(job.model)), "name": Path(job.model).name}, "quantization": "nf4",
            "device": device_name(job.device), **code_provenance()}


def merge(files: Sequence[str], output: str | Path) -> dict:
    """Adds the rows of several reports to those of `output`; returns all it then holds.

    Raises:
        DataError: a file is no report, or two rows of one name and seed differ.
    """
    report = _read_report(output)
    rows = {(row["variant"], row["seed"]): row for row in report["rows"]}
    for path in files:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        more = _read_report(path)
        report["provenance"] = more["provenance"]
        for row in more["rows"]:
            name, seed = row["variant"], row["seed"]
            if rows.setdefault((name, seed), row) != row:
                raise DataError(f"{path}: {name!r} with seed {seed} is another row than the one merged before; "
                                "leave one out, or name another --output")
    report["rows"] = list(rows.values())
    write_json(output, report)
    return report


def table(report: dict, judged_on: str = "test") -> str:
    """Each variant's mean over its seeds, with the lowest and the highest, as a Markdown table."""
    names = list(dict.fromkeys(row["variant"] for row in report["rows"]))
    lines = [f"| variant, judged on {judged_on} | seeds | F1 | average precision | F1 minus TF-IDF's "
             "| average precision minus TF-IDF's | lowest recall of all probes | change of recall under noise |",
             "|---|---|---|---|---|---|---|---|"]
    for name in names:
        found = [row["judged_on"][judged_on] for row in report["rows"]
                 if row["variant"] == name and judged_on in row["judged_on"]]
        if found:
            columns = zip(*map(_cells, found), strict=True)
            lines.append(f"| {name} | {len(found)} | {' | '.join(map(spread, columns))} |")
    return "\n".join(lines)


def tables(report: dict) -> str:
    """`table` for all that rows were judged on."""
    sets = dict.fromkeys(name for row in report["rows"] for name in row["judged_on"])
    return "\n\n".join(table(report, name) for name in sets)


def _cells(judged: dict) -> list[float | None]:
    recalls = [probe["recall"] for probe in judged.get("probes", {}).values()]
    return [judged["f1"], judged["average_precision"], judged["tfidf"]["model_f1_minus_this"]["value"],
            judged["tfidf"]["model_average_precision_minus_this"]["value"],
            min(recalls) if recalls and None not in recalls else None,
            judged["probes"]["asr_noise"]["change"]["recall"]["value"] if recalls else None]


def spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean and, where they differ as shown, the lowest and the highest."""
    values = list(values)
    if None in values:
        return "-"
    mean, low, high = (f"{value:{form}}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def difference(found: dict, form: str = "+.3f") -> str:
    """A difference to TF-IDF's figure, with its interval."""
    if found["interval"] is None:
        return "undefined"
    low, high = found["interval"]
    return f"{found['value']:{form}} ({low:{form}} to {high:{form}})"


# ------------------------------------------------------------------------------------------ the command line


def read_variants(path: str) -> dict[str, dict]:
    """Variants of one's own: a JSON object, name -> {one of OPTIONS: {option: value}}."""
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


def choose_variants(names: Sequence[str] | None, more: str | None) -> dict[str, dict]:
    """The variants of those names (None: all), of ours and of the file `more`."""
    variants = {**VARIANTS, **(read_variants(more) if more else {})}
    unknown = [name for name in names or () if name not in variants]
    if unknown:
        raise DataError(f"no variant {unknown[0]!r}; there are {', '.join(map(repr, variants))}")
    return {name: variants[name] for name in names or variants}


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
    parser.add_argument("--model", help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--source", help="folder of dialogue CSVs")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--more-variants", metavar="FILE", help="JSON with variants of your own, run besides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--also", nargs="*", default=[], metavar="JSONL", help="judge every row on these, too")
    parser.add_argument("--training", type=_option, nargs="*", default=[], metavar="NAME=VALUE",
                        help="training arguments of every row, as max_steps=100")
    parser.add_argument("--scratch", default="outputs/ablations", help="where prepared data is kept")
    parser.add_argument("--scores", metavar="DIR", help="keep the probabilities of every row, DIR/VARIANT-SEED.npz")
    parser.add_argument("--prepare-only", action="store_true", help="make the data of all rows and stop; no --model")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="add the rows of these to --output, make none")
    parser.add_argument("--output", default="results/ablations.json")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.merge and (args.source is None or args.model is None and not args.prepare_only):
        parser.error("--model and --source are needed, unless for --merge")
    disable_progress_bars()
    try:
        report = merge(args.merge, args.output) if args.merge else _run(args)
    except KeyboardInterrupt:
        return 130
    if report is not None:
        print(tables(report))
    return 0


def _run(args: argparse.Namespace) -> dict | None:
    """Makes the rows that are asked for, or their data only (None)."""
    job = Job(args.model, args.source, Path(args.scratch), args.device, tuple(args.also), dict(args.training),
              Path(args.scores) if args.scores else None)
    require_known("training", job.training, "--training")
    variants = choose_variants(args.variants, args.more_variants)
    if len(set(map(slug, variants))) < len(variants):
        raise DataError(f"two variants would keep their scores in one file: {', '.join(sorted(variants, key=slug))}")
    for path in job.also:
        read_records(path, Skipped())  # what is wrong with it is said now, not after hours
    if not args.prepare_only:
        return run(job, variants, args.seeds, args.output)
    for seed in args.seeds:
        for variant in variants.values():
            data = prepared(job, variant.get("data", {}), seed)
            tfidf_scores(data, judged_paths(data, job.also))
            print(data, flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
