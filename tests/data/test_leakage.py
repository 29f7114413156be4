"""What two sets of dialogues have in common, against hand counts and a brute-force comparison."""

import random
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data import leakage
from data.leakage import Common, Known, leakage_report, overlap, rows_sharing_a_line


def record(text, case=None, label=True):
    return {"input": text, "label": label, **({"case": case} if case else {})}


def near_duplicates(texts, others, threshold=0.8):
    return [common.is_near for common in Known(others, threshold=threshold).compare(texts)]


def rows_that_repeat_most_of(texts, others):
    return [common.holds_half for common in Known(others).compare(texts)]


# ---------------------------------------------------------------------------------------------- near-duplicates


@pytest.mark.parametrize("other, similar", [
    ("一二三四五六七八", True),       # the same 4 shingles
    ("一二三四五六七八九", True),     # 4 of 5: exactly 0.8
    ("一二三四五六七八九十", False),  # 4 of 6
    ("二三四五六七八", False),        # 3 of 4: 0.75
    ("", False),
])
def test_texts_are_near_duplicates_from_four_fifths_of_their_5_grams_on(other, similar):
    assert near_duplicates(["甲: 一二三四五六七八"], [f"乙: {other}"]) == [similar]


def test_it_does_not_matter_who_says_it_nor_in_how_many_lines():
    assert near_duplicates(["客服: 请把验证码\n张伟: 告诉我吧"], ["A: 请把验证码告诉我吧"]) == [True]


def test_texts_shorter_than_a_5_gram_are_compared_whole():
    assert near_duplicates(["A: 好的", "A: 好"], ["B: 好的"]) == [True, False]


def similarity(text, other):
    """Jaccard similarity by the definition; the texts name no speakers."""
    grams, others = ({t[i:i + 5] for i in range(max(1, len(t) - 4))} for t in (text, other))
    return len(grams & others) / len(grams | others)


TEXTS = st.lists(st.text("甲乙", max_size=14), max_size=6)


@given(texts=TEXTS, others=TEXTS, tenths=st.integers(1, 10))
@example(texts=["甲" * 5 + "乙" * 5], others=["甲" * 5 + "乙" * 6], tenths=10)
def test_finds_what_comparing_every_pair_finds(texts, others, tenths):
    threshold = tenths / 10
    expected = [any(similarity(text, other) >= threshold for other in others) for text in texts]
    assert near_duplicates(texts, others, threshold=threshold) == expected


@given(text=st.text("一二三四五六七八九", min_size=30, max_size=60), cut=st.integers(0, 10), tenths=st.integers(5, 10))
def test_finds_long_texts_that_lack_their_end(text, cut, tenths):
    shorter = text[:len(text) - cut]
    expected = similarity(text, shorter) >= tenths / 10
    assert near_duplicates([text], [shorter], threshold=tenths / 10) == [expected]
    assert near_duplicates([shorter], [text], threshold=tenths / 10) == [expected]


# ---------------------------------------------------------------------------------------------- shared lines


@pytest.mark.parametrize("compare", [near_duplicates, rows_that_repeat_most_of])
def test_what_all_calls_begin_with_does_not_compare_every_call_with_every_other(compare):
    opening, rng = "".join(chr(0x4E00 + i) for i in range(400)), random.Random(0)
    texts, others = ([opening + "".join(chr(rng.randrange(0x6000, 0x9000)) for _ in range(450)) for _ in range(1000)]
                     for _ in range(2))
    others[-1] = texts[0] + "。"
    began = time.process_time()
    assert compare(texts, others) == [True] + 999 * [False]
    assert time.process_time() - began < 10  # a few seconds; every call with every other takes half a minute


def test_a_shared_line_has_ten_characters_or_more_and_may_have_another_speaker():
    nine, ten = "一二三四五六七八九", "一二三四五六七八九十"
    others = [record(f"乙: {nine}\n乙: {ten}")]
    records = [record(f"甲: {nine}"), record(f"甲: 另一句话\n甲: {ten}"), record(f"甲: {ten}吗")]
    assert rows_sharing_a_line(records, others) == [False, True, False]
    assert rows_sharing_a_line(records, []) == [False, False, False]


SAID = "".join(chr(0x4E00 + i) for i in range(24))  # five runs of 20 characters


@pytest.mark.parametrize("others, expected", [
    ([SAID[:22]], True),            # runs 1, 2 and 3 of 5
    ([SAID[:21]], False),           # runs 1 and 2
    ([SAID[:21], SAID[4:]], True),  # runs 1, 2 and 5, in two texts
    ([SAID[:19], SAID[5:]], False),  # none: both are shorter than a run
    ([], False),
])
def test_half_of_a_texts_runs_may_stand_in_several_others(others, expected):
    text = f"甲: {SAID[:9]}\n乙: {SAID[9:]}"
    found = overlap([record(text)], [record(f"丙: {other}") for other in others])
    assert found["rows_with_half_their_runs"] == expected


def test_a_text_repeats_another_that_it_holds_half_of():
    other = "一" * 10 + SAID  # 15 runs
    texts = [f"甲: {text}" for text in (other[:27], other[:26], SAID[:23], "一二三" + other)]  # 8, 7, 4 and 15 of them
    assert rows_that_repeat_most_of(texts, [f"乙: {other}"]) == [True, False, False, True]
    assert rows_that_repeat_most_of(texts, []) == [False] * 4


def test_overlap_counts_cases_near_duplicates_and_rows_that_share_a_line():
    line, another = "请您马上把钱转到这个账户", "会议现在开始请各位就座吧"
    records = [
        record(f"A: {line}", "退款/1"),
        record(f"A: {line}\nB: 我为什么要转到一个我不认识的账户呢", "退款/1"),
        record("A: 今天下雨", "会议/2"),
        record("A: 没有编号的对话"),
    ]
    others = [
        record(f"甲: {line}", "退款/1"),
        record(f"甲: {another}", "会议/3"),
        record("甲: 也没有编号的对话"),
    ]
    # Case 退款/1 is shared; the first row repeats; the first two of four rows hold the shared line.
    assert overlap(records, others) == {"shared_cases": 1, "near_duplicates": 1, "rows_sharing_a_line": 0.5,
                                         "rows_with_half_their_runs": 0.25}


def test_the_report_compares_eval_with_train_and_test_with_both():
    a, b, c = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉戌亥", "天地玄黄宇宙洪荒日月盈昃"
    splits = {
        "train": [record(f"A: {a}", "1"), record(f"A: {a}", "1")],
        "eval": [record(f"A: {b}", "2"), record(f"A: {c}", "3")],
        "test": [record(f"A: {c}\nB: {a}", "3"), record("A: 别的", "4")],
    }
    report = leakage_report(splits, seed=0)
    assert report["leakage"] == {
        "eval against train": {"shared_cases": 0, "near_duplicates": 0, "rows_sharing_a_line": 0.0,
                               "rows_with_half_their_runs": 0.0},
        "test against train": {"shared_cases": 0, "near_duplicates": 0, "rows_sharing_a_line": 0.5,
                               "rows_with_half_their_runs": 0.0},
        "test against eval": {"shared_cases": 1, "near_duplicates": 0, "rows_sharing_a_line": 0.5,
                              "rows_with_half_their_runs": 0.0},
    }


def test_the_shuffled_comparison_splits_the_same_segments_at_random():
    a, b, c = "甲乙丙丁戊己庚辛壬癸", "子丑寅卯辰巳午未申酉戌亥", "天地玄黄宇宙洪荒日月盈昃"
    splits = {
        "train": [record(f"A: {a}", "1"), record(f"A: {a}", "1")],
        "eval": [record(f"A: {b}", "2"), record(f"A: {b}", "2")],
        "test": [record(f"A: {c}", "3"), record("A: 只说一次的一句长长的话", "4")],
    }
    report = leakage_report(splits, seed=0)
    assert report["leakage"]["eval against train"]["rows_sharing_a_line"] == 0.0
    # Random(0) orders a list of six as 4 2 1 0 5 3: the shuffled eval set is c, which nobody repeats, and one of
    # the two b, whose twin stays on the other side.
    assert report["if_segments_were_shuffled"] == {"rows_sharing_a_line": 0.5}


def test_a_text_is_normalised_once_however_often_it_is_compared(monkeypatch):
    texts = [f"甲: 第{number}次您好，这里是客服中心，请问您找哪一位？" for number in range(3)]
    read = []
    monkeypatch.setattr(leakage, "normalise", lambda text: read.append(text) or text)
    for _ in range(2):
        Known(texts[:1]).compare(texts)
    assert sorted(read) == texts


@given(texts=TEXTS, others=TEXTS)
def test_overlap_counts_near_duplicates_as_the_other_way_round(texts, others):
    records, other_records = ([record(text) for text in those] for those in (texts or [""], others))
    found = overlap(records, other_records)
    assert found["near_duplicates"] == sum(near_duplicates(texts or [""], others))
    assert overlap(records, other_records, Known([*texts, "", "丙丁"])) == found


def test_a_text_that_was_compared_is_not_compared_again(monkeypatch):
    known = Known(["甲: 请把验证码告诉我吧"])
    found = known.compare(["乙: 请把验证码告诉我", "乙: 今天的会议现在开始"])
    monkeypatch.setattr(leakage, "_runs", None)
    assert known.compare(["乙: 今天的会议现在开始", "乙: 请把验证码告诉我"]) == found[::-1]
    assert [common.repeats for common in found] == [True, False] and Known([]).compare(["乙: 好"]) == [Common()]
