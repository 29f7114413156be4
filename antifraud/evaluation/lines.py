"""Which line is the fraud? How well a model trained with the auxiliary line loss tells lines apart."""

from collections.abc import Sequence

import numpy as np

from data.prompt import Task, canonical_line_labels
from data.records import groups_of

from .metrics import against_scores, classification_metrics, confidence_intervals

LINE_THRESHOLD = 0.5


def line_report(records: Sequence[dict], scores: Sequence[np.ndarray],
                tfidf: Sequence[np.ndarray] | None = None, *, task: Task = Task()) -> dict:
    """How well single lines are told apart, and whether the most suspicious one of a fraud is part of it.

    Args:
        records: with ``line_labels``.
        scores: of each record, [lines] probabilities; lines that the model did not read are missing at its end.
        tfidf: of each record, [lines] probabilities of `baselines.TfidfLineLabels`, which knows each line alone.
        task: the scores' own; it says what counts as a line.

    Returns:
        metrics of all lines at threshold 0.5, with intervals resampled by dialogue, the same of ``tfidf``, and
        ``most_suspicious_line_is_fraud``, a share of the records that are frauds.
    """
    labels = [canonical_line_labels(record["input"], record["line_labels"], task)[:len(of_lines)]
              for record, of_lines in zip(records, scores, strict=True)]
    y_true, y_score = np.concatenate(labels).astype(bool), np.concatenate(scores)
    cases = groups_of(records) or range(len(records))
    groups = [case for case, of_lines in zip(cases, scores) for _ in of_lines]
    found = {"n": len(y_true), **classification_metrics(y_true, y_score >= LINE_THRESHOLD, y_score),
             "intervals": confidence_intervals(y_true, y_score >= LINE_THRESHOLD, y_score, groups),
             "most_suspicious_line_is_fraud": _share_found(labels, scores), "tfidf": None}
    if tfidf is not None:
        others = [row[:len(of_lines)] for row, of_lines in zip(tfidf, scores, strict=True)]
        found["tfidf"] = {**against_scores(y_true, y_score >= LINE_THRESHOLD, y_score, np.concatenate(others), groups),
                          "most_suspicious_line_is_fraud": _share_found(labels, others)}
    return found


def _share_found(labels: Sequence[Sequence[bool]], scores: Sequence[np.ndarray]) -> float | None:
    """In how many of the records with a line that is fraud the line with the highest score is one."""
    found = [of_record[int(np.argmax(of_lines))] for of_record, of_lines in zip(labels, scores) if any(of_record)]
    return float(np.mean(found)) if found else None
