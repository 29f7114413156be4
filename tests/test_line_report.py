"""Which line is the fraud: learned, scored, judged and shown."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import make_records, train_briefly

from app import score_lines
from baselines import fit_baselines
from data.prompt import PromptEncoder, Task
from data.records import write_records
from evaluate import evaluate_with_model, load_model
from line_report import line_report
from scoring import score_single_lines

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
def learned(base, files, tmp_path_factory):
    """A checkpoint that learned of lines, as it is loaded, with its tokenizer."""
    run = tmp_path_factory.mktemp("run")
    train_briefly(base, *files, run, max_steps=60, eval_steps=60, save_steps=60, line_loss_weight=1.0)
    task = json.loads((run / "checkpoint-60" / "fraud_task.json").read_text())["task"]
    assert task["learned_lines"] is True
    return load_model(base, str(run), "cpu")


def test_a_line_has_the_score_that_the_dialogue_up_to_it_gives_it(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    scores = score_single_lines(model, encoder, DIALOGUES)
    assert [len(row) for row in scores] == [3, 1, 3]
    for prompt, ends, row in zip(encoder.prompts(DIALOGUES), encoder.line_ends(DIALOGUES), scores):
        for end, score in zip(ends, row):
            with torch.no_grad():
                logits = model(torch.tensor([prompt[:end + 1]])).logits[0, -1, list(encoder.label_ids)]
            assert score == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-4)
    assert max(scores[0]) - min(scores[0]) > 0.5  # the run has learned which sentence it is


def test_lines_that_are_not_read_have_no_score(learned):
    model, tokenizer = learned
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    whole = score_single_lines(model, encoder, DIALOGUES)
    short = PromptEncoder(tokenizer, dataclasses.replace(
        model.lineage.task, max_length=model.lineage.task.max_length - encoder.room + 60))
    found = score_single_lines(model, short, [DIALOGUES[0], "甲: <|im_end|>\n乙: 好"])
    assert len(found[0]) == 2 and found[0] == pytest.approx(whole[0][:2], abs=1e-4) and not len(found[1])


def test_the_report_judges_lines_where_they_were_learned_and_are_labelled(learned, files, base, run_folder):
    train, test = files
    lines = evaluate_with_model(*learned, test, "cpu", progress=False)["lines"]
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
    fitted = fit_baselines([record for record in records for _ in range(3)])["tfidf_with_lines"]
    beside = line_report(records, [np.array([0.1, 0.9]), np.array([0.4, 0.6]), np.array([0.2])], fitted)["tfidf"]
    assert sum(beside[count] for count in ("tn", "fp", "fn", "tp")) == 5
    assert beside["model_average_precision_minus_this"]["value"] == pytest.approx(
        found["average_precision"] - beside["average_precision"])


def test_nothing_to_find_is_no_figure():
    found = line_report([{"input": "甲: 一", "label": False, "line_labels": [False]}], [np.array([0.2])])
    assert found["most_suspicious_line_is_fraud"] is found["recall"] is found["average_precision"] is None


def test_the_page_marks_lines_where_the_model_learned_of_them(learned, base, run_folder):
    dialogue = DIALOGUES[0].replace("\n", "\n\n", 1)
    shown = score_lines(*learned, dialogue)
    encoder = PromptEncoder(learned[1], learned[0].lineage.task)
    scores = score_single_lines(learned[0], encoder, [dialogue])[0]
    assert [line.of_line for line in shown] == pytest.approx([scores[0], scores[2], scores[3]])  # the second is blank
    assert [line.of_line for line in score_lines(*load_model(base, run_folder, "cpu"), dialogue)] == [None] * 3


def test_a_task_from_before_lines_could_be_learned_has_learned_none():
    assert Task(**{key: value for key, value in dataclasses.asdict(Task()).items() if key != "learned_lines"}) == Task()
