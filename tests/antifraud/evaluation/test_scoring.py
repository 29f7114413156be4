"""Scores: the same however rows are mixed, and nothing of a long dialogue is read less than given."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from antifraud.checkpoint import Decision
from antifraud.evaluation import scoring
from antifraud.evaluation.scoring import (
    Reading,
    Row,
    calibrated,
    predict,
    predict_details,
    predict_readings,
    read_dialogues,
    rows_of,
    score_prompts,
    score_rows,
)
from data.files import DataError
from data.prompt import PromptEncoder, Task

DIALOGUES = ["客服: 您好", "客服: 请把验证码告诉我，我替您退款。\n顾客: 好的。", "甲: 明天开会。\n乙: 好。\n甲: 行。"]


def test_rows_of_several_questions_are_scored_in_one_call_as_each_alone(loaded):
    model, tokenizer = loaded
    tasks = [model.lineage.task, Task(instruction="是不是诈骗？", answers=("是", "否")),
             Task(instruction="是不是诈骗？", answers=("否", "是"))]
    rows, expected = [], []
    for task in tasks:
        encoder = PromptEncoder(tokenizer, task)
        prompts = encoder.prompts(DIALOGUES)
        for line_aware in (False, True):
            asked = rows_of(encoder, prompts, line_aware=line_aware)
            rows += asked
            expected.append(score_rows(model, asked))
    found = score_rows(model, rows[::-1])[::-1]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(found[6:9] + found[12:15], 1, atol=1e-5)  # the two answers exchanged
    assert np.abs(found[:3] - found[6:9]).max() > 0.01


def test_predictions_are_calibrated_scores_and_say_where_they_come_from(loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(model.lineage, "decision", Decision(temperature=2.0))
    found = predict_details(model, tokenizer, DIALOGUES)
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    scores = score_prompts(model, encoder, encoder.prompts(DIALOGUES))
    np.testing.assert_allclose([one.score for one in found], scores, atol=1e-6)
    probabilities = calibrated(scores, Decision(temperature=2.0))
    np.testing.assert_allclose([one.probability for one in found], probabilities, atol=1e-6)
    assert [(one.windows, one.lines) for one in found] == [(1, (1, 1)), (1, (1, 2)), (1, (1, 3))]
    np.testing.assert_array_equal(predict(model, tokenizer, DIALOGUES), [one.probability for one in found])
    assert predict_details(model, tokenizer, []) == [] and predict(model, tokenizer, []).shape == (0,)


def test_one_text_in_the_place_of_a_list_is_refused(loaded):
    for ask in (predict, predict_details):
        for no_list in (DIALOGUES[0], DIALOGUES[0].encode(), None, 5):
            with pytest.raises(DataError, match=r"\[dialogue\]"):
                ask(*loaded, no_list)


def test_half_a_surrogate_pair_is_refused_with_what_takes_it_out(loaded):
    half = DIALOGUES[0] + "\ud83d"  # of an emoji that was cut in two
    with pytest.raises(DataError, match=r"dialogues\[1\] holds half a surrogate pair"):
        predict(*loaded, [DIALOGUES[0], half])
    assert predict(*loaded, [half.encode("utf-8", "replace").decode()]).shape == (1,)


def test_a_column_is_a_list_and_a_table_or_a_missing_dialogue_is_refused(loaded):
    table = pd.DataFrame({"对话": [*DIALOGUES, None]})
    whole = table["对话"][:3]
    np.testing.assert_array_equal(predict(*loaded, whole), predict(*loaded, DIALOGUES))
    np.testing.assert_array_equal(predict(*loaded, iter(whole)), predict(*loaded, DIALOGUES))
    for frame in (table, table[["对话"]], {"对话": DIALOGUES}):  # their names were scored
        with pytest.raises(DataError, match=r"table\['column'\]"):
            predict(*loaded, frame)
    for missing in (None, float("nan"), {"input": DIALOGUES[0]}):
        with pytest.raises(DataError, match=r"dialogues\[3\] is no text but"):
            predict(*loaded, [*DIALOGUES, missing])


@pytest.mark.parametrize("empty", ["", " \n\t", "\u200b\ufeff"])
def test_an_empty_dialogue_is_refused_as_the_command_refuses_it(loaded, empty):
    for ask in (predict, predict_details):
        with pytest.raises(DataError, match=r"dialogues\[1\] is empty"):
            ask(*loaded, [DIALOGUES[0], empty])


def test_threads_that_share_a_model_get_the_scores_of_one(loaded):
    expected = predict(*loaded, DIALOGUES)

    def ask(turn: int) -> np.ndarray:
        return np.array([predict(*loaded, [dialogue])[0] for dialogue in DIALOGUES])

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(ask, range(8)):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_several_windows_the_most_suspicious_counts_and_is_named(monkeypatch):
    scores = {1: 0.2, 2: 0.9, 3: 0.4}
    monkeypatch.setattr(scoring, "score_rows", lambda model, rows: np.array([scores[row.ids[0]] for row in rows]))
    model = SimpleNamespace(lineage=SimpleNamespace(decision=Decision()))
    row = {place: Row((place,), (0,), (5, 6), ()) for place in scores}
    found = predict_readings(model, [Reading((row[1], row[2], row[3]), ((1, 9), (8, 15), (14, 20))),
                                     Reading((row[3],), ((1, 2),))])
    assert [(one.score, one.windows, one.lines) for one in found] == [(0.9, 3, (8, 15)), (0.4, 1, (1, 2))]
    assert found[0].probability == pytest.approx(0.9)


def test_what_stands_at_the_end_of_a_long_dialogue_is_read(loaded):
    model, tokenizer = loaded
    encoder = PromptEncoder(tokenizer, Task(max_length=len(PromptEncoder(tokenizer, Task()).head) + 120))
    text = "\n".join(f"{'甲乙'[i % 2]}: 明天开会{i}。" for i in range(30))
    reading, short = read_dialogues(encoder, [text, "甲: 好"], line_aware=False)
    assert len(reading.rows) > 1 and len(short.rows) == 1
    assert reading.lines[0][0] == 1 and reading.lines[-1][1] == 30
    for (_, end), (start, _) in zip(reading.lines, reading.lines[1:]):
        assert start <= end + 1  # nothing lies between two windows
