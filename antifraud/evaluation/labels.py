"""Labels that a second opinion contradicts, and how many of a model's errors fall on them.

The second opinion is the TF-IDF baseline, fitted on other dialogues of the same set (5 folds, out of fold). It reads
the same words as the model, so the two may be wrong together: a suspect is a label to look at, not a wrong label, and
the share of errors that fall on suspects is no estimate of how many labels are wrong.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.leakage import whole_lines
from data.prompt import Task, canonical
from data.records import groups_of

FOLDS = 5
SUSPECT = 0.9
RULE = (f"a label is suspect when TF-IDF with logistic regression, fitted on the other dialogues of this set "
        f"({FOLDS} folds), gives the opposite label a probability of at least {SUSPECT}")


def second_opinion(records: Sequence[dict]) -> tuple[np.ndarray, str] | None:
    """[records] probability of fraud, out of fold, and how dialogues are told apart.

    None where fewer than five dialogues have either label, so that nothing can be cross-validated.
    """
    y_true = np.array([record["label"] for record in records])
    groups, grouped_by = dialogue_groups(records)
    if any(len(set(groups[y_true == label])) < FOLDS for label in (True, False)):
        return None
    return out_of_fold_probabilities(records, groups), grouped_by


def audit_labels(records: Sequence[dict], answers: Sequence[bool | None], opinion: np.ndarray, grouped_by: str) -> dict:
    """The labels that the rule suspects, and the model's errors among them.

    Args:
        answers: [records] the model's, None where one was not readable.
        opinion, grouped_by: see `second_opinion`.

    Returns:
        ``rule`` in words, ``grouped_by``, numbers of ``rows`` and ``suspects`` (of each label, too), the agreement of
        the second opinion with the labels (``accuracy_of_second_opinion``); of the model's answers the ``errors``,
        those on suspects, and the same for its right answers, for comparison.
    """
    y_true = np.array([record["label"] for record in records])
    suspect = np.where(y_true, 1 - opinion, opinion) >= SUSPECT
    found = {
        "rule": RULE,
        "grouped_by": grouped_by,
        "rows": len(records),
        "suspects": int(suspect.sum()),
        "suspects_labelled_fraud": int((suspect & y_true).sum()),
        "suspects_labelled_not_fraud": int((suspect & ~y_true).sum()),
        "accuracy_of_second_opinion": float(((opinion >= 0.5) == y_true).mean()),
    }
    answered = np.array([answer is not None for answer in answers])
    wrong = answered & (np.array([bool(answer) for answer in answers]) != y_true)
    return {**found, **_among("errors", wrong, suspect), **_among("right_answers", answered & ~wrong, suspect)}


def _among(name: str, rows: np.ndarray, suspect: np.ndarray) -> dict:
    on_suspects = int((rows & suspect).sum())
    return {name: int(rows.sum()), f"{name}_on_suspects": on_suspects,
            f"share_of_{name}_on_suspects": on_suspects / int(rows.sum()) if rows.any() else None}


def out_of_fold_probabilities(records: Sequence[dict], groups: np.ndarray) -> np.ndarray:
    """[records] probability of fraud, each from a classifier that saw no segment of the same dialogue.

    The classifier is `baselines.build_tfidf`, with the n-grams counted once for all folds.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer  # slow to import
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline

    from .baselines import logistic_regression

    y_true = np.array([record["label"] for record in records])
    counts = CountVectorizer(analyzer="char", ngram_range=(1, 4), dtype=np.float32).fit_transform(
        [canonical(record["input"], Task()) for record in records])
    probabilities = np.empty(len(records))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for rest, fold in folds.split(y_true, y_true, groups):
        if len(set(y_true[rest])) < 2:  # the fold holds all of a label: nothing can be said of it
            probabilities[fold] = 0.5
            continue
        frequent = np.bincount(counts[rest].indices, minlength=counts.shape[1]) >= 2
        classifier = make_pipeline(TfidfTransformer(sublinear_tf=True), logistic_regression())
        classifier.fit(counts[rest][:, frequent], y_true[rest])
        probabilities[fold] = classifier.predict_proba(counts[fold][:, frequent])[:, 1]
    return probabilities


def dialogue_groups(records: Sequence[dict]) -> tuple[np.ndarray, str]:
    """[records] the number of each one's dialogue, and how that is known.

    By ``case`` where every record has one. Otherwise segments that share a whole line of some length are taken for
    segments of one dialogue, and so are those that are linked by way of others.
    """
    if cases := groups_of(records):
        return np.unique(cases, return_inverse=True)[1], "case"
    pairs = [(row, line) for row, record in enumerate(records) for line in whole_lines(record["input"])]
    number = {line: len(records) + i for i, line in enumerate(dict.fromkeys(line for _, line in pairs))}
    nodes = len(records) + len(number)
    rows, columns = [row for row, _ in pairs], [number[line] for _, line in pairs]
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:len(records)], "shared whole lines"
