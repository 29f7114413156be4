"""The peer a practitioner would take: a small multilingual encoder, fine-tuned as a classifier on the same split.

    python -m antifraud.evaluation.encoder --model intfloat/multilingual-e5-small --train train.jsonl \\
        --eval eval.jsonl --output outputs/encoder

All weights are trained, with a fresh classification head, by transformers' Trainer. Of `epochs` the checkpoint with
the lowest eval loss is kept. ``--peer encoder=outputs/encoder`` puts it beside the model, in the report of
``evaluate.py`` and in that of the early warning.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from scipy.special import expit
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from data.command import command
from data.files import DataError, one_line, refuse_existing, require_input, write_json
from data.prompt import Task, canonical
from data.records import Skipped, read_records
from data.windows import WINDOW_TOKENS, cut_into_windows

from ..model import compute_dtype, default_device, locate_model, pick_device
from ..provenance import anonymous, code_provenance, describe_base, describe_data, device_name, file_sha256
from .inputs import ENCODER_FILE

MAX_LENGTH = 512  # tokens; what such encoders read
ROWS_A_BATCH = 32
SCORED_ROWS_A_BATCH = 256


def fine_tune(model_path: str, train_path: str, eval_path: str, *, device: str = "cuda", epochs: int = 2,
              learning_rate: float = 5e-5, seed: int = 0):
    """Trains a sequence classifier of two labels; returns (trainer, tokenizer), the model at its lowest eval loss.

    Args:
        model_path: an encoder's folder or hub id.
        learning_rate: with a linear decay after 6 % of warm-up, for batches of 32.

    Raises:
        DataError: no such model, or one that is no encoder.
    """
    folder, device = locate_model(model_path), pick_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{model_path}: not an encoder that loads: {one_line(error)}") from error
    train, held_out = (_examples(read_records(path, Skipped()), tokenizer) for path in (train_path, eval_path))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(
            model, tokenizer, device, scratch, train_dataset=train, eval_dataset=held_out, seed=seed,
            num_train_epochs=epochs, learning_rate=learning_rate, warmup_steps=0.06, weight_decay=0.01,
            per_device_train_batch_size=ROWS_A_BATCH, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", logging_steps=50)
        trainer.train()
    return trainer, tokenizer


def _trainer(model, tokenizer, device: str, scratch: str, *, train_dataset: Dataset | None = None,
             eval_dataset: Dataset | None = None, **arguments) -> Trainer:
    dtype = compute_dtype(device)
    # Rows are not grouped by length: transformers 5.17 would order the predictions so, too.
    arguments = TrainingArguments(output_dir=scratch, per_device_eval_batch_size=SCORED_ROWS_A_BATCH,
                                  bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16, use_cpu=device == "cpu",
                                  report_to="none", **arguments)
    return Trainer(model=model, args=arguments, train_dataset=train_dataset, eval_dataset=eval_dataset,
                   data_collator=DataCollatorWithPadding(tokenizer))


def encoder_answers(folder: str, texts: Mapping[str, Sequence[str]], device: str) -> dict[str, np.ndarray]:
    """By the name of a set, [dialogues] probability of fraud, by the encoder of a folder that the command wrote."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(model, tokenizer, pick_device(device), scratch, disable_tqdm=True)
        found = probabilities(trainer, tokenizer, [dialogue for of_set in texts.values() for dialogue in of_set])
    return dict(zip(texts, np.split(found, np.cumsum([len(of_set) for of_set in texts.values()])[:-1])))


def probabilities(trainer: Trainer, tokenizer, dialogues: Sequence[str]) -> np.ndarray:
    """[dialogues] probability of fraud; one longer than 512 tokens is read in windows, of which the highest counts.

    Dialogues that differ in names only are equal as they are read, and scored once.
    """
    texts = _as_read(dialogues)
    distinct = list(dict.fromkeys(texts))
    windows = [[ids] if len(ids) <= MAX_LENGTH else _windows(text, tokenizer)
               for text, ids in zip(distinct, tokenizer(distinct)["input_ids"], strict=True)]
    rows = [ids for of_one in windows for ids in of_one]
    order = np.argsort([len(ids) for ids in rows], kind="stable")  # a batch is as long as its longest row
    logits = np.empty((len(rows), 2))
    logits[order] = trainer.predict(_dataset([rows[row] for row in order], [0] * len(rows))).predictions
    starts = np.cumsum([0, *map(len, windows[:-1])])
    highest = dict(zip(distinct, np.maximum.reduceat(expit(logits[:, 1] - logits[:, 0]), starts)))
    return np.array([highest[text] for text in texts])


def _as_read(dialogues: Iterable[str]) -> list[str]:
    """Speakers are called by roles, as our model sees them."""
    return [canonical(text, Task()) for text in dialogues]


def _examples(records: Sequence[dict], tokenizer) -> Dataset:
    texts = _as_read(record["input"] for record in records)
    return _dataset(tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"],
                    [int(record["label"]) for record in records])


def _dataset(rows: Sequence[Sequence[int]], labels: Sequence[int]) -> Dataset:
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows], "labels": labels})


def _windows(text: str, tokenizer) -> list[list[int]]:
    """Token ids of all of a dialogue that is too long, in windows as our model's are."""
    before, after = _special_tokens(tokenizer)
    cut = cut_into_windows(text.split("\n"), WINDOW_TOKENS, lambda texts: tokenizer(
        list(texts), add_special_tokens=False)["input_ids"])
    return [[*before, *ids, *after] for *_, ids in cut]


def _special_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """Those that the encoder has before and after a text."""
    alone, marked = (tokenizer("字", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(place for place in range(len(marked)) if marked[place:place + len(alone)] == alone)
    return marked[:start], marked[start + len(alone):]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m antifraud.evaluation.encoder", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder: a folder or a hub id")
    parser.add_argument("--train", required=True, help="JSONL records to train on")
    parser.add_argument("--eval", required=True, help="JSONL records that choose the best epoch")
    parser.add_argument("--output", required=True, help="a new folder for the trained encoder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = (parser := _parser()).parse_args(argv)
    if args.epochs < 1 or not args.learning_rate > 0:
        parser.error("--epochs must be 1 or more, --learning-rate above 0")
    for path in (args.train, args.eval):
        require_input(path)
    if file_sha256(args.train) == file_sha256(args.eval):
        raise DataError(f"{args.eval}: the same records as --train; the best epoch would be the one that knows them by "
                        "heart")
    refuse_existing(args.output)
    disable_progress_bars()
    trainer, tokenizer = fine_tune(args.model, args.train, args.eval, device=args.device, epochs=args.epochs,
                                   learning_rate=args.learning_rate, seed=args.seed)
    trainer.save_model(args.output)
    tokenizer.save_pretrained(args.output)
    write_json(Path(args.output) / ENCODER_FILE, {  # last: it says that the folder is complete
        "model": describe_base(locate_model(args.model)), "epochs": args.epochs, "learning_rate": args.learning_rate,
        "seed": args.seed, "train_data": anonymous(describe_data(args.train, len(trainer.train_dataset))),
        "log": [row for row in trainer.state.log_history if "eval_loss" in row],
        "device": device_name(trainer.model.device), **code_provenance()})
    print(f"written to {args.output}; put it beside the model with evaluate.py --full --peer encoder={args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
