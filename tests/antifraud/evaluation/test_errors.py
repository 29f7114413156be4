"""Where a model fails, by hand; and no word of the data in a report unless asked for."""

import numpy as np

from antifraud.evaluation.errors import error_report, place_of, source_of, worst_errors


def record(label: bool, **more) -> dict:
    return {"input": "甲: 这句话不该出现", "label": label, **more}


ROWS = [
    record(True, category="退款", position=0.0, case="a"),
    record(True, category="退款", position=0.34, case="a"),
    record(False, category="会议", position=0.99),
    record(False, category="会议", position=1.0),
    record(True),
]
NUMBERED = list(zip((1, 2, 4, 5, 9), ROWS))
ANSWERS = [True, False, True, False, None]
SCORES = np.array([0.9, 0.4, 0.7, 0.1, 0.3])


def test_errors_are_counted_by_category_place_and_length():
    found = error_report(NUMBERED, ANSWERS, SCORES, [10, 20, 30, 40, 50])
    assert {name: (row["n"], row["tp"], row["fn"], row["fp"]) for name, row in found["by_category"].items()} == {
        "会议": (2, 0, 0, 1), "退款": (2, 1, 1, 0)}
    assert {name: (row["n"], row["tp"], row["fn"], row["fp"]) for name, row in found["by_position"].items()} == {
        "beginning": (1, 1, 0, 0), "middle": (1, 0, 1, 0), "end": (2, 0, 0, 1)}
    assert list(found["by_position"]) == ["beginning", "middle", "end"]
    assert {name: row["n"] for name, row in found["by_length"].items()} == {
        "10 to 20 tokens": 2, "21 to 30 tokens": 1, "31 to 40 tokens": 1}  # the fifth row was not answered


def test_rows_of_one_length_are_one_bin_and_unknown_places_none():
    plain = list(enumerate([record(True), record(False)], start=1))
    found = error_report(plain, [True, True], np.array([0.9, 0.8]), [7, 7])
    assert list(found["by_length"]) == ["7 to 7 tokens"] and found["by_length"]["7 to 7 tokens"]["fp"] == 1
    assert found["by_position"] is found["by_category"] is None


def test_thirds_of_a_dialogue():
    assert [place_of({"position": share}) for share in (0, 0.33, 0.34, 0.66, 0.67, 1.0)] == [
        "beginning", "beginning", "middle", "middle", "end", "end"]


def test_a_source_is_what_the_record_says_or_how_speakers_are_called():
    assert source_of({"input": "发言人1: 好", "source": "呼叫中心"}) == "呼叫中心"
    assert source_of({"input": "发言人1: 好\n张伟: 好"}) == "speakers numbered (发言人N)"
    assert source_of({"input": "张伟: 发言人1说好"}) == "speakers named"
    assert source_of({"input": "没有人说"}) == "no speakers named"


def test_the_worst_error_is_the_one_the_model_was_surest_of():
    found = worst_errors(NUMBERED, ANSWERS, SCORES)
    assert [(row["line"], row["label"], row["probability"]) for row in found] == [(4, False, 0.7), (2, True, 0.4)]
    assert found[1] == {"line": 2, "label": True, "probability": 0.4, "characters": 10, "case": "a",
                        "category": "退款", "position": 0.34}


def test_no_word_of_a_dialogue_is_shown_unless_asked_for():
    assert "不该出现" not in str(error_report(NUMBERED, ANSWERS, SCORES, [1, 2, 3, 4, 5]))
    asked = error_report(NUMBERED, ANSWERS, SCORES, [1, 2, 3, 4, 5], with_text=True)
    assert [row["input"] for row in asked["worst_errors"]] == ["甲: 这句话不该出现"] * 2


def test_twenty_errors_are_enough():
    rows = [(i, record(True)) for i in range(1, 40)]
    assert len(worst_errors(rows, [False] * 39, np.linspace(0, 0.4, 39))) == 20
