"""Precision, recall and their uncertainty, from labels, answers and scores; nothing here knows of models.

A statistic is a function of weights, how often each row counts: [rows], or [resamples, rows] to compute all resamples
of a bootstrap at once. What it returns has the shape of the weights without the rows.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
WEIGHTS_AT_A_TIME = 4_000_000  # of a bootstrap: 32 MB
COUNTS = ("tn", "fp", "fn", "tp")
PROPORTIONS = {"precision": ("tp", "fp"), "recall": ("tp", "fn"), "accuracy": ("tp", "tn", "fp", "fn")}
THRESHOLDS = (0.01, 0.02, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95, 0.98, 0.99)


def confusion_counts(y_true: Sequence[bool], y_pred: Sequence[bool], weights: np.ndarray | None = None) -> np.ndarray:
    """[..., 4]: tn, fp, fn, tp; `weights` [..., rows] says how often each row counts."""
    cell = 2 * np.asarray(y_true, dtype=int) + np.asarray(y_pred, dtype=int)
    if weights is None:
        return np.bincount(cell, minlength=len(COUNTS))
    return np.asarray(weights) @ (cell[:, None] == np.arange(len(COUNTS))).astype(float)


def rates(counts: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 and accuracy of [..., 4] counts; NaN where the denominator is zero."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    return {
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": ratio(tp + tn, tn + fp + fn + tp),
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` / `whole`; NaN where there is no whole."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)[()]


def average_precision(y_true: Sequence[bool], y_score: Sequence[float]) -> float:
    """Area under the precision-recall curve; NaN where there is nothing to find."""
    return average_precision_of(y_true, y_score)(None)


def average_precision_of(y_true: Sequence[bool], y_score: Sequence[float]
                         ) -> Callable[[np.ndarray | None], np.ndarray]:
    """`average_precision` as a function of the weights: the rows are sorted once, not anew in every resample."""
    curve = alarm_curve(y_true, y_score)

    def area(weights: np.ndarray | None) -> np.ndarray:
        alarms, hits = curve(weights)
        if not hits.shape[-1]:
            return np.full(hits.shape[:-1], np.nan)[()]
        gained = np.diff(hits, prepend=0, axis=-1)
        return ratio((gained * hits / np.where(alarms > 0, alarms, 1)).sum(-1), hits[..., -1])

    return area


def recall_at_false_alarms_of(y_true: Sequence[bool], y_score: Sequence[float], share: float
                              ) -> Callable[[np.ndarray | None], np.ndarray]:
    """The highest recall with at most this share of false alarms among the negatives, as a function of the weights.

    NaN where there are no negatives, or nothing to find.
    """
    curve = alarm_curve(y_true, y_score)

    def recall(weights: np.ndarray | None) -> np.ndarray:
        alarms, hits = curve(weights)
        if not hits.shape[-1]:
            return np.full(hits.shape[:-1], np.nan)[()]
        false = alarms - hits
        allowed = false <= share * false[..., -1:] + 1e-9
        return ratio(np.where(allowed, hits, 0).max(-1), np.where(false[..., -1] > 0, hits[..., -1], 0))

    return recall


def alarm_curve(y_true: Sequence[bool], y_score: Sequence[float]
                ) -> Callable[[np.ndarray | None], tuple[np.ndarray, np.ndarray]]:
    """For each distinct score from the highest down: alarms at that threshold, and how many of them are right."""
    y_true, y_score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    order = np.argsort(-y_score, kind="stable")
    ends = np.flatnonzero(np.diff(y_score[order], append=np.nan) != 0)  # rows of one score are found together
    y_true = y_true[order]

    def curve(weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        weights = np.ones(len(order)) if weights is None else np.asarray(weights)[..., order]
        return np.cumsum(weights, -1)[..., ends], np.cumsum(weights * y_true, -1)[..., ends]

    return curve


def classification_metrics(y_true: Sequence[bool], y_pred: Sequence[bool],
                           y_score: Sequence[float] | None = None) -> dict:
    """Counts, rates and average precision, ready for JSON: None where a figure is not defined."""
    counts = confusion_counts(y_true, y_pred)
    found = {**dict(zip(COUNTS, map(int, counts))), **rates(counts)}
    if y_score is not None:
        found["average_precision"] = average_precision(y_true, y_score)
    return {name: none_if_nan(value) for name, value in found.items()}


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN; and no numbers of numpy."""
    return None if value != value else value if isinstance(value, int) else float(value)


def figure_text(value: float | None, form: str = ".4f") -> str:
    """A figure for people; some have no value, such as the precision of who never says fraud."""
    return "undefined" if value is None else format(value, form)


def interval_text(interval: Sequence[float] | None) -> str:
    """Both ends of an interval, for people."""
    return "undefined" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def confidence_intervals(y_true: Sequence[bool], y_pred: Sequence[bool], y_score: Sequence[float] | None = None,
                         groups: Sequence[Hashable] | None = None) -> dict[str, list[float] | None]:
    """95 % intervals of every rate, resampling `groups` (the dialogues that segments come from) as a whole.

    Segments of one dialogue stand or fall together, so resampling single rows would understate the uncertainty.
    Where a proportion is 0 or 1 every resample agrees and the bootstrap knows no uncertainty: there, Wilson's
    interval over the number of dialogues (or rows) stands in. None where all that a proportion is of is from one
    dialogue: every resample agrees there, too.
    """
    y_true, y_pred = np.asarray(y_true, dtype=bool), np.asarray(y_pred, dtype=bool)
    area = average_precision_of(y_true, y_score) if y_score is not None else None

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = rates(confusion_counts(y_true, y_pred, weights))
        if area is not None:
            found["average_precision"] = area(weights)
        return found

    intervals = bootstrap(statistics, len(y_true), groups)
    counts = dict(zip(COUNTS, confusion_counts(y_true, y_pred)))
    for name, cells in PROPORTIONS.items():
        whole = int(sum(counts[cell] for cell in cells))
        part = int(counts["tp"] + counts["tn"] if name == "accuracy" else counts["tp"])
        rows = {"precision": y_pred, "recall": y_true, "accuracy": np.ones_like(y_true)}[name]
        independent = len(set(np.asarray(groups, dtype=object)[rows])) if groups is not None else whole
        if independent == 1:
            intervals[name] = None
        if whole and part in (0, whole):
            from scipy.stats import binomtest  # a second to import, and seldom needed

            wilson = binomtest(independent if part else 0, independent).proportion_ci(LEVEL, method="wilson")
            intervals[name] = [wilson.low, wilson.high]
    return intervals


def rate_differences(y_true: Sequence[bool], y_pred: Sequence[bool], other: Sequence[bool],
                     groups: Sequence[Hashable] | None = None,
                     names: Sequence[str] = ("precision", "recall", "f1")) -> dict[str, dict]:
    """Each rate of `y_pred` minus that of `other`: ``value``, and ``interval`` (95 %, paired bootstrap).

    The two answers of a row are drawn together, so that what makes a row hard for both cancels out.
    """
    y_true, y_pred, other = (np.asarray(labels, dtype=bool) for labels in (y_true, y_pred, other))

    def differences(weights: np.ndarray | None) -> dict[str, np.ndarray]:
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


def against_scores(y_true: Sequence[bool], answers: Sequence[bool], scores: np.ndarray | None, other: np.ndarray,
                   groups: Sequence[Hashable] | None = None, *, threshold: float | None = None) -> dict:
    """Metrics of another classifier's probabilities `other` [rows] at 0.5, and the model's minus them.

    Args:
        answers, scores: [rows] the model's; no scores if it gave answers only.
        groups: [rows] the dialogue of each; see `bootstrap`.
        threshold: the other's, if one was chosen on eval dialogues.

    Returns:
        counts, rates, ``average_precision``, ``model_f1_minus_this``, ``model_average_precision_minus_this`` (None
        without scores), and ``at_threshold``: ``threshold``, counts, rates and ``model_f1_minus_this`` there, or None.
    """
    def at(level: float, y_score: np.ndarray | None = None) -> dict:
        return {**classification_metrics(y_true, other >= level, y_score),
                "model_f1_minus_this": f1_difference(y_true, answers, other >= level, groups)}

    return {
        **at(0.5, other),
        "model_average_precision_minus_this":
            None if scores is None else average_precision_difference(y_true, scores, other, groups),
        "at_threshold": None if threshold is None else {"threshold": threshold, **at(threshold)},
    }


def bootstrap(statistics: Callable[[np.ndarray], dict[str, np.ndarray]], n_rows: int,
              groups: Sequence[Hashable] | None = None) -> dict[str, list[float] | None]:
    """95 % percentile intervals of `statistics(weights)`, weights [resamples, rows]: how often each row was drawn.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993; clusters drawn whole as in Field & Welsh, 2007.
    None for a statistic that is undefined in more than half of the resamples, and where there is but one dialogue.
    """
    group_of_row = np.arange(n_rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if n_rows == 0 or group_of_row.max() == 0:
        return dict.fromkeys(statistics(np.zeros((1, n_rows))))
    draws = _draws(int(group_of_row.max()) + 1)
    at_a_time = max(1, WEIGHTS_AT_A_TIME // n_rows)
    samples = [statistics(draws[start:start + at_a_time][:, group_of_row].astype(float))
               for start in range(0, RESAMPLES, at_a_time)]
    return {name: _percentiles(np.concatenate([sample[name] for sample in samples])) for name in samples[0]}


@functools.lru_cache(maxsize=4)
def _draws(n_groups: int) -> np.ndarray:
    """[resamples, groups] how often each group is drawn; the same for everybody, so that differences are paired."""
    rng, shares = np.random.default_rng(0), np.full(n_groups, 1 / n_groups)
    return np.stack([rng.multinomial(n_groups, shares).astype(np.uint8) for _ in range(RESAMPLES)])


def _percentiles(values: np.ndarray) -> list[float] | None:
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
