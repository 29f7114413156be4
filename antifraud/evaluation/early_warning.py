"""How early a dialogue is found to be a fraud: scored as it grows, line by line, as a call would be.

    python -m antifraud.evaluation.early_warning --model MODEL --checkpoint DIR --source CSV_DIR \\
        --eval eval.jsonl --test test.jsonl [--ordinary-eval ordinary_eval_calls.jsonl] \\
        [--ordinary ordinary_calls.jsonl] [--train train.jsonl] [--peer encoder=DIR]

The threshold is the lowest with which no more than so many of a hundred non-fraud calls of the eval split raise an
alarm at any of their lines. Lines count by the rule that then finds most of the frauds of eval: the fewer alarms are
allowed, the less a single line may say. Both are then applied to the whole calls of the test split. Ordinary calls
from elsewhere may help to find them (``--ordinary-eval``), and are judged apart (``--ordinary``). TF-IDF
(``--train``) and an encoder (``--peer``) are judged in the same way. For a call that is still going on, see
`growing.GrowingDialogue`.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.command import command, is_command
from data.files import DataError, one_line, require_output, write_json
from data.normalise import normalise
from data.prompt import PromptEncoder
from data.records import Dialogue, Line, Skipped, read_dialogues, read_numbered_records, read_records
from data.segments import cut_lines
from data.speakers import format_dialogue, split_lines
from data.split import is_fraud

from ..checkpoint import Decision, lineage_of, provenance_of, refuse_train_data
from ..model import default_device, load_tuned
from ..provenance import file_sha256
from .calibration import rules_of_lines
from .calls import alarms_allowed, alarms_by_category, most_alarmed, require_ordinary
from .inputs import KeptEncoder, split_peers
from .metrics import confidence_intervals
from .scoring import calibrated, rows_of, score_of_log_odds, score_rows, windows_of

FALSE_ALARMS = (1.0, 5.0)  # per hundred non-fraud calls
CALL_CHARACTERS = 500  # about a scam's length; a meeting of 15,000 is as many calls as it gives segments
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


def score_growing(model, tokenizer, dialogues: Sequence[Dialogue], *, progress: str | None = None) -> list[np.ndarray]:
    """For each dialogue, [lines] the probability of fraud after each of its lines.

    What `growing.GrowingDialogue` gives, all beginnings of all dialogues batched together, the faster way for many.
    """
    log_odds = _log_odds(model, tokenizer, dialogues, progress)
    return _by_dialogue(_probabilities(log_odds, lineage_of(model).decision), dialogues)


def _log_odds(model, tokenizer, dialogues: Sequence[Dialogue], progress: str | None) -> list[np.ndarray]:
    """[lines of all dialogues] the log-odds of the lines so far and of the answer, after each line."""
    lineage, odds = lineage_of(model), {}
    encoder = PromptEncoder(tokenizer, lineage.task)
    newest = [prompt for dialogue in dialogues for prompt in encoder.newest_prompts(_text(dialogue.lines))]
    rows = rows_of(encoder, newest, line_aware=lineage.decision.line_aware)
    score_rows(model, rows, grown=True, odds_of=odds, progress=progress)
    return [odds[row] for row in rows]


def _probabilities(log_odds: Sequence[np.ndarray], decision: Decision) -> np.ndarray:
    """[lines] by a decision, of what `_log_odds` gives."""
    return calibrated(np.array([score_of_log_odds(odds, decision) for odds in log_odds]), decision)


def _beginnings(dialogues: Sequence[Dialogue]) -> Iterator[str]:
    """The text of each dialogue up to each of its lines."""
    for dialogue in dialogues:
        for end in range(1, len(dialogue.lines) + 1):
            yield _text(dialogue.lines[:end])


def _text(lines: Sequence[Line]) -> str:
    return format_dialogue([(line.speaker, line.content) for line in lines])


def _by_dialogue(scores: np.ndarray, dialogues: Sequence[Dialogue]) -> list[np.ndarray]:
    return np.split(scores, np.cumsum([len(dialogue.lines) for dialogue in dialogues])[:-1])


def calls_of(dialogues: Sequence[Dialogue], *, characters: int = CALL_CHARACTERS) -> list[Dialogue]:
    """Dialogues as calls of comparable length: a scam stays whole, a non-fraud dialogue is cut into segments.

    The segments, of so many `characters`, keep their dialogue's `case`, so that intervals know that they belong
    together.
    """
    calls = []
    for dialogue in dialogues:
        segments = [dialogue.lines] if is_fraud(dialogue) else cut_lines(dialogue.lines, characters)
        calls.extend(Dialogue(dialogue.case, dialogue.category, tuple(segment)) for segment in segments)
    return calls


def ordinary_calls(path: str, skipped: Skipped | None = None) -> list[Dialogue]:
    """The calls of a file of ordinary talk, one a record.

    Args:
        skipped: where to note rows whose ``input`` is empty. Without it that is an error.

    Raises:
        DataError: a record is labelled fraud.
    """
    calls = []
    numbered = read_numbered_records(path, skipped)
    require_ordinary(numbered, path)
    for number, record in numbered:
        turns = split_lines(normalise(record["input"]))
        lines = tuple(Line(speaker or "", content, False) for speaker, content in turns)
        calls.append(Dialogue(record.get("case") or f"{path}:{number}", record.get("category", ""), lines))
    return calls


def threshold_for(non_fraud: Sequence[np.ndarray], false_alarms: float) -> float:
    """The lowest threshold at which at most `false_alarms` of a hundred non-fraud calls raise an alarm at any line.

    Args:
        non_fraud: for each non-fraud call, [lines] its probabilities.

    Raises:
        DataError: no non-fraud calls.
    """
    if not non_fraud:
        raise DataError("no non-fraud calls to find a threshold on; give some with --ordinary-eval")
    highest = sorted((float(probabilities.max()) for probabilities in non_fraud), reverse=True)
    allowed = alarms_allowed(len(non_fraud), false_alarms)
    return 0.0 if allowed >= len(non_fraud) else math.nextafter(highest[allowed], math.inf)


def alarm_line(probabilities: np.ndarray, threshold: float) -> int | None:
    """The number (from 1) of the line at which the alarm goes off; None where it never does."""
    over = np.flatnonzero(probabilities >= threshold)
    return int(over[0]) + 1 if len(over) else None


def alarm_report(dialogues: Sequence[Dialogue], probabilities: Sequence[np.ndarray], threshold: float) -> dict:
    """How often and how early the alarm goes off at a threshold.

    Returns:
        ``non_fraud`` and ``fraud`` (numbers of calls), those ``..._alarmed``, ``by_category`` (the kinds of non-fraud
        calls that alarm, those that alarm most first), ``false_alarms_per_hundred`` and ``recall`` with 95 % intervals
        resampled by dialogue; of the frauds found, quartiles of the ``lines`` spoken when the alarm goes off (that line
        included), of their ``share_of_dialogue`` and ``share_of_fraud_lines``; ``alarmed_before_any_fraud_line``; and
        ``alarmed_by``: the share of all frauds found by the time that so large a share of the lines is spoken.
    """
    y_true = np.array([is_fraud(dialogue) for dialogue in dialogues], dtype=bool)
    alarms = [alarm_line(scores, threshold) for scores in probabilities]
    alarmed = np.array([alarm is not None for alarm in alarms], dtype=bool)
    cases = [dialogue.case for dialogue in dialogues]
    false_alarms = confidence_intervals(~y_true, alarmed, groups=cases)["recall"]  # the share of the non-fraud ones
    found = [(dialogue, alarm) for dialogue, alarm, fraud in zip(dialogues, alarms, y_true) if fraud and alarm]
    shares = np.array([alarm / len(dialogue.lines) for dialogue, alarm in found])
    non_fraud = [row for row, fraud in enumerate(y_true) if not fraud]
    return {
        "non_fraud": int((~y_true).sum()),
        "non_fraud_alarmed": int((alarmed & ~y_true).sum()),
        "by_category": alarms_by_category([{"category": dialogues[row].category} for row in non_fraud],
                                          [probabilities[row].max() for row in non_fraud], threshold),
        "false_alarms_per_hundred": float(100 * alarmed[~y_true].mean()) if not y_true.all() else None,
        "false_alarms_per_hundred_interval": false_alarms and [100 * end for end in false_alarms],
        "fraud": int(y_true.sum()),
        "fraud_alarmed": len(found),
        "recall": float(alarmed[y_true].mean()) if y_true.any() else None,
        "recall_interval": confidence_intervals(y_true, alarmed, groups=cases)["recall"],
        "lines": _quartiles([alarm for _, alarm in found]),
        "share_of_dialogue": _quartiles(shares),
        "share_of_fraud_lines": _quartiles([_fraud_lines(dialogue, alarm) / _fraud_lines(dialogue, None)
                                            for dialogue, alarm in found]),
        "alarmed_before_any_fraud_line": sum(_fraud_lines(dialogue, alarm) == 0 for dialogue, alarm in found),
        "alarmed_by": {str(share): float((shares <= share).sum() / y_true.sum()) if y_true.any() else None
                       for share in SHARES},
    }


def _fraud_lines(dialogue: Dialogue, end: int | None) -> int:
    return sum(line.is_fraud for line in dialogue.lines[:end])


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))] if len(values) else None


def early_warning(model, tokenizer, calls: dict[str, list[Dialogue]], *, train_path: str | None = None,
                  encoders: Mapping[str, KeptEncoder] = {}, false_alarms: Sequence[float] = FALSE_ALARMS) -> dict:
    """For each wanted rate of false alarms, the decision found on eval and what it does there and on test.

    Args:
        calls: of `read_calls`.
        train_path: records to fit TF-IDF on, which is then judged in the same way.
        encoders: by name, of `inputs.split_peers`, to judge likewise.
        false_alarms: per hundred non-fraud calls.

    Returns:
        ``at``, and the same under ``tfidf`` and, by name, ``encoders``; ``windows``: of each set the ``calls`` that
        the model read in several, and the ``most`` that one took; ``not_made``: why another could not be asked.
    """
    odds = {name: _log_odds(model, tokenizer, members, name) for name, members in calls.items()}
    lineage = lineage_of(model)
    encoder = PromptEncoder(tokenizer, lineage.task)

    def scores_by(decision: Decision, name: str) -> list[np.ndarray]:
        return _by_dialogue(_probabilities(odds[name], decision), calls[name])

    windows = {name: [len(of_call) for of_call in windows_of(encoder, [_text(call.lines) for call in members])]
               for name, members in calls.items()}
    rules = [lineage.decision, *rules_of_lines(lineage.decision)]
    report = {"at": _at(calls, rules, scores_by, false_alarms), "call_characters": CALL_CHARACTERS,
              "windows": {name: {"calls": sum(count > 1 for count in counts), "most": max(counts, default=0)}
                          for name, counts in windows.items()}}
    texts = {name: list(_beginnings(members)) for name, members in calls.items()}

    def judge(other: str, answers: Callable[[dict], dict[str, np.ndarray]], into: dict) -> None:
        print(f"{other}, on all beginnings of all calls: that may take minutes", file=sys.stderr)
        try:
            by_call = {name: _by_dialogue(scores, calls[name]) for name, scores in answers(texts).items()}
            into[other] = {"at": _at(calls, [None], lambda _, name: by_call[name], false_alarms)}
        except Exception as error:  # records of one label, say: the rest is worth more
            report.setdefault("not_made", {})[other] = one_line(error)

    if train_path:
        from .baselines import tfidf_answers  # scikit-learn takes a second to import, and so does datasets below

        judge("tfidf", functools.partial(tfidf_answers, train_path), report)
    if encoders:
        from .encoder import encoder_answers

        report["encoders"] = {}
        for name, kept in encoders.items():
            judge(name, functools.partial(encoder_answers, kept.folder, device=model.device.type), report["encoders"])
    return report


def read_calls(source: str, eval_path: str, test_path: str, ordinary_eval: str | None = None,
               ordinary: str | None = None) -> dict[str, list[Dialogue]]:
    """``eval``, ``test`` and, where there are some, ``ordinary`` calls; none of eval is judged on.

    Args:
        source: the dialogues (CSV) that eval and test were cut from, to have them whole and line by line.
        eval_path, test_path: the splits of ``data.prepare``; their ``case`` says which dialogues they hold.
        ordinary_eval: ordinary calls (JSONL) among those that the threshold is found on.
        ordinary: other ordinary calls, judged apart.
    """
    skipped = Skipped()
    # Of these, data.prepare named what it passed over when it cut the splits.
    dialogues = {dialogue.case: dialogue for dialogue in read_dialogues(source, Skipped())}
    calls = {name: calls_of(dialogues_of(path, dialogues, source, skipped))
             for name, path in (("eval", eval_path), ("test", test_path))}
    calls["eval"] += ordinary_calls(ordinary_eval, skipped) if ordinary_eval else []
    if ordinary:
        calls["ordinary"] = ordinary_calls(ordinary, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    known = {call.case for call in calls["eval"]}
    for name, path in (("test", test_path), ("ordinary", ordinary)):
        both = known & {call.case for call in calls.get(name, ())}
        if both:
            raise DataError(f"{path}: shares {len(both)} dialogues with what the threshold is found on, {min(both)!r} "
                            "for one; make them with python -m data.prepare")
    return calls


def _at(calls: dict[str, list[Dialogue]], rules: Sequence[Decision | None],
        scores_by: Callable[[Decision | None, str], list[np.ndarray]], false_alarms: Sequence[float]) -> list[dict]:
    """For each wanted rate of false alarms, the threshold and an `alarm_report` of each set of calls.

    Args:
        rules: the one that finds most of eval's frauds is taken, the first of equals: the model's own, with which its
            other answers are given.
        scores_by: the scores of a set of calls by a rule.
    """
    fraud = [is_fraud(call) for call in calls["eval"]]
    on_eval = {rule: scores_by(rule, "eval") for rule in dict.fromkeys(rules)}
    rows = []
    for wanted in false_alarms:
        thresholds = {rule: threshold_for([one for one, is_one in zip(scores, fraud) if not is_one], wanted)
                      for rule, scores in on_eval.items()}
        found = {rule: sum(one.max() >= thresholds[rule] for one, is_one in zip(scores, fraud) if is_one)
                 for rule, scores in on_eval.items()}
        rule = max(found, key=found.get)
        decision = {"decision": {**asdict(rule), "threshold": thresholds[rule]}} if rule else {}
        rows.append({"wanted_false_alarms_per_hundred": wanted, "threshold": thresholds[rule], **decision,
                     **{name: alarm_report(calls[name], scores_by(rule, name), thresholds[rule]) for name in calls}})
    return rows


def dialogues_of(path: str, dialogues: dict[str, Dialogue], source: str, skipped: Skipped | None = None
                 ) -> list[Dialogue]:
    """The whole dialogues that the records of a split are segments of.

    Args:
        skipped: as of `ordinary_calls`.

    Raises:
        DataError: a record without ``case``, or one whose dialogue is not in `source`.
    """
    cases = list(dict.fromkeys(record.get("case") or None for record in read_records(path, skipped)))
    missing = [case for case in cases if case not in dialogues]
    if None in cases:
        raise DataError(f"{path}: a record has no 'case', so its dialogue cannot be found; use python -m data.prepare")
    if missing:
        raise DataError(f"{path}: case {missing[0]!r} is not in {source}; name the dialogues it was prepared from")
    return [dialogues[case] for case in cases]


def print_summary(report: dict) -> None:
    for name, why in report.get("not_made", {}).items():
        print(f"not made: {name}: {why}")
    for name, windows in report["windows"].items():
        if windows["calls"]:
            print(f"{name}: {windows['calls']} calls are longer than the model reads at once; each was read in "
                  f"overlapping windows, the longest in {windows['most']}")
    others = {"TF-IDF": report.get("tfidf"), **report.get("encoders", {})}
    for name, judged in {"model": report, **others}.items():
        for row in (judged or {}).get("at", ()):
            test = row["test"]
            print(f"{name}: {row['wanted_false_alarms_per_hundred']:g} false alarms per hundred non-fraud calls wanted,"
                  f" threshold {row['threshold']:.6f}" + _rule_text(row))
            print(f"  on test: {test['non_fraud_alarmed']} of {test['non_fraud']} non-fraud calls alarmed, "
                  f"{test['fraud_alarmed']} of {test['fraud']} frauds found")
            if test["lines"]:
                print(f"  half of those found within {test['lines'][1]:g} lines, "
                      f"{test['share_of_dialogue'][1]:.0%} of the call")
            if "ordinary" in row:
                ordinary = row["ordinary"]
                kinds = most_alarmed(ordinary["by_category"])
                print(f"  {ordinary['non_fraud_alarmed']} of {ordinary['non_fraud']} ordinary calls alarmed"
                      + (f", most of them of {kinds}" if kinds else ""))


def _rule_text(row: dict) -> str:
    rule = row.get("decision", {})
    counts = rule.get("line_weight")
    return f", most suspicious lines that count: {rule['top_lines']}, for {counts:.0%} of the score" if counts else ""


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m antifraud.evaluation.early_warning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder for its best one")
    parser.add_argument("--source", required=True, help="folder of the dialogue CSVs that eval and test were cut from")
    parser.add_argument("--eval", required=True, help="eval.jsonl of data.prepare: where the threshold is found")
    parser.add_argument("--test", required=True, help="test.jsonl of data.prepare: where it is judged")
    parser.add_argument("--ordinary-eval", metavar="FILE", help="ordinary_eval_calls.jsonl of data.prepare: calls "
                        "among those that the threshold is found on")
    parser.add_argument("--ordinary", metavar="FILE", help="ordinary_calls.jsonl of data.prepare: judged apart")
    parser.add_argument("--train", metavar="FILE", help="train.jsonl, to fit TF-IDF on and judge it in the same way")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER",
                        help="a trained encoder, to judge in the same way; may be repeated")
    parser.add_argument("--false-alarms", type=float, nargs="+", default=list(FALSE_ALARMS),
                        help="per hundred non-fraud calls (default: %(default)s)")
    parser.add_argument("--output", default="early_warning.json", help="where to write the report")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = (parser := _parser()).parse_args(argv)
    if not all(0 <= rate <= 100 for rate in args.false_alarms):
        parser.error("--false-alarms must be from 0 to 100")
    if not Path(args.source).exists():
        raise DataError(f"{args.source}: no such file or folder")
    encoders, of_files = split_peers(args.peer)
    if of_files:
        raise DataError(f"{min(of_files.values())}: not a folder; here a peer is a trained encoder")
    require_output(args.output, (args.source, args.eval, args.test, args.train, args.ordinary, args.ordinary_eval))
    calls = read_calls(args.source, args.eval, args.test, args.ordinary_eval, args.ordinary)
    if all(is_fraud(call) for call in calls["eval"]):
        raise DataError(f"{args.eval}: no non-fraud calls to find a threshold on; give some with --ordinary-eval")
    if args.train:
        read_records(args.train, Skipped())  # what is wrong with it is said before the model is loaded
    model, tokenizer = load_tuned(args.model, args.checkpoint, args.device)
    refuse_train_data(model, args.eval, args.test)
    report = early_warning(model, tokenizer, calls, train_path=args.train, encoders=encoders,
                           false_alarms=args.false_alarms)
    files = {"eval_data": args.eval, "ordinary_eval": args.ordinary_eval, "ordinary": args.ordinary,
             "tfidf_train": args.train}
    report["provenance"] = {**provenance_of(model, args.test, len(calls["test"])),
                            "encoders": {name: encoder.about for name, encoder in encoders.items()},
                            **{name: {"name": Path(path).name, "sha256": file_sha256(path)}
                               for name, path in files.items() if path}}
    try:
        write_json(args.output, report)
    finally:  # where the disk is full, the figures are on the screen at least
        print_summary(report)
    print(f"report: {args.output}")
    return 0


if is_command(__name__):
    sys.exit(main())
