"""Records tokenised into training examples."""

import dataclasses
import json
import sys

from datasets import Dataset

from data.prompt import PromptEncoder, Task, canonical_line_labels
from data.records import Skipped, read_records

from ..provenance import describe_data


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
        for example, record in zip(examples, records):
            ends = encoder.line_ends(example["input_ids"][:example["labels"].count(-100)])
            labels = canonical_line_labels(record["input"], record["line_labels"], task)
            known = len(ends) == len(labels)  # not of a dialogue that lost its end
            example |= {"line_ends": ends if known else [], "line_labels": labels if known else []}
    dataset = Dataset.from_list(examples)
    origin = {"task": dataclasses.asdict(task), "data": describe_data(path, len(records))}
    dataset.info.description = json.dumps(origin, ensure_ascii=False)
    return dataset


def origin_of(dataset: Dataset) -> tuple[Task, dict]:
    """(task, data file) that `load_dataset` noted; the defaults for a dataset made by other means."""
    try:
        origin = json.loads(dataset.info.description)
        return Task(**origin["task"]), origin["data"]
    except (AttributeError, ValueError, KeyError, TypeError):
        return Task(), {}
