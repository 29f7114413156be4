"""The label audit: wrong labels among plain ones are found, and a dialogue is never judged by its own pieces."""

import csv
import json

import numpy as np
import pytest

from antifraud.evaluation import labels as label_audit
from antifraud.evaluation.labels import (
    audit_against_lines,
    audit_labels,
    dialogue_groups,
    out_of_fold_probabilities,
    relabel,
    trace,
)
from data.files import DataError
from data.records import Dialogue, Line, Skipped, read_records, write_records
from data.segments import cut_dialogue


def corpus(n: int = 120) -> list[dict]:
    """Dialogues that one word decides; two pieces a case."""
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
    found = audit_labels(spoilt)
    assert (found["rows"], found["suspects"], found["grouped_by"]) == (120, 3, "case")
    # rows 0 and 50 were ... 0 % 4 = 0 and 50 % 4 = 2, 90 % 4 = 2: one fraud called honest, two honest called fraud
    assert (found["suspects_labelled_honest"], found["suspects_labelled_fraud"]) == (1, 2)
    assert found["accuracy_of_second_opinion"] == pytest.approx(117 / 120)
    assert "at least 0.9" in found["rule"]


def test_errors_and_right_answers_on_suspects_are_counted(spoilt):
    truth = [row["label"] for row in corpus()]  # a model that is right where the labels are wrong
    truth[7] = not truth[7]
    truth[8] = None
    found = audit_labels(spoilt, truth)
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


def test_too_few_dialogues_are_not_audited():
    assert audit_labels(corpus(16)) is None  # four cases of either label
    assert audit_labels(corpus(20)) is not None


DIALOGUES = [
    Dialogue("退款/1", "退款", (Line("客服", "您好，您的订单有问题。", False), Line("我", "什么问题？", False),
                            Line("客服", "请把验证码告诉我。", True), Line("我", "好的。", False))),
    Dialogue("会议/1", "会议", (Line("甲", "什么问题？", False), Line("乙", "下周再说。", False)))]


def piece(dialogue: Dialogue, first: int, end: int, label: bool, rename=str) -> dict:
    lines = dialogue.lines[first:end]
    return {"input": "\n".join(f"{rename(line.speaker)}: {line.content}" for line in lines), "label": label}


def test_a_piece_is_traced_by_what_is_said_whoever_says_it():
    scam, meeting = DIALOGUES
    records = [piece(scam, 1, 3, True, lambda name: "发言人1"), piece(meeting, 0, 2, False),
               {"input": "甲: 什么问题？\n甲: 没有问题。", "label": False},
               {"input": "客服: 把验证码告诉", "label": True}, {"input": "我: 好的。\n甲: 什么问题？", "label": False}]
    assert trace(records, DIALOGUES) == [
        (scam, list(scam.lines[1:3])), (meeting, list(meeting.lines)), None, (scam, [scam.lines[2]]), None]


def test_what_dialogues_label_differently_is_not_traced():
    other = Dialogue("会议/2", "会议", (Line("甲", "请把验证码告诉我。", False),))
    records = [piece(DIALOGUES[0], 2, 3, True), piece(DIALOGUES[0], 2, 4, True), piece(DIALOGUES[1], 0, 1, False)]
    assert [place and place[0].case for place in trace(records, [*DIALOGUES, other])] == [None, "退款/1", "退款/1"]


def test_pieces_of_a_corpus_are_found_and_keep_what_preparing_gave_them():
    records = [record for dialogue in DIALOGUES for record in cut_dialogue(dialogue, [10, 30])]
    bare = [{"input": record["input"], "label": not record["label"]} for record in records]
    for record, found in zip(records, relabel(bare, DIALOGUES), strict=True):
        assert {key: found[key] for key in ("label", "line_labels", "category")} == {
            key: record[key] for key in ("label", "line_labels", "category")}


def test_lines_are_not_labelled_where_the_record_breaks_them_otherwise():
    broken = Dialogue("退款/2", "退款", (Line("客服", "第一，不要挂断。\n第二，转到安全账户。", True),
                                     Line("我", "好的。", False)))
    records = [piece(broken, 0, 2, False), piece(broken, 1, 2, True)]
    whole, last = relabel([{**record, "line_labels": [True]} for record in records], [broken])
    assert (whole["label"], "line_labels" in whole) == (True, False)
    assert (last["label"], last["line_labels"]) == (False, [False])


def test_labels_that_the_lines_contradict_are_counted_by_kind():
    records = [piece(DIALOGUES[0], 0, 3, True), piece(DIALOGUES[0], 0, 2, True), piece(DIALOGUES[0], 2, 4, False),
               piece(DIALOGUES[1], 0, 2, False), {"input": "丙: 别处的话。", "label": True}]
    found = audit_against_lines(records, relabel(records, DIALOGUES))
    assert (found["rows"], found["traced"]) == (5, 4)
    assert (found["fraud_without_a_fraud_line"], found["honest_with_a_fraud_line"]) == (1, 1)
    lines = found["answers_of_lines"]
    assert (lines["tp"], lines["fp"], lines["fn"], lines["tn"], lines["f1"]) == (1, 1, 1, 1, 0.5)
    with pytest.raises(DataError, match="no record was cut from these dialogues"):
        audit_against_lines(records[4:], [None])


@pytest.fixture
def source(tmp_path):
    """The dialogues as CSV, and two records of them of which the second is labelled wrongly."""
    folder = tmp_path / "dialogs"
    folder.mkdir()
    for dialogue in DIALOGUES:
        with open(folder / f"{dialogue.category}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["case", "speaker", "content", "is_fraud"])
            rows.writerows(["1", line.speaker, line.content, line.is_fraud] for line in dialogue.lines)
    write_records(tmp_path / "set.jsonl", [piece(DIALOGUES[0], 0, 3, True), piece(DIALOGUES[0], 0, 2, True)])
    return folder


def test_the_command_writes_the_audit_and_the_records_as_the_lines_label_them(source, tmp_path, capsys):
    command = ["--data", str(tmp_path / "set.jsonl"), "--source", str(source)]
    assert label_audit.main([*command, "--relabelled", str(tmp_path / "anew.jsonl"), "--output",
                             str(tmp_path / "audit.json")]) == 0
    assert "2 of 2 records found, line for line: 1 labelled fraud have no line that is" in capsys.readouterr().out
    anew = read_records(tmp_path / "anew.jsonl", Skipped())
    assert [(record["label"], record["case"], record["line_labels"]) for record in anew] == [
        (True, "退款/1", [False, False, True]), (False, "退款/1", [False, False])]
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert (audit["answers_of_lines"]["recall"], audit["data"]["rows"]) == (0.5, 2)
    whole = [piece(dialogue, 0, 4, dialogue is DIALOGUES[0]) for dialogue in DIALOGUES]
    write_records(tmp_path / "train.jsonl", whole * 2)
    assert label_audit.main([*command, "--train", str(tmp_path / "train.jsonl"), "--output",
                             str(tmp_path / "audit.json")]) == 0
    assert "train.jsonl: F1 1.000, which leaves -0.333 (" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["tfidf"]["f1"] == 1.0


def test_a_set_labelled_from_when_the_fraud_begins_is_found_to_be_so(source, tmp_path, capsys):
    write_records(tmp_path / "set.jsonl", [piece(DIALOGUES[0], 0, 1, False), piece(DIALOGUES[0], 1, 2, True),
                                           piece(DIALOGUES[0], 3, 4, True), piece(DIALOGUES[1], 1, 2, False)])
    for labels, said in (("lines", "4 of 4 records found, line for line: 2 labelled"),
                         ("from-onset", "3 of 4 records found, line for line: 0 labelled")):
        assert label_audit.main(["--data", str(tmp_path / "set.jsonl"), "--source", str(source), "--labels", labels,
                                 "--output", str(tmp_path / "audit.json")]) == 0
        assert said in capsys.readouterr().out
        assert json.loads((tmp_path / "audit.json").read_text())["labels"] == labels


def test_tfidf_that_calls_the_topic_fraud_is_compared_with_the_labels_of_lines(tmp_path, capsys):
    """Trained on scams called fraud line by line, TF-IDF does so; the labels of lines know the harmless one."""
    scam = Dialogue("退款/1", "退款", tuple(Line("客服", f"订单{i}要退款，请报验证码。", i > 0) for i in range(4)))
    meeting = Dialogue("会议/1", "会议", tuple(Line("甲", f"会议{i}下周再说。", False) for i in range(4)))
    records = [piece(dialogue, i, i + 1, dialogue.lines[i].is_fraud) for dialogue in (scam, meeting) for i in range(4)]
    train = [piece(dialogue, 0, 4, dialogue is scam) for dialogue in (scam, meeting)] * 2
    found = label_audit.room_above_tfidf(records, relabel(records, [scam, meeting]), train)
    assert (found["tp"], found["fp"], found["tn"], found["fn"]) == (3, 1, 4, 0)
    assert found["answers_of_lines_f1_minus_this"]["value"] == pytest.approx(1 - 6 / 7)
    assert len(found["answers_of_lines_f1_minus_this"]["interval"]) == 2


def test_a_corpus_that_is_another_is_refused_in_a_line(source, tmp_path, capsys):
    write_records(tmp_path / "set.jsonl", [{"input": "丙: 别处的话。", "label": True}])
    assert label_audit.main(["--data", str(tmp_path / "set.jsonl"), "--source", str(source)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
