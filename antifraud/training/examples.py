"""Records tokenised into training examples."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainingArguments

from data.files import DataError
from data.prompt import PromptEncoder, Task, labels_of_origin
from data.records import Skipped, read_records

from ..provenance import describe_data
from .batches import IGNORED, token_arrays

ROWS_AT_ONCE = 500
FEWEST_PARTS = 8  # fewer are made before a process begins
MOST_PROCESSES = 16


def read_examples(path: str, tokenizer, task: Task) -> Dataset:
    skipped = Skipped()
    records = read_records(path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    encoder = PromptEncoder(tokenizer, task)
    examples = pa.concat_tables(_tables(encoder, records, lines=all("line_labels" in record for record in records)))
    truncated = pc.sum(examples["truncated"]).as_py()
    if truncated:
        print(f"{path}: {truncated} dialogues longer than {encoder.room} tokens lose their end", file=sys.stderr)
    dataset = Dataset(examples.drop_columns("truncated"))
    origin = {"task": dataclasses.asdict(task), "data": describe_data(path, len(records))}
    dataset.info.description = json.dumps(origin, ensure_ascii=False)
    return dataset


def _tables(encoder: PromptEncoder, records: Sequence[dict], *, lines: bool) -> Iterator[pa.Table]:
    """The examples of the records, some rows at a time; of many records, made by processes on all cores.

    The processes are forked, as PyTorch's own for loading data are: they have records and tokenizer as they are, and
    touch no device.

    Raises:
        DataError: a process was killed.
    """
    starts = range(0, len(records), ROWS_AT_ONCE)
    make, processes = functools.partial(_table, encoder, records, lines), min(_cores(), MOST_PROCESSES)
    if processes < 2 or len(starts) < FEWEST_PARTS:
        yield from map(make, starts)
        return
    fork = multiprocessing.get_context("fork")
    try:
        with _one_thread_each(), ProcessPoolExecutor(processes, fork, _begin, (make,)) as pool:
            yield from tqdm(pool.map(_made, starts), desc="tokenising", total=len(starts), unit_scale=ROWS_AT_ONCE,
                            unit=" rows")
    except BrokenProcessPool:
        raise DataError("a process that tokenised was killed; is main memory short?") from None


def _cores() -> int:
    """Those that this process may use, its share of them where several train together; 1 where none can be forked."""
    if sys.platform != "linux":
        return 1
    return len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Within this context the tokenizer has no threads, which a forked process could not use."""
    usual = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if usual is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = usual


def _table(encoder: PromptEncoder, records: Sequence[dict], lines: bool, start: int) -> pa.Table:
    """The examples of the records from number `start` on, and which of them were ``truncated``."""
    records = records[start:start + ROWS_AT_ONCE]
    examples = encoder.examples([record["input"] for record in records], [record["label"] for record in records])
    columns = {"input_ids": pa.array([example["input_ids"] for example in examples], pa.list_(pa.int32())),
               "labels": pa.array([example["labels"] for example in examples], pa.list_(pa.int64())),
               "truncated": pa.array(examples.truncated, pa.bool_())}
    if lines:
        ends = [encoder.line_ends(example["input_ids"][:example["labels"].count(-100)]) for example in examples]
        labels = [labels_of_origin(record["line_labels"], origin)
                  for record, origin in zip(records, examples.origins, strict=True)]
        known = [len(one) == len(other) for one, other in zip(ends, labels)]  # not of a dialogue that lost its end
        columns["line_ends"] = pa.array([one if at else [] for one, at in zip(ends, known)], pa.list_(pa.int64()))
        columns["line_labels"] = pa.array([one if at else [] for one, at in zip(labels, known)], pa.list_(pa.bool_()))
    return pa.table(columns)


def _begin(make: Callable[[int], pa.Table]) -> None:
    """What a process is told before its work; Ctrl-C is for the first one, which then ends the others."""
    global _make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _make = make


def _made(start: int) -> pa.Table:
    return _make(start)


def origin_of(dataset: Dataset) -> tuple[Task, dict]:
    """(task, data file) of a dataset that `load_dataset` made.

    Raises:
        DataError: it was made by other means, or joined from several, and does not say what it asks.
    """
    try:
        origin = json.loads(dataset.info.description)
        return Task(**origin["task"]), origin["data"]
    except (AttributeError, ValueError, KeyError, TypeError):
        raise DataError("a dataset does not say which task its examples were made with: its description was lost, or "
                        "joined from several; join the JSONL files and call load_dataset on the result, or give "
                        "build_trainer the task") from None


def require_both_labels(labels: Sequence[bool], path: str) -> None:
    """Raises DataError where all records of a train file have the same label: there is nothing to tell apart."""
    if len(set(labels)) < 2:
        found = f"all {len(labels)} records have \"label\": {json.dumps(labels[0])}" if labels else "it has no records"
        raise DataError(f"{path}: {found}; a model learns to tell fraud from other talk by records of both labels")


def require_learnable(train_args: TrainingArguments, train_dataset: Dataset) -> None:
    """Raises DataError where a dataset does not have what is to be learned: both answers, and the labels of lines."""
    answers = {tuple(labels[labels != IGNORED]) for labels in token_arrays(train_dataset, "labels")}
    if len(answers) < 2:
        raise DataError(f"the train set: all {len(train_dataset)} examples have the same answer; a model learns to "
                        "tell fraud from other talk by records of both labels")
    if train_args.line_loss_weight > 0 and "line_labels" not in train_dataset.column_names:
        raise DataError("line_loss_weight needs records with 'line_labels', as data.prepare writes them; prepare the "
                        "train split again, or leave it out (calls that are labelled as a whole have none)")
