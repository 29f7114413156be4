"""Baselines find what they look at, and nothing else."""

import numpy as np
import pytest

from antifraud.evaluation.baselines import (
    against_baselines,
    build_baselines,
    describe_one_word_rule,
    fit_baselines,
    fraud_probability,
)


def records(name_of, sentence_of, n=60):
    return [{"input": f"{name_of(i)}: {sentence_of(i)}\n乙{i}: 好。", "label": i % 2 == 0} for i in range(n)]


def accuracy(fitted, name, judged):
    labels = np.array([record["label"] for record in judged])
    return ((fraud_probability(fitted[name], [record["input"] for record in judged]) >= 0.5) == labels).mean()


def test_speaker_names_give_the_label_away_to_the_names_baseline_and_not_to_tfidf():
    named = records(lambda i: "骗子" if i % 2 == 0 else "同事", lambda i: f"今天第{i // 2}件事。")
    fitted = fit_baselines(named)
    assert accuracy(fitted, "speaker_names", named) == 1.0
    assert accuracy(fitted, "one_word", named) == 1.0 and "骗子" in describe_one_word_rule(fitted["one_word"])
    assert accuracy(fitted, "tfidf", named) == 0.5  # pairs with the same words and opposite labels


def test_sentences_give_the_label_away_to_tfidf_and_not_to_names_or_length():
    said = records(lambda i: "甲", lambda i: "把钱转来" if i % 2 == 0 else "钱别转来")
    fitted = fit_baselines(said)
    assert accuracy(fitted, "tfidf", said) == 1.0
    assert accuracy(fitted, "length", said) == 0.5


def test_what_lines_say_of_themselves_helps_where_a_long_dialogue_drowns_them():
    """One line in twenty is the fraud; the others are of the same words in both classes."""
    rng = np.random.default_rng(0)

    def record(i):
        lines = ["".join(rng.choice(list("天地人你我他来去好多少把钱转"), 20)) for _ in range(19)]
        lines.insert(int(rng.integers(20)), f"把{'钱转来' if i % 2 == 0 else '来转钱'}{i}")
        return {"input": "\n".join(f"甲: {line}" for line in lines), "label": i % 2 == 0,
                "line_labels": ["把钱转来" in line for line in lines]}

    train, test = [record(i) for i in range(60)], [record(i) for i in range(60)]
    fitted = fit_baselines(train)
    assert accuracy(fitted, "tfidf", test) < accuracy(fitted, "tfidf_with_lines", test) == 1.0
    assert "tfidf_with_lines" not in fit_baselines([*train, {"input": "甲: 您好", "label": False}])
    scores = {name: fraud_probability(fitted[name], [test[0]["input"], test[1]["input"]])
              for name in ("tfidf", "tfidf_with_lines")}
    alone = [fraud_probability(fitted["tfidf_with_lines"], [test[i]["input"]])[0] for i in (0, 1)]
    assert scores["tfidf_with_lines"] == pytest.approx(alone)  # whatever else is scored
    assert (scores["tfidf_with_lines"] != scores["tfidf"]).all()


def test_the_majority_is_the_more_frequent_label_of_train():
    rows = records(lambda i: "甲", lambda i: "您好，请讲。")
    fitted = fit_baselines(rows + [{"input": "甲: 您好", "label": True}] * 3)
    assert fraud_probability(fitted["majority"], ["甲: 任何话"]).tolist() == [1.0]


def test_every_baseline_gives_a_probability_for_unknown_text():
    fitted = fit_baselines(records(lambda i: f"人{i % 7}", lambda i: "请付款" if i % 2 else "请收款"))
    for name in build_baselines():
        probability = fraud_probability(fitted[name], ["从没见过的一句话", "a: b"])
        assert probability.shape == (2,) and ((0 <= probability) & (probability <= 1)).all()


def test_the_model_is_compared_by_its_answers_and_by_its_scores():
    train = records(lambda i: "甲", lambda i: "把钱转来" if i % 2 == 0 else "钱别转来")
    labels = np.array([record["label"] for record in train])
    # The threshold is the model's own affair: its order is perfect, but it calls nothing a fraud.
    fitted = fit_baselines(train)
    found = against_baselines(train, np.zeros(60, dtype=bool), fitted, scores=0.1 + 0.1 * labels, untuned=1.0 - labels)
    assert found["tfidf"]["model_average_precision_minus_this"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert found["tfidf"]["model_f1_minus_this"]["value"] == -1.0
    of_majority = found["majority"]["model_average_precision_minus_this"]  # one score for all: an area of 1/2
    assert of_majority["value"] == pytest.approx(0.5) and of_majority["interval"][0] > 0.3
    assert found["untuned"]["model_average_precision_minus_this"]["interval"][0] > 0
    answers_only = against_baselines(train, labels, fitted)
    assert {name: row["model_average_precision_minus_this"] for name, row in answers_only.items()} == \
        dict.fromkeys(build_baselines())
    assert against_baselines(train, labels, {}) is None
