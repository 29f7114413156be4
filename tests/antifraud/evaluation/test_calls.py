"""Whole calls and ordinary dialogues, against values computed by hand."""

import numpy as np
import pytest

from antifraud.evaluation.calls import (
    alarms_by_category,
    by_call,
    call_report,
    ordinary_report,
    paired_by_call,
    require_ordinary,
)
from data.files import DataError

# two frauds, of which one has its alarm in a segment labelled harmless, and two calls that are none
RECORDS = [{"case": case, "label": label, "input": "甲: 好"} for case, label in (
    ("a", False), ("a", True), ("b", True), ("c", False), ("c", False), ("d", False))]
SCORES = np.array([0.9, 0.2, 0.6, 0.1, 0.7, 0.3])


def test_a_call_is_fraud_if_a_segment_is_and_has_the_highest_probability_of_its_segments():
    y_true, y_score = by_call(RECORDS, SCORES)
    assert y_true.tolist() == [True, True, False, False] and y_score.tolist() == [0.9, 0.6, 0.7, 0.3]


def test_calls_are_judged_by_hand():
    found = call_report(RECORDS, SCORES, threshold=0.65)
    assert (found["n"], found["tp"], found["fp"], found["fn"], found["tn"]) == (4, 1, 1, 1, 1)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["at_false_alarms_per_hundred"]["1"]["recall"] == 0.5  # 0.9 alone lies above every non-fraud call
    low, high = found["at_false_alarms_per_hundred"]["5"]["interval"]
    assert 0 <= low <= 0.5 <= high <= 1


def test_false_alarms_are_counted_in_ordinary_calls_too():
    """99 ordinary calls beside the non-fraud ones: one of a hundred is one call, and it lies above a fraud."""
    alone = call_report(RECORDS, SCORES, threshold=0.65)
    ordinary = [{"case": f"chat {number}", "label": False} for number in range(99)]
    scores = np.zeros(99)
    scores[0] = 0.99
    found = call_report(RECORDS, SCORES, 0.65, (ordinary, scores))
    assert found["non_fraud_calls"] == alone["non_fraud_calls"] + 99
    assert (found["n"], found["precision"]) == (alone["n"], alone["precision"])
    assert found["at_false_alarms_per_hundred"]["1"]["recall"] == 0.5  # the chat is the one that may be above
    scores[1] = 0.98
    found = call_report(RECORDS, SCORES, 0.65, (ordinary, scores))
    assert found["at_false_alarms_per_hundred"]["1"]["recall"] == 0.0


def test_without_non_fraud_calls_nothing_is_said_of_false_alarms_in_them():
    """Any recall is reached with no false alarm where none can be raised: it was given as 1."""
    found = call_report(RECORDS[:3], SCORES[:3], threshold=0.65)
    assert (found["recall"], found["non_fraud_calls"]) == (0.5, 0)
    assert found["at_false_alarms_per_hundred"] == dict.fromkeys("15", {"recall": None, "interval": None})


def test_another_classifier_is_compared_call_by_call():
    found = paired_by_call(RECORDS, SCORES, SCORES)
    assert found == {"value": 0.0, "interval": [0.0, 0.0]}
    assert paired_by_call(RECORDS, SCORES, np.zeros(6))["value"] == pytest.approx((1 + 2 / 3) / 2 - 0.5)


ORDINARY = [{"case": f"call {i // 2}", "label": False, "input": "甲: 好", "source": "闲聊" if i < 8 else "客服"}
            for i in range(20)]


def test_false_alarms_are_counted_by_call_and_segment_and_source():
    scores = np.zeros(20)
    scores[[0, 1, 2]] = 0.5  # both segments of one call, one of another; all of them in 闲聊
    found = ordinary_report(ORDINARY, scores, threshold=0.5)
    assert (found["all"]["calls"], found["all"]["segments"]) == (10, 20)
    assert found["all"]["false_alarms_per_hundred_calls"] == 20.0
    assert found["all"]["false_alarms_per_hundred_segments"] == 15.0
    assert found["by_source"]["闲聊"]["false_alarms_per_hundred_calls"] == 50.0
    low, high = found["all"]["false_alarms_per_hundred_calls_interval"]
    assert low < 20.0 < high
    quiet = found["by_source"]["客服"]  # six calls, none of which raises an alarm: 1 - 0.025 ** (1 / 6)
    assert quiet["false_alarms_per_hundred_calls"] == 0.0
    assert quiet["false_alarms_per_hundred_calls_interval"] == [0.0, pytest.approx(100 * (1 - 0.025 ** (1 / 6)))]


def test_the_kinds_of_talk_that_alarm_are_named_most_alarms_first():
    records = [{"case": str(i // 2), "source": "a" if i < 8 else "b", "category": kind}
               for i, kind in enumerate("银行 银行 银行 银行 朋友 朋友 快递 快递 朋友 朋友".split())]
    scores = np.array([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9])
    assert list(alarms_by_category(records, scores, 0.5).items()) == [
        ("朋友", {"calls": 2, "alarmed_calls": 2}), ("银行", {"calls": 2, "alarmed_calls": 1})]
    assert alarms_by_category(records, scores, 0.95) == {}


def test_an_alarm_more_never_says_that_there_are_fewer():
    """Clopper and Pearson: of n calls that all alarm at least 0.025 ** (1 / n) do; one of 450 may be 1.23 in 100."""
    records = [{"case": str(number)} for number in range(450)]
    none, one = (ordinary_report(records, np.arange(450) < alarmed, 0.5)["all"] for alarmed in (0, 1))
    key = "false_alarms_per_hundred_calls_interval"
    assert none[key] == [0.0, pytest.approx(0.816, abs=1e-3)] and one[key][1] == pytest.approx(1.232, abs=1e-3)
    both = ordinary_report([{"case": "a"}, {"case": "a"}, {"case": "b"}], np.ones(3), 0.5)["all"]
    assert both[key] == both["false_alarms_per_hundred_segments_interval"] == [
        pytest.approx(100 * 0.025 ** 0.5), 100.0]


def test_records_without_a_case_are_calls_of_their_own():
    found = ordinary_report([{"label": False, "input": "甲: 好"}] * 4, np.array([0.9, 0.1, 0.1, 0.1]), threshold=0.5)
    assert found["all"]["calls"] == 4 and found["all"]["false_alarms_per_hundred_calls"] == 25.0


def test_a_case_without_a_name_is_none_and_sources_number_theirs_independently():
    records = [{"case": case, "source": source} for case, source in (("", "x"), ("", "x"), ("1", "x"), ("1", "y"))]
    found = ordinary_report(records, np.array([0.9, 0.1, 0.9, 0.1]), threshold=0.5)
    assert (found["all"]["calls"], found["all"]["alarmed_calls"]) == (4, 2)
    assert {source: row["calls"] for source, row in found["by_source"].items()} == {"x": 3, "y": 1}


def test_an_ordinary_dialogue_that_is_fraud_is_refused_with_its_place():
    with pytest.raises(DataError, match="^o.jsonl:7: "):
        require_ordinary([(3, {"label": False}), (7, {"label": True})], "o.jsonl")
