"""Precision, recall and their uncertainty, from labels, answers and scores; nothing here knows of models."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 1000
LEVEL = 0.95
COUNTS = ("tn", "fp", "fn", "tp")
PROPORTIONS = {"precision": ("tp", "fp"), "recall": ("tp", "fn"), "accuracy": ("tp", "tn", "fp", "fn")}
THRESHOLDS = (0.01, 0.02, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95, 0.98, 0.99)


def confusion_counts(y_true: Sequence[bool], y_pred: Sequence[bool], weights: np.ndarray | None = None) -> np.ndarray:
    """[tn, fp, fn, tp]; `weights` says how often each row counts."""
    cell = 2 * np.asarray(y_true, dtype=int) + np.asarray(y_pred, dtype=int)
    return np.bincount(cell, weights=weights, minlength=4)


def rates(counts: Sequence[float]) -> dict[str, float]:
    """precision, recall, f1 and accuracy of [tn, fp, fn, tp]; NaN where the denominator is zero."""
    tn, fp, fn, tp = (float(count) for count in counts)
    return {
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": _ratio(tp + tn, tn + fp + fn + tp),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def average_precision(y_true: Sequence[bool], y_score: Sequence[float], weights: np.ndarray | None = None) -> float:
    """Area under the precision-recall curve; NaN where there is nothing to find."""
    return average_precision_of(y_true, y_score)(weights)


def average_precision_of(y_true: Sequence[bool], y_score: Sequence[float]) -> Callable[[np.ndarray | None], float]:
    """`average_precision` as a function of the weights: the rows are sorted once, not anew in every resample."""
    y_true, y_score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    order = np.argsort(-y_score, kind="stable")
    ends = np.flatnonzero(np.diff(y_score[order], append=np.nan) != 0)  # rows of one score are found together
    y_true = y_true[order]

    def area(weights: np.ndarray | None = None) -> float:
        weights = np.ones(len(order)) if weights is None else weights[order]
        alarms, found = np.cumsum(weights)[ends], np.cumsum(weights * y_true)[ends]
        if not len(found) or not found[-1]:
            return float("nan")
        precision = found / np.where(alarms > 0, alarms, 1)
        return float(np.diff(found, prepend=0) @ precision / found[-1])

    return area


def classification_metrics(y_true: Sequence[bool], y_pred: Sequence[bool],
                           y_score: Sequence[float] | None = None) -> dict:
    """Counts, rates and average precision, ready for JSON: None where a figure is not defined."""
    counts = confusion_counts(y_true, y_pred)
    found = {**dict(zip(COUNTS, map(int, counts))), **rates(counts)}
    if y_score is not None:
        found["average_precision"] = average_precision(y_true, y_score)
    return {name: none_if_nan(value) for name, value in found.items()}


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value


def figure_text(value: float | None, form: str = ".4f") -> str:
    """A figure for people; some have no value, such as the precision of who never says fraud."""
    return "undefined" if value is None else format(value, form)


def interval_text(interval: Sequence[float] | None) -> str:
    """Both ends of an interval, for people."""
    return "undefined" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def confidence_intervals(y_true: Sequence[bool], y_pred: Sequence[bool], y_score: Sequence[float] | None = None,
                         groups: Sequence[Hashable] | None = None) -> dict[str, list[float] | None]:
    """95 % intervals of every rate, resampling `groups` (the dialogues that pieces come from) as a whole.

    Pieces of one dialogue stand or fall together, so resampling single rows would understate the uncertainty.
    Where a proportion is 0 or 1 every resample agrees and the bootstrap knows no uncertainty: there, Wilson's
    interval over the number of dialogues (or rows) stands in.
    """
    y_true, y_pred = np.asarray(y_true, dtype=bool), np.asarray(y_pred, dtype=bool)
    area = average_precision_of(y_true, y_score) if y_score is not None else None

    def statistics(weights: np.ndarray) -> dict[str, float]:
        found = rates(confusion_counts(y_true, y_pred, weights))
        if area is not None:
            found["average_precision"] = area(weights)
        return found

    intervals = bootstrap(statistics, len(y_true), groups)
    counts = dict(zip(COUNTS, confusion_counts(y_true, y_pred)))
    for name, cells in PROPORTIONS.items():
        whole = int(sum(counts[cell] for cell in cells))
        part = int(counts["tp"] + counts["tn"] if name == "accuracy" else counts["tp"])
        if whole and part in (0, whole):
            rows = _rows_of(name, y_true, y_pred)
            independent = len(set(np.asarray(groups, dtype=object)[rows])) if groups is not None else whole
            wilson = binomtest(independent if part else 0, independent).proportion_ci(LEVEL, method="wilson")
            intervals[name] = [wilson.low, wilson.high]
    return intervals


def _rows_of(proportion: str, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    return {"precision": y_pred, "recall": y_true, "accuracy": np.ones_like(y_true)}[proportion]


def rate_differences(y_true: Sequence[bool], y_pred: Sequence[bool], other: Sequence[bool],
                     groups: Sequence[Hashable] | None = None,
                     names: Sequence[str] = ("precision", "recall", "f1")) -> dict[str, dict]:
    """Each rate of `y_pred` minus that of `other`: ``value``, and ``interval`` (95 %, paired bootstrap).

    The two answers of a row are drawn together, so that what makes a row hard for both cancels out.
    """
    y_true, y_pred, other = (np.asarray(labels, dtype=bool) for labels in (y_true, y_pred, other))

    def differences(weights: np.ndarray | None) -> dict[str, float]:
        first, second = (rates(confusion_counts(y_true, answers, weights)) for answers in (y_pred, other))
        return {name: first[name] - second[name] for name in names}

    return with_intervals(differences, len(y_true), groups)


def with_intervals(differences: Callable[[np.ndarray | None], dict[str, float]], n_rows: int,
                   groups: Sequence[Hashable] | None) -> dict[str, dict]:
    """Of each of the `differences`, as a function of the weights: ``value``, and ``interval`` (see `bootstrap`)."""
    intervals = bootstrap(differences, n_rows, groups)
    return {name: {"value": none_if_nan(value), "interval": intervals[name]}
            for name, value in differences(None).items()}


def f1_difference(y_true: Sequence[bool], y_pred: Sequence[bool], other: Sequence[bool],
                  groups: Sequence[Hashable] | None = None) -> dict:
    """F1 of `y_pred` minus F1 of `other` on the same rows, with the 95 % interval of the paired bootstrap."""
    return rate_differences(y_true, y_pred, other, groups, names=("f1",))["f1"]


def average_precision_difference(y_true: Sequence[bool], y_score: Sequence[float], other: Sequence[float],
                                 groups: Sequence[Hashable] | None = None) -> dict:
    """Average precision of the scores `y_score` minus that of `other` on the same rows; see `f1_difference`."""
    first, second = (average_precision_of(y_true, scores) for scores in (y_score, other))
    found = with_intervals(lambda weights: {"difference": first(weights) - second(weights)}, len(y_true), groups)
    return found["difference"]


def bootstrap(statistics: Callable[[np.ndarray], dict[str, float]], n_rows: int,
              groups: Sequence[Hashable] | None = None) -> dict[str, list[float] | None]:
    """95 % percentile intervals of `statistics(weights)`, weights counting how often each row was drawn.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993; clusters drawn whole as in Field & Welsh, 2007.
    None for a statistic that is undefined in more than half of the resamples.
    """
    if not n_rows:
        return dict.fromkeys(statistics(np.zeros(0)))
    group_of_row = np.arange(n_rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(group_of_row.max()) + 1
    generator = np.random.default_rng(0)
    draws = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=RESAMPLES)
    samples = [statistics(draw[group_of_row]) for draw in draws]
    return {name: _percentiles([sample[name] for sample in samples]) for name in samples[0]}


def _percentiles(values: Sequence[float]) -> list[float] | None:
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    if len(values) < RESAMPLES / 2:
        return None
    tail = (1 - LEVEL) / 2
    return [float(value) for value in np.quantile(values, (tail, 1 - tail))]


def threshold_table(y_true: Sequence[bool], y_score: Sequence[float]) -> list[dict]:
    """What each threshold would give on these rows: the curve to choose one from."""
    y_score = np.asarray(y_score)
    return [{"threshold": threshold, **classification_metrics(y_true, y_score >= threshold)}
            for threshold in THRESHOLDS]


def metrics_by(keys: Sequence[Hashable], y_true: Sequence[bool], y_pred: Sequence[bool]) -> dict[str, dict]:
    """The metrics of each group of rows, by group name; ``n`` rows each."""
    keys, y_true, y_pred = np.asarray(keys), np.asarray(y_true), np.asarray(y_pred)
    found = {}
    for key in sorted(set(keys)):
        rows = keys == key
        found[str(key)] = {"n": int(rows.sum()), **classification_metrics(y_true[rows], y_pred[rows])}
    return found
