"""Scores dialogues with a base model or a checkpoint, and reports what the scores are worth.

    python evaluate.py --model MODEL --checkpoint DIR --data F [--method score|generate] [--output report.json]
    python evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl [--restart]

One forward pass a dialogue compares the two words that continue the answer to "fraud" and to "not fraud", which
gives a probability; ``--method generate`` lets the model write its answer instead, as the article does. Without
``--checkpoint`` the untuned model is judged. In a notebook, ``%run evaluate.py`` or ``import evaluate``.
"""

import argparse
import builtins
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from baselines import describe_one_word_rule, fit_baselines, fraud_probability
from checkpoints import (
    TASK_FILE,
    Lineage,
    describe_base,
    describe_data,
    file_sha256,
    find_checkpoint,
    lineage_of,
    read_checkpoint,
    read_task_file,
    require_same_base,
    source_commit,
    versions,
)
from data.leakage import overlap
from data.prompt import PromptEncoder
from data.records import DataError, Skipped, read_records, write_json
from data.speakers import swap_speakers
from figures import save_report_figure
from metrics import (
    classification_metrics,
    confidence_intervals,
    f1_difference,
    metrics_by,
    threshold_table,
)
from models import default_device, locate_model, one_line
from models import load_model as load_base_model
from predict import BATCH_ROWS, predict_file, require_paths
from scoring import GENERATE_ROWS_A_BATCH, generate_answers, parse_answer, score_prompts

METHODS = ("score", "generate")


# --------------------------------------------------------------------------------------------------- the model


def load_model(model_path: str, checkpoint_path: str = "", device: str = "cuda", *, quantization: str | None = None,
               trust_remote_code: bool = False):
    """Loads a base model and, if given, the adapter of a checkpoint (or of the best one of a training run).

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        checkpoint_path: ``outputs/run/checkpoint-N`` or ``outputs/run``; empty for the untuned model.
        quantization: of the base weights, ``nf4``, ``fp4`` or ``none``; default: as the adapter was trained.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        DataError: no model or checkpoint there, or an adapter that is truncated, altered, not finite, or was
            trained on another base.
    """
    if not checkpoint_path:
        folder = locate_model(model_path, with_code=trust_remote_code)
        exported = read_task_file(Path(folder) / TASK_FILE)  # by export.py: knows its task, is not quantised again
        model, tokenizer = load_base_model(folder, device, trust_remote_code=trust_remote_code,
                                           quantization=quantization or ("none" if exported else "nf4"))
        if exported:
            model.lineage.task, model.lineage.train_data = exported.task, exported.train_data
        return model.eval(), tokenizer
    folder = find_checkpoint(checkpoint_path)
    lineage = read_checkpoint(folder)
    base_folder = locate_model(model_path, with_code=trust_remote_code)
    loaded = {**describe_base(base_folder), "name": Path(model_path).name}
    require_same_base(lineage, loaded, folder)  # before gigabytes are loaded
    saved = lineage.quantization or {"type": "nf4", "double": False}
    base, tokenizer = load_base_model(base_folder, device, quantization=quantization or saved["type"],
                                      double_quantization=saved["double"], trust_remote_code=trust_remote_code)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: adapter does not fit {model_path}: {one_line(error)}") from None
    model.lineage = lineage
    lineage.base = base.lineage.base
    lineage.quantization = base.lineage.quantization
    return model.eval(), tokenizer


# -------------------------------------------------------------------------------------------------- the report


def evaluate_with_model(model, tokenizer, testdata_path: str, device: str = "cuda", batch: bool = False,
                        debug: bool = False, *, method: str = "score", threshold: float | None = None,
                        train_path: str | None = None, progress: bool = True) -> dict:
    """Evaluates a loaded model on a JSONL file; prints precision, recall and accuracy, returns the whole report.

    Args:
        model: a causal LM, with or without adapters, as `load_model` or a notebook loaded it or a trainer left it.
        testdata_path: records with ``input`` and ``label``; those with an empty ``input`` are skipped and counted.
        device: kept for the article's cells; the model is judged where it is.
        batch: generate for 8 rows at a time instead of one; scoring is always batched, to the same result.
        debug: print tn, fp, fn and tp too.
        method: ``score`` (a probability from one forward pass) or ``generate`` (the answer written out).
        threshold: probability from which on a dialogue is fraud; default: the checkpoint's.
        train_path: the train file, for the baselines and the overlap with it; default: the one that the
            checkpoint names, if it is there.

    Returns:
        the report, the same in Python and in JSON; see the README for its fields.
    """
    if method not in METHODS:
        raise DataError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    lineage = lineage_of(model)
    threshold = lineage.task.threshold if threshold is None else threshold
    skipped = Skipped()
    records = read_records(testdata_path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    train = _train_records(train_path, lineage)
    encoder = PromptEncoder(tokenizer, lineage.task)
    prompts = encoder.prompts([record["input"] for record in records])
    truncated = encoder.truncated

    started = time.perf_counter()
    scores = score_prompts(model, encoder, prompts, progress="scoring" if progress else None)
    seconds = time.perf_counter() - started
    answers: list[bool | None] = (scores >= threshold).tolist()
    agreement = None
    if method == "generate":
        started = time.perf_counter()
        written = generate_answers(model, encoder, prompts, rows_a_batch=GENERATE_ROWS_A_BATCH if batch else 1,
                                   progress="generating" if progress else None)
        seconds = time.perf_counter() - started
        scored, answers = answers, [parse_answer(text, lineage.task) for text in written]
        agreement = _agreement(answers, scored)

    report = {
        **_metrics_with_intervals(records, answers, scores),
        "method": method,
        "threshold": threshold,
        "agreement_of_methods": agreement,
        "truncated": truncated,
        "skipped": len(skipped),
        "speakers_renamed": _with_speakers_renamed(model, encoder, records, prompts, scores, threshold),
        "baselines": _against_baselines(model, encoder, records, prompts, answers, threshold, train),
        "overlap_with_train": overlap(records, train) if train else None,
        "by_category": _by_category(records, answers),
        "thresholds": threshold_table([record["label"] for record in records], scores),
        "rows_per_second": len(records) / seconds,
        "provenance": _provenance(model, lineage, testdata_path, len(records)),
    }
    print_summary(report, debug=debug)
    return report


def evaluate(model_path: str, checkpoint_path: str, testdata_path: str, device: str = "cuda", batch: bool = False,
             debug: bool = False, **options) -> dict:
    """Loads a model and a checkpoint and evaluates them; see `load_model` and `evaluate_with_model`."""
    model, tokenizer = load_model(model_path, checkpoint_path, device)
    return evaluate_with_model(model, tokenizer, testdata_path, device, batch, debug, **options)


def _metrics_with_intervals(records: list[dict], answers: list[bool | None], scores: np.ndarray) -> dict:
    """n, counts, rates and intervals over the rows that were answered; the others are counted as ``unparsed``."""
    answered = [i for i, answer in enumerate(answers) if answer is not None]
    y_true = [records[i]["label"] for i in answered]
    y_pred = [answers[i] for i in answered]
    groups = _groups([records[i] for i in answered])
    return {
        "n": len(records),
        "unparsed": len(records) - len(answered),
        **classification_metrics(y_true, y_pred, scores[answered]),
        "intervals": {**confidence_intervals(y_true, y_pred, scores[answered], groups),
                      "resampled": "rows" if groups is None else "dialogues"},
    }


def _groups(records: list[dict]) -> list[str] | None:
    """The dialogue that each record is a piece of, where all records say so."""
    return [record["case"] for record in records] if all("case" in record for record in records) else None


def _agreement(written: list[bool | None], scored: list[bool]) -> dict:
    both = [(one, other) for one, other in zip(written, scored) if one is not None]
    same = sum(one == other for one, other in both)
    return {"rows": len(both), "agree": same, "share": same / len(both) if both else None}


def _with_speakers_renamed(model, encoder, records, prompts, scores, threshold) -> dict:
    """The metrics with every name exchanged: a meeting's 发言人N for personal names, all others the other way."""
    renamed = encoder.prompts([swap_speakers(record["input"]) for record in records])
    if renamed == prompts:  # neutral roles: the same tokens, hence the same scores
        renamed_scores = scores
    else:
        renamed_scores = score_prompts(model, encoder, renamed)
    y_true = [record["label"] for record in records]
    return {**classification_metrics(y_true, renamed_scores >= threshold, renamed_scores),
            "max_probability_change": float(np.abs(renamed_scores - scores).max())}


def _against_baselines(model, encoder, records, prompts, answers, threshold, train: list[dict] | None) -> dict | None:
    """Each baseline's metrics, and how far the model's F1 lies above its own; None where there is none."""
    scores = {}
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            scores["untuned"] = score_prompts(model, encoder, prompts)
    fitted = fit_baselines(train) if train else {}
    dialogues = [record["input"] for record in records]
    scores.update({name: fraud_probability(classifier, dialogues) for name, classifier in fitted.items()})

    answered = [i for i, answer in enumerate(answers) if answer is not None]
    y_true, y_pred = [records[i]["label"] for i in answered], [answers[i] for i in answered]
    groups = _groups([records[i] for i in answered])
    found = {}
    for name, score in scores.items():
        baseline_pred = score[answered] >= (threshold if name == "untuned" else 0.5)
        found[name] = {**classification_metrics(y_true, baseline_pred, score[answered]),
                       "model_f1_minus_this": f1_difference(y_true, y_pred, baseline_pred, groups)}
    if fitted:
        found["one_word"]["rule"] = describe_one_word_rule(fitted["one_word"])
    return found or None


def _by_category(records: list[dict], answers: list[bool | None]) -> dict | None:
    known = [(record["category"], record["label"], answer) for record, answer in zip(records, answers)
             if "category" in record and answer is not None]
    return metrics_by(*zip(*known)) if known else None


def _train_records(train_path: str | None, lineage: Lineage) -> list[dict] | None:
    """Records of the train file: the one named, or the one that the checkpoint names if it lies there unchanged."""
    if train_path is None:
        path = lineage.train_data.get("path")
        if not path or not Path(path).is_file() or file_sha256(path) != lineage.train_data.get("sha256"):
            print("train file not found: no baselines, no overlap; name it with --train", file=sys.stderr)
            return None
        train_path = path
    return read_records(train_path, Skipped())


def _provenance(model, lineage, testdata_path: str, rows: int) -> dict:
    data, train_data = describe_data(testdata_path, rows), dict(lineage.train_data)
    for description in (data, train_data):
        description.pop("path", None)  # where a file lay on somebody's disk is nobody's business
    device = model.device
    return {
        "model": {**lineage.base, "quantization": lineage.quantization},
        "checkpoint": {"name": lineage.checkpoint, "adapter_sha256": lineage.adapter_sha256} if lineage.checkpoint
        else None,
        "neutral_speakers": lineage.task.neutral_speakers,
        "max_length": lineage.task.max_length,
        "data": data,
        "train_data": train_data or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": versions(),
        "commit": source_commit(),
        "date": datetime.date.today().isoformat(),
    }


def print_summary(report: dict, *, debug: bool = False) -> None:
    """The article's lines, then what they leave out: intervals, renamed speakers, the strongest baseline."""
    if debug:
        print(f"tn：{report['tn']}, fp:{report['fp']}, fn:{report['fn']}, tp:{report['tp']}")
    print(f"precision: {report['precision']}, recall: {report['recall']}, accuracy: {report['accuracy']}")
    if report["unparsed"]:
        print(f"unparsed: {report['unparsed']} of {report['n']} answers are neither of the two and count nowhere above")
    for name in ("precision", "recall", "f1", "average_precision"):
        print(f"  {name:<18} {_figure(report[name])}  95 % interval {_interval(report['intervals'][name])}")
    renamed = report["speakers_renamed"]
    print(f"  speakers renamed   recall {_figure(renamed['recall'])}, f1 {_figure(renamed['f1'])}")
    if report["overlap_with_train"]:
        shared = report["overlap_with_train"]
        print(f"  seen in training   {shared['near_duplicates']} rows nearly, "
              f"{shared['rows_sharing_a_line']:.1%} of rows in a whole line")
    for name, baseline in (report["baselines"] or {}).items():
        difference = baseline["model_f1_minus_this"]
        print(f"  {name:<18} f1 {_figure(baseline['f1'])}; the model's is {_verdict(difference)} "
              f"({_interval(difference['interval'])})")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _interval(interval: list[float] | None) -> str:
    return "undefined" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _verdict(difference: dict) -> str:
    """Higher or lower only where the interval of the paired difference is clear of zero."""
    interval = difference["interval"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "not distinguishable from it"
    return "higher" if interval[0] > 0 else "lower"


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder for its best one")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="JSONL records to judge")
    source.add_argument("--predict", metavar="IN", help="JSONL of any size to score, one line of --output for each")
    parser.add_argument("--train", help="train file for the baselines (default: the one the checkpoint names)")
    parser.add_argument("--method", choices=METHODS, default="score")
    parser.add_argument("--threshold", type=float, help="probability of fraud to call it one (default: as trained)")
    parser.add_argument("--quantization", choices=("nf4", "fp4", "none"), help="default: as trained")
    parser.add_argument("--output", help="where to write the report (a picture goes beside it), or the predictions")
    parser.add_argument("--batch-rows", type=int, default=BATCH_ROWS,
                        help="of --predict: rows to read, sort and write at a time (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="of --predict: throw away what --output already holds")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.predict is not None and (not args.output or args.method != "score"):
        parser.error("--predict needs --output, and scores only")
    try:
        if args.predict is not None:
            return _predict(args)
        model, tokenizer = load_model(args.model, args.checkpoint, args.device, quantization=args.quantization,
                                      trust_remote_code=args.trust_remote_code)
        report = evaluate_with_model(model, tokenizer, args.data, args.device, batch=True, debug=True,
                                     method=args.method, threshold=args.threshold, train_path=args.train)
        if args.output:
            write_json(args.output, report)
            picture = save_report_figure(report, Path(args.output).with_suffix(".png"))
            print(f"report: {args.output}, picture: {picture}")
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _predict(args: argparse.Namespace) -> int:
    """Scores the file of ``--predict``; the exit code says whether every row of it was good."""
    require_paths(args.predict, args.output)  # before gigabytes are loaded
    model, tokenizer = load_model(args.model, args.checkpoint, args.device, quantization=args.quantization,
                                  trust_remote_code=args.trust_remote_code)
    done = predict_file(model, tokenizer, args.predict, args.output, threshold=args.threshold,
                        batch_rows=args.batch_rows, restart=args.restart)
    return 2 if done["errors"] else 0


# %run gives a notebook's script the name __main__ as well; there the command line is not this file's.
if __name__ == "__main__" and not hasattr(builtins, "__IPYTHON__"):
    sys.exit(main())
