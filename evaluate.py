"""Scores dialogues with a base model or a checkpoint, and reports what the scores are worth.

    python evaluate.py --model MODEL --checkpoint DIR --data F [--full] [--output report.json]
    python evaluate.py --model MODEL --checkpoint DIR --data eval.jsonl --calibrate [--best-f1]
                       [--ordinary ordinary_eval.jsonl --false-alarms 5]
    python evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl [--restart]

One forward pass a dialogue compares the two words that continue the answer to "fraud" and to "not fraud", which gives
a probability; ``--method generate`` lets the model write its answer instead, as the article does. Without
``--checkpoint`` the untuned model is judged. The core report takes seconds; ``--full`` adds probes, baselines, the
untuned model, label audit and overlap with train. In a notebook, ``%run evaluate.py`` or ``import evaluate``.
"""

import argparse
import functools
import gc
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from data.command import command, heavy_imports, is_command

with heavy_imports(by_command=is_command(__name__)):
    from antifraud.evaluation.calibration import TARGETS, calibrate_checkpoint
    from antifraud.evaluation.inputs import METHODS, input_files, read_inputs
    from antifraud.evaluation.metrics import figure_text
    from antifraud.evaluation.report import make_report, summary
    from antifraud.evaluation.scoring import predict
    from antifraud.figures import report_figure
    from antifraud.model import QUANTIZATIONS, default_device
    from antifraud.model import load_tuned as load_model
    from antifraud.serving.chunks import require_rows
    from antifraud.serving.predict import BATCH_ROWS, predict_file, require_request
    from data.files import one_line, require_input, require_output, write_json
    from data.prompt import add_task_options, task_of
    from data.sources import TABLE_SUFFIXES

__all__ = ["evaluate", "evaluate_with_model", "load_model", "predict"]
OF_REPORT = ("full", "show_text", "train", "eval", "ordinary_eval", "peer")


def evaluate_with_model(model, tokenizer, testdata_path: str, device: str = "cuda", batch: bool = False,
                        debug: bool = False, **options) -> dict:
    """Evaluates a loaded model on a JSONL file; prints precision, recall and accuracy, returns the whole report.

    Args:
        model: a causal LM, with or without adapters, as `load_model` or a notebook loaded it or a trainer left it.
        testdata_path: records with ``input`` and ``label``; those with an empty ``input`` are skipped and counted.
        device: kept for the article's cells; the model is judged where it is.
        batch: generate for as many rows at a time as fill the device instead of one; scoring is always batched.
        debug: print tn, fp, fn and tp too.
        options: ``full``, ``method``, ``threshold``, ``train_path``, ``eval_path``, ``ordinary``, ``peers``,
            ``with_text``, ``progress``: see `antifraud.evaluation.inputs.read_inputs`.

    Returns:
        the report, the same in Python and in JSON; what it lacks and why is in its ``not_made``.
    """
    report = make_report(model, tokenizer, read_inputs(testdata_path, batch=batch, **options))
    print(*summary(report, debug=debug), sep="\n")
    return report


def evaluate(model_path: str, checkpoint_path: str, testdata_path: str, device: str = "cuda", batch: bool = False,
             debug: bool = False, **options) -> dict:
    """Loads a model and a checkpoint and evaluates them; see `load_model` and `evaluate_with_model`."""
    inputs = read_inputs(testdata_path, batch=batch, **options)  # what is wrong with them is said before minutes pass
    report = make_report(*load_model(model_path, checkpoint_path, device), inputs)
    print(*summary(report, debug=debug), sep="\n")
    return report


# ------------------------------------------------------------------------------------------ the command line


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.predict is not None and (not args.output or args.method != "score"):
        parser.error("--predict needs --output, and scores only")
    if args.calibrate and (args.data is None or not args.checkpoint or args.method != "score"):
        parser.error("--calibrate needs --data and --checkpoint, and scores only")
    _refuse_unread(parser, args)
    _require_bound(parser, args)
    if args.calibrate and task_of(args):
        parser.error("a calibration is kept beside the checkpoint's own question; leave the question's options out")
    if args.output:
        if args.predict is None and Path(args.output).suffix.lower() in (".png", *TABLE_SUFFIXES):
            parser.error("--output is the report, a JSON file; its picture goes beside it")
        require_output(args.output, input_files(args))
    return (_predict if args.predict is not None else _calibrate if args.calibrate else _evaluate)(args)


def _refuse_unread(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    unread = ((*OF_REPORT, "ordinary", *TARGETS) if args.predict is not None else
              (*OF_REPORT, "threshold", "fast", "restart") if args.calibrate else ("restart", *TARGETS))
    for name in unread:
        if getattr(args, name) != parser.get_default(name):
            use = "--calibrate" if name in TARGETS else "--predict" if name == "restart" else "the report on --data"
            parser.error(f"--{name.replace('_', '-')} belongs to {use}; leave it out")


def _require_bound(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.false_alarms is not None and not (args.calibrate and args.ordinary and any(
            getattr(args, target) for target in TARGETS)):
        parser.error("--false-alarms belongs to --calibrate with a target, and needs --ordinary ordinary_eval.jsonl")
    if args.calibrate and args.ordinary and args.false_alarms is None:
        parser.error("--calibrate with --ordinary needs --false-alarms: how many of a hundred ordinary calls may alarm")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder for its best one")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="JSONL records to judge; other formats: docs/data.md")
    source.add_argument("--predict", metavar="IN", help="JSONL of any size to score, one line of --output for each")
    parser.add_argument("--threshold", type=_probability,
                        help="probability of fraud to call it one (default: the one that --calibrate kept, or 0.5)")
    parser.add_argument("--output", help="where to write the report (a picture goes beside it), or the predictions")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="default: as trained")
    parser.add_argument("--fast", action="store_true", help="for many dialogues: merged, compiled, in 16 bit")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")

    report = parser.add_argument_group("the report on --data")
    report.add_argument("--full", action="store_true",
                        help="add probes, baselines, the untuned model, label audit and overlap with train")
    report.add_argument("--method", choices=METHODS, default="score")
    report.add_argument("--ordinary", nargs="+", default=[], metavar="FILE",
                        help="records of ordinary dialogues, none of them fraud, to count false alarms in; with "
                             "--calibrate those kept for choosing, ordinary_eval.jsonl")
    report.add_argument("--train", help="train file for the baselines (default: the one the checkpoint names)")
    report.add_argument("--eval", help="eval split, to choose the baselines' thresholds on as the model's was")
    report.add_argument("--ordinary-eval", metavar="FILE", help="ordinary calls kept for choosing, on which the "
                        "baselines' thresholds keep the bound that --false-alarms gave the model's")
    report.add_argument("--peer", action="append", default=[], metavar="NAME=FILE",
                        help="another classifier to compare with: NAME=FOLDER of antifraud.evaluation.encoder, or its "
                             "probabilities for --data as --predict writes them, NAME=FILE[,FILE for --eval[,for "
                             "--ordinary[,for --ordinary-eval]]]; may be repeated")
    report.add_argument("--show-text", action="store_true", help="show the dialogues of the worst errors in the report")

    calibration = parser.add_argument_group(
        "calibration", "probabilities, threshold and how many lines count, found on eval data, kept in the checkpoint")
    calibration.add_argument("--calibrate", action="store_true", help="on --data, which must be the eval split")
    target = calibration.add_mutually_exclusive_group()
    target.add_argument("--best-f1", action="store_true", help="the highest F1")
    target.add_argument("--wanted-precision", type=_share, help="the most recall with at least this precision")
    target.add_argument("--wanted-recall", type=_share, help="the fewest alarms with at least this recall")
    target.add_argument("--cost-ratio", type=_positive, help="a missed fraud costs this many times a false alarm")
    calibration.add_argument("--false-alarms", type=_hundred, metavar="N",
                             help="the target is sought where at most N of a hundred calls of --ordinary raise an "
                                  "alarm, in each of its sources")

    prediction = parser.add_argument_group("the predictions of --predict")
    prediction.add_argument("--batch-rows", type=int, default=BATCH_ROWS,
                            help="rows to read, sort and write at a time (default: %(default)s)")
    prediction.add_argument("--restart", action="store_true", help="throw away what --output already holds")
    add_task_options(parser)
    return parser


def _load(args: argparse.Namespace):
    return load_model(args.model, args.checkpoint, args.device, task=task_of(args), quantization=args.quantization,
                      fast=args.fast, trust_remote_code=args.trust_remote_code)


def _evaluate(args: argparse.Namespace) -> int:
    inputs = read_inputs(args.data, full=args.full, method=args.method, batch=True, threshold=args.threshold,
                         train_path=args.train, eval_path=args.eval, ordinary=args.ordinary,
                         ordinary_eval=args.ordinary_eval, peers=args.peer, with_text=args.show_text)
    report = make_report(*_load(args), inputs)
    try:
        if args.output:
            write_json(args.output, report)
    finally:  # where the disk is full, the figures are on the screen at least
        print(*summary(report, debug=True), sep="\n")
    if args.output:
        print(f"report: {args.output}, {_picture(report, Path(args.output).with_suffix('.png'))}")
    return 0


def _picture(report: dict, path: Path) -> str:
    """Draws the report, and says where; a picture that cannot be drawn costs nothing else."""
    try:
        report_figure(report).save(path)
        return f"picture: {path}"
    except Exception as error:
        return f"no picture: {one_line(error)}"


def _calibrate(args: argparse.Namespace) -> int:
    for path in (args.data, *args.ordinary):
        require_input(path)
    bound = {"ordinary": args.ordinary, "false_alarms": args.false_alarms} if args.ordinary else {}
    found = calibrate_checkpoint(args.model, args.checkpoint, args.data, args.device, quantization=args.quantization,
                                 trust_remote_code=args.trust_remote_code, **bound,
                                 **{target: getattr(args, target) for target in TARGETS})
    if args.output:
        write_json(args.output, found)
    unsure = "" if found["temperature"] != 1.0 else " (no error here to learn one from)"
    print(f"temperature {found['temperature']:.4f}{unsure}, bias {found['bias']:.4f}: calibration error "
          f"{found['ece_before']:.4f} before, {found['ece_after']:.4f} after")
    print(f"threshold {found['threshold']:.6f}: precision {figure_text(found['precision'])}, recall "
          f"{figure_text(found['recall'])} on the {found['data']['rows']} rows they were found on")
    if found["line_weight"]:
        print(f"most suspicious lines that count: {found['top_lines']}, for {found['line_weight']:.0%} of the score")
    if args.ordinary:
        calls = found["ordinary"]
        print(f"{calls['all']['false_alarms_per_hundred_calls']:.1f} of a hundred ordinary calls raise an alarm, at "
              f"most {args.false_alarms:g} may" + ("; the threshold is higher for it" * calls["moved_threshold"]))
    print(f"kept in {found['checkpoint']}; now judge it on dialogues it has not seen: --data test.jsonl")
    return 0


def _predict(args: argparse.Namespace) -> int:
    """Scores the file of ``--predict``; the exit code says whether every row of it was good."""
    require_request(args.predict, args.output, batch_rows=args.batch_rows)  # before gigabytes are loaded
    require_rows(args.predict)
    done = predict_file(*_load(args), args.predict, args.output, threshold=args.threshold, batch_rows=args.batch_rows,
                        restart=args.restart)
    return 2 if done["errors"] else 0


def _number(text: str, *, fits, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{expected}, not {text}")
    return value


_probability = functools.partial(_number, fits=lambda value: 0 <= value <= 1,
                                 expected="must be a probability from 0 to 1, as 0.6 for 60 %")
_share = functools.partial(_number, fits=lambda value: 0 < value <= 1, expected="must be above 0 and at most 1")
_hundred = functools.partial(_number, fits=lambda value: 0 <= value <= 100, expected="must be from 0 to 100")
_positive = functools.partial(_number, fits=lambda value: 0 < value < math.inf, expected="must be above 0")

if is_command(__name__):
    code = main()
    gc.freeze()  # or Python would look for garbage among a million objects before it ends: seconds
    sys.exit(code)
