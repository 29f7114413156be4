"""Metrics and intervals against values computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from antifraud.evaluation.metrics import (
    against_scores,
    average_precision,
    average_precision_difference,
    average_precision_of,
    bootstrap,
    classification_metrics,
    confidence_intervals,
    confusion_counts,
    f1_difference,
    metrics_by,
    rates,
    recall_at_false_alarms_of,
    threshold_table,
)

TRUE = [True, True, True, False, False]
PRED = [True, True, False, True, False]


def test_counts_and_rates_by_hand():
    assert confusion_counts(TRUE, PRED).tolist() == [1, 1, 1, 2]
    found = classification_metrics(TRUE, PRED, [0.9, 0.8, 0.1, 0.7, 0.2])
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(0.6)
    # ranked true, true, false, false, true: precision at each true row is 1, 1 and 3/5
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 5) / 3)


def test_the_articles_counts_give_the_articles_figures():
    found = rates([1143, 22, 215, 968])
    assert [round(found[name], 4) for name in ("precision", "recall", "accuracy")] == [0.9778, 0.8183, 0.8991]


def test_what_is_not_defined_is_none_not_zero():
    found = classification_metrics([False, False], [False, False], [0.1, 0.2])
    assert found["precision"] is found["recall"] is found["f1"] is found["average_precision"] is None
    assert found["accuracy"] == 1.0


def test_weights_count_a_row_that_often():
    weights = np.array([2, 0, 1, 1, 0])
    repeated = [0, 0, 2, 3]
    expected = confusion_counts([TRUE[i] for i in repeated], [PRED[i] for i in repeated])
    assert confusion_counts(TRUE, PRED, weights).tolist() == expected.tolist()
    scores = np.array([0.9, 0.8, 0.1, 0.7, 0.2])
    assert average_precision_of(TRUE, scores)(weights) == pytest.approx(
        average_precision([TRUE[i] for i in repeated], scores[repeated]))


def test_the_interval_of_a_proportion_matches_the_normal_approximation():
    y_true = np.ones(400, dtype=bool)
    y_pred = np.arange(400) % 5 != 0  # recall 0.8, standard error sqrt(0.8 * 0.2 / 400) = 0.02
    low, high = confidence_intervals(y_true, y_pred)["recall"]
    assert low == pytest.approx(0.8 - 1.96 * 0.02, abs=0.006) and high == pytest.approx(0.8 + 1.96 * 0.02, abs=0.006)


def test_copies_of_one_dialogue_add_no_certainty():
    """Four copies of every row, resampled as dialogues, give the interval of the rows without copies."""
    y_true, y_pred = np.ones(100, dtype=bool), np.arange(100) % 5 != 0
    copies = np.repeat(np.arange(100), 4)
    alone = confidence_intervals(y_true, y_pred)["recall"]
    grouped = confidence_intervals(y_true[copies], y_pred[copies], groups=copies.tolist())["recall"]
    as_rows = confidence_intervals(y_true[copies], y_pred[copies])["recall"]
    assert grouped == pytest.approx(alone)
    assert as_rows[1] - as_rows[0] < 0.6 * (grouped[1] - grouped[0])


def test_a_perfect_recall_is_not_certain():
    """100 of 100: Wilson's lower bound is 1 / (1 + z^2 / n) = 0.9630."""
    found = confidence_intervals([True] * 100, [True] * 100)
    assert found["recall"] == [pytest.approx(0.9630, abs=1e-4), pytest.approx(1.0)]
    by_dialogue = confidence_intervals([True] * 100, [True] * 100, groups=[i // 10 for i in range(100)])
    assert by_dialogue["recall"][0] == pytest.approx(1 / (1 + 1.95996**2 / 10), abs=1e-4)


def test_one_dialogue_says_nothing_of_others():
    y_true, y_pred = np.arange(20) % 2 == 0, np.arange(20) % 2 == 0
    y_pred[:3] = ~y_pred[:3]  # two of ten frauds are missed
    assert set(confidence_intervals(y_true, y_pred, y_pred, ["a"] * 20).values()) == {None}
    assert f1_difference(y_true, y_pred, y_true, ["a"] * 20)["interval"] is None
    # The frauds are of one dialogue, the others are not.
    found = confidence_intervals(y_true, y_pred, groups=np.where(y_true, "a", np.arange(20)).tolist())
    assert found["recall"] is None and found["accuracy"][0] < 0.85 < found["accuracy"][1]


def test_f1_difference_is_paired():
    y_true = np.arange(200) % 2 == 0
    worse = y_true.copy()
    worse[:40:2] = False  # misses 20 of 100: f1 = 2 * 80 / (2 * 80 + 20)
    found = f1_difference(y_true, y_true, worse)
    assert found["value"] == pytest.approx(1 - 160 / 180)
    assert 0 < found["interval"][0] < found["value"] < found["interval"][1]
    assert f1_difference(y_true, worse, worse) == {"value": 0.0, "interval": [0.0, 0.0]}


def test_average_precision_is_scikit_learns_with_ties_and_weights():
    rng = np.random.default_rng(0)
    y_true, weights = rng.random(200) < 0.3, rng.integers(0, 4, 200)
    for y_score in (rng.random(200), rng.integers(0, 8, 200) / 8, np.zeros(200)):
        assert average_precision(y_true, y_score) == pytest.approx(average_precision_score(y_true, y_score))
        assert average_precision_of(y_true, y_score)(weights) == pytest.approx(
            average_precision_score(y_true, y_score, sample_weight=weights))
    assert np.isnan(average_precision_of(y_true, y_score)(np.where(y_true, 0, weights)))


def test_average_precision_difference_is_paired_and_resampled_by_dialogue():
    y_true = np.arange(200) % 2 == 0
    perfect, useless = y_true.astype(float), np.zeros(200)  # the second finds all rows together: its area is 1/2
    found = average_precision_difference(y_true, perfect, useless)
    assert found["value"] == 0.5 and 0.4 < found["interval"][0] < 0.5 < found["interval"][1] < 0.6
    assert average_precision_difference(y_true, useless, useless) == {"value": 0.0, "interval": [0.0, 0.0]}
    # Every dialogue has one row of each label, and resampled as a whole it keeps the share of 1/2.
    by_dialogue = average_precision_difference(y_true, perfect, useless, groups=(np.arange(200) // 2).tolist())
    assert by_dialogue == {"value": 0.5, "interval": [0.5, 0.5]}
    nothing_to_find = average_precision_difference([False, False], [0.1, 0.2], [0.2, 0.1])
    assert nothing_to_find == {"value": None, "interval": None}


def test_bootstrap_of_nothing_is_none():
    assert bootstrap(lambda weights: {"mean": weights.sum(-1)}, 0) == {"mean": None}


def test_metrics_by_group_and_by_threshold():
    found = metrics_by(["a", "b", "a", "b", "a"], TRUE, PRED)
    assert {key: (row["n"], row["tp"], row["fn"], row["fp"], row["tn"]) for key, row in found.items()} == {
        "a": (3, 1, 1, 0, 1), "b": (2, 1, 0, 1, 0)}
    table = {row["threshold"]: row for row in threshold_table(TRUE, [0.9, 0.5, 0.1, 0.7, 0.2])}
    assert (table[0.5]["tp"], table[0.5]["fp"]) == (2, 1)  # a score equal to the threshold is called fraud
    assert table[0.95]["recall"] == 0.0 and table[0.95]["precision"] is None


def test_resamples_at_once_are_those_one_by_one():
    rng = np.random.default_rng(0)
    y_true, y_score, weights = rng.random(50) < 0.4, rng.integers(0, 9, 50) / 8, rng.integers(0, 3, (7, 50))
    y_pred = y_score > 0.5
    together = rates(confusion_counts(y_true, y_pred, weights))
    for row, alone in enumerate(weights):
        for name, value in rates(confusion_counts(y_true, y_pred, alone)).items():
            assert together[name][row] == pytest.approx(value)
        assert average_precision_of(y_true, y_score)(weights)[row] == pytest.approx(
            average_precision_of(y_true, y_score)(alone))


def test_recall_where_false_alarms_are_rare_by_hand():
    y_true = np.array([True, True, False, True, False, False, False])
    y_score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4])
    assert [recall_at_false_alarms_of(y_true, y_score, share)(None) for share in (0.0, 0.24, 0.25, 1.0)] == [
        pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0, 1.0]
    assert recall_at_false_alarms_of(y_true, np.zeros(7), 0.5)(None) == 0.0  # whoever alarms at one alarms at all


def test_another_classifier_is_compared_at_a_half_and_at_its_own_threshold():
    y_true = np.arange(60) % 2 == 0
    scores, other = 0.1 + 0.1 * y_true, np.where(y_true, 0.3, 0.1)
    found = against_scores(y_true, scores >= 0.15, scores, other, threshold=0.2)
    assert found["recall"] == 0.0 and found["model_f1_minus_this"]["value"] == 1.0
    assert found["at_threshold"]["threshold"] == 0.2 and found["at_threshold"]["recall"] == 1.0
    assert found["at_threshold"]["model_f1_minus_this"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert found["model_average_precision_minus_this"] == {"value": 0.0, "interval": [0.0, 0.0]}
    answers_only = against_scores(y_true, y_true, None, other)
    assert answers_only["model_average_precision_minus_this"] is answers_only["at_threshold"] is None
