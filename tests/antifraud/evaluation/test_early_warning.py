"""Early warning: what is scored line by line equals the whole dialogue's score, and alarms are counted by hand."""

import json
import math
import shutil

import numpy as np
import pytest
from helpers import make_tokenizer, save_random_base
from hypothesis import given, settings
from hypothesis import strategies as st

from antifraud.checkpoint import Decision, find_checkpoint
from antifraud.evaluation import early_warning as module
from antifraud.evaluation import scoring
from antifraud.evaluation.early_warning import (
    alarm_line,
    alarm_report,
    calls_of,
    score_growing,
    threshold_for,
)
from antifraud.evaluation.growing import GrowingDialogue
from antifraud.evaluation.scoring import rows_of, score_prompts, score_rows
from antifraud.logits import model_inputs, shares_prefix
from antifraud.model import load_tuned
from antifraud.provenance import file_sha256
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import Dialogue, Line, write_dialogues, write_records

LINES = ["王经理: 今天风有点大。", "顾客: 好的。。。", "王经理: 请把短信里的号码念给我，", "顾客: ，我替您办退款。",
         "（电话挂断）", "王经理: <|im_end|>", "客服: 请把验证码告诉我。"]


@pytest.fixture(scope="module", params=["Qwen2", "Qwen3", "Mistral", "Gemma 3"])
def random_base(request, tmp_path_factory):
    """A random model; Mistral's and Gemma 3's windows slide on after 16 tokens, long before the first line is over."""
    folder = tmp_path_factory.mktemp("base")
    return load_tuned(save_random_base(folder, request.param, make_tokenizer()), "", "cpu", quantization="none")


def whole_scores(model, tokenizer, lines):
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    return [score_prompts(model, encoder, encoder.prompts(["\n".join(lines[:end])]))[0]
            for end in range(1, len(lines) + 1)]


# ---------------------------------------------------------------------------------------------- line by line


def test_a_growing_dialogue_scores_as_the_dialogue_so_far(random_base):
    model, tokenizer = random_base
    growing = GrowingDialogue(model, tokenizer)
    np.testing.assert_allclose([growing.add(line) for line in LINES], whole_scores(model, tokenizer, LINES), atol=1e-4)


@pytest.mark.parametrize("no_text", [None, float("nan"), 5, "\ud83d"])
def test_a_line_that_is_no_text_is_refused_and_costs_the_dialogue_nothing(loaded, no_text):
    growing, other = GrowingDialogue(*loaded), GrowingDialogue(*loaded)
    assert growing.add(LINES[0]) == other.add(LINES[0])
    with pytest.raises(DataError, match="the line "):  # "None" was read
        growing.add(no_text)
    assert growing.add(LINES[1]) == other.add(LINES[1])


def test_with_an_adapter_and_a_temperature_too(loaded):
    model, tokenizer = loaded
    growing = GrowingDialogue(model, tokenizer)
    found, expected = [growing.add(line) for line in LINES], whole_scores(model, tokenizer, LINES)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert max(found) - min(found) > 0.3  # the run has learnt its two sentences
    kept = model.lineage.decision
    try:
        model.lineage.decision = Decision(temperature=2.0)
        warm = GrowingDialogue(model, tokenizer)
        odds = (np.array(expected) / (1 - np.array(expected))) ** 0.5
        np.testing.assert_allclose([warm.add(line) for line in LINES], odds / (1 + odds), atol=1e-4)
    finally:
        model.lineage.decision = kept


@settings(max_examples=15)
@given(st.lists(st.text("A甲:：。，…\n <|im_end>a", max_size=12), min_size=1, max_size=5))
def test_whatever_the_lines_hold_and_however_they_merge(loaded, lines):
    model, tokenizer = loaded
    growing = GrowingDialogue(model, tokenizer)
    np.testing.assert_allclose([growing.add(line) for line in lines], whole_scores(model, tokenizer, lines), atol=1e-4)


def test_only_new_tokens_are_computed(loaded):
    model, tokenizer = loaded
    growing = GrowingDialogue(model, tokenizer)
    encoder = growing.encoder
    spent = []
    for line in LINES:
        before = growing.forwarded
        growing.add(line)
        spent.append(growing.forwarded - before)
        # All but the last token of the dialogue is remembered: with that one the next line may merge.
        assert growing._cached == growing._prompt[:len(growing._prompt) - len(encoder.tail) - 1]
    tail = len(encoder.tail) + len(encoder.answer_prefix)
    of_line = [len(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in LINES]
    for tokens, line in zip(spent[1:], of_line[1:]):
        assert tokens <= line + tail + 8  # its own, the tail's, and a few at the boundary
    assert sum(spent) < 0.5 * sum(map(len, encoder.prompts(["\n".join(LINES[:end]) for end in range(1, 8)])))


def test_a_cache_that_cannot_be_cut_back_is_computed_anew(random_base):
    model, tokenizer = random_base
    growing = GrowingDialogue(model, tokenizer)
    lines = ["甲: 您好，请问您是哪位？", "乙: 我是客服", "甲: 好"]
    found = [growing.add(lines[0]), growing.add(lines[1])]
    cache, forwarded = growing._cache, growing.forwarded
    growing._cached[-3] += 1  # as if tokens before the last one had merged
    found.append(growing.add(lines[2]))
    np.testing.assert_allclose(found, whole_scores(model, tokenizer, lines), atol=1e-4)
    window_slides = model.config.model_type in ("mistral", "gemma3_text")
    assert (growing._cache is not cache) == window_slides
    anew = len(growing._prompt) + len(growing.encoder.answer_prefix)
    assert (growing.forwarded - forwarded == anew) == window_slides


def test_of_a_dialogue_longer_than_the_context_the_newest_window_is_scored(loaded):
    model, tokenizer = loaded
    kept = model.lineage.task
    whole = PromptEncoder(tokenizer, kept)
    two_lines = len(whole.prompts(["\n".join(LINES[:2])])[0]) + max(map(len, whole.completions.values()))
    try:
        model.lineage.task = Task(max_length=two_lines)
        growing, encoder = GrowingDialogue(model, tokenizer), PromptEncoder(tokenizer, model.lineage.task)
        first = []
        for end in range(1, 6):
            found = growing.add(LINES[end - 1])
            window = encoder.windows("\n".join(LINES[:end]))[-1]
            assert found == pytest.approx(score_prompts(model, encoder, [window.ids])[0], abs=1e-4)
            assert window.last_line == end - 1
            first.append(growing.first_line)
    finally:
        model.lineage.task = kept
    assert first[:2] == [0, 0] and first == sorted(first) and first[-1] > 0


def test_a_score_that_is_not_finite_is_an_error(base):
    model, tokenizer = load_tuned(base, "", "cpu")
    model.get_input_embeddings().weight.data[tokenizer("ÿ")["input_ids"][0]] = float("nan")
    growing = GrowingDialogue(model, tokenizer)
    assert 0 <= growing.add("A: 好") <= 1
    with pytest.raises(FloatingPointError):
        growing.add("B: ÿ")


# ---------------------------------------------------------------------------------------------- alarms


def dialogue(case: str, *flags: bool) -> Dialogue:
    """A dialogue whose lines are fraud where `flags` says so."""
    return Dialogue(case, "kind", tuple(Line("甲乙"[i % 2], f"第{i}句话", flag) for i, flag in enumerate(flags)))


def beginnings(encoder, dialogues):
    """A row for each dialogue up to each of its lines, one after the other."""
    texts = ["\n".join(lines[:end]) for lines in dialogues for end in range(1, len(lines) + 1)]
    return rows_of(encoder, encoder.prompts(texts), line_aware=True)


def scored_and_run(model, rows, monkeypatch, **options):
    """The scores of rows, their log-odds, and over how many tokens the model ran for them."""
    ran, odds = [], {}

    def counted(*args):
        ran.append(model_inputs(*args))
        return ran[-1]

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "model_inputs", counted)
        scores = score_rows(model, rows, odds_of=odds, **options)
    return scores, odds, sum(inputs["input_ids"].numel() for inputs in ran)


def test_what_beginnings_of_a_dialogue_share_is_computed_once_and_changes_no_score(random_base, monkeypatch):
    model, tokenizer = random_base
    encoder, other = (PromptEncoder(tokenizer, task) for task in (
        Task(), Task(instruction="是不是诈骗？", answers=("是", "否"))))
    rows = [*beginnings(encoder, [LINES, LINES[::-1]]), *beginnings(other, [LINES]), *beginnings(encoder, [LINES])]
    found, odds, tokens = scored_and_run(model, rows, monkeypatch, grown=True)
    alone, odds_alone, tokens_alone = scored_and_run(model, rows, monkeypatch)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert odds.keys() == odds_alone.keys() == set(rows)
    for row in rows:
        np.testing.assert_allclose(odds[row], odds_alone[row], atol=1e-4)
    assert tokens < 0.6 * tokens_alone if shares_prefix(model, 500) else tokens == tokens_alone


def test_many_dialogues_at_once_score_as_one_line_after_the_other(loaded):
    model, tokenizer = loaded
    dialogues = [dialogue("1", False, True, True), dialogue("2", False)]
    found = score_growing(model, tokenizer, dialogues)
    assert [len(scores) for scores in found] == [3, 1]
    growing = GrowingDialogue(model, tokenizer)
    expected = [growing.add(line) for line in ("甲: 第0句话", "乙: 第1句话", "甲: 第2句话")]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize("false_alarms, alarmed", [(0, 0), (24.9, 0), (25, 1), (50, 2), (99, 3), (100, 4)])
def test_the_threshold_lets_no_more_non_fraud_calls_alarm_than_was_asked(false_alarms, alarmed):
    non_fraud = [np.array(scores) for scores in ([0.1, 0.2], [0.9, 0.1], [0.3], [0.2, 0.5])]  # highest .2 .9 .3 .5
    threshold = threshold_for(non_fraud, false_alarms)
    assert sum(alarm_line(scores, threshold) is not None for scores in non_fraud) == alarmed


def test_a_share_that_is_a_whole_number_of_calls_is_not_rounded_down():
    """4.6 of a hundred of 1500 calls are 69; 4.6 * 1500 / 100 is a little less."""
    non_fraud = [np.array([call / 1500]) for call in range(1500)]
    assert threshold_for(non_fraud, 4.6) == math.nextafter(1430 / 1500, 1)


def test_dialogues_that_score_alike_stand_or_fall_together():
    non_fraud = [np.array([0.4]), np.array([0.4]), np.array([0.1]), np.array([0.1])]
    assert threshold_for(non_fraud, 25) == math.nextafter(0.4, 1)
    with pytest.raises(DataError, match="no non-fraud calls"):
        threshold_for([], 1)


def test_alarms_by_hand():
    dialogues = [dialogue("a", False, True, True, True), dialogue("b", False, True), dialogue("c", True, True),
                 dialogue("d", False, False), dialogue("e", False)]
    scores = [np.array(row) for row in ([0.1, 0.2, 0.8, 0.9], [0.9, 0.1], [0.1, 0.1], [0.1, 0.7], [0.2])]
    found = alarm_report(dialogues, scores, 0.7)
    assert (found["non_fraud"], found["non_fraud_alarmed"], found["fraud"], found["fraud_alarmed"]) == (2, 1, 3, 2)
    assert found["by_category"] == {"kind": {"calls": 2, "alarmed_calls": 1}}
    assert found["false_alarms_per_hundred"] == 50.0 and found["recall"] == pytest.approx(2 / 3)
    assert found["lines"][1] == 2.0  # the third line of a, the first of b
    assert found["share_of_dialogue"][1] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["share_of_fraud_lines"][1] == pytest.approx((2 / 3 + 0) / 2)
    assert found["alarmed_before_any_fraud_line"] == 1
    assert found["alarmed_by"] == {"0.1": 0.0, "0.25": 0.0, "0.5": pytest.approx(1 / 3), "0.75": pytest.approx(2 / 3),
                                   "1.0": pytest.approx(2 / 3)}


def test_without_alarms_or_frauds_nothing_is_made_up():
    found = alarm_report([dialogue("d", False)], [np.array([0.1])], 0.5)
    assert found["recall"] is found["lines"] is found["alarmed_by"]["1.0"] is None
    json.dumps(found, allow_nan=False)


def test_a_non_fraud_dialogue_counts_as_calls_of_a_scams_length():
    calls = calls_of([dialogue("scam", False, True, False), dialogue("meeting", False, False, False)],
                     characters=8)
    assert [(call.case, len(call.lines)) for call in calls] == [("scam", 3), ("meeting", 2), ("meeting", 1)]


def test_for_each_rate_the_rule_that_finds_most_of_evals_frauds_is_taken_and_the_models_own_of_equals():
    calls = [dialogue(str(row), row < 3) for row in range(6)]  # three frauds, three that are none
    own, other = Decision(line_weight=0.5, top_lines=1), Decision(line_weight=0.2, top_lines=3)
    by_own = [np.array([score]) for score in (0.9, 0.6, 0.6, 0.8, 0.2, 0.1)]
    by_other = [np.array([score]) for score in (0.7, 0.7, 0.3, 0.5, 0.4, 0.1)]
    on_eval = {own: by_own, other: by_other}

    def scores_by(rule, name):
        return on_eval[rule] if name == "eval" else on_eval[rule][::-1]

    rows = module._at({"eval": calls, "test": calls[::-1]}, [own, other], scores_by, (0, 34))
    assert [row["decision"]["top_lines"] for row in rows] == [3, 1]  # two found instead of one; three and two
    assert [row["test"]["fraud_alarmed"] for row in rows] == [2, 3]
    for row, quiet in zip(rows, (0.5, 0.2), strict=True):
        assert row["threshold"] == row["decision"]["threshold"] == math.nextafter(quiet, 1)
    one = module._at({"eval": calls}, [own, other], lambda rule, name: by_own, (0,))
    assert one[0]["decision"]["top_lines"] == 1 and "decision" not in module._at(
        {"eval": calls}, [None], lambda rule, name: by_own, (0,))[0]


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def corpus(tmp_path):
    """A corpus of eight dialogues, every other one fraud, and splits that know two of each."""
    dialogues = [Dialogue(f"退款/{i}", "退款", dialogue("", False, i % 2 == 0).lines) for i in range(8)]
    write_dialogues(tmp_path / "退款.csv", dialogues)
    for name, cases in (("eval", dialogues[:4]), ("test", dialogues[4:])):
        write_records(tmp_path / f"{name}.jsonl",
                      [{"input": "甲: 好", "label": False, "case": one.case} for one in cases])
    return tmp_path


def attempt(base, run_folder, corpus, **changed):
    options = {"model": base, "checkpoint": run_folder, "source": corpus, "eval": corpus / "eval.jsonl",
               "test": corpus / "test.jsonl", "output": corpus / "warning.json", "device": "cpu", **changed}
    return module.main([part for name, value in options.items() for part in (f"--{name}", str(value))])


def test_the_command_finds_a_threshold_on_eval_and_judges_it_on_test(base, run_folder, corpus, capsys):
    assert attempt(base, run_folder, corpus) == 0
    report = json.loads((corpus / "warning.json").read_text())
    assert [row["wanted_false_alarms_per_hundred"] for row in report["at"]] == [1.0, 5.0]
    for row in report["at"]:
        assert row["eval"]["non_fraud_alarmed"] == 0 and (row["test"]["non_fraud"], row["test"]["fraud"]) == (2, 2)
    assert report["provenance"]["data"]["name"] == "test.jsonl"
    assert "on test: " in capsys.readouterr().out


def test_ordinary_calls_help_to_find_the_threshold_and_others_are_judged_alike(
        base, run_folder, corpus, trained_encoder, capsys):
    calls = [{"input": "甲: 明天开会吗？\n乙: 开。", "label": False, "case": f"聊天/{i}"} for i in range(3)]
    write_records(corpus / "ordinary_eval.jsonl", calls[:2])
    write_records(corpus / "ordinary.jsonl", calls[2:])
    write_records(corpus / "train.jsonl", [{"input": f"甲: 第{i}句话", "label": i % 2 == 0} for i in range(8)])
    names = {name: corpus / f"{name}.jsonl" for name in ("ordinary", "train")}
    names["peer"] = f"e5={trained_encoder}"
    assert attempt(base, run_folder, corpus, **{"ordinary-eval": corpus / "ordinary_eval.jsonl"}, **names) == 0
    report = json.loads((corpus / "warning.json").read_text())
    assert "e5: 1 false alarms per hundred" in capsys.readouterr().out
    for rows in (report["at"], report["tfidf"]["at"], report["encoders"]["e5"]["at"]):
        assert [row["eval"]["non_fraud"] for row in rows] == [4, 4]
        assert [row["ordinary"]["non_fraud"] for row in rows] == [1, 1]
        assert [row["test"]["non_fraud"] for row in rows] == [2, 2]
    assert report["provenance"]["tfidf_train"]["name"] == "train.jsonl"
    assert report["provenance"]["encoders"]["e5"]["epochs"] == 10
    write_records(corpus / "ordinary.jsonl", calls[:1])
    assert attempt(base, run_folder, corpus, **{"ordinary-eval": corpus / "ordinary_eval.jsonl"}, **names) == 2


def test_rows_passed_over_are_named_and_calls_without_a_case_are_their_own(base, run_folder, corpus, capsys):
    calls = [{"input": "甲: 明天开会吗？", "label": False, "case": ""}, {"input": "", "label": False}]
    for name in ("ordinary_eval", "ordinary"):
        write_records(corpus / f"{name}.jsonl", calls)
    names = {"ordinary-eval": corpus / "ordinary_eval.jsonl", "ordinary": corpus / "ordinary.jsonl"}
    assert attempt(base, run_folder, corpus, **names) == 0
    assert json.loads((corpus / "warning.json").read_text())["at"][0]["ordinary"]["non_fraud"] == 1
    said = capsys.readouterr().err
    assert f"skipped 2: {names['ordinary-eval']}:2: 'input' is empty; {names['ordinary']}:2: 'input' is empty" in said


def test_a_fraud_at_the_end_of_a_call_longer_than_the_context_is_scored_and_its_windows_are_counted(
        base, run_folder, corpus, capsys):
    long = [Line("甲", "明天再说吧。" * 30, False)] * 15
    kept = [Dialogue(f"退款/{i}", "退款", dialogue("", False, i % 2 == 0).lines) for i in range(7)]
    write_dialogues(corpus / "退款.csv", [*kept, Dialogue("退款/7", "退款", (*long, Line("甲", "转", True)))])
    write_records(corpus / "train.jsonl", [{"input": "甲: 好", "label": True}] * 2)
    assert attempt(base, run_folder, corpus, train=corpus / "train.jsonl") == 0
    assert "may take minutes" in capsys.readouterr().err  # has no bar
    report = json.loads((corpus / "warning.json").read_text())
    assert report["windows"]["eval"] == {"calls": 0, "most": 1}
    assert report["windows"]["test"]["calls"] == 1 and report["windows"]["test"]["most"] > 1
    assert report["not_made"].keys() == {"tfidf"} and "tfidf" not in report


def test_what_is_wrong_is_said_in_one_line(base, run_folder, corpus, capsys):
    def says(message, **changed):
        assert attempt(base, run_folder, corpus, **changed) == 2
        line = [line for line in capsys.readouterr().err.splitlines() if "Loading" not in line][-1]
        assert message in line

    says("none.jsonl: no such file", test=corpus / "none.jsonl")
    says("nowhere: no such file or folder", source=corpus / "nowhere")
    says(f"{corpus}: is a folder", output=corpus)
    says("退款.csv", model="/no/such/model", output=corpus / "退款.csv" / "warning.json")
    says("shares 4 dialogues with", test=corpus / "eval.jsonl")
    write_records(corpus / "odd.jsonl", [{"input": "甲: 好", "label": True}])
    says("a record has no 'case'", test=corpus / "odd.jsonl")
    says("odd.jsonl: not a folder", peer=f"e5={corpus / 'odd.jsonl'}")
    says("no trained encoder", peer=f"e5={corpus}")
    (corpus / "encoder.json").write_text('{"seed": 0}')
    says("encoder.json: key 'train_data' is missing", model="none", peer=f"e5={corpus}")
    write_records(corpus / "odd.jsonl", [{"input": "甲: 好", "label": True, "case": "退款/99"}])
    says("case '退款/99' is not in", test=corpus / "odd.jsonl")


@pytest.mark.parametrize("name", ["eval.jsonl", "test.jsonl"])
def test_a_split_that_the_checkpoint_was_trained_on_is_refused(base, run_folder, corpus, tmp_path, capsys, name):
    folder = shutil.copytree(find_checkpoint(run_folder), tmp_path / "checkpoint-1")
    task = json.loads((folder / "fraud_task.json").read_text())
    task["train_data"]["sha256"] = file_sha256(corpus / name)
    (folder / "fraud_task.json").write_text(json.dumps(task))
    assert attempt(base, folder, corpus) == 2
    assert f"{name}: the checkpoint was trained on it" in capsys.readouterr().err
