"""Dialogues are dealt by case and label; what repeats across splits leaves; train is balanced."""

import pytest
from corpora import dialogue

from data.leakage import Known
from data.split import SPLITS, cut_apart, is_fraud, leave_out, rebalance, remove_repeats, split_by_case


def corpus(**counts):
    return [dialogue(("甲", "您好", False), case=f"{category}/{i}", category=category)
            for category, count in counts.items() for i in range(count)]


def cases(splits):
    return {name: {d.case for d in dialogues} for name, dialogues in splits.items()}


def test_each_category_is_dealt_eight_to_one_to_one():
    splits = split_by_case(corpus(退款=20, 会议=10))
    counts = {name: [sum(d.category == category for d in splits[name]) for category in ("退款", "会议")]
              for name in SPLITS}
    assert counts == {"train": [16, 8], "eval": [2, 1], "test": [2, 1]}


def test_every_case_is_in_exactly_one_split():
    splits = cases(split_by_case(corpus(退款=23, 会议=7)))
    assert sum(map(len, splits.values())) == 30 == len(set.union(*splits.values()))


def test_shares_need_not_add_up_to_one():
    splits = split_by_case(corpus(退款=10), shares=(2, 1, 2))
    assert [len(splits[name]) for name in SPLITS] == [4, 2, 4]


def test_the_deal_depends_on_the_seed_but_not_on_the_order_of_reading():
    dialogues = corpus(退款=20, 会议=10)
    assert split_by_case(dialogues, seed=1) == split_by_case(dialogues[::-1], seed=1)
    assert cases(split_by_case(dialogues, seed=1)) != cases(split_by_case(dialogues, seed=2))


def labelled(category, frauds, others):
    return [dialogue(("甲", "您好", i < frauds), case=f"{category}/{i}", category=category)
            for i in range(frauds + others)]


def by_label(splits):
    return {name: (sum(is_fraud(d) for d in members), sum(not is_fraud(d) for d in members))
            for name, members in splits.items()}


@pytest.mark.parametrize("seed", range(5))
def test_both_labels_of_one_file_are_dealt_in_proportion(seed):
    assert by_label(split_by_case(labelled("混合", 30, 30), seed=seed)) == {
        "train": (24, 24), "eval": (3, 3), "test": (3, 3)}
    assert by_label(split_by_case(labelled("混合", 3, 300), seed=seed)) == {
        "train": (1, 240), "eval": (1, 30), "test": (1, 30)}


def test_many_small_categories_are_dealt_in_proportion_together():
    few = [one for name in "甲乙丙丁戊己庚辛壬癸" for one in labelled(name, 0, 3)]
    assert by_label(split_by_case(few)) == {"train": (0, 24), "eval": (0, 3), "test": (0, 3)}


# ---------------------------------------------------------------------------------------------- cleaning


def record(text, label=True):
    return {"input": text, "label": label}


def test_near_duplicates_leave_train_for_eval_and_eval_for_test():
    long, other, third = "请把验证码告诉我好吗", "今天的会议现在开始", "明天一起去吃饭怎么样"
    splits = {
        "train": [record(f"甲: {long}"), record(f"甲: {other}"), record(f"甲: {third}"), record(f"乙: {third}")],
        "eval": [record(f"乙: {long}！"), record(f"乙: {other}")],
        "test": [record(f"丙: {long}")],
    }
    removed, judged_on = remove_repeats(splits)
    assert removed == {"train": 2, "eval": 1, "test": 0}
    # Train was compared with the rest of eval and with test.
    assert [common.repeats for common in judged_on.compare([f"丁: {said}" for said in (long, other, third)])] == \
        [True, True, False]
    # What repeats within one split stays: it gives nothing away.
    assert splits == {
        "train": [record(f"甲: {third}"), record(f"乙: {third}")],
        "eval": [record(f"乙: {other}")],
        "test": [record(f"丙: {long}")],
    }


@pytest.mark.parametrize("positives, negatives, ratio, expected", [
    (3, 10, 1.0, (3, 3)),
    (10, 3, 1.0, (3, 3)),
    (3, 10, 2.0, (3, 6)),
    (3, 10, 0.0001, (0, 0)),
    (10, 10, 0.5, (10, 5)),
    (10, 3, 0.5, (6, 3)),
    (10, 30, 3.0, (10, 30)),
    (10, 31, 3.0, (10, 30)),
    (4, 4, 1.0, (4, 4)),
    (0, 4, 1.0, (0, 0)),
])
def test_the_more_frequent_label_is_thinned_to_the_exact_ratio(positives, negatives, ratio, expected):
    records = [record(f"甲: {i}", label=i < positives) for i in range(positives + negatives)]
    kept = rebalance(records, negatives_per_positive=ratio)
    assert (sum(r["label"] for r in kept), sum(not r["label"] for r in kept)) == expected
    assert kept == [r for r in records if r in kept]  # in their old order, none twice


@pytest.mark.parametrize("ordinary, others, share, expected", [
    (20, 20, 0.25, (2, 6)),   # of 8 negatives
    (20, 20, 0.0, (0, 8)),
    (20, 20, 1.0, (8, 0)),
    (1, 20, 0.5, (1, 7)),     # ordinary talk runs out
    (20, 3, 0.25, (5, 3)),    # other negatives run out
    (2, 3, 0.25, (2, 3)),     # both do: three positives go
])
def test_ordinary_talk_has_its_share_of_the_negatives(ordinary, others, share, expected):
    records = [record(f"甲: {i}") for i in range(8)]
    records += [record(f"乙: {i}", label=False) for i in range(others)]
    records += [{**record(f"丙: {i}", label=False), "source": "聊天"} for i in range(ordinary)]
    kept = rebalance(records, ordinary_share=share)
    negatives = [r for r in kept if not r["label"]]
    found = sum("source" in r for r in negatives)
    assert (found, len(negatives) - found) == expected and len(kept) == 2 * len(negatives)
    assert rebalance(records, negatives_per_positive=None, ordinary_share=share) == records


def test_all_ordinary_talk_may_stay_beside_the_negatives_of_the_corpus():
    def kept(frauds, others, ordinary):
        records = [record(f"甲: {i}") for i in range(frauds)] + [record(f"乙: {i}", label=False) for i in range(others)]
        records += [{**record(f"丙: {i}", label=False), "source": "聊天"} for i in range(ordinary)]
        stay = rebalance(records, ordinary_share=None)
        return [sum(r["label"] for r in stay), sum(not r["label"] and "source" not in r for r in stay),
                sum("source" in r for r in stay)]

    assert kept(8, 20, 9) == [8, 8, 9]
    assert kept(8, 5, 9) == [8, 5, 9]
    assert kept(8, 2, 3) == [5, 2, 3]  # fewer negatives than frauds: three frauds go


SAID = "".join(chr(0x4E00 + i) for i in range(24))  # five runs of 20 characters
MORE = "".join(chr(0x5E00 + i) for i in range(200))
HALF, LESS = MORE + SAID[:22], MORE + SAID[:21]  # three of them, and two


@pytest.mark.parametrize("part, dearer", [("train", "eval"), ("train", "test"), ("eval", "test"),
                                          ("ordinary_eval", "ordinary")])
def test_a_segment_that_holds_half_of_one_of_a_dearer_part_leaves(part, dearer):
    splits = {part: [record(f"甲: {HALF}"), record(f"甲: {LESS}")], dearer: [record(f"乙: {SAID}")]}
    assert remove_repeats(splits)[0] == {part: 1, dearer: 0}
    assert splits == {part: [record(f"甲: {LESS}")], dearer: [record(f"乙: {SAID}")]}


def test_a_dialogue_that_holds_half_of_a_held_out_record_is_left_out():
    half, less = (dialogue(("甲", said, True), case=said, category="退款") for said in (HALF, LESS))
    held_out = Known([f"乙: {SAID}"])
    assert leave_out([half, less], held_out, [300]) == [less]
    assert [segment["input"] for segment in cut_apart([half, less], [300], held_out)] == [f"甲: {LESS}"]


def test_what_is_dropped_depends_on_the_seed():
    records = [record(f"甲: {i}", label=i < 10) for i in range(40)]
    assert rebalance(records, seed=1) == rebalance(records, seed=1) != rebalance(records, seed=2)


def test_of_a_kind_that_held_out_records_touch_everywhere_other_segments_stay():
    lines = [[("客服", chr(0x4E00 + 50 * i + j) * 12, j == 1) for j in range(4)] for i in range(3)]
    long = [dialogue(*of_one, case=f"会议/{i}", category="会议") for i, of_one in enumerate(lines)]
    touched = [f"客服: {of_one[0][1]}" for of_one in lines]
    assert leave_out(long, Known(touched)) == long and leave_out(long, Known(touched[:2])) == long[2:]
    segments = cut_apart(long, [12], Known(touched))
    assert len(segments) == 9 and not any(record["input"] in touched for record in segments)
