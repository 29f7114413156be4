"""The article's recipe and ours on the same rows, in turn, in one run: memory, speed, loss.

    python -m benchmarks.training --model MODEL --data train.jsonl --output results/training_benchmark.json

MODEL is a folder with Qwen2-1.5B-Instruct, or with its config and tokenizer alone: memory and speed do not depend on
what the weights are, so random ones stand in for missing ones. Rounds of all recipes follow each other, so that a
drift of the machine meets every recipe; each figure is the median over rounds.
"""

import argparse
import datetime
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
)

from checkpoints import source_commit, versions
from data.records import DataError, write_json
from models import default_device, load_model
from trainer import (
    RightPaddingCollator,
    build_loraconfig,
    build_train_arguments,
    build_trainer,
    label_position_loss,
    load_dataset,
)

WARMUP_STEPS = 6
RECIPES = {
    "article": {},
    "small": {},
    "small_fused_adamw": {"optim": "adamw_torch_fused"},
    "small_batch_64": {"per_device_train_batch_size": 64},
    "no_checkpointing": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"},
}


class StepClock(TrainerCallback):
    """Seconds of every step, the device's work included."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.marks:
            self._mark()

    def on_step_end(self, args, state, control, **kwargs):
        self._mark()

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.marks, self.marks[1:])]


def article_trainer(model, tokenizer, train_args, train_dataset: Dataset) -> Trainer:
    """What the article builds: logits for every token, random batches, padding with a mask."""
    model = get_peft_model(model, build_loraconfig())
    model.enable_input_require_grads()
    return Trainer(model=model, args=train_args, train_dataset=train_dataset,
                   data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True))


def measure(recipe: str, folder: str, data: str, steps: int, device: str) -> dict:
    """One short training run of a recipe, from loading the model on."""
    _free_memory()
    model, tokenizer = load_model(folder, device)
    train_dataset, _ = load_dataset(data, data, tokenizer)
    with tempfile.TemporaryDirectory() as output:
        train_args = build_train_arguments(
            output, max_steps=WARMUP_STEPS + steps, eval_strategy="no", save_strategy="no", logging_steps=1,
            load_best_model_at_end=False, disable_tqdm=True, use_cpu=device == "cpu", **RECIPES[recipe])
        if recipe == "article":
            trainer = article_trainer(model, tokenizer, train_args, train_dataset)
        else:
            trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(), train_dataset, train_dataset)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    seconds = clock.seconds()[WARMUP_STEPS:]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rows = train_args.per_device_train_batch_size
    found = {
        "samples_per_second": rows * len(seconds) / sum(seconds),
        "median_step_seconds": statistics.median(seconds),
        "loss": statistics.fmean(losses[WARMUP_STEPS:]),
    }
    if device != "cpu":
        found["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def loss_difference(folder: str, data: str, device: str, batches: int = 8) -> float:
    """Largest difference between our loss and the model's own over all logits, on the same batches of 16."""
    _free_memory()
    model, tokenizer = load_model(folder, device)
    dataset, _ = load_dataset(data, data, tokenizer)
    collate = RightPaddingCollator(tokenizer.pad_token_id)
    differences = []
    for start in range(0, min(len(dataset), 16 * batches), 16):
        batch = {name: tensor.to(device) for name, tensor in
                 collate([dataset[i] for i in range(start, min(start + 16, len(dataset)))]).items()}
        mask = (torch.arange(batch["input_ids"].shape[1], device=device)
                < (batch["labels"] != -100).cumsum(1).argmax(1)[:, None] + 1).long()
        with torch.no_grad():
            full = model(**batch, attention_mask=mask).loss
            ours = label_position_loss(model, batch["input_ids"], batch["labels"])
        differences.append(abs(full.item() - ours.item()))
    return max(differences)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def folder_with_weights(model: str, scratch: str, device: str) -> str:
    """`model`, or a copy of it with random 16-bit weights where it holds none."""
    if not (Path(model) / "config.json").is_file() or any(Path(model).glob("*.safetensors")):
        return model
    torch.manual_seed(0)
    with torch.device(device):
        random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    random.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(model).save_pretrained(scratch)
    return scratch


def run(model: str, data: str, *, recipes: Sequence[str], steps: int, rounds: int, device: str) -> dict:
    """Every recipe `rounds` times in turn; the median of each figure."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(model, scratch, device)
        measured = {recipe: [] for recipe in recipes}
        for recipe in tqdm([recipe for _ in range(rounds) for recipe in recipes], desc="recipes"):
            measured[recipe].append(measure(recipe, folder, data, steps, device))
        difference = loss_difference(folder, data, device)
    return {
        "recipes": {recipe: {key: statistics.median(found[key] for found in runs) for key in runs[0]}
                    for recipe, runs in measured.items()},
        "rounds": {recipe: runs for recipe, runs in measured.items()},
        "max_loss_difference_on_the_same_batches": difference,
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "provenance": {"model": Path(model).name, "data": Path(data).name, "steps": steps, "rounds": rounds,
                       "versions": versions(), "commit": source_commit(), "date": datetime.date.today().isoformat()},
    }


def table(report: dict) -> str:
    """The measured recipes as a Markdown table."""
    lines = ["| recipe | peak allocated, GiB | peak reserved, GiB | samples/s | against the article's |",
             "|---|---|---|---|---|"]
    base = report["recipes"].get("article", {}).get("samples_per_second")
    for name, found in report["recipes"].items():
        memory = [f"{found[key]:.1f}" if key in found else "-" for key in ("peak_allocated_gib", "peak_reserved_gib")]
        ratio = f"{found['samples_per_second'] / base:.1f}x" if base else "-"
        lines.append(f"| {name} | {memory[0]} | {memory[1]} | {found['samples_per_second']:.1f} | {ratio} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--data", required=True, help="JSONL records to train on")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each run, after a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/training_benchmark.json")
    args = parser.parse_args(argv)
    disable_progress_bars()
    try:
        report = run(args.model, args.data, recipes=args.recipes, steps=args.steps, rounds=args.rounds,
                     device=args.device)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(args.output, report)
    print(table(report))
    print(f"largest difference of the two losses on the same batches: "
          f"{report['max_loss_difference_on_the_same_batches']:.2e}; written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
