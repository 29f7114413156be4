"""Line-aware inference: which line is the fraud, scored, judged and shown."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import make_records, train_briefly
from scipy.special import expit, logit

from antifraud.checkpoint import Decision, read_checkpoint
from antifraud.evaluation.calibration import FLAT, LINE_RULES, _best, calibrate_checkpoint
from antifraud.evaluation.early_warning import _log_odds, _probabilities, early_warning, print_summary
from antifraud.evaluation.growing import GrowingDialogue
from antifraud.evaluation.lines import line_report
from antifraud.evaluation.scoring import (
    rows_of,
    score_of_log_odds,
    score_prompts,
    score_rows,
    score_single_lines,
)
from antifraud.serving.app import score_lines
from data.files import DataError
from data.prompt import PromptEncoder
from data.records import Dialogue, Line, write_records
from evaluate import evaluate_with_model, load_model

DIALOGUES = ["王经理: 今天风有点大。\n顾客: 好的。\n王经理: 请把短信里的号码念给我，我替您办退款。",
             "甲: 好", "甲: 您好\n\n乙: 再见"]


def labelled(n: int, first_case: int = 0) -> list[dict]:
    """Records whose first line is the fraud, if one is."""
    return [{**record, "line_labels": [record["label"], False]} for record in make_records(n, first_case=first_case)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("lines")
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    write_records(paths[0], labelled(48))
    write_records(paths[1], labelled(20, first_case=100))
    return tuple(map(str, paths))


@pytest.fixture(scope="module")
def run_with_lines(base, files, tmp_path_factory):
    """A run with the auxiliary line loss."""
    run = tmp_path_factory.mktemp("run")
    train_briefly(base, *files, run, max_steps=60, eval_steps=60, save_steps=60, line_loss_weight=1.0)
    task = json.loads((run / "checkpoint-60" / "fraud_task.json").read_text())["decision"]
    assert (task["line_weight"], task["top_lines"]) == (0.5, 1)
    return run


@pytest.fixture(scope="module")
def learned(base, run_with_lines):
    """Its checkpoint, as it is loaded, with its tokenizer."""
    return load_model(base, str(run_with_lines), "cpu")


def test_a_line_has_the_score_that_the_dialogue_up_to_it_gives_it(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    prompts = encoder.prompts(DIALOGUES)
    scores = score_single_lines(model, encoder, prompts)
    assert [len(row) for row in scores] == [3, 1, 2]  # a blank line is none
    for prompt, row in zip(prompts, scores):
        for end, score in zip(encoder.line_ends(prompt), row, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt[:end + 1]])).logits[0, -1, list(encoder.label_ids)]
            assert score == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-4)
    assert max(scores[0]) - min(scores[0]) > 0.5  # the run has learned which sentence it is


def test_a_dialogue_is_as_suspicious_as_its_answer_and_its_most_suspicious_line(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    prompts = encoder.prompts(DIALOGUES)
    answers = score_rows(model, rows_of(encoder, prompts))
    lines = np.array([row.max() for row in score_single_lines(model, encoder, prompts)])
    scores = score_prompts(model, encoder, prompts)
    np.testing.assert_allclose(logit(scores), (logit(answers) + logit(lines)) / 2, atol=1e-3)
    assert np.abs(scores - answers).max() > 1e-3
    one_by_one = [score_prompts(model, encoder, [prompt])[0] for prompt in prompts]
    np.testing.assert_allclose(one_by_one, scores, atol=1e-5)


def test_so_many_of_the_most_suspicious_lines_count_so_much():
    two = Decision(line_weight=0.25, top_lines=2)
    assert two.log_odds(4.0, [-9.0, 1.0, 3.0]) == pytest.approx(0.75 * 4 + 0.25 * 2)
    assert two.log_odds(4.0, [1.0]) == pytest.approx(0.75 * 4 + 0.25 * 1)  # fewer than two: those that are there
    assert two.log_odds(4.0, []) == 4.0
    assert Decision().log_odds(4.0, [9.0]) == 4.0


def test_calibrating_finds_how_many_lines_count_and_how_much(base, run_with_lines, files, tmp_path):
    checkpoint = shutil.copytree(run_with_lines / "checkpoint-60", tmp_path / "checkpoint-60")
    found = calibrate_checkpoint(base, str(checkpoint), files[1], "cpu", progress=False, best_f1=True)
    assert [(row["line_weight"], row["top_lines"]) for row in found["line_rules"]] == list(LINE_RULES)
    highest = max(row["f1"] for row in found["line_rules"])
    best = next(row for row in found["line_rules"] if row["f1"] >= highest - FLAT)
    assert (found["f1"], found["line_weight"], found["top_lines"]) == (best["f1"], best["line_weight"],
                                                                       best["top_lines"])
    kept = read_checkpoint(checkpoint).decision
    assert (kept.line_weight, kept.top_lines, kept.threshold) == (best["line_weight"], best["top_lines"],
                                                                 best["threshold"])
    again = calibrate_checkpoint(base, str(checkpoint), files[1], "cpu", progress=False)  # without a target it stays
    assert "line_rules" not in again and read_checkpoint(checkpoint).decision.top_lines == kept.top_lines


def test_rules_that_are_tried_first_are_those_in_which_harmless_lines_can_hide_least():
    hidden = [weight * (1 - 1 / lines) for weight, lines in LINE_RULES]
    assert hidden == sorted(hidden)


@pytest.mark.parametrize("second, kept", [(0.746, 2), (0.75, 2), (0.744, 3)])
def test_the_first_rule_near_the_highest_f1_is_kept_and_one_that_cannot_meet_the_target_is_passed_over(second, kept):
    f1_of = {1: 0.5, 2: second, 3: 0.75}

    def by_rule(rule):
        if rule.top_lines == 4:
            raise DataError("no threshold has a precision of 1")
        found = {name: f1_of[rule.top_lines] for name in ("threshold", "precision", "recall", "f1")}
        return dataclasses.replace(rule, threshold=0.25), found

    rules = [Decision(line_weight=0.5, top_lines=lines) for lines in (4, 1, 2, 3)]
    decision, found = _best(by_rule, rules, "eval.jsonl")
    assert (decision.top_lines, decision.threshold, len(found["line_rules"])) == (kept, 0.25, 3)
    with pytest.raises(DataError, match="eval.jsonl: no threshold"):
        _best(by_rule, rules[:1], "eval.jsonl")


def test_log_odds_that_are_not_finite_are_no_score():
    one = Decision(line_weight=0.5, top_lines=1)
    assert score_of_log_odds([2.0], one) == pytest.approx(expit(2.0))
    assert score_of_log_odds([-1.0, 3.0, -2.0], one) == pytest.approx(expit(0.5))
    for odds in ([np.inf], [0.0, np.nan], [-np.inf, 1.0]):
        assert np.isnan(score_of_log_odds(odds, one))


def test_line_aware_scores_of_a_growing_dialogue_are_those_of_the_whole(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    lines = [*DIALOGUES[0].split("\n"), "", "顾客: 好的，第3单对吧。", "王经理: 再见\n", "甲: 好"]
    growing = GrowingDialogue(model, tokenizer)
    beginnings = ["\n".join(lines[:end]) for end in range(1, len(lines) + 1)]
    np.testing.assert_allclose([growing.add(line) for line in lines],
                               score_prompts(model, encoder, encoder.prompts(beginnings)), atol=1e-4)


def test_a_growing_dialogue_goes_by_a_decision_that_the_early_warning_found(learned, capsys):
    model, tokenizer = learned
    lines = [[Line(*line.split(": "), flag) for line, flag in zip(record["input"].split("\n"), record["line_labels"])]
             for record in labelled(20, first_case=200)]
    calls = {name: [Dialogue(str(case), "kind", tuple(of_one)) for case, of_one in enumerate(lines)]
             for name in ("eval", "test")}
    report = early_warning(model, tokenizer, calls, false_alarms=(10,))
    decision = report["at"][0]["decision"]
    own = model.lineage.decision
    assert (decision["temperature"], decision["bias"]) == (own.temperature, own.bias)
    other = Decision(**decision | {"line_weight": 0.9, "top_lines": 2})
    growing = GrowingDialogue(model, tokenizer, other)
    found = [growing.add(f"{line.speaker}: {line.content}") for line in lines[0]]
    usual = GrowingDialogue(model, tokenizer)
    by_own = [usual.add(f"{line.speaker}: {line.content}") for line in lines[0]]
    odds = _log_odds(model, tokenizer, calls["eval"][:1], None)
    np.testing.assert_allclose(found, _probabilities(odds, other), atol=1e-4)
    assert np.abs(np.array(found) - by_own).max() > 1e-3
    print_summary(report)
    assert f"lines that count: {decision['top_lines']}, for" in capsys.readouterr().out


def test_lines_that_are_not_read_have_no_score(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    whole = score_single_lines(model, encoder, encoder.prompts(DIALOGUES[:1]))[0]
    short = PromptEncoder(tokenizer, dataclasses.replace(
        model.lineage.task, max_length=model.lineage.task.max_length - encoder.room + 60))
    found = score_single_lines(model, short, short.prompts(DIALOGUES[:1]))[0]
    assert len(whole) == len(found) == 3 and found[:2] == pytest.approx(whole[:2], abs=1e-4)
    cut = PromptEncoder(tokenizer, dataclasses.replace(
        model.lineage.task, max_length=model.lineage.task.max_length - encoder.room + 12))
    assert len(score_single_lines(model, cut, cut.prompts(DIALOGUES[:1]))[0]) < 3


def test_lines_are_judged_where_the_model_is_line_aware_and_they_are_labelled(learned, files, base, run_folder):
    train, test = files
    lines = evaluate_with_model(*learned, test, "cpu", full=True, progress=False)["lines"]
    assert lines["n"] == 40 == sum(lines[count] for count in ("tn", "fp", "fn", "tp"))
    assert lines["average_precision"] > 0.9 and lines["most_suspicious_line_is_fraud"] == 1.0
    assert lines["intervals"]["recall"][0] <= lines["recall"] and lines["tfidf"]["average_precision"] > 0.9
    without = load_model(base, run_folder, "cpu")
    assert evaluate_with_model(*without, test, "cpu", train_path=train, progress=False)["lines"] is None


def test_records_without_labels_of_lines_are_not_judged_by_them(learned, eval_file):
    assert evaluate_with_model(*learned, eval_file, "cpu", progress=False)["lines"] is None


def test_lines_are_counted_as_far_as_they_were_read():
    records = [{"input": "甲: 一\n乙: 二\n甲: 三", "label": True, "line_labels": [False, True, True], "case": "a"},
               {"input": "甲: 一\n乙: 二", "label": True, "line_labels": [True, False], "case": "b"},
               {"input": "甲: 一", "label": False, "line_labels": [False], "case": "c"}]
    found = line_report(records, [np.array([0.1, 0.9]), np.array([0.4, 0.6]), np.array([0.2])])
    assert (found["n"], found["tp"], found["fp"], found["fn"], found["tn"]) == (5, 1, 1, 1, 2)
    assert found["most_suspicious_line_is_fraud"] == 0.5 and found["tfidf"] is None
    of_tfidf = [np.array([0.2, 0.3, 0.9]), np.array([0.4, 0.6]), np.array([0.5])]
    beside = line_report(records, [np.array([0.1, 0.9]), np.array([0.4, 0.6]), np.array([0.2])], of_tfidf)["tfidf"]
    assert sum(beside[count] for count in ("tn", "fp", "fn", "tp")) == 5
    assert beside["model_average_precision_minus_this"]["value"] == pytest.approx(
        found["average_precision"] - beside["average_precision"])


def test_nothing_to_find_is_no_figure():
    found = line_report([{"input": "甲: 一", "label": False, "line_labels": [False]}], [np.array([0.2])])
    assert found["most_suspicious_line_is_fraud"] is found["recall"] is found["average_precision"] is None


def test_the_page_marks_lines_of_a_line_aware_model(learned, base, run_folder):
    dialogue = DIALOGUES[0].replace("\n", "\n\n", 1)
    shown = score_lines(*learned, dialogue)
    encoder = PromptEncoder(learned[1], learned[0].lineage.task)
    scores = score_single_lines(learned[0], encoder, encoder.prompts([dialogue]))[0]
    assert [line.of_line for line in shown] == pytest.approx(scores.tolist(), rel=1e-4)  # one of them with a cache
    assert [line.of_line for line in score_lines(*load_model(base, run_folder, "cpu"), dialogue)] == [None] * 3
