"""Scores dialogues with a base model or a checkpoint, and reports what the scores are worth.

    python evaluate.py --model MODEL --checkpoint DIR --data F [--method score|generate] [--output report.json]
    python evaluate.py --model MODEL --checkpoint DIR --data eval.jsonl --calibrate [--wanted-precision 0.95]
    python evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl [--restart]

One forward pass a dialogue compares the two words that continue the answer to "fraud" and to "not fraud", which
gives a probability; ``--method generate`` lets the model write its answer instead, as the article does. Without
``--checkpoint`` the untuned model is judged. In a notebook, ``%run evaluate.py`` or ``import evaluate``.
"""

import argparse
import builtins
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel

from antifraud.checkpoint import (
    Lineage,
    anonymous,
    find_checkpoint,
    lineage_of,
    provenance_of,
    save_calibration,
)
from antifraud.evaluation.calibration import at_prevalence, calibrate, calibrated, reliability
from antifraud.evaluation.errors import error_report
from antifraud.evaluation.metrics import (
    classification_metrics,
    confidence_intervals,
    figure_text,
    interval_text,
    threshold_table,
)
from antifraud.evaluation.probes import probe_report
from antifraud.evaluation.scoring import (
    GENERATE_ROWS_A_BATCH,
    generate_answers,
    parse_answer,
    score_prompts,
    score_single_lines,
)
from antifraud.figures import save_report_figure
from antifraud.model import default_device
from antifraud.model import load_tuned as load_model
from antifraud.provenance import describe_data, file_sha256
from antifraud.serving.predict import BATCH_ROWS, predict_file
from data.files import DataError, require_input, require_paths, write_json
from data.leakage import overlap
from data.prompt import PromptEncoder
from data.records import Skipped, groups_of, read_numbered_records, read_records

METHODS = ("score", "generate")
WISHES = ("wanted_precision", "wanted_recall", "cost_ratio")


# --------------------------------------------------------------------------------------------------- the model


# -------------------------------------------------------------------------------------------------- the report


def evaluate_with_model(model, tokenizer, testdata_path: str, device: str = "cuda", batch: bool = False,
                        debug: bool = False, *, method: str = "score", threshold: float | None = None,
                        train_path: str | None = None, with_text: bool = False, progress: bool = True) -> dict:
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
        with_text: show the dialogues of the worst errors in the report; without it, it holds none.

    Returns:
        the report, the same in Python and in JSON; see the README for its fields.
    """
    # scikit-learn takes a second to import; scoring a file needs none of it
    from antifraud.evaluation.baselines import fit_baselines, fraud_probability
    from antifraud.evaluation.labels import audit_labels

    if method not in METHODS:
        raise DataError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    lineage = lineage_of(model)
    threshold = lineage.decision.threshold if threshold is None else threshold
    numbered, skipped = _read(testdata_path)
    records = [record for _, record in numbered]
    train = _train_records(train_path, lineage)
    encoder = PromptEncoder(tokenizer, lineage.task)
    prompts = encoder.prompts([record["input"] for record in records])
    truncated = encoder.truncated

    started = time.perf_counter()
    raw_scores = score_prompts(model, encoder, prompts, progress="scoring" if progress else None)
    seconds = time.perf_counter() - started
    scores = calibrated(raw_scores, lineage.decision.temperature)
    answers: list[bool | None] = (scores >= threshold).tolist()
    agreement = None
    if method == "generate":
        started = time.perf_counter()
        written = generate_answers(model, encoder, prompts, rows_a_batch=GENERATE_ROWS_A_BATCH if batch else 1,
                                   progress="generating" if progress else None)
        seconds = time.perf_counter() - started
        scored, answers = answers, [parse_answer(text, lineage.task) for text in written]
        agreement = _agreement(answers, scored)

    y_true = [record["label"] for record in records]
    baselines = fit_baselines(train) if train else {}
    probes = probe_report(
        model, encoder, records, prompts, scores, threshold=threshold, groups=groups_of(records),
        tfidf=(lambda dialogues: fraud_probability(baselines["tfidf"], dialogues) >= 0.5) if baselines else None,
        progress="probing" if progress else None)
    report = {
        **_judged_by_answers(model, encoder, records, prompts, answers, scores, baselines),
        "method": method,
        "threshold": threshold,
        "temperature": lineage.decision.temperature,
        "calibration": {"before": reliability(y_true, raw_scores), "after": reliability(y_true, scores),
                        "fitted_on": lineage.calibration or None},
        "agreement_of_methods": agreement,
        "truncated": truncated,
        "skipped": len(skipped),
        "speakers_renamed": {name: value for name, value in probes["speakers_renamed"].items()
                             if not isinstance(value, dict)},  # without the changes, which are under ``probes``
        "probes": probes,
        "overlap_with_train": overlap(records, train) if train else None,
        **error_report(numbered, answers, scores, [len(prompt) for prompt in prompts], with_text=with_text),
        "lines": _judged_by_lines(model, encoder, records, prompts, baselines),
        "label_audit": audit_labels(records, answers),
        "thresholds": threshold_table(y_true, scores),
        "rows_per_second": len(records) / seconds,
        "provenance": provenance_of(model, testdata_path, len(records)),
    }
    print_summary(report, debug=debug)
    return report


def evaluate(model_path: str, checkpoint_path: str, testdata_path: str, device: str = "cuda", batch: bool = False,
             debug: bool = False, **options) -> dict:
    """Loads a model and a checkpoint and evaluates them; see `load_model` and `evaluate_with_model`."""
    model, tokenizer = load_model(model_path, checkpoint_path, device)
    return evaluate_with_model(model, tokenizer, testdata_path, device, batch, debug, **options)


def calibrate_checkpoint(model_path: str, checkpoint_path: str, data_path: str, device: str = "cuda", *,
                         quantization: str | None = None, trust_remote_code: bool = False, progress: bool = True,
                         **wish: float | None) -> dict:
    """Finds temperature and threshold on eval dialogues and keeps them in the checkpoint; see `calibration.calibrate`.

    Args:
        data_path: the eval split: neither what the model was trained on nor what it will be judged on.
        wish: ``wanted_precision``, ``wanted_recall`` or ``cost_ratio``.

    Returns:
        what was found, as it is kept in ``fraud_task.json``.

    Raises:
        DataError: the checkpoint or the data is not fit for it, or the wish cannot be met.
    """
    numbered, _ = _read(data_path)
    records = [record for _, record in numbered]
    folder = find_checkpoint(checkpoint_path)
    model, tokenizer = load_model(model_path, str(folder), device, quantization=quantization,
                                  trust_remote_code=trust_remote_code)
    lineage = lineage_of(model)
    data = anonymous(describe_data(data_path, len(records)))
    if data["sha256"] == lineage.train_data.get("sha256"):
        raise DataError(f"{data_path}: the checkpoint was trained on it; calibrate on the eval split")
    encoder = PromptEncoder(tokenizer, lineage.task)
    scores = score_prompts(model, encoder, encoder.prompts([record["input"] for record in records]),
                           progress="scoring" if progress else None)
    try:
        decision, found = calibrate([record["label"] for record in records], scores, lineage.decision, **wish)
    except DataError as error:
        raise DataError(f"{data_path}: {error}") from None
    save_calibration(folder, decision, {**found, "data": data})
    return {**found, "data": data, "checkpoint": str(folder)}


def _read(path: str) -> tuple[list[tuple[int, dict]], Skipped]:
    """(line number, record) of all records with a dialogue, and the others, which are named on standard error."""
    skipped = Skipped()
    numbered = read_numbered_records(path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    return numbered, skipped


def _judged_by_answers(model, encoder, records: list[dict], prompts, answers: list[bool | None], scores: np.ndarray,
                       baselines: dict) -> dict:
    """Metrics, intervals and baselines over the rows that were answered; the others are counted as ``unparsed``."""
    from antifraud.evaluation.baselines import against_baselines

    untuned = None
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            untuned = score_prompts(model, encoder, prompts, line_aware=False)
    rows = [row for row, answer in enumerate(answers) if answer is not None]
    answered = [records[row] for row in rows]
    y_true, y_pred = [record["label"] for record in answered], [answers[row] for row in rows]
    groups = groups_of(answered)
    return {
        "n": len(records),
        "unparsed": len(records) - len(rows),
        **classification_metrics(y_true, y_pred, scores[rows]),
        "intervals": {**confidence_intervals(y_true, y_pred, scores[rows], groups),
                      "resampled": "rows" if groups is None else "dialogues"},
        "at_prevalence": at_prevalence(y_true, y_pred, groups),
        "baselines": against_baselines(answered, y_pred, baselines, scores=scores[rows], groups=groups,
                                       untuned=None if untuned is None else untuned[rows]) if rows else None,
    }


def _judged_by_lines(model, encoder, records: list[dict], prompts, baselines: dict) -> dict | None:
    """How single lines are told apart; None where the model did not learn it, or the records do not label lines."""
    from antifraud.evaluation.lines import line_report

    if not lineage_of(model).decision.line_aware or not all("line_labels" in record for record in records):
        return None
    return line_report(records, score_single_lines(model, encoder, prompts), baselines.get("tfidf_with_lines"),
                       task=encoder.task)


def _agreement(written: list[bool | None], scored: list[bool]) -> dict:
    both = [(one, other) for one, other in zip(written, scored) if one is not None]
    same = sum(one == other for one, other in both)
    return {"rows": len(both), "agree": same, "share": same / len(both) if both else None}


def _train_records(train_path: str | None, lineage: Lineage) -> list[dict] | None:
    """Records of the train file: the one named, or the one that the checkpoint names if it lies there unchanged."""
    if train_path is None:
        path = lineage.train_data.get("path")
        if not path or not Path(path).is_file() or file_sha256(path) != lineage.train_data.get("sha256"):
            print("train file not found: no baselines, no overlap; name it with --train", file=sys.stderr)
            return None
        train_path = path
    return read_records(train_path, Skipped())


def print_summary(report: dict, *, debug: bool = False) -> None:
    """The article's lines, then what they leave out: intervals, rare fraud, probes, baselines."""
    if debug:
        print(f"tn：{report['tn']}, fp:{report['fp']}, fn:{report['fn']}, tp:{report['tp']}")
    print(f"precision: {report['precision']}, recall: {report['recall']}, accuracy: {report['accuracy']}")
    if report["unparsed"]:
        print(f"unparsed: {report['unparsed']} of {report['n']} answers are neither of the two and count nowhere above")
    for name in ("precision", "recall", "f1", "average_precision"):
        print(f"  {name:<18} {figure_text(report[name])}  95 % interval {interval_text(report['intervals'][name])}")
    for rare in report["at_prevalence"]["prevalences"]:
        print(f"  if {rare['prevalence']:.1%} are fraud  precision {figure_text(rare['precision'])}, "
              f"{figure_text(rare['alarms_per_thousand'])} alarms in a thousand calls")
    fitted_on = (report["calibration"]["fitted_on"] or {}).get("data", {})
    if fitted_on.get("sha256") == report["provenance"]["data"]["sha256"]:
        print("  these are the dialogues that temperature and threshold were found on; judge them on others")
    print(f"  calibration error  {report['calibration']['after']['ece']:.4f}, temperature {report['temperature']:.3f}")
    for name, probe in report["probes"].items():
        change, tfidf = probe["change"]["recall"], probe["change_of_tfidf"]
        print(f"  {name:<24} recall {figure_text(probe['recall'])}, f1 {figure_text(probe['f1'])}; "
              f"recall changes by {interval_text(change['interval'])}"
              + (f", TF-IDF's by {interval_text(tfidf['recall']['interval'])}" if tfidf else ""))
    if report["lines"]:
        print(f"  single lines       f1 {figure_text(report['lines']['f1'])}, average precision "
              f"{figure_text(report['lines']['average_precision'])}; the most suspicious line is part of the fraud in "
              f"{figure_text(report['lines']['most_suspicious_line_is_fraud'])} of the frauds")
    if report["overlap_with_train"]:
        shared = report["overlap_with_train"]
        print(f"  seen in training   {shared['near_duplicates']} rows nearly, "
              f"{shared['rows_sharing_a_line']:.1%} of rows in a whole line")
    for name, baseline in (report["baselines"] or {}).items():
        by_f1, by_area = baseline["model_f1_minus_this"], baseline["model_average_precision_minus_this"]
        print(f"  {name:<18} f1 {figure_text(baseline['f1'])}; the model's is {_verdict(by_f1)} "
              f"({interval_text(by_f1['interval'])}); average precision {figure_text(baseline['average_precision'])}; "
              f"the model's is {_verdict(by_area)} ({interval_text(by_area['interval'])})")


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
    calibration = parser.add_argument_group(
        "calibration", "temperature and threshold, found on eval data and kept in the checkpoint")
    calibration.add_argument("--calibrate", action="store_true", help="on --data, which must be the eval split")
    wish = calibration.add_mutually_exclusive_group()
    wish.add_argument("--wanted-precision", type=_share, help="the most recall with at least this precision")
    wish.add_argument("--wanted-recall", type=_share, help="the fewest alarms with at least this recall")
    wish.add_argument("--cost-ratio", type=_positive, help="a missed fraud costs this many times a false alarm")
    parser.add_argument("--show-text", action="store_true", help="show the dialogues of the worst errors in the report")
    parser.add_argument("--quantization", choices=("nf4", "fp4", "none"), help="default: as trained")
    parser.add_argument("--fast", action="store_true", help="for many dialogues: merged, compiled, in 16 bit")
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
    if args.calibrate and (args.data is None or not args.checkpoint or args.method != "score"):
        parser.error("--calibrate needs --data and --checkpoint, and scores only")
    if not args.calibrate and any(getattr(args, wish) is not None for wish in WISHES):
        parser.error("--wanted-precision, --wanted-recall and --cost-ratio belong to --calibrate")
    try:
        if args.predict is not None:
            return _predict(args)
        require_input(args.data)  # before gigabytes are loaded
        (_calibrate if args.calibrate else _evaluate)(args)
    except (DataError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _evaluate(args: argparse.Namespace) -> None:
    model, tokenizer = load_model(args.model, args.checkpoint, args.device, quantization=args.quantization,
                                  fast=args.fast, trust_remote_code=args.trust_remote_code)
    report = evaluate_with_model(model, tokenizer, args.data, args.device, batch=True, debug=True, method=args.method,
                                 threshold=args.threshold, train_path=args.train, with_text=args.show_text)
    if args.output:
        write_json(args.output, report)
        picture = save_report_figure(report, Path(args.output).with_suffix(".png"))
        print(f"report: {args.output}, picture: {picture}")


def _calibrate(args: argparse.Namespace) -> None:
    found = calibrate_checkpoint(args.model, args.checkpoint, args.data, args.device, quantization=args.quantization,
                                 trust_remote_code=args.trust_remote_code,
                                 **{wish: getattr(args, wish) for wish in WISHES})
    if args.output:
        write_json(args.output, found)
    unsure = "" if found["temperature"] != 1.0 else " (no error here to learn one from)"
    print(f"temperature {found['temperature']:.4f}{unsure}: calibration error {found['ece_before']:.4f} before, "
          f"{found['ece_after']:.4f} after")
    print(f"threshold {found['threshold']:.6f}: precision {figure_text(found['precision'])}, recall "
          f"{figure_text(found['recall'])} on the {found['data']['rows']} dialogues they were found on")
    print(f"kept in {found['checkpoint']}; now judge it on dialogues it has not seen: --data test.jsonl")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _predict(args: argparse.Namespace) -> int:
    """Scores the file of ``--predict``; the exit code says whether every row of it was good."""
    require_paths(args.predict, args.output)  # before gigabytes are loaded
    model, tokenizer = load_model(args.model, args.checkpoint, args.device, quantization=args.quantization,
                                  fast=args.fast, trust_remote_code=args.trust_remote_code)
    done = predict_file(model, tokenizer, args.predict, args.output, threshold=args.threshold,
                        batch_rows=args.batch_rows, restart=args.restart)
    return 2 if done["errors"] else 0


# %run gives a notebook's script the name __main__ as well; there the command line is not this file's.
if __name__ == "__main__" and not hasattr(builtins, "__IPYTHON__"):
    sys.exit(main())
