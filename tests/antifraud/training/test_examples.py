"""Many records are tokenised in processes, and become what one process makes of them."""

import json
import os

import pytest
from helpers import make_records, make_tokenizer

from antifraud.training import examples
from antifraud.training.examples import read_examples
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import write_records

RECORDS = 60


@pytest.fixture
def path(tmp_path):
    records = make_records(RECORDS)
    for record in records:
        record["line_labels"] = [record["label"] and line == 0 for line in range(record["input"].count("\n") + 1)]
    write_records(tmp_path / "train.jsonl", records)
    return str(tmp_path / "train.jsonl")


@pytest.fixture
def in_processes(monkeypatch):
    monkeypatch.setattr(examples, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


def test_processes_make_the_examples_that_one_makes(path, monkeypatch, in_processes, capfd):
    tokenizer, task = make_tokenizer(), Task(max_length=90)
    several = read_examples(path, tokenizer, task)
    said = capfd.readouterr().err
    assert "tokenising" in said and "forked" not in said  # the latter the tokenizer's warning of its threads
    monkeypatch.setattr(examples, "FEWEST_PARTS", RECORDS)
    one = read_examples(path, tokenizer, task)
    assert "tokenising" not in capfd.readouterr().err
    assert several.to_list() == one.to_list() and several.features == one.features
    assert len(one) == RECORDS and json.loads(several.info.description) == json.loads(one.info.description)


def test_how_the_tokenizer_was_to_work_is_left_as_it_was(path, monkeypatch, in_processes):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    read_examples(path, make_tokenizer(), Task())
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    read_examples(path, make_tokenizer(), Task())
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_an_error_in_a_process_is_the_readers_own(path, monkeypatch, in_processes):
    def refuse(*_):
        raise DataError("row 3: cannot be tokenised")

    monkeypatch.setattr(PromptEncoder, "examples", refuse)
    with pytest.raises(DataError, match="row 3"):
        read_examples(path, make_tokenizer(), Task())


def test_a_process_that_is_killed_is_told_in_a_line(path, monkeypatch, in_processes):
    monkeypatch.setattr(PromptEncoder, "examples", lambda *_: os._exit(9))
    with pytest.raises(DataError, match="killed"):
        read_examples(path, make_tokenizer(), Task())


def test_processes_that_train_together_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert examples._cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert examples._cores() == 2
    monkeypatch.setattr(examples.sys, "platform", "darwin")
    assert examples._cores() == 1
