"""The sample corpus: balanced, reproducible, readable as the public one is, and not to be solved by single words."""

import collections
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data import sample
from data.files import DataError
from data.prepare import Settings, prepare
from data.records import Skipped, read_dialogues, read_records
from data.sample import sample_dialogues, sets_of_kinds, write_sample
from data.split import is_fraud

ROOT = Path(__file__).parents[2]
CUES = ("验证码", "转", "账户", "链接", "密码", "骗子", "扫码", "柜台", "官方", "不管谁让", "说：“")


@pytest.fixture(scope="module")
def dialogues():
    return sample_dialogues(2400)


def text(dialogue) -> str:
    return "\n".join(line.content for line in dialogue.lines)


def test_kinds_and_classes_are_balanced(dialogues):
    kinds = collections.Counter(dialogue.category for dialogue in dialogues)
    scams = {dialogue.category for dialogue in dialogues if is_fraud(dialogue)}
    others = {dialogue.category for dialogue in dialogues if not is_fraud(dialogue)}
    assert len(scams) >= 12 and len(others) >= 12 and not scams & others
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert sum(map(is_fraud, dialogues)) == 1200
    assert len({dialogue.case for dialogue in dialogues}) == 2400


def test_scams_and_only_scams_have_fraud_lines(dialogues):
    scams = {topic["scam"] for topic in sample.phrases()["topics"]}
    assert all(is_fraud(dialogue) == (dialogue.category in scams) for dialogue in dialogues)


def test_every_line_says_something_with_no_slot_left_open(dialogues):
    lines = [line for dialogue in dialogues for line in dialogue.lines]
    assert all(line.speaker.strip() and line.content.strip() for line in lines)
    assert not [line.content for line in lines if "{" in line.content or "}" in line.content]


def test_dialogues_are_of_the_promised_length(dialogues):
    sizes = [len(text(dialogue)) for dialogue in dialogues]
    turns = [len(dialogue.lines) for dialogue in dialogues]
    assert 60 <= min(sizes) and max(sizes) <= 450
    assert 4 <= min(turns) and max(turns) <= 24


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    paths = write_sample(tmp_path / "here", 68, seed=3)
    for hash_seed in ("1", "2"):
        there = tmp_path / hash_seed
        subprocess.run([sys.executable, "-m", "data.sample", "--output", there, "--dialogues", "68", "--seed", "3"],
                       cwd=ROOT, env={"PYTHONHASHSEED": hash_seed}, check=True, capture_output=True)
        assert [(there / path.name).read_bytes() for path in paths] == [path.read_bytes() for path in paths]


def test_files_that_were_there_are_pointed_out(tmp_path, capsys):
    assert sample.main(["--output", str(tmp_path), "--dialogues", "40"]) == 0 and not capsys.readouterr().err
    assert sample.main(["--output", str(tmp_path), "--dialogues", "4"]) == 0
    assert "30 other CSV files are there" in capsys.readouterr().err


def test_another_seed_gives_other_dialogues():
    ours = {text(dialogue) for dialogue in sample_dialogues(340, seed=1)}
    assert not ours & {text(dialogue) for dialogue in sample_dialogues(340, seed=2)}


def test_csv_gives_the_dialogues_back(tmp_path):
    write_sample(tmp_path, 100, seed=5)
    skipped = Skipped()
    read = {dialogue.case: dialogue for dialogue in read_dialogues(tmp_path, skipped)}
    assert not skipped
    assert read == {dialogue.case: dialogue for dialogue in sample_dialogues(100, seed=5)}


def test_near_duplicates_are_few(tmp_path):
    write_sample(tmp_path / "source", 1200)
    splits = prepare(tmp_path / "source", tmp_path / "data", Settings(lengths=(500,)))["splits"]
    cut = sum(counts["cut"] for counts in splits.values())
    assert sum(counts["removed_as_repeats"] for counts in splits.values()) < 0.02 * cut


def share(dialogues, holds, label: bool) -> float:
    members = [dialogue for dialogue in dialogues if is_fraud(dialogue) == label]
    return sum(map(holds, members)) / len(members)


@pytest.mark.parametrize("cue", CUES)
def test_cue_words_stand_in_both_classes(dialogues, cue):
    fraud, others = (share(dialogues, lambda dialogue: cue in text(dialogue), label) for label in (True, False))
    assert min(fraud, others) > 0.02
    assert max(fraud, others) < 4 * min(fraud, others)


def test_every_step_of_every_topic_is_spoken_of_in_both_classes():
    known = {False: "", True: ""}
    for dialogue in sample_dialogues(6800):
        known[is_fraud(dialogue)] += text(dialogue)
    for topic in sample.phrases()["topics"]:
        for step in (*topic["danger"], *topic["safe"]):
            words = max(sample.re.split(r"\{\w+\}", step), key=len)
            assert words in known[True] and words in known[False], words


def test_names_do_not_give_the_label_away(dialogues):
    def names(dialogue):
        return {line.speaker for line in dialogue.lines}

    def numbered(dialogue):
        return all(name.startswith("发言人") for name in names(dialogue))

    assert 0.25 < share(dialogues, numbered, True) < 0.42 and 0.25 < share(dialogues, numbered, False) < 0.42
    seen = collections.defaultdict(collections.Counter)
    for dialogue in dialogues[:1200]:
        for name in names(dialogue):
            seen[name][is_fraud(dialogue)] += 1
    scores = [sum(seen[name][True] - seen[name][False] for name in names(dialogue)) for dialogue in dialogues[1200:]]
    right = sum((score > 0) == is_fraud(dialogue) for score, dialogue in zip(scores, dialogues[1200:], strict=True))
    assert 0.42 < right / 1200 < 0.58


def test_sets_share_no_kind_and_only_scams_have_frauds():
    sets = sets_of_kinds(4)
    kinds = {use: {dialogue.category for dialogue in dialogues} for use, dialogues in sets.items()}
    topics = sample.phrases()["topics"] + sample.phrases()["more_topics"]
    known = {topic["non_fraud"] for topic in topics} | kinds["scams_train"] | kinds["scams_unseen"]
    assert sum(map(len, kinds.values())) == len(set.union(*kinds.values()))
    assert set.union(*kinds.values()) == known | {kind["name"] for kind in sample.ordinary()["kinds"]}
    for use, dialogues in sets.items():
        of_each = 2 if use == "scams_train" else 4
        assert len(dialogues) == of_each * len(kinds[use]) == len({dialogue.case for dialogue in dialogues})
        assert {is_fraud(dialogue) for dialogue in dialogues} == {use.startswith("scams")}
        assert not [dialogue for dialogue in dialogues if "{" in text(dialogue) or not all(
            line.speaker and line.content for line in dialogue.lines)]


def test_every_scam_for_training_stands_beside_its_rightful_twin():
    topics = sample.phrases()["topics"] + sample.phrases()["more_topics"]
    twins = {topic["scam"]: topic["non_fraud"] for topic in topics}
    use = sample.ordinary()["use"]
    assert {twins[scam] for scam in use["scams_train"]} <= set(use["ordinary_train"])
    assert len(sets_of_kinds(1)["scams_train"]) == len(use["scams_train"])


def test_dangerous_and_safe_steps_of_every_topic_stand_in_pairs_that_begin_alike():
    topics = sample.phrases()["topics"] + sample.phrases()["more_topics"]
    pairs = [pair for topic in topics for pair in zip(topic["danger"], topic["safe"], strict=True)]
    assert len(pairs) == 6 * len(topics)
    assert not [pair for pair in pairs if pair[0][0] != pair[1][0]]


def test_every_sentence_of_ordinary_talk_can_be_filled_and_no_two_kinds_share_one():
    of_kind = {kind["name"]: [*kind["intros"], *(sentence for turn in kind["turns"] for sentence in turn)]
               for kind in sample.ordinary()["kinds"]}
    for kind in sample.ordinary()["kinds"]:
        writer = sample._Writer(random.Random(0), kind, fraud=False)
        assert not [text for text in map(writer._fill, of_kind[kind["name"]]) if "{" in text or "}" in text]
        assert len(kind["roles"]) == 4 and len(kind["turns"]) >= 8 and {len(turn) for turn in kind["turns"]} == {2}
    sentences = [sentence for of_one in of_kind.values() for sentence in of_one]
    assert len(sentences) == len(set(sentences))


def test_sets_are_written_into_folders_by_use_and_unseen_scams_as_records(tmp_path, capsys):
    assert sample.main(["--output", str(tmp_path), "--sets", "2", "--seed", "4"]) == 0
    expected = sets_of_kinds(2, seed=4)
    for use, dialogues in expected.items():
        read = {dialogue.case: dialogue for dialogue in read_dialogues(tmp_path / f"sample_{use}", Skipped())}
        assert read == {dialogue.case: dialogue for dialogue in dialogues}
    calls = read_records(tmp_path / "scams_unseen_calls.jsonl")
    segments = read_records(tmp_path / "scams_unseen.jsonl")
    cases = {dialogue.case for dialogue in expected["scams_unseen"]}
    assert len(calls) == len(cases) and {r["case"] for r in segments} == cases == {r["case"] for r in calls}
    assert all(r["label"] for r in calls) and not all(r["label"] for r in segments)
    printed = capsys.readouterr().out
    for option in ("--ordinary {}/sample_ordinary_train", "--ordinary-eval {}/sample_ordinary_choose",
                   "--ordinary-judge {}/sample_ordinary_judge", "--train-only {}/sample_scams_train"):
        assert option.format(tmp_path) in printed


def test_no_dialogues_is_an_error_of_one_line(tmp_path, capsys):
    with pytest.raises(DataError):
        sample_dialogues(0)
    assert sample.main(["--output", str(tmp_path), "--dialogues", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_output_that_is_a_file_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sample.main(["--output", str(tmp_path / "file" / "folder"), "--dialogues", "4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
