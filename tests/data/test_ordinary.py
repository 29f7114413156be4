"""Ordinary talk: which of it goes to train, to the threshold and to the judge, and what is refused."""

import json
import random

import pytest
from corpora import dialogue, read_splits, write_corpus

from data.files import DataError
from data.ordinary import MOST_FIRST, OrdinarySettings, begin_with_ordinary
from data.prepare import Settings, main, prepare
from data.records import read_records, write_dialogues


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
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "out"), "--ordinary", str(chat),
                 "--ordinary-judge", str(tmp_path / "b"), *options]) == 0
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


def test_kinds_for_choosing_alone_are_never_trained_on_nor_judged_on(tmp_path):
    write_corpus(tmp_path)
    chat = write_talk(tmp_path / "a" / "聊天.csv", 10, seed=20)
    choose = write_talk(tmp_path / "b" / "客服.csv", 4, seed=5)
    judge = write_talk(tmp_path / "c" / "医院.csv", 3, seed=6)
    assert main(["--source", str(tmp_path), "--output", str(tmp_path / "out"), "--ordinary", str(chat),
                 "--ordinary-eval", str(choose), "--ordinary-judge", str(judge), "--ordinary-share", "all",
                 "--lengths", "100"]) == 0
    files = read_ordinary_files(tmp_path / "out")
    counts = {name: {source: sum(r["source"] == source for r in records) for source in ("聊天", "客服", "医院")}
              for name, records in files.items()}
    assert counts["ordinary_eval_calls"] == {"聊天": 1, "客服": 4, "医院": 0}  # a tenth of the first, all of the second
    assert counts["ordinary_calls"] == {"聊天": 2, "客服": 0, "医院": 3}
    train = read_records(tmp_path / "out" / "train.jsonl")
    assert sum("source" in r for r in train) == 7 == sum(r.get("source") == "聊天" for r in train)
    report = json.loads((tmp_path / "out" / "leakage.json").read_text(encoding="utf-8"))
    assert report["settings"]["ordinary"]["eval_sources"] == ["客服.csv"]
    assert report["settings"]["ordinary"]["train_share"] is None


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
    report = prepare(tmp_path, tmp_path / "out", Settings(ordinary=OrdinarySettings(
        [tmp_path / "a"], [judge], judge_share=0, eval_share=0)))
    assert report["balance"]["ordinary"]["found"] == 0 and report["splits"]["train"]["removed_as_repeats"] == 5


def test_a_part_of_which_no_segment_is_left_has_no_calls_either(tmp_path):
    write_corpus(tmp_path)
    judge = write_talk(tmp_path / "b" / "客服.csv", 5, seed=5)
    (tmp_path / "聊天").mkdir()
    (tmp_path / "聊天" / "同.csv").write_text(judge.read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):  # the second run knows all files of the first for its own
        prepare(tmp_path, tmp_path / "out", Settings(ordinary=OrdinarySettings([], [judge], [tmp_path / "聊天"])))
        assert set(read_ordinary_files(tmp_path / "out")) == {"ordinary", "ordinary_calls"}


def test_more_dialogues_may_be_for_train_alone(tmp_path):
    write_corpus(tmp_path)
    prepare(tmp_path, tmp_path / "plain")
    more = [dialogue(("客服", chr(0x5000 + i) * 20, True), case=f"中奖/{i}", category="中奖") for i in range(4)]
    write_dialogues(tmp_path / "more" / "中奖.csv", more)
    report = prepare(tmp_path, tmp_path / "out", Settings(train_only=[tmp_path / "more"], negatives_per_positive=None))
    splits, plain = read_splits(tmp_path / "out"), read_splits(tmp_path / "plain")
    assert splits["eval"] == plain["eval"] and splits["test"] == plain["test"]
    assert sum(r["category"] == "中奖" for r in splits["train"]) == 4 and report["settings"]["train_only"] == ["more"]


def test_dialogues_for_train_alone_that_are_in_the_corpus_or_given_twice_are_refused(tmp_path, capsys):
    write_corpus(tmp_path)
    talk = write_talk(tmp_path / "a" / "聊天.csv", 5, seed=1)
    for more in ([tmp_path / "会议.csv"], [talk, talk]):
        folders = ["--source", str(tmp_path), "--output", str(tmp_path / "out")]
        assert main([*folders, "--train-only", *map(str, more)]) == 2
        err = capsys.readouterr().err
        assert f"'{more[0].stem}/0' of --train-only" in err and "rename" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_fraud_in_ordinary_talk_is_refused_with_its_place(tmp_path, capsys):
    write_corpus(tmp_path)
    (tmp_path / "a").mkdir()
    content = "case,speaker,content,is_fraud\n7,甲,您好,False\n7,乙,转钱,True\n"
    (tmp_path / "a" / "聊天.csv").write_text(content, encoding="utf-8")
    for option in ("--ordinary", "--ordinary-eval", "--ordinary-judge"):
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


# ------------------------------------------------------------------------------------------- ordinary talk comes first


def test_a_share_of_the_other_records_begins_with_ordinary_talk_and_keeps_its_labels():
    said = "就它吧", "好的", "谢谢"
    talk = [{"input": f"店员: 您{begin}要{i}号\n顾客: {said[0]}\n店员: {said[1]}\n顾客: {said[2]}", "label": False,
             "source": "店", "line_labels": [False] * 4, "position": place}
            for i in range(5) for place, begin in ((0.0, "想"), (0.5, "又"))]
    scams = [{"input": f"骗子: 把{i}元转给我\n老人: 好", "label": True, "line_labels": [True, False]}
             for i in range(50)]
    more = begin_with_ordinary([*talk, *scams], 0.4, talk)
    assert more[:10] == talk and [r["label"] for r in more] == [r["label"] for r in (*talk, *scams)]
    begun = [(before, after) for before, after in zip(scams, more[10:]) if after is not before]
    added = [len(after["line_labels"]) - 2 for _, after in begun]
    assert len(begun) == 20 and set(added) == set(range(1, MOST_FIRST + 1))
    for (before, after), lines in zip(begun, added):
        *first, last, _ = after["input"].split("\n")
        assert after["input"].endswith("\n" + before["input"])
        assert after["line_labels"] == [*[False] * lines, True, False]
        assert [line.split(": ")[0] for line in (*first, last)] == (["骗子", "老人", "骗子"][:lines] + ["骗子"])
        words = [line.split(": ")[1] for line in first]
        assert words[0] in [f"您想要{i}号" for i in range(5)] and words[1:] == list(said[:lines - 1])
    assert begin_with_ordinary([*talk, *scams], 0.4, talk) == more
    assert begin_with_ordinary([*talk, *scams], 0.4, talk, seed=1) != more
    assert begin_with_ordinary(scams, 0.4, scams) == scams  # no ordinary talk, nothing to begin with
    without = begin_with_ordinary([{"input": r["input"], "label": True} for r in scams], 1.0, talk)
    assert not any("line_labels" in r for r in without)


def test_data_prepare_lets_train_alone_begin_with_ordinary_talk_and_counts_how_often(tmp_path, capsys):
    write_corpus(tmp_path)
    chat = write_talk(tmp_path / "a" / "聊天.csv", 20, seed=20)

    def prepared(name, *options):
        assert main(["--source", str(tmp_path), "--output", str(tmp_path / name), "--ordinary", str(chat),
                     "--lengths", "100", *options]) == 0
        return read_splits(tmp_path / name), json.loads((tmp_path / name / "leakage.json").read_text(encoding="utf-8"))

    begun, report = prepared("begun", "--ordinary-first", "0.3")
    plain, other = prepared("plain", "--ordinary-first", "0")
    rows = sorted(({r["case"]: r for r in splits["train"] if "source" not in r} for splits in (begun, plain)), key=len)
    changed = sum(rows[0][case]["input"] != rows[1][case]["input"] for case in rows[0])
    assert changed == round(0.3 * len(rows[0])) == report["balance"]["begin_with_ordinary_talk"] > 0
    assert other["balance"]["begin_with_ordinary_talk"] == 0 == report["balance"]["asr_noise_copies"]
    assert {name: rows for name, rows in begun.items() if name != "train"} == {
        name: rows for name, rows in plain.items() if name != "train"}
    assert f"{changed} records that begin with ordinary talk" in capsys.readouterr().out
