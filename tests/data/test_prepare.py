"""From dialogues to splits, as users run it: what is written, what is reported, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from corpora import dialogue, read_splits, write_corpus

from data.files import DataError
from data.leakage import Known
from data.noise import add_asr_noise
from data.ordinary import OrdinarySettings
from data.prepare import KINDS, Settings, describe, main, prepare
from data.records import Skipped, read_dialogues, read_records, write_dialogues, write_records
from data.sample import sample_dialogues, sets_of_kinds
from data.speakers import format_dialogue
from data.split import is_fraud

ROOT = Path(__file__).parents[2]


def run_command(*args):
    return subprocess.run([sys.executable, "-m", "data.prepare", *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, encoding="utf-8")


def test_the_command_writes_three_splits_and_a_leakage_report(tmp_path):
    write_corpus(tmp_path)
    done = run_command("--source", tmp_path, "--output", tmp_path / "out", "--lengths", 13, 100)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == \
        ["eval.jsonl", "eval_calls.jsonl", "leakage.json", "test.jsonl", "test_calls.jsonl", "train.jsonl"]
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
                                 "ordinary": {"found": 0, "kept": 0}, "asr_noise_copies": 0,
                                 "begin_with_ordinary_talk": 0}
    clean = {"shared_cases": 0, "near_duplicates": 0, "rows_sharing_a_line": 0.0, "rows_with_half_their_runs": 0.0}
    assert report["leakage"] == {"eval against train": clean, "test against train": clean, "test against eval": clean}
    assert report["if_segments_were_shuffled"]["rows_sharing_a_line"] > 0.5  # every line stands in two segments
    assert report["skipped_lines"] == 0 and report["settings"]["lengths"] == [13, 100]
    assert {name: len(records) for name, records in splits.items()} == {"train": 64, "eval": 12, "test": 12}
    for name in ("eval", "test"):  # the same dialogues whole
        whole = read_records(tmp_path / "out" / f"{name}_calls.jsonl")
        of_segments = {r["case"]: False for r in splits[name]} | {r["case"]: True for r in splits[name] if r["label"]}
        assert {r["case"]: r["label"] for r in whole} == of_segments and len(whole) == 4
        assert all(len(r["line_labels"]) == r["input"].count("\n") + 1 for r in whole)
    assert f"--train {tmp_path}/out/train.jsonl" in done.stdout
    assert re.search("eval .*train: 0 .* 0 .* 0.0%", done.stdout)


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


@pytest.mark.parametrize("judged_on", ["held_out", "ordinary"])
def test_a_noisy_copy_that_repeats_what_is_judged_on_is_dropped_and_its_original_stays(tmp_path, judged_on):
    said = "".join(f"{chr(0x5000 + i)}的验证码在银行做吗" for i in range(20))
    noisy = add_asr_noise(f"甲: {said}")
    assert not Known([noisy]).compare([f"甲: {said}"])[0].repeats
    write_corpus(tmp_path / "corpus")
    for name, text in (("甲", said), ("乙", noisy.removeprefix("甲: "))):
        write_dialogues(tmp_path / f"{name}.csv", [dialogue(("甲", text, False), case=name, category=name)])
    write_records(tmp_path / "held_out.jsonl", [{"input": noisy, "label": False}])
    elsewhere = {"held_out": {"held_out": [tmp_path / "held_out.jsonl"]},
                 "ordinary": {"ordinary": OrdinarySettings(judge_sources=[tmp_path / "乙.csv"])}}[judged_on]
    report = prepare(tmp_path / "corpus", tmp_path / "out", Settings(
        lengths=[300], augment=1.0, negatives_per_positive=None, train_only=[tmp_path / "甲.csv"], **elsewhere))
    train = read_splits(tmp_path / "out")["train"]
    assert [record["input"] for record in train if record["category"] == "甲"] == [f"甲: {said}"]
    kept = sum(report["balance"][kind]["kept"] for kind in KINDS)
    assert report["balance"]["asr_noise_copies"] == kept - 1 == len(train) - kept


def test_a_dialogue_that_repeats_one_of_another_split_is_removed_and_counted(tmp_path):
    lines = [("客服", "您的快递丢失了，请点开链接填写银行卡号办理理赔。", True)]
    write_corpus(tmp_path)
    write_dialogues(tmp_path / "快递.csv", [dialogue(*lines, case=f"快递/{i}", category="快递") for i in range(10)])
    report = prepare(tmp_path, tmp_path / "out")
    removed = {name: counts["removed_as_repeats"] for name, counts in report["splits"].items()}
    assert removed == {"train": 8, "eval": 1, "test": 0}
    assert all(leak["near_duplicates"] == 0 for leak in report["leakage"].values())


def test_whole_calls_of_eval_repeat_none_of_test(tmp_path):
    write_corpus(tmp_path)
    said = [[chr(0x5000 + 30 * i + j) * 3 + "转账" for j in range(30)] for i in range(10)]
    for name, greeting in (("甲", []), ("乙", ["您好，这里是银行客服中心，本次通话将被录音。" * 3])):
        write_dialogues(tmp_path / f"{name}.csv", [
            dialogue(*(("客服", line, True) for line in greeting + lines), case=f"{name}/{i}", category=name)
            for i, lines in enumerate(said)])
    for seed in range(9):
        prepare(tmp_path, tmp_path / "out", Settings(lengths=(40, 100), seed=seed, shares=(1, 2, 2)))
        of_eval, of_test = ({r["case"][2:] for r in read_records(tmp_path / "out" / f"{part}_calls.jsonl")
                             if r["category"] in "甲乙"} for part in ("eval", "test"))
        assert of_test and of_eval.isdisjoint(of_test)
    # Behind a greeting their segments are cut elsewhere, so some stay in eval.
    report = prepare(tmp_path, tmp_path / "out", Settings(lengths=(40, 100), seed=8, shares=(1, 2, 2)))
    assert any("of the rows of test against eval hold" in warning for warning in report["warnings"])


@pytest.mark.parametrize("ratio", ["0.001", "1000"])
def test_a_ratio_that_leaves_one_label_of_train_is_named(tmp_path, capsys, ratio):
    write_corpus(tmp_path)
    command = ["--source", str(tmp_path), "--output", str(tmp_path / "out"), "--negatives-per-positive", ratio]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"--negatives-per-positive {ratio}: no record of one label")


def test_the_same_words_with_both_labels_are_warned_of(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "out")
    assert not any("word for word" in warning for warning in prepare(tmp_path, tmp_path / "out")["warnings"])
    first = read_dialogues(tmp_path / "退款(20).csv", Skipped())[0]
    write_dialogues(tmp_path / "聊天.csv", [dialogue(*(("甲", line.content, False) for line in first.lines),
                                                   case="聊天/7", category="聊天")])
    warning = prepare(tmp_path, tmp_path / "out")["warnings"][-1]
    assert warning.startswith("1 dialogues ") and "退款/0 and 聊天/7" in warning


def test_what_held_out_records_were_cut_from_is_in_no_split(tmp_path):
    write_corpus(tmp_path, fraud=30)
    dialogues = read_dialogues(tmp_path, Skipped())
    line_of_one = {"input": f"客服: {dialogues[0].lines[0].content}", "label": False}
    first, second = dialogues[1].lines
    nearly_another = {"input": f"客服: 嗯{first.content}\n张伟: {second.content}啊", "label": True}
    write_records(tmp_path / "other.jsonl", [line_of_one, nearly_another])
    done = run_command("--source", tmp_path, "--output", tmp_path / "out", "--held-out", tmp_path / "other.jsonl")
    assert done.returncode == 0 and " 2 dialogues" in done.stdout and "other.jsonl: not read" in done.stdout
    used = {record["case"] for records in read_splits(tmp_path / "out").values() for record in records}
    assert len(used) <= 48 and used.isdisjoint({dialogues[0].case, dialogues[1].case})
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert report["held_out"] == {"files": ["other.jsonl"], "records": 2, "dialogues_left_out": 2}


def test_skipped_lines_are_named_in_the_report_without_the_users_folders(tmp_path):
    write_corpus(tmp_path)
    text = "case,speaker,content,is_fraud\n1,客服,,True\n1,客服,您好,False\n"
    (tmp_path / "退款二.csv").write_text(text, encoding="utf-8")
    report = prepare(tmp_path, tmp_path / "out")
    assert report["skipped_lines"] == 1
    assert report["skipped"] == ["退款二.csv:2: column 'content' is empty"]
    assert "skipped 1 lines or files: 退款二.csv:2: column 'content' is empty" in describe(report)


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
    with pytest.raises(DataError, match=" 20 .* 2 .* 3 "):
        prepare(tmp_path, tmp_path / "out")
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_output_that_cannot_be_written_to_ends_with_one_line_and_code_2(tmp_path, capsys):
    write_corpus(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}/file/out/")


@pytest.mark.parametrize("name", ["ordinary.jsonl", "ordinary_eval_calls.jsonl", "train.jsonl", "leakage.json"])
def test_files_of_its_names_that_it_did_not_write_are_neither_replaced_nor_removed(tmp_path, capsys, name):
    write_corpus(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    command = ["--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/out/{name}: already there") and "--output" in line
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "{}")]


def test_a_file_put_into_the_folder_of_an_earlier_run_is_not_removed(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "out")
    (tmp_path / "out" / "ordinary.jsonl").write_text("mine")
    with pytest.raises(DataError, match="ordinary.jsonl: already there"):
        prepare(tmp_path, tmp_path / "out", Settings(seed=1))
    assert (tmp_path / "out" / "ordinary.jsonl").read_text() == "mine"


def test_a_disk_that_becomes_full_leaves_the_splits_of_an_earlier_run_together(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    places = iter(range(3))

    def fsync(handle):
        if next(places) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(DataError, match="No space left"):
        prepare(tmp_path, tmp_path / "out", Settings(seed=1))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


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


# ------------------------------------------------------------------------------- calls that are labelled as a whole


def calls(n=200):
    """Calls as a bank has them: under their numbers, each with one label."""
    return [{"input": format_dialogue([(line.speaker, line.content) for line in one.lines]), "label": is_fraud(one),
             "case": f"A{number}", "category": one.category, "录音": number}
            for number, one in enumerate(sample_dialogues(n))]


def test_calls_with_one_label_each_are_dealt_whole_and_in_proportion(tmp_path):
    write_records(tmp_path / "calls.jsonl", given := calls())
    done = run_command("--source", tmp_path / "calls.jsonl", "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train.jsonl", "eval.jsonl", "test.jsonl", "leakage.json"}
    splits = read_splits(tmp_path / "out")
    by_case = {record["case"]: record for record in given}
    assert all(record == by_case[record["case"]] for records in splits.values() for record in records)
    frauds = sum(record["label"] for record in given)
    for name in ("eval", "test"):
        assert abs(len(splits[name]) - 20) <= 1 and abs(sum(r["label"] for r in splits[name]) - frauds / 10) <= 1
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert report["settings"]["lengths"] == []
    assert report["warnings"] and all("says little" in warning for warning in report["warnings"])
    assert "shuffled" not in done.stdout and "below 30" in done.stdout


def test_one_call_recorded_twice_is_not_in_two_splits(tmp_path):
    given = calls(120)
    again = [{**record, "case": f"B{record['case']}", "input": "录音提示: 本次通话将被录音。\n" + record["input"]}
             for record in given]
    write_records(tmp_path / "calls.jsonl", given + again)
    report = prepare(tmp_path / "calls.jsonl", tmp_path / "out")
    splits = {name: {r["case"].removeprefix("B") for r in records}
              for name, records in read_splits(tmp_path / "out").items()}
    assert not (splits["train"] & splits["test"] or splits["train"] & splits["eval"] or splits["eval"] & splits["test"])
    assert report["splits"]["train"]["removed_as_repeats"] > 10
    assert all(leak["near_duplicates"] == 0 for leak in report["leakage"].values())


def test_what_joins_whole_calls_stays_whole_whether_csv_or_records(tmp_path):
    sets = sets_of_kinds(4)
    for name, kinds in (("日常", "ordinary_train"), ("诈骗", "scams_train")):
        write_dialogues(tmp_path / f"{name}.csv", [replace(one, case=f"{name}/{number}", category=name)
                                                   for number, one in enumerate(sets[kinds][:40])])
    elsewhere = [{"input": f"甲: {chr(0x5000 + i) * 9}开会{chr(0x6000 + i) * 9}。\n乙: 好的。", "label": False}
                 for i in range(9)]
    write_records(tmp_path / "会议.jsonl", elsewhere)
    write_records(tmp_path / "calls.jsonl", given := calls())
    write_records(tmp_path / "other.jsonl", given[:1])
    report = prepare(tmp_path / "calls.jsonl", tmp_path / "out", Settings(
        augment=0.5, train_only=[tmp_path / "诈骗.csv"], held_out=[tmp_path / "other.jsonl"],
        ordinary=OrdinarySettings([tmp_path / "日常.csv"], [tmp_path / "会议.jsonl"], train_share=None)))
    parts = {path.stem: read_records(path) for path in (tmp_path / "out").glob("*.jsonl")}
    assert set(parts) == {"train", "eval", "test", "ordinary", "ordinary_eval"}
    assert not any({"line_labels", "fraud_speaker"} & set(record) for records in parts.values() for record in records)
    assert {r["input"] for r in parts["ordinary"] if r["source"] == "会议"} == {r["input"] for r in elsewhere}
    assert {r["case"] for r in parts["ordinary"] if r["source"] == "会议"} == {f"会议/{i}" for i in range(1, 10)}
    train = {kind: [r for r in parts["train"] if r["case"].startswith(kind)] for kind in ("诈骗/", "日常/")}
    assert all(train.values()) and all(r["label"] == ("诈骗" in r["case"]) for rows in train.values() for r in rows)
    assert report["balance"]["asr_noise_copies"] > 0 and report["held_out"]["dialogues_left_out"] > 0
    assert "A0" not in {record["case"] for records in parts.values() for record in records}


def test_a_folder_of_calls_is_read_without_what_is_of_lines_and_in_one_form(tmp_path):
    (tmp_path / "calls").mkdir()
    first = {"input": "[10:00:01] 客服: 您好,王女士\r\n[10:00:05] 客户:  谁?", "label": True, "source": "热线",
             "line_labels": [True, False], "fraud_speaker": "客服"}
    write_records(tmp_path / "calls" / "a.jsonl", [first, {"input": "甲: 好", "label": False, "case": ""}])
    write_records(tmp_path / "calls" / "b.jsonl", calls(60))
    (tmp_path / "calls" / "c.xlsx").write_bytes(b"")
    read = read_dialogues(tmp_path / "calls", skipped := Skipped())
    assert [one.case for one in read[:3]] == ["a/1", "a/2", "A0"]
    assert ["c.xlsx" in place for place in skipped.places] == [True]
    prepare(tmp_path / "calls", tmp_path / "out")
    found, = [r for records in read_splits(tmp_path / "out").values() for r in records if r["case"] == "a/1"]
    assert found == {"input": "客服: 您好，王女士\n客户: 谁？", "label": True, "case": "a/1"}


def test_a_call_that_is_there_again_word_for_word_is_passed_over_and_named(tmp_path):
    first, other = calls(2)
    write_records(tmp_path / "calls.jsonl", [first, other, {**first, "input": f"{first['input']}\n"}])
    read = read_dialogues(tmp_path / "calls.jsonl", skipped := Skipped())
    assert [one.case for one in read] == ["A0", other["case"]]
    assert skipped.places == [f"{tmp_path}/calls.jsonl:3: the case 'A0' again, word for word"]


@pytest.mark.parametrize("options, said", [
    (["--lengths", "100"], "whole calls, which are not cut; leave out --lengths"),
    (["--labels", "lines"], "whole calls, which are not cut; leave out --labels"),
    (["--output", "."], "lies in the folder to write"),
    (["--source", "corpus", "--train-only", "calls.jsonl"], "calls.jsonl: holds whole calls, and --source dialogues"),
    (["--source", "corpus", "--ordinary", "calls.jsonl"], "calls.jsonl: holds whole calls, and --source dialogues"),
    (["--source", "twice.jsonl"], "twice.jsonl:2: the case 'A0' is there twice"),
    (["--ordinary", "calls.jsonl"], "labelled fraud"),
    (["--ordinary", "harmless.jsonl"], "in a .jsonl, the case"),
    (["--layout", "records"], "--convert calls.jsonl"),
])
def test_what_does_not_go_with_whole_calls_is_refused_in_one_line(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus")
    write_records(tmp_path / "calls.jsonl", given := calls(60))
    write_records(tmp_path / "twice.jsonl", [given[0], {**given[1], "case": given[0]["case"]}])
    write_records(tmp_path / "harmless.jsonl", [record for record in given if not record["label"]])
    assert main(["--source", "calls.jsonl", "--output", "out", *options]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "out").exists()
