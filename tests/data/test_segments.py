"""Dialogues are cut between lines, at every length anew, and each segment has the label of its own lines."""

from corpora import dialogue
from hypothesis import given
from hypothesis import strategies as st

from data.segments import cut_dialogue, from_onset
from data.speakers import split_lines


def segments(lines, *lengths):
    return [record["input"] for record in cut_dialogue(dialogue(*lines), lengths)]


def test_cuts_between_lines_and_labels_each_segment_by_its_own_lines():
    lines = [("客服", "您好。", False), ("客服", "请转账。", True), ("张伟", "好的。", False)]
    assert cut_dialogue(dialogue(*lines), [7]) == [
        {"input": "客服: 您好。\n客服: 请转账。", "label": True, "line_labels": [False, True],
         "fraud_speaker": "客服", "case": "退款/1",
         "category": "退款", "position": 0.0},
        {"input": "张伟: 好的。", "label": False, "line_labels": [False], "fraud_speaker": "", "case": "退款/1",
         "category": "退款", "position": 0.7},
    ]


def test_a_fraud_under_way_goes_on_and_begins_a_line_early():
    scam = dialogue(("客服", "您好。", False), ("张伟", "您好。", False), ("客服", "请转账。", True),
                    ("张伟", "好的。", False))
    assert [line.is_fraud for line in from_onset(scam.lines)] == [False, True, True, True]
    assert [line.content for line in from_onset(scam.lines)] == [line.content for line in scam.lines]
    records = cut_dialogue(scam, [4], labels="from-onset")
    assert [(record["label"], record["line_labels"], record["fraud_speaker"]) for record in records] == [
        (False, [False], ""), (True, [True], ""), (True, [True], "客服"), (True, [True], "")]


def test_a_dialogue_without_a_fraud_has_no_onset():
    harmless = dialogue(("甲", "您好。", False), ("乙", "您好。", False))
    assert from_onset(harmless.lines) == harmless.lines
    assert from_onset(()) == ()


def test_every_length_cuts_anew_and_what_two_cut_alike_appears_once():
    lines = [("甲", "一二三", False), ("乙", "四五六", True), ("甲", "七八", False)]
    assert segments(lines, 3, 6, 100) == [
        "甲: 一二三", "乙: 四五六", "甲: 七八",      # 3; two characters more would be 5
        "甲: 一二三\n乙: 四五六",                  # 6; its second segment 甲: 七八 is there already
        "甲: 一二三\n乙: 四五六\n甲: 七八",          # 100
    ]


def test_a_segment_says_which_share_of_its_dialogue_comes_before_it():
    lines = [("甲", "一二三", False), ("乙", "四五六", True), ("甲", "七八", False)]
    positions = {record["input"]: record["position"] for record in cut_dialogue(dialogue(*lines), [3, 6])}
    assert positions == {"甲: 一二三": 0.0, "乙: 四五六": 0.375, "甲: 七八": 0.75, "甲: 一二三\n乙: 四五六": 0.0}


def test_a_line_longer_than_a_segment_is_cut_at_the_end_of_a_sentence():
    assert segments([("甲", "一二。三！四五六七八？九", True)], 6) == ["甲: 一二。三！", "甲: 四五六七八？", "甲: 九"]


def test_a_sentence_longer_than_a_segment_is_cut_where_the_segment_is_full():
    assert segments([("甲", "一二三。四五六七八九", True)], 5) == ["甲: 一二三。", "甲: 四五六七八", "甲: 九"]


def test_parts_of_a_long_line_share_a_segment_with_their_neighbours_where_they_fit():
    lines = [("甲", "一二。三四五", False), ("乙", "六", True)]
    assert segments(lines, 5) == ["甲: 一二。", "甲: 三四五\n乙: 六"]


def test_every_part_of_a_fraudulent_line_is_fraud():
    records = cut_dialogue(dialogue(("甲", "一二三四五", True)), [2])
    assert [(record["input"], record["label"]) for record in records] == \
        [("甲: 一二", True), ("甲: 三四", True), ("甲: 五", True)]


@given(sizes=st.lists(st.integers(1, 12), min_size=1), sentence=st.integers(1, 6), length=st.integers(1, 30))
def test_segments_are_never_too_long_and_hold_every_character_once_in_order(sizes, sentence, length):
    characters = [chr(0x4E00 + i) for i in range(sum(sizes))]  # no two alike
    rest = iter(character + ("。" if i % sentence == 0 else "") for i, character in enumerate(characters))
    lines = [("甲乙"[i % 2], "".join(next(rest) for _ in range(size)), False) for i, size in enumerate(sizes)]
    said = [[content for _, content in split_lines(segment)] for segment in segments(lines, length)]
    assert all(0 < sum(map(len, contents)) <= length for contents in said)
    assert "".join("".join(contents) for contents in said).replace("。", "") == "".join(characters)
