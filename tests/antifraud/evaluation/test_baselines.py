"""Baselines find what they look at, and nothing else."""

import numpy as np
import pytest

from antifraud.evaluation import baselines
from antifraud.evaluation.baselines import answers, build_baselines, fit_baselines, fraud_probability
from data.files import DataError
from data.records import write_records


def records(name_of, sentence_of, n=60):
    return [{"input": f"{name_of(i)}: {sentence_of(i)}\n乙{i}: 好。", "label": i % 2 == 0} for i in range(n)]


def accuracy(fitted, name, judged):
    labels = np.array([record["label"] for record in judged])
    return ((fraud_probability(fitted[name], [record["input"] for record in judged]) >= 0.5) == labels).mean()


def test_speaker_names_give_the_label_away_to_the_names_baseline_and_not_to_tfidf():
    named = records(lambda i: "骗子" if i % 2 == 0 else "同事", lambda i: f"今天第{i // 2}件事。")
    fitted = fit_baselines(named)
    assert accuracy(fitted, "speaker_names", named) == 1.0
    assert accuracy(fitted, "one_word", named) == 1.0
    assert accuracy(fitted, "tfidf", named) == 0.5  # pairs with the same words and opposite labels


def test_line_ends_and_time_stamps_change_nothing_for_any_baseline():
    named = records(lambda i: "骗子" if i % 2 == 0 else "同事", lambda i: "把钱转来" if i % 2 == 0 else "钱别转来")
    plain = [record["input"] for record in named[:4]]
    stamped = ["".join(f"[2024-05-01 10:00:{number:02}] {line}  \r\n" for number, line in enumerate(text.split("\n")))
               for text in plain]
    for classifier in fit_baselines(named).values():
        assert fraud_probability(classifier, stamped).tolist() == fraud_probability(classifier, plain).tolist()


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
    assert accuracy(fitted, "tfidf", test) < accuracy(fitted, "tfidf_line_labels", test) == 1.0
    assert "tfidf_line_labels" not in fit_baselines([*train, {"input": "甲: 您好", "label": False}])
    scores = {name: fraud_probability(fitted[name], [test[0]["input"], test[1]["input"]])
              for name in ("tfidf", "tfidf_line_labels")}
    alone = [fraud_probability(fitted["tfidf_line_labels"], [test[i]["input"]])[0] for i in (0, 1)]
    assert scores["tfidf_line_labels"] == pytest.approx(alone)  # whatever else is scored
    assert (scores["tfidf_line_labels"] != scores["tfidf"]).all()


def test_the_majority_is_the_more_frequent_label_of_train():
    rows = records(lambda i: "甲", lambda i: "您好，请讲。")
    fitted = fit_baselines(rows + [{"input": "甲: 您好", "label": True}] * 3)
    assert fraud_probability(fitted["majority"], ["甲: 任何话"]).tolist() == [1.0]


def test_every_baseline_gives_a_probability_for_unknown_text():
    fitted = fit_baselines(records(lambda i: f"人{i % 7}", lambda i: "请付款" if i % 2 else "请收款"))
    for name in build_baselines():
        probability = fraud_probability(fitted[name], ["从没见过的一句话", "a: b"])
        assert probability.shape == (2,) and ((0 <= probability) & (probability <= 1)).all()


LABELLED = [{"input": f"{'同骗'[i % 2]}{i % 5}: {('钱别转来', '把钱转来')[i % 2]}。\n乙: 好{'啊' * (i % 4)}。",
             "label": bool(i % 2), "line_labels": [bool(i % 2), False]} for i in range(60)]
UNKNOWN = ["同1: 钱转来\n乙: 好啊。", "甲: 从没见过的一句话", "骗3: 钱别转来。"]


@pytest.fixture
def train_file(tmp_path):
    write_records(tmp_path / "train.jsonl", LABELLED)
    return tmp_path / "train.jsonl"


def test_what_is_kept_beside_a_train_file_answers_alike_and_nothing_is_fitted_again(train_file, monkeypatch):
    first = answers(train_file, {"data": UNKNOWN}, "data")
    fitted = fit_baselines(LABELLED)
    assert first["probabilities"]["data"].keys() == fitted.keys()
    assert first["rule"] == fitted["one_word"].rule()
    for name, classifier in fitted.items():
        assert first["probabilities"]["data"][name] == pytest.approx(fraud_probability(classifier, UNKNOWN)), name
    monkeypatch.setattr(baselines, "fit_baselines", None)
    others = [UNKNOWN[2], UNKNOWN[0], UNKNOWN[2]]
    again = answers(train_file, {"data": UNKNOWN, "others": others}, "data")  # one set kept, one computed anew
    for name in fitted:
        assert again["probabilities"]["data"][name].tolist() == first["probabilities"]["data"][name].tolist()
        assert again["probabilities"]["others"][name] == pytest.approx(first["probabilities"]["data"][name][[2, 0, 2]])
    assert [of_lines.tolist() for of_lines in again["lines"]] == [of_lines.tolist() for of_lines in first["lines"]]
    assert again["rule"] == first["rule"] and again["note"] is None


def test_of_sets_that_only_tfidf_is_asked_for_it_says_what_it_says_of_others(train_file):
    found = answers(train_file, {"data": UNKNOWN}, of_tfidf={"probe": UNKNOWN})["probabilities"]
    assert list(found["probe"]) == ["tfidf"] and len(found["data"]) > 5
    assert found["probe"]["tfidf"] == pytest.approx(found["data"]["tfidf"])
    assert answers(train_file, {"probe": UNKNOWN})["probabilities"]["probe"].keys() == found["data"].keys()


def test_lines_fitted_by_another_process_say_what_those_of_this_one_say(monkeypatch):
    monkeypatch.setattr(baselines, "CORES", 1)
    beside = fit_baselines(LABELLED)
    monkeypatch.setattr(baselines, "CORES", 1000)
    alone = fit_baselines(LABELLED)
    assert alone.keys() == beside.keys() and "tfidf_line_labels" in alone
    for name in alone:
        assert fraud_probability(beside[name], UNKNOWN) == pytest.approx(fraud_probability(alone[name], UNKNOWN),
                                                                         abs=1e-3), name


def test_another_train_file_is_fitted_anew(train_file):
    before = answers(train_file, {"data": UNKNOWN})["probabilities"]["data"]
    write_records(train_file, [{**record, "label": not record["label"]} for record in LABELLED])
    after = answers(train_file, {"data": UNKNOWN})["probabilities"]["data"]
    assert after["tfidf"][2] > 0.5 > before["tfidf"][2]


def test_a_kept_file_that_is_damaged_or_a_pickle_is_passed_over(train_file, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "mark").touch, ()

    before = answers(train_file, {"data": UNKNOWN})["probabilities"]["data"]
    kept = sorted((tmp_path / "train.jsonl.baselines").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(b"PK\x03\x04")
    np.savez(kept[1], trap=np.array([Trap()], dtype=object))
    after = answers(train_file, {"data": UNKNOWN})["probabilities"]["data"]
    assert after["tfidf"] == pytest.approx(before["tfidf"]) and not (tmp_path / "mark").exists()


def test_where_nothing_can_be_kept_the_answers_come_all_the_same_and_it_is_said(train_file):
    (train_file.parent / "train.jsonl.baselines").write_text("a file where the folder would be")
    found = answers(train_file, {"data": UNKNOWN})
    assert found["note"] and len(found["probabilities"]["data"]["tfidf"]) == 3


@pytest.mark.parametrize("rows", [[{"input": "甲: 您好", "label": True}] * 6,
                                  [{"input": text, "label": label} for text, label in (("甲", True), ("乙", False))]])
def test_records_that_teach_nothing_are_refused_in_a_line(rows):
    with pytest.raises(DataError):
        fit_baselines(rows)
