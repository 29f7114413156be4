"""The label audit: wrong labels among plain ones are found, and a dialogue is never judged by its own segments."""

import numpy as np
import pytest

from antifraud.evaluation.labels import audit_labels, dialogue_groups, out_of_fold_probabilities, second_opinion
from data.leakage import overlap
from data.records import groups_of


def corpus(n: int = 120) -> list[dict]:
    """Dialogues that one word decides; two segments a case."""
    said = {True: "请把钱转到安全账户", False: "明天下午照常开会"}
    return [{"input": f"甲: 第{i}次，{said[i % 4 < 2]}。\n乙: 好的，我知道了。", "label": i % 4 < 2,
             "case": f"case-{i // 2}"} for i in range(n)]


@pytest.fixture(scope="module")
def spoilt():
    """Three labels of 120 are wrong."""
    rows = corpus()
    for row in (0, 50, 90):
        rows[row]["label"] = not rows[row]["label"]
    return rows


def test_wrong_labels_are_suspects_and_right_ones_are_not(spoilt):
    found = audit_labels(spoilt, [None] * 120, *second_opinion(spoilt))
    assert (found["rows"], found["suspects"], found["grouped_by"]) == (120, 3, "case")
    # rows 0 and 50 were ... 0 % 4 = 0 and 50 % 4 = 2, 90 % 4 = 2: one fraud called not fraud, two the other way
    assert (found["suspects_labelled_not_fraud"], found["suspects_labelled_fraud"]) == (1, 2)
    assert found["accuracy_of_second_opinion"] == pytest.approx(117 / 120)
    assert "at least 0.9" in found["rule"]


def test_errors_and_right_answers_on_suspects_are_counted(spoilt):
    truth = [row["label"] for row in corpus()]  # a model that is right where the labels are wrong
    truth[7] = not truth[7]
    truth[8] = None
    found = audit_labels(spoilt, truth, *second_opinion(spoilt))
    assert (found["errors"], found["errors_on_suspects"], found["share_of_errors_on_suspects"]) == (4, 3, 0.75)
    assert (found["right_answers"], found["right_answers_on_suspects"]) == (115, 0)


def test_a_piece_is_judged_without_the_other_pieces_of_its_dialogue():
    """What a whole case says, no other case says: out of fold it cannot be known, so it is not called for certain."""
    rows = corpus(80) + [{"input": "丙: 恭喜恭喜恭喜恭喜", "label": True, "case": "odd"}] * 4
    groups = dialogue_groups(rows)[0]
    opinion = out_of_fold_probabilities(rows, groups)
    assert (opinion[-4:] < 0.9).all() and opinion[0] > 0.9
    leaking = out_of_fold_probabilities(rows, np.arange(len(rows)))
    assert (leaking[-4:] > opinion[-4:] + 0.05).all()


def test_pieces_that_share_a_line_are_one_dialogue_where_cases_are_not_known():
    first, second, third = "这是第一句够长的话吧", "这是第二句够长的话吧", "这是第三句够长的话吧"
    rows = [{"input": text} for text in (f"甲: {first}", f"乙: {first}\n甲: {second}", f"甲: {second}", f"甲: {third}",
                                         "甲: 好的", "乙: 好的")]
    groups, how = dialogue_groups(rows)
    assert how == "shared whole lines"
    assert groups[0] == groups[1] == groups[2] and len(set(groups)) == 4  # 好的 is too short to tell


def test_cases_without_a_name_are_not_one_dialogue():
    rows = [{"input": "甲: 好的", "case": ""}, {"input": "乙: 好的", "case": ""}]
    assert len(set(dialogue_groups(rows)[0])) == 2 and groups_of(rows) is None
    assert overlap(rows, rows)["shared_cases"] == 0


def test_too_few_dialogues_are_not_audited():
    assert second_opinion(corpus(16)) is None  # four cases of either label
    assert second_opinion(corpus(20)) is not None


def test_counting_all_folds_at_once_is_fitting_each_by_itself(spoilt):
    from sklearn.model_selection import StratifiedGroupKFold

    from antifraud.evaluation.baselines import build_tfidf, fraud_probability

    groups = dialogue_groups(spoilt)[0]
    texts = np.array([row["input"] for row in spoilt], dtype=object)
    y_true = np.array([row["label"] for row in spoilt])
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(texts, y_true, groups)
    rest, fold = next(iter(folds))
    alone = fraud_probability(build_tfidf().fit(texts[rest], y_true[rest]), texts[fold])
    assert out_of_fold_probabilities(spoilt, groups)[fold] == pytest.approx(alone, abs=1e-5)
