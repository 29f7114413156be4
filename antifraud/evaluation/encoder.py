"""The peer a practitioner would take: a small multilingual encoder, fine-tuned as a classifier on the same split.

    python -m antifraud.evaluation.encoder --model intfloat/multilingual-e5-small --train train.jsonl \\
        --eval eval.jsonl --predict eval.jsonl test.jsonl --output outputs/encoder

All weights are trained, with a fresh classification head, by transformers' Trainer. Of `epochs` the checkpoint with
the lowest eval loss is kept. For every file of ``--predict`` the output folder gets a file of the same name with a line
``{"line": N, "probability": P}`` for each record, as ``evaluate.py --predict`` writes them. ``evaluate.py --peer`` puts
it beside the model.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
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
from data.records import Skipped, read_numbered_records, read_records, write_records
from data.windows import WINDOW_TOKENS, cut_into_windows

from ..model import compute_dtype, default_device, locate_model, pick_device
from ..provenance import anonymous, code_provenance, describe_base, describe_data, device_name

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
    dtype = compute_dtype(device)
    with tempfile.TemporaryDirectory() as scratch:
        # Rows are not grouped by length: transformers 5.17 would order the predictions so, too.
        arguments = TrainingArguments(
            output_dir=scratch, seed=seed, num_train_epochs=epochs, learning_rate=learning_rate, warmup_steps=0.06,
            weight_decay=0.01, per_device_train_batch_size=ROWS_A_BATCH,
            per_device_eval_batch_size=SCORED_ROWS_A_BATCH, eval_strategy="epoch", save_strategy="epoch",
            save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
            bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16,
            use_cpu=device == "cpu", report_to="none", logging_steps=50)
        trainer = Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=held_out,
                          data_collator=DataCollatorWithPadding(tokenizer))
        trainer.train()
    return trainer, tokenizer


def probabilities(trainer: Trainer, tokenizer, dialogues: Sequence[str]) -> np.ndarray:
    """[dialogues] probability of fraud; one longer than 512 tokens is read in windows, of which the highest counts."""
    texts = _as_read(dialogues)
    windows = [[ids] if len(ids) <= MAX_LENGTH else _windows(text, tokenizer)
               for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True)]
    rows = [ids for of_one in windows for ids in of_one]
    logits = trainer.predict(_dataset(rows, [0] * len(rows))).predictions.astype(np.float64)
    starts = np.cumsum([0, *map(len, windows[:-1])])
    return np.maximum.reduceat(expit(logits[:, 1] - logits[:, 0]), starts)


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
    parser.add_argument("--predict", nargs="+", required=True, metavar="F", help="JSONL records to score afterwards")
    parser.add_argument("--output", required=True, help="a new folder for the predictions")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    for path in (args.train, args.eval, *args.predict):
        require_input(path)
    refuse_existing(args.output)
    names = [Path(path).name for path in args.predict]
    if len(set(names)) < len(names):
        raise DataError("--predict names two files alike, and so would the predictions be; rename one")
    disable_progress_bars()
    trainer, tokenizer = fine_tune(args.model, args.train, args.eval, device=args.device, epochs=args.epochs,
                                   learning_rate=args.learning_rate, seed=args.seed)
    for path in args.predict:
        numbered = read_numbered_records(path, Skipped())
        scores = probabilities(trainer, tokenizer, [record["input"] for _, record in numbered])
        write_records(Path(args.output) / Path(path).name,
                      [{"line": line, "probability": round(float(score), 6)}
                       for (line, _), score in zip(numbered, scores, strict=True)])
    write_json(Path(args.output) / "encoder.json", {
        "model": describe_base(locate_model(args.model)), "epochs": args.epochs, "learning_rate": args.learning_rate,
        "seed": args.seed, "train_data": anonymous(describe_data(args.train, len(trainer.train_dataset))),
        "log": [row for row in trainer.state.log_history if "eval_loss" in row],
        "device": device_name(trainer.model.device), **code_provenance()})
    print(f"written to {args.output}: {', '.join(names)}; put it beside the model with evaluate.py --full --peer "
          f"encoder={args.output}/{names[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
