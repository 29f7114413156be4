"""From a score to a probability that means what it says, and to a threshold that somebody chose.

    python evaluate.py --model MODEL --checkpoint DIR --data eval.jsonl --calibrate [--best-f1]
                       [--ordinary ordinary_eval.jsonl --false-alarms 5]

What makes a score a probability, the threshold, and how much the most suspicious lines count are found on eval
dialogues, kept with the checkpoint, and used from then on: by every report, ``--predict``, the page, the export.
Nothing here is ever fitted on the data that a report is about.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import expit, logit

from data.files import DataError
from data.prompt import PromptEncoder
from data.records import Skipped, read_numbered_records, read_records

from ..checkpoint import (
    Decision,
    find_checkpoint,
    lineage_of,
    refuse_train_data,
    require_calibratable,
    save_calibration,
)
from ..model import load_tuned
from ..provenance import anonymous, describe_data
from .calls import alarms_allowed, cases_apart, highest_by_call, ordinary_report, require_ordinary
from .metrics import (
    average_precision,
    bootstrap,
    classification_metrics,
    confidence_intervals,
    confusion_counts,
    none_if_nan,
    ratio,
)
from .scoring import Row, calibrated, predict_readings, read_dialogues, scores_by

BINS = 10
PREVALENCES = (0.01, 0.001)
FALSE_ALARMS = 2.0  # in a hundred ordinary calls
FEW_ROWS = 30  # of a label; with fewer what is found is chance
FEW_CALLS = 20  # of a source; with fewer it counts with the others only
FLAT = 0.005  # of F1: what is within so much of the best is told apart from it by chance
SMALLEST = 1e-12  # a score of exactly 0 or 1, where the softmax ran out of digits, has no log-odds
TEMPERATURES = (0.05, 20.0)
TARGETS = ("wanted_precision", "wanted_recall", "cost_ratio", "best_f1")  # of `choose_threshold`
# (line_weight, top_lines) that are tried. What alarms in an ordinary call is mostly one line, and a scam has several,
# but a short one may have a single line that says it all; see docs/results.md. The first is the one in which harmless
# lines put before a fraud can hide least, which is weight x (1 - 1 / lines) of the score.
LINE_RULES = ((0.3, 1), (0.5, 1), (0.2, 3), (0.3, 2), (0.3, 3), (0.5, 2), (0.4, 3), (0.5, 3))


def platt_scaling(y_true: Sequence[bool], scores: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) of the log-odds at which the labels are most likely.

    Log-odds are divided by the temperature, and the bias is added (Platt, Probabilistic Outputs for Support Vector
    Machines, 1999). The lines that count make log-odds lower than the answer alone, which no temperature mends. The
    bias has a standard normal prior, so that a few rows don't move it far. The temperature is 1 where every fraud
    scores higher than all else: such labels would be likelier the surer the model were, without end, and do not tell
    how sure it may be.

    Raises:
        DataError: dialogues of one label only.
    """
    from scipy.optimize import minimize

    y_true = np.asarray(y_true, dtype=bool)
    if y_true.all() or not y_true.any():
        raise DataError("calibration needs dialogues of both labels")
    log_odds = logit(np.clip(scores, SMALLEST, 1 - SMALLEST))
    temperatures = (1.0, 1.0) if log_odds[y_true].min() > log_odds[~y_true].max() else TEMPERATURES
    toward_label = np.where(y_true, -1, 1)

    def loss(found: np.ndarray) -> float:
        log_temperature, bias = found
        scaled = log_odds / math.exp(log_temperature) + bias
        return np.logaddexp(0, toward_label * scaled).sum() + bias ** 2 / 2

    log_temperature, bias = minimize(loss, (0.0, 0.0), bounds=[tuple(map(math.log, temperatures)), (None, None)]).x
    return math.exp(log_temperature), float(bias)


def reliability(y_true: Sequence[bool], scores: np.ndarray) -> dict:
    """Expected calibration error, and in ten equal bins what was said beside what was true.

    ECE is the mean of |share of fraud - mean probability| over the bins, weighted by their rows (Guo et al., 2017).
    """
    y_true, scores = np.asarray(y_true, dtype=float), np.asarray(scores)
    bin_of_row = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        rows = bin_of_row == number
        if rows.any():
            bins.append({"from": number / BINS, "to": (number + 1) / BINS, "n": int(rows.sum()),
                         "mean_probability": float(scores[rows].mean()), "fraud_share": float(y_true[rows].mean())})
    error = sum(row["n"] * abs(row["fraud_share"] - row["mean_probability"]) for row in bins) / len(scores)
    return {"ece": error, "bins": bins}


def choose_threshold(y_true: Sequence[bool], scores: np.ndarray, *, wanted_precision: float | None = None,
                     wanted_recall: float | None = None, cost_ratio: float | None = None,
                     best_f1: bool | None = None, above: float = -math.inf) -> float:
    """The threshold that reaches a target best on these rows; exactly one target must be given.

    Args:
        wanted_precision: the most recall with at least this precision.
        wanted_recall: the fewest alarms with at least this recall.
        cost_ratio: the lowest cost, where a fraud that is missed costs this many times a false alarm.
        best_f1: the highest F1. Of thresholds within `FLAT` of it, the one nearest to half of it, which is best where
            probabilities mean what they say (Lipton et al., Optimal Thresholding of Classifiers to Maximize F1 Measure,
            2014): where F1 is flat, its peak is chance.
        above: a score that the threshold must exceed; see `quiet_above`.

    Returns:
        a threshold halfway between two scores, where a difference in the seventh digit moves no row across it.

    Raises:
        DataError: the precision or the recall is not reached at any threshold, or no score is higher than `above`.
    """
    if not _given({"wanted_precision": wanted_precision, "wanted_recall": wanted_recall, "cost_ratio": cost_ratio,
                   "best_f1": best_f1}):
        raise TypeError(f"no target; name one of {', '.join(TARGETS)}")
    y_true, scores = np.asarray(y_true, dtype=bool), np.asarray(scores)
    distinct = np.unique(scores)
    thresholds = (distinct + np.maximum(above, np.concatenate([[0.0], distinct[:-1]]))) / 2
    thresholds, bound = thresholds[thresholds > above], "" if above == -math.inf else f" above {above:.6f}"
    if not len(thresholds):
        raise DataError(f"no threshold{bound} finds any of these dialogues; the highest score is {scores.max():.6f}")
    below = np.searchsorted(np.sort(scores), thresholds)
    fraud_below = np.searchsorted(np.sort(scores[y_true]), thresholds)
    alarms, tp, fn = len(scores) - below, y_true.sum() - fraud_below, fraud_below
    precision, recall = tp / alarms, tp / max(1, y_true.sum())
    if wanted_precision is not None:
        reached = precision >= wanted_precision
        if not reached.any():
            raise DataError(f"no threshold{bound} reaches a precision of {wanted_precision} on these dialogues; "
                            f"the highest is {precision.max():.4f}")
        return float(thresholds[reached][0])  # the lowest of them finds the most
    if wanted_recall is not None:
        if recall[0] < wanted_recall:
            raise DataError(f"no threshold{bound} reaches a recall of {wanted_recall} on these dialogues; "
                            f"the highest is {recall[0]:.4f}")
        return float(thresholds[recall >= wanted_recall][-1])
    if cost_ratio is not None:
        return float(thresholds[np.argmin((alarms - tp) + cost_ratio * fn)])
    f1 = 2 * tp / (alarms + tp + fn)
    best = thresholds[f1 >= f1.max() - FLAT]
    return float(best[np.argmin(np.abs(best - f1.max() / 2))])


def quiet_above(records: Sequence[dict], scores: np.ndarray, false_alarms: float) -> float:
    """The score that a threshold must exceed for at most `false_alarms` of a hundred ordinary calls to raise an alarm.

    That holds for all calls together and for each ``source`` of at least `FEW_CALLS`: an average hides the worst one.

    Args:
        records: none of them fraud, with ``case`` and ``source`` where known; one without a case is a call of its own.
        scores: [records]; a call raises an alarm if any of its segments does.

    Returns:
        the lowest such score, minus infinity where every call may alarm.
    """
    rows_of: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        rows_of.setdefault(record.get("source", ""), []).append(row)
    of_sources = [highest_by_call([records[row] for row in rows], scores[rows]) for rows in rows_of.values()]
    above = -math.inf
    for calls in (np.concatenate([[], *of_sources]), *(calls for calls in of_sources if len(calls) >= FEW_CALLS)):
        above = max([above, *np.sort(calls)[:len(calls) - alarms_allowed(len(calls), false_alarms)].tolist()])
    return above


def bounded_threshold(y_true: Sequence[bool], scores: np.ndarray, above: float, **target: float | bool) -> float:
    """As `choose_threshold`; the threshold that it would choose anyhow stays if it is higher than `above`."""
    threshold = choose_threshold(y_true, scores, **target)
    if threshold > above:
        return threshold
    try:
        return choose_threshold(y_true, scores, above=above, **target)
    except DataError as error:
        raise DataError(f"{error}; lower ones raise more alarms in ordinary calls than --false-alarms allows") from None


def at_prevalence(y_true: Sequence[bool], y_pred: Sequence[bool], groups: Sequence[Hashable] | None = None
                  ) -> dict[str, object]:
    """What recall and false alarms mean where fraud is rare.

    Precision on a test set that is half fraud says nothing of a bank's calls. From recall r and false-positive rate f,
    a prevalence p gives a precision of rp / (rp + f(1-p)) and 1000 (rp + f(1-p)) alarms in a thousand calls.

    Returns:
        ``false_positive_rate`` with its ``false_positive_rate_interval``, and for each of the ``prevalences``:
        ``precision``, ``alarms_per_thousand`` and ``false_alarms_per_thousand``, each with a 95 % interval resampled
        by `groups`. Without a single false alarm (or fraud found) the resamples know no uncertainty: then the ends of
        the intervals of the two rates are combined, which is on the safe side.
    """
    y_true, y_pred = np.asarray(y_true, dtype=bool), np.asarray(y_pred, dtype=bool)
    counts = confusion_counts(y_true, y_pred)
    recall, false_positive_rate = _two_rates(counts)
    # The false-positive rate is the recall of alarms among non-fraud dialogues.
    recalls = confidence_intervals(y_true, y_pred, groups=groups)["recall"]
    false_positive_rates = confidence_intervals(~y_true, y_pred, groups=groups)["recall"]
    no_spread = recall in (0.0, 1.0) or false_positive_rate in (0.0, 1.0)
    found = []
    for prevalence in PREVALENCES:
        row = {"prevalence": prevalence}

        def statistics(weights: np.ndarray, prevalence: float = prevalence) -> dict[str, np.ndarray]:
            return _rare(*_two_rates(confusion_counts(y_true, y_pred, weights)), prevalence)

        intervals = (_widest(recalls, false_positive_rates, prevalence) if no_spread else
                     bootstrap(statistics, len(y_true), groups))
        for name, value in _rare(recall, false_positive_rate, prevalence).items():
            row[name], row[f"{name}_interval"] = none_if_nan(value), intervals[name]
        found.append(row)
    return {"false_positive_rate": none_if_nan(false_positive_rate),
            "false_positive_rate_interval": false_positive_rates, "prevalences": found}


def _two_rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(recall, false-positive rate) of [..., 4] tn, fp, fn, tp; NaN where there is no fraud, or nothing else."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    return ratio(tp, tp + fn), ratio(fp, fp + tn)


def _rare(recall: np.ndarray, false_positive_rate: np.ndarray, prevalence: float) -> dict[str, np.ndarray]:
    right, false = recall * prevalence, false_positive_rate * (1 - prevalence)
    return {"precision": ratio(right, right + false),
            "alarms_per_thousand": 1000 * (right + false), "false_alarms_per_thousand": 1000 * false}


def _widest(recalls: list[float] | None, false_positive_rates: list[float] | None, prevalence: float) -> dict:
    ends = [_rare(recall, rate, prevalence) for recall in recalls or () for rate in false_positive_rates or ()]
    names = _rare(0.0, 0.0, prevalence)
    return {name: [float(np.nanmin([end[name] for end in ends])), float(np.nanmax([end[name] for end in ends]))]
            if ends else None for name in names}


def calibrate(y_true: Sequence[bool], scores: np.ndarray, decision: Decision, *, ordinary: Sequence[dict] = (),
              ordinary_scores: Sequence[float] = (), false_alarms: float = FALSE_ALARMS, **target: float | bool | None
              ) -> tuple[Decision, dict]:
    """A decision with Platt scaling, and a threshold if there is a target, found on these rows; and how that went.

    Args:
        scores: [rows] before any calibration: ``score`` of `scoring.predict_details`.
        ordinary, ordinary_scores: records of ordinary calls and their scores, of which at most `false_alarms` in a
            hundred may raise an alarm; see `quiet_above`.
        target: at most one of those of `choose_threshold`. Without one, the threshold moves with the probabilities
            so that no answer changes.

    Raises:
        DataError: see `platt_scaling` and `choose_threshold`.
    """
    target = _given(target)
    temperature, bias = platt_scaling(y_true, scores)
    scaled = dataclasses.replace(decision, temperature=temperature, bias=bias)
    probabilities, ordinary_probabilities = (calibrated(np.asarray(rows), scaled) for rows in (scores, ordinary_scores))
    if target:
        above = quiet_above(ordinary, ordinary_probabilities, false_alarms)
        threshold = bounded_threshold(y_true, probabilities, above, **target)
    elif len(ordinary):
        raise DataError("a bound on false alarms needs a target, such as the best F1")
    elif 0 < decision.threshold < 1:
        unscaled = (logit(decision.threshold) - decision.bias) * decision.temperature
        threshold = float(calibrated(expit(unscaled), scaled))
    else:
        threshold = decision.threshold
    found = {"temperature": temperature, "bias": bias, "threshold": threshold, "target": target,
             "ece_before": reliability(y_true, scores)["ece"], "ece_after": reliability(y_true, probabilities)["ece"],
             "average_precision": average_precision(y_true, scores),
             **classification_metrics(y_true, probabilities >= threshold)}
    if len(ordinary):
        found["ordinary"] = {"at_most_per_hundred_calls": false_alarms,
                             "moved_threshold": threshold != choose_threshold(y_true, probabilities, **target),
                             **ordinary_report(ordinary, ordinary_probabilities, threshold)}
    return dataclasses.replace(scaled, threshold=threshold), found


def _given(target: dict) -> dict:
    """The target that has a value; two of them are an error, and so is a misspelt one, with a value or without."""
    unknown = sorted(target.keys() - set(TARGETS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no target; those are {', '.join(TARGETS)}")
    given = {name: value for name, value in target.items() if value}
    if len(given) > 1:
        raise TypeError(f"one target is sought at a time, not {' and '.join(given)}; leave out all but one")
    return given


def calibrate_checkpoint(model_path: str, checkpoint_path: str, data_path: str, device: str = "cuda", *,
                         quantization: str | None = None, trust_remote_code: bool = False, progress: bool = True,
                         ordinary: Sequence[str] = (), false_alarms: float = FALSE_ALARMS,
                         **target: float | bool | None) -> dict:
    """Finds a decision on eval dialogues and keeps it in the checkpoint; see `calibrate`.

    With a target, a checkpoint that was trained with the auxiliary line loss gets the first of `LINE_RULES` whose F1 at
    the threshold found with it is within `FLAT` of the highest.

    Args:
        data_path: the eval split: neither what the model was trained on nor what it will be judged on.
        ordinary: files of ordinary calls kept for this, as ``ordinary_eval.jsonl`` of data.prepare.
        false_alarms: how many of a hundred of them may raise an alarm; see `quiet_above`.
        target: ``wanted_precision``, ``wanted_recall``, ``cost_ratio`` or ``best_f1``.

    Returns:
        what was found, as it is kept in ``fraud_task.json``.

    Raises:
        DataError: the checkpoint or the data is not fit for it, or the target cannot be met.
    """
    target = _given(target)  # or a misspelt one would be told after minutes
    records, calls, files = _read(data_path, ordinary)
    frauds = sum(record["label"] for record in records)
    if frauds in (0, len(records)):  # said now, and not when all is scored
        raise DataError(f"{data_path}: all {len(records)} records have \"label\": {json.dumps(records[0]['label'])}; "
                        "calibration needs dialogues of both labels")
    if min(frauds, len(records) - frauds) < FEW_ROWS:
        print(f"warning: {data_path} has {frauds} fraud and {len(records) - frauds} other records; with fewer than "
              f"{FEW_ROWS} of either, what is found is chance", file=sys.stderr)
    folder = find_checkpoint(checkpoint_path)
    require_calibratable(folder)
    model, tokenizer = load_tuned(model_path, str(folder), device, quantization=quantization,
                                  trust_remote_code=trust_remote_code)
    lineage = lineage_of(model)
    data = anonymous(describe_data(data_path, len(records)))
    refuse_train_data(model, data_path)
    readings = read_dialogues(PromptEncoder(tokenizer, lineage.task), [row["input"] for row in [*records, *calls]],
                              line_aware=lineage.decision.line_aware)  # in windows, as they will be judged
    odds: dict[Row, np.ndarray] = {}
    predict_readings(model, readings, odds_of=odds, progress="scoring" if progress else None)
    rules = rules_of_lines(lineage.decision) if target else [lineage.decision]

    def by_rule(rule: Decision) -> tuple[Decision, dict]:
        scores = scores_by(rule, readings, odds)
        return calibrate([record["label"] for record in records], scores[:len(records)], rule, ordinary=calls,
                         ordinary_scores=scores[len(records):], false_alarms=false_alarms, **target)

    decision, found = _best(by_rule, rules, data_path)
    if calls:
        found["ordinary"]["files"] = files
    if not found["tp"]:
        print(f"warning: no fraud in {data_path} reaches this threshold, so the checkpoint will hardly ever alarm; "
              "train longer, or allow more alarms in ordinary calls", file=sys.stderr)
    save_calibration(folder, decision, {**found, "data": data})
    return {**found, "data": data, "checkpoint": str(folder)}


def rules_of_lines(decision: Decision) -> list[Decision]:
    """`decision` by each of the rules that are tried; itself where lines do not count."""
    if not decision.line_aware:
        return [decision]
    return [dataclasses.replace(decision, line_weight=weight, top_lines=lines) for weight, lines in LINE_RULES]


def _best(by_rule: Callable[[Decision], tuple[Decision, dict]], rules: Sequence[Decision], data_path: str
          ) -> tuple[Decision, dict]:
    """What the first rule within `FLAT` of the highest F1 gives, and what was tried.

    Raises:
        DataError: with none of them the target can be met.
    """
    tried, errors = [], []
    for rule in rules:
        try:
            tried.append(by_rule(rule))
        except DataError as error:
            errors.append(error)
    if not tried:
        raise DataError(f"{data_path}: {errors[0]}")
    highest = max(found["f1"] or 0.0 for _, found in tried)
    decision, found = next(one for one in tried if (one[1]["f1"] or 0.0) >= highest - FLAT)
    figures = ("threshold", "precision", "recall", "f1")
    shown = [{"line_weight": rule.line_weight, "top_lines": rule.top_lines, **{name: row[name] for name in figures}}
             for rule, row in tried]
    return decision, {**found, "line_weight": decision.line_weight, "top_lines": decision.top_lines,
                      **({"line_rules": shown} if len(rules) > 1 else {})}


def _read(data_path: str, ordinary: Sequence[str]) -> tuple[list[dict], list[dict], list[dict]]:
    """The records of the eval split, those of the ordinary calls, and what the files of the latter are."""
    skipped = Skipped()
    records, calls, files = read_records(data_path, skipped), [], []
    for path in ordinary:
        numbered = read_numbered_records(path, skipped)
        require_ordinary(numbered, path)
        calls += cases_apart([record for _, record in numbered], path)
        files.append(anonymous(describe_data(path, len(numbered))))
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    return records, calls, files
