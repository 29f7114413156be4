"""From dialogues to splits: segments, dealing, cleaning, balance, and the command as users run it."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.files import DataError
from data.ordinary import OrdinarySettings
from data.prepare import Settings, add_noisy_copies, describe, main, prepare
from data.records import Dialogue, Line, Skipped, read_dialogues, read_records, write_dialogues, write_records
from data.segments import cut_dialogue, from_onset
from data.speakers import split_lines
from data.split import SPLITS, cut_apart, is_fraud, leave_out, rebalance, remove_repeats, split_by_case

ROOT = Path(__file__).parents[2]


def dialogue(*lines, case="退款/1", category="退款"):
    return Dialogue(case, category, tuple(Line(*line) for line in lines))


def segments(lines, *lengths):
    return [record["input"] for record in cut_dialogue(dialogue(*lines), lengths)]


# ---------------------------------------------------------------------------------------------- cutting


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


# ---------------------------------------------------------------------------------------------- splitting


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
    removed = remove_repeats(splits)
    assert removed == {"train": 2, "eval": 1, "test": 0}
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


def test_a_train_segment_that_holds_half_of_a_held_out_one_leaves():
    said = "".join(chr(0x4E00 + i) for i in range(24))
    more = "".join(chr(0x5E00 + i) for i in range(200))
    splits = {"train": [record(f"甲: {more}{said[:22]}"), record(f"甲: {more}{said[:21]}")],
              "eval": [record(f"乙: {said}")], "test": []}
    assert remove_repeats(splits) == {"train": 1, "eval": 0, "test": 0}
    assert splits["train"] == [record(f"甲: {more}{said[:21]}")]


def test_what_is_dropped_depends_on_the_seed():
    records = [record(f"甲: {i}", label=i < 10) for i in range(40)]
    assert rebalance(records, seed=1) == rebalance(records, seed=1) != rebalance(records, seed=2)


def test_noisy_copies_are_added_and_the_originals_stay():
    records = [record(f"甲: 第{i}次，请把验证码告诉我，我替您退款。", label=i % 2 == 0) for i in range(40)]
    more = add_noisy_copies(records, 0.5)
    assert more[:40] == records and len(more) == 60
    said = {r["input"] for r in records}
    assert sum(copy["input"] not in said for copy in more[40:]) > 15  # chance may leave a short line as it is
    assert add_noisy_copies(records, 0.5) == more != add_noisy_copies(records, 0.5, seed=1)
    assert add_noisy_copies(records, 0.0) == records


# ---------------------------------------------------------------------------------------------- the whole


def write_corpus(folder, *, fraud=20, harmless=20):
    """Dialogues of random characters, so that none resembles another; every fraud has one harmless line."""
    rng = random.Random(7)

    def say():
        return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)) + "。"

    write_dialogues(folder / "退款(20).csv", [
        dialogue(("客服", say(), True), ("张伟", say(), False), case=f"退款/{i}") for i in range(fraud)])
    write_dialogues(folder / "会议.csv", [
        dialogue(("发言人1", say(), False), ("发言人2", say(), False), case=f"会议/{i}", category="会议")
        for i in range(harmless)])


def read_splits(folder):
    return {name: read_records(folder / f"{name}.jsonl") for name in SPLITS}


def run_command(*args):
    return subprocess.run([sys.executable, "-m", "data.prepare", *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, encoding="utf-8")


def test_the_command_writes_three_splits_and_a_leakage_report(tmp_path):
    write_corpus(tmp_path)
    done = run_command("--source", tmp_path, "--output", tmp_path / "out", "--lengths", 13, 100)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == \
        ["eval.jsonl", "leakage.json", "test.jsonl", "train.jsonl"]
    # A fraud gives 2 positives (its fraudulent line, the whole) and 1 negative, a meeting 3 negatives.
    # Train: 16 dialogues of each kind, 32 positives and 16 + 48 negatives, of which 32 stay.
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    splits = read_splits(tmp_path / "out")
    assert report["splits"] == {
        "train": {"records": 64, "fraud": 32, "cases": len({r["case"] for r in splits["train"]}), "cut": 96,
                  "removed_as_repeats": 0},
        "eval": {"records": 12, "fraud": 4, "cases": 4, "cut": 12, "removed_as_repeats": 0},
        "test": {"records": 12, "fraud": 4, "cases": 4, "cut": 12, "removed_as_repeats": 0},
    }
    assert report["balance"] == {"fraud": {"found": 32, "kept": 32}, "non_fraud": {"found": 64, "kept": 32},
                                 "ordinary": {"found": 0, "kept": 0}, "asr_noise_copies": 0}
    clean = {"shared_cases": 0, "near_duplicates": 0, "rows_sharing_a_line": 0.0, "rows_with_half_their_runs": 0.0}
    assert report["leakage"] == {"eval against train": clean, "test against train": clean, "test against eval": clean}
    assert report["if_segments_were_shuffled"]["rows_sharing_a_line"] > 0.5  # every line stands in two segments
    assert report["skipped_lines"] == 0 and report["settings"]["lengths"] == [13, 100]
    assert {name: len(records) for name, records in splits.items()} == {"train": 64, "eval": 12, "test": 12}
    assert f"--train {tmp_path}/out/train.jsonl" in done.stdout
    assert "eval against train: 0 dialogues in common, 0 near-duplicates, 0.0% of rows share" in done.stdout


def test_written_splits_share_no_case_and_are_shuffled(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "out")
    splits = read_splits(tmp_path / "out")
    found = [{r["case"] for r in records} for records in splits.values()]
    assert len(set.union(*found)) == sum(map(len, found))
    categories = [r["category"] for r in splits["train"]]
    assert categories not in (sorted(categories), sorted(categories, reverse=True))


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    write_corpus(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(tmp_path, tmp_path / name, Settings(seed=seed))
    for file in ("train.jsonl", "eval.jsonl", "test.jsonl", "leakage.json"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c


def test_rebalancing_touches_neither_eval_nor_test(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "even", Settings(negatives_per_positive=1))
    prepare(tmp_path, tmp_path / "fewer", Settings(negatives_per_positive=0.5))
    even, fewer = read_splits(tmp_path / "even"), read_splits(tmp_path / "fewer")
    assert even["eval"] == fewer["eval"] and even["test"] == fewer["test"]
    labels = [r["label"] for r in fewer["train"]]
    assert (labels.count(True), labels.count(False)) == (16, 8)  # a dialogue is one segment at the usual lengths


def test_all_splits_are_labelled_by_the_rule_that_is_asked_for(tmp_path):
    write_corpus(tmp_path)
    for labels, expected in (("lines", {False, True}), ("from-onset", {True})):
        command = ["--source", str(tmp_path), "--output", str(tmp_path / labels), "--lengths", "13", "--labels", labels]
        assert main(command) == 0
        for records in read_splits(tmp_path / labels).values():
            assert {record["label"] for record in records if record["category"] == "退款"} == expected
        assert json.loads((tmp_path / labels / "leakage.json").read_text())["settings"]["labels"] == labels


def test_noise_goes_into_train_alone(tmp_path):
    write_corpus(tmp_path)
    report = prepare(tmp_path, tmp_path / "noisy", Settings(augment=0.5))
    prepare(tmp_path, tmp_path / "plain")
    noisy, plain = read_splits(tmp_path / "noisy"), read_splits(tmp_path / "plain")
    assert noisy["eval"] == plain["eval"] and noisy["test"] == plain["test"]
    copies = [r for r in noisy["train"] if r not in plain["train"]]
    assert len(noisy["train"]) == 1.5 * len(plain["train"])
    assert report["balance"]["asr_noise_copies"] == len(plain["train"]) / 2 >= len(copies) > 0


def test_what_is_taken_out_of_train_for_an_ablation_is_taken_out_of_train_alone(tmp_path):
    write_corpus(tmp_path)
    for name, options in (("all", {}), ("easy", {"keep_hard_negatives": False}), ("repeats", {"near_duplicate": 2.0})):
        prepare(tmp_path, tmp_path / name, Settings(lengths=(13,), **options))
    whole, easy, repeats = (read_splits(tmp_path / name) for name in ("all", "easy", "repeats"))
    assert whole["test"] == easy["test"] == repeats["test"] and whole["eval"] == easy["eval"]
    assert any(r["category"] == "退款" and not r["label"] for r in whole["train"])
    assert not any(r["category"] == "退款" and not r["label"] for r in easy["train"])


def test_a_dialogue_that_repeats_one_of_another_split_is_removed_and_counted(tmp_path):
    lines = [("客服", "您的快递丢失了，请点开链接填写银行卡号办理理赔。", True)]
    write_corpus(tmp_path)
    write_dialogues(tmp_path / "快递.csv", [dialogue(*lines, case=f"快递/{i}", category="快递") for i in range(10)])
    report = prepare(tmp_path, tmp_path / "out")
    removed = {name: counts["removed_as_repeats"] for name, counts in report["splits"].items()}
    assert removed == {"train": 8, "eval": 1, "test": 0}
    assert all(leak["near_duplicates"] == 0 for leak in report["leakage"].values())
    kept = prepare(tmp_path, tmp_path / "kept", Settings(near_duplicate=2.0))  # as an ablation has it
    assert all(counts["removed_as_repeats"] == 0 for counts in kept["splits"].values())
    assert kept["leakage"]["test against train"]["near_duplicates"] == 1


def test_what_held_out_records_were_cut_from_is_in_no_split(tmp_path):
    write_corpus(tmp_path, fraud=30)
    dialogues = read_dialogues(tmp_path, Skipped())
    line_of_one = {"input": f"客服: {dialogues[0].lines[0].content}", "label": False}
    first, second = dialogues[1].lines
    nearly_another = {"input": f"客服: 嗯{first.content}\n张伟: {second.content}啊", "label": True}
    write_records(tmp_path / "other.jsonl", [line_of_one, nearly_another])
    done = run_command("--source", tmp_path, "--output", tmp_path / "out", "--held-out", tmp_path / "other.jsonl")
    assert done.returncode == 0 and "left out 2 dialogues" in done.stdout
    used = {record["case"] for records in read_splits(tmp_path / "out").values() for record in records}
    assert len(used) <= 48 and used.isdisjoint({dialogues[0].case, dialogues[1].case})
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert report["held_out"] == {"files": ["other.jsonl"], "records": 2, "dialogues_left_out": 2}


def test_of_a_kind_that_held_out_records_touch_everywhere_other_segments_stay():
    lines = [[("客服", chr(0x4E00 + 50 * i + j) * 12, j == 1) for j in range(4)] for i in range(3)]
    long = [dialogue(*of_one, case=f"会议/{i}", category="会议") for i, of_one in enumerate(lines)]
    touched = [{"input": f"客服: {of_one[0][1]}", "label": False} for of_one in lines]
    assert leave_out(long, touched) == long and leave_out(long, touched[:2]) == long[2:]
    segments = cut_apart(long, [12], touched)
    assert len(segments) == 9 and not any(record["input"] in {row["input"] for row in touched} for record in segments)


def test_skipped_lines_are_named_in_the_report_without_the_users_folders(tmp_path):
    write_corpus(tmp_path)
    text = "case,speaker,content,is_fraud\n1,客服,,True\n1,客服,您好,False\n"
    (tmp_path / "退款二.csv").write_text(text, encoding="utf-8")
    report = prepare(tmp_path, tmp_path / "out")
    assert report["skipped_lines"] == 1
    assert report["skipped"] == ["退款二.csv:2: column 'content' is empty"]
    assert "skipped 1 lines: 退款二.csv:2: column 'content' is empty" in describe(report)


def test_a_bad_corpus_ends_with_one_line_and_code_2_and_writes_nothing(tmp_path):
    write_corpus(tmp_path)
    (tmp_path / "坏.csv").write_text("case,speaker,content,is_fraud\n1,客服,您好,maybe\n", encoding="utf-8")
    done = run_command("--source", tmp_path, "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{tmp_path / '坏.csv'}:2: column 'is_fraud' ") and "maybe" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_split_with_one_label_is_an_error(tmp_path, capsys):
    write_corpus(tmp_path, harmless=2)  # both are dealt to train
    with pytest.raises(DataError, match="found 20 dialogues with and 2 without fraud, at least 3 of each"):
        prepare(tmp_path, tmp_path / "out")
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_output_that_cannot_be_written_to_ends_with_one_line_and_code_2(tmp_path, capsys):
    write_corpus(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}/file/out/train.jsonl: cannot be written (")


@pytest.mark.parametrize("option", [
    ["--lengths", "0"], ["--shares", "0", "1", "1"], ["--shares", "nan", "1", "1"],
    ["--negatives-per-positive", "-1"], ["--ordinary-share", "1.1"],
    ["--ordinary-judge-share", "0.6", "--ordinary-eval-share", "0.5"],
    ["--negatives-per-positive", "inf"], ["--seed", "x"],
])
def test_options_that_make_no_sense_end_with_code_2(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as caught:
        main(["--source", str(tmp_path), "--output", str(tmp_path), *option])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- ordinary talk


def write_talk(path, n, *, seed):
    """Ordinary dialogues of two lines of twelve characters, none resembling another."""
    rng = random.Random(seed)
    write_dialogues(path, [dialogue(*((who, "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)), False)
                                      for who in "甲乙"), case=f"{path.stem}/{i}", category=path.stem)
                           for i in range(n)])
    return path


def read_ordinary_files(folder):
    return {path.stem: read_records(path) for path in sorted(folder.glob("ordinary*.jsonl"))}


def test_ordinary_dialogues_go_to_train_to_the_threshold_and_to_the_judge(tmp_path):
    write_corpus(tmp_path)
    chat = write_talk(tmp_path / "a" / "聊天.csv", 20, seed=20)
    write_talk(tmp_path / "b" / "客服.csv", 5, seed=5)
    options = ["--lengths", "13", "100", "--ordinary-share", "1"]
    done = run_command("--source", tmp_path, "--output", tmp_path / "out", "--ordinary", chat,
                       "--ordinary-judge", tmp_path / "b", *options)
    assert (done.returncode, done.stderr) == (0, "")
    # A dialogue gives three segments: of 20, 14 go to train, 2 to the threshold, 4 to the judge; of the other 5 all.
    files = read_ordinary_files(tmp_path / "out")
    assert {name: len(records) for name, records in files.items()} == {
        "ordinary": 27, "ordinary_calls": 9, "ordinary_eval": 6, "ordinary_eval_calls": 2}
    train = read_records(tmp_path / "out" / "train.jsonl")
    talk = [r for r in train if "source" in r]
    assert len({r["case"] for r in talk}) == 14 and len(talk) == 32  # all negatives: 32 of 42 segments
    cases = [{r["case"] for r in records} for records in (talk, files["ordinary"], files["ordinary_eval"])]
    assert sum(map(len, cases)) == 25 == len(set.union(*cases))
    assert {(r["source"], r["category"]) for r in files["ordinary"]} == {("聊天", "聊天"), ("b", "客服")}
    assert {(r["label"], tuple(r["line_labels"])) for r in files["ordinary_calls"]} == {(False, (False, False))}
    assert not any("source" in r for name in ("eval", "test") for r in read_records(tmp_path / "out" / f"{name}.jsonl"))
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert report["balance"]["ordinary"] == {"found": 42, "kept": 32}
    assert report["leakage"]["ordinary against train"]["shared_cases"] == 0
    assert report["settings"]["ordinary"]["sources"] == ["聊天.csv"]


def test_files_of_an_earlier_run_with_ordinary_talk_do_not_stay(tmp_path):
    write_corpus(tmp_path)
    chat = write_talk(tmp_path / "a" / "聊天.csv", 10, seed=1)
    prepare(tmp_path, tmp_path / "out", Settings(ordinary=OrdinarySettings([chat])))
    assert len(read_ordinary_files(tmp_path / "out")) == 4
    prepare(tmp_path, tmp_path / "out")
    assert read_ordinary_files(tmp_path / "out") == {}


def test_train_gives_way_to_ordinary_talk_that_is_judged(tmp_path):
    write_corpus(tmp_path)
    judge = write_talk(tmp_path / "b" / "客服.csv", 5, seed=5)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "聊天.csv").write_text(judge.read_text(encoding="utf-8"), encoding="utf-8")
    report = prepare(tmp_path, tmp_path / "out", Settings(ordinary=OrdinarySettings([tmp_path / "a"], [judge], 0, 0)))
    assert report["balance"]["ordinary"]["found"] == 0 and report["splits"]["train"]["removed_as_repeats"] == 5


def test_more_dialogues_may_be_for_train_alone(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "plain")
    more = [dialogue(("客服", chr(0x5000 + i) * 20, True), case=f"中奖/{i}", category="中奖") for i in range(4)]
    write_dialogues(tmp_path / "more" / "中奖.csv", more)
    report = prepare(tmp_path, tmp_path / "out", Settings(train_only=[tmp_path / "more"], negatives_per_positive=None))
    splits, plain = read_splits(tmp_path / "out"), read_splits(tmp_path / "plain")
    assert splits["eval"] == plain["eval"] and splits["test"] == plain["test"]
    assert sum(r["category"] == "中奖" for r in splits["train"]) == 4 and report["settings"]["train_only"] == ["more"]


def test_a_fraud_in_ordinary_talk_is_refused_with_its_place(tmp_path, capsys):
    write_corpus(tmp_path)
    (tmp_path / "a").mkdir()
    content = "case,speaker,content,is_fraud\n7,甲,您好,False\n7,乙,转钱,True\n"
    (tmp_path / "a" / "聊天.csv").write_text(content, encoding="utf-8")
    for option in ("--ordinary", "--ordinary-judge"):
        assert main(["--source", str(tmp_path), "--output", str(tmp_path / "out"), option, str(tmp_path / "a")]) == 2
        err = capsys.readouterr().err
        assert f"{tmp_path}/a: case '聊天/7', line 2" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ordinary_talk_that_is_given_twice_or_is_in_the_corpus_is_refused(tmp_path):
    write_corpus(tmp_path)
    chat = write_talk(tmp_path / "a" / "聊天.csv", 5, seed=1)
    for ordinary in (OrdinarySettings([chat], [chat]), OrdinarySettings([tmp_path / "会议.csv"])):
        with pytest.raises(DataError, match="rename one of the files"):
            prepare(tmp_path, tmp_path / "out", Settings(ordinary=ordinary))


def test_balancing_that_throws_much_away_and_few_dialogues_are_warned_of(tmp_path):
    write_corpus(tmp_path, fraud=4, harmless=60)
    report = prepare(tmp_path, tmp_path / "out")
    assert any("--negatives-per-positive" in warning for warning in report["warnings"])
    assert sum("fraud dialogues" in warning for warning in report["warnings"]) == 4  # of each label, in eval and test
    for everything in ("0", "all"):
        main(["--source", str(tmp_path), "--output", str(tmp_path / "all"), "--negatives-per-positive", everything])
        balance = json.loads((tmp_path / "all" / "leakage.json").read_text(encoding="utf-8"))["balance"]
        assert all(counts["found"] == counts["kept"] for counts in (balance["fraud"], balance["non_fraud"]))
