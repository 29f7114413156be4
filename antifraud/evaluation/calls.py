"""Whole calls, which is what a user has: a call raises an alarm if any of its segments does."""

import collections
import math
from collections.abc import Hashable, Sequence

import numpy as np

from data.files import DataError

from .metrics import (
    LEVEL,
    average_precision_difference,
    bootstrap,
    classification_metrics,
    confidence_intervals,
    none_if_nan,
    ratio,
    recall_at_false_alarms_of,
)

FALSE_ALARMS_PER_HUNDRED = (1, 5)


def by_call(records: Sequence[dict], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels, scores) of the calls that `records` are segments of, by ``case``: fraud if a segment is, the highest.

    A record without a case is a call of its own.
    """
    calls = _call_numbers(records)
    y_true = np.zeros(calls.max() + 1, dtype=bool)
    np.logical_or.at(y_true, calls, [record["label"] for record in records])
    return y_true, highest_by_call(records, scores)


def highest_by_call(records: Sequence[dict], scores: np.ndarray) -> np.ndarray:
    """[calls] the highest of the scores of each, in the order of `by_call`."""
    calls = _call_numbers(records)
    highest = np.full(calls.max() + 1, -np.inf)
    np.maximum.at(highest, calls, scores)
    return highest


def _call_numbers(records: Sequence[dict]) -> np.ndarray:
    return np.unique(_cases(records), return_inverse=True)[1]


def call_report(records: Sequence[dict], scores: np.ndarray, threshold: float,
                ordinary: tuple[Sequence[dict], np.ndarray] | None = None) -> dict:
    """How well calls are told apart by their highest segment, at the threshold and where false alarms are rare.

    Args:
        records: all with ``case``.
        scores: [records] probabilities.
        ordinary: (records, scores) of ordinary talk, to have enough non-fraud calls to count false alarms in.

    Returns:
        ``n``, counts, rates and ``average_precision`` with ``intervals``, ``threshold``, ``non_fraud_calls`` (with the
        ordinary ones), and ``at_false_alarms_per_hundred``: by the number of false alarms in a hundred of those, the
        highest ``recall`` that a threshold with no more of them has, and its ``interval``.
    """
    y_true, y_score = by_call(records, scores)
    y_pred = y_score >= threshold
    report = {"n": len(y_true), "threshold": threshold, **classification_metrics(y_true, y_pred, y_score),
              "intervals": confidence_intervals(y_true, y_pred, y_score)}
    if ordinary and ordinary[0]:
        y_true, y_score = (np.concatenate(parts) for parts in zip((y_true, y_score), by_call(*ordinary)))
    rare = {}
    for alarms in FALSE_ALARMS_PER_HUNDRED:
        recall = recall_at_false_alarms_of(y_true, y_score, alarms / 100)
        interval = bootstrap(lambda weights, recall=recall: {"recall": recall(weights)}, len(y_true))["recall"]
        rare[str(alarms)] = {"recall": none_if_nan(recall(None)), "interval": interval}
    return {**report, "non_fraud_calls": int((~y_true).sum()), "at_false_alarms_per_hundred": rare}


def paired_by_call(records: Sequence[dict], scores: np.ndarray, other: np.ndarray) -> dict:
    """Average precision by call of `scores` minus that of `other`: ``value`` and ``interval``."""
    y_true, highest = by_call(records, scores)
    return average_precision_difference(y_true, highest, highest_by_call(records, other))


def ordinary_report(records: Sequence[dict], scores: np.ndarray, threshold: float) -> dict:
    """False alarms in ordinary dialogues, of which none is fraud.

    Args:
        records: with ``case`` and ``source`` where known; one without a case is a call of its own.
        scores: [records] probabilities.

    Returns:
        ``threshold``, ``all`` and ``by_source``, each with ``calls``, ``segments``, ``alarmed_calls``,
        ``alarmed_segments``, ``false_alarms_per_hundred_calls`` and ``false_alarms_per_hundred_segments``, these two
        with a 95 % interval: of calls exact (Clopper-Pearson), of segments resampled by call, but where none or all
        alarm that of the calls, and None where there is a single call.
    """
    alarms = np.asarray(scores) >= threshold
    calls = _cases(records)
    sources = np.array([record.get("source", record.get("category", "unnamed")) for record in records])
    return {"threshold": threshold, "all": _false_alarms(alarms, calls),
            "by_source": {str(source): _false_alarms(alarms[sources == source], calls[sources == source])
                          for source in sorted(set(sources))}}


def alarms_by_category(records: Sequence[dict], scores: np.ndarray, threshold: float) -> dict[str, dict]:
    """``calls`` and ``alarmed_calls`` of each kind of ordinary talk that alarms, those that alarm most first."""
    calls = _cases(records)
    kind_of = {call: record.get("category", "unnamed") for call, record in zip(calls, records, strict=True)}
    n_calls = collections.Counter(kind_of.values())
    alarmed = collections.Counter(kind_of[call] for call in set(calls[np.asarray(scores) >= threshold]))
    return {kind: {"calls": n_calls[kind], "alarmed_calls": n}
            for kind, n in sorted(alarmed.items(), key=lambda item: (-item[1], item[0]))}


def most_alarmed(by_category: dict[str, dict]) -> str:
    """The three kinds that alarm most, as a summary names them; empty where none does."""
    return ", ".join([f"{kind} ({row['alarmed_calls']} of {row['calls']})" for kind, row in by_category.items()][:3])


def _cases(records: Sequence[dict]) -> np.ndarray:
    """[records] the call of each: a case of its source, since sources number theirs independently."""
    return np.array([f"{record.get('source', '')}\n{record['case']}" if record.get("case") else f"line {row}"
                     for row, record in enumerate(records)])


def cases_apart(records: Sequence[dict], path: str) -> list[dict]:
    """The records of one of several files, which number their cases independently."""
    return [{**record, "case": f"{path}\n{record['case']}"} if record.get("case") else record for record in records]


def alarms_allowed(n_calls: int, per_hundred: float) -> int:
    """How many of so many calls may raise an alarm."""
    return math.floor(n_calls * per_hundred / 100 + 1e-9)  # 4.6 of a hundred of 1500 calls are 69, not 68


def require_ordinary(records: Sequence[tuple[int, dict]], path: str) -> None:
    """Raises DataError where a record of an ordinary dialogue is labelled fraud."""
    for number, record in records:
        if record["label"]:
            raise DataError(f"{path}:{number}: 'label' is true; ordinary dialogues are those that are not fraud")


def _false_alarms(alarms: np.ndarray, calls: Sequence[Hashable]) -> dict:
    number = np.unique(calls, return_inverse=True)[1]
    n_calls = int(number.max()) + 1
    segments, alarmed = (np.bincount(number, weights, n_calls) for weights in (None, alarms))
    row = {"calls": n_calls, "segments": len(alarms), "alarmed_calls": int((alarmed > 0).sum()),
           "alarmed_segments": int(alarmed.sum())}
    intervals = bootstrap(lambda weights: {"segments": ratio(weights @ alarmed, weights @ segments)}, n_calls)
    intervals["calls"] = exact_interval(row["alarmed_calls"], n_calls)
    if row["alarmed_segments"] in (0, len(alarms)):  # every resample would agree
        intervals["segments"] = intervals["calls"]
    for name, interval in intervals.items():
        row[f"false_alarms_per_hundred_{name}"] = 100 * row[f"alarmed_{name}"] / row[name]
        row[f"false_alarms_per_hundred_{name}_interval"] = interval and [100 * end for end in interval]
    return row


def exact_interval(alarmed: int, n_calls: int) -> tuple[float, float]:
    """95 % of the share of calls that alarm (Clopper-Pearson).

    Resampled, the interval of one call in 450 would end below that of none.
    """
    from scipy.stats import binomtest  # a second to import

    exact = binomtest(alarmed, n_calls).proportion_ci(LEVEL, method="exact")
    return float(exact.low), float(exact.high)
