"""Records tokenised into training examples."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from datasets import Dataset
from transformers import TrainingArguments

from data.files import DataError
from data.prompt import PromptEncoder, Task, labels_of_origin
from data.records import Skipped, read_records

from ..provenance import describe_data
from .batches import IGNORED, token_arrays


def read_examples(path: str, tokenizer, task: Task) -> Dataset:
    skipped = Skipped()
    records = read_records(path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    encoder = PromptEncoder(tokenizer, task)
    examples = encoder.examples([record["input"] for record in records], [record["label"] for record in records])
    if any(examples.truncated):
        print(f"{path}: {sum(examples.truncated)} dialogues longer than {encoder.room} tokens lose their end",
              file=sys.stderr)
    if all("line_labels" in record for record in records):
        for example, record, origin in zip(examples, records, examples.origins):
            ends = encoder.line_ends(example["input_ids"][:example["labels"].count(-100)])
            labels = labels_of_origin(record["line_labels"], origin)
            known = len(ends) == len(labels)  # not of a dialogue that lost its end
            example |= {"line_ends": ends if known else [], "line_labels": labels if known else []}
    dataset = Dataset.from_list(examples)
    origin = {"task": dataclasses.asdict(task), "data": describe_data(path, len(records))}
    dataset.info.description = json.dumps(origin, ensure_ascii=False)
    return dataset


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
                        "train split again, or leave it out")
