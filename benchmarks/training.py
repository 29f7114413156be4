"""The article's recipe and ours on the same rows, in turn, in one run: memory, speed, loss.

    python -m benchmarks.training --model MODEL --data train.jsonl --output results/training_benchmark.json

MODEL is a folder with Qwen2-1.5B-Instruct, or with its config and tokenizer alone: memory and speed do not depend on
what the weights are, so random ones stand in for missing ones. Rounds of the recipes follow each other, so that a
drift of the machine meets all of them; each figure is the median over rounds. In a round all recipes draw their
batches of 16 from the same rows. Compiling and capturing are not in the speed, but given as the seconds to the first
step.
"""

import argparse
import contextlib
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
)

from antifraud.model import default_device
from antifraud.provenance import code_provenance, device_name
from antifraud.training.batches import RightPaddingCollator, RowsAfterPrefix, prefix_of
from antifraud.training.loss import label_position_loss
from benchmarks import refusing_in_a_line
from data.files import write_json
from data.prompt import PromptEncoder, Task
from evaluate import load_model
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset

ROWS_A_STEP = 16
# What `build_train_arguments` is told, beside ``model`` (what `load_model` is told), ``rows`` (if not the first ones)
# and ``whole_rows`` (what all rows begin with is computed in each of them). Those below `fast` change a thing or two
# each, to show what it is worth.
RECIPES = {
    "article": {"recipe": "plain", "tokens_per_pass": 0},
    "small": {"recipe": "small"},
    "fast": {"recipe": "fast", "compile_layers": True},
    "plain": {"recipe": "plain"},
    "plain_not_checkpointed": {"recipe": "plain", "gradient_checkpointing": False, "optim": "adamw_torch_fused"},
    "plain_compiled": {"recipe": "plain", "compile_layers": True},
    "plain_longest_rows": {"recipe": "plain", "rows": "longest"},
    "small_keeps_all": {"recipe": "small", "compile_layers": True, "keep_fewer_activations": False},
    "small_longest_rows": {"recipe": "small", "rows": "longest"},
    "small_not_compiled": {"recipe": "small", "compile_layers": False},
    "fast_not_compiled": {"recipe": "fast", "compile_layers": False},
    "fast_dequantized": {"recipe": "fast", "compile_layers": True, "model": {"dequantize": True}},
    "fast_paged": {"recipe": "fast", "compile_layers": True, "optim": "paged_adamw_32bit"},
    "fast_keeps_fewer": {"recipe": "fast", "compile_layers": True, "keep_fewer_activations": True},
    "fast_6_gb": {"recipe": "fast", "compile_layers": True, "tokens_per_pass": 1024},
    "fast_6_gb_keeps_fewer": {"recipe": "fast", "tokens_per_pass": 1024, "keep_fewer_activations": True},
    "fast_8_gb_keeps_fewer": {"recipe": "fast", "tokens_per_pass": 1536, "keep_fewer_activations": True},
    "fast_longest_rows": {"recipe": "fast", "compile_layers": True, "rows": "longest"},
    "fast_whole_rows": {"recipe": "fast", "compile_layers": True, "whole_rows": True},
}
MAIN_RECIPES = ("article", "small", "fast")  # measured in every round, the others in the first
WARM_UP_STEPS = 4  # of what is not captured
EPOCHS_TIMED = 2  # of what is


class Clock(TrainerCallback):
    """Seconds from the end of the warm-up to the end of training, the device's work included.

    In between nothing waits for the device that would not in earnest.
    """

    def __init__(self, device: str, warm_up_steps: int) -> None:
        self.device = device
        self.warm_up_steps = warm_up_steps
        self.marks = {0: time.perf_counter()}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (1, self.warm_up_steps, state.max_steps):
            if self.device != "cpu":
                torch.cuda.synchronize()
            self.marks[state.global_step] = time.perf_counter()

    def seconds(self, first: int, last: int) -> float:
        """From the end of step `first` to that of step `last`; 0 is before the first."""
        return self.marks[last] - self.marks[first]


def article_trainer(model, tokenizer, train_args, train_dataset: Dataset) -> Trainer:
    """What the article builds: logits for every token, random batches, padding with a mask."""
    model = get_peft_model(model, build_loraconfig())
    model.enable_input_require_grads()
    return Trainer(model=model, args=train_args, train_dataset=train_dataset,
                   data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True))


def measure(recipe: str, folder: str, rows: Dataset, device: str, steps: int) -> dict:
    """One short training run of a recipe; a captured one warms up for an epoch, in which all shapes occur."""
    free_memory()
    torch._dynamo.reset()  # what the recipes before have compiled counts towards a limit, past which nothing is
    options = dict(RECIPES[recipe])
    model, tokenizer = load_model(folder, device, **options.pop("model", {}))
    options.pop("rows", None)
    apart = options.pop("whole_rows", False)
    epoch = len(rows) // ROWS_A_STEP
    with tempfile.TemporaryDirectory() as output:
        train_args = build_train_arguments(
            output, eval_strategy="no", save_strategy="no", logging_steps=10**6,
            load_best_model_at_end=False, disable_tqdm=True, use_cpu=device == "cpu", **_for(device, options))
        captured = train_args.cuda_graphs
        warm_up, timed = (epoch, EPOCHS_TIMED * epoch) if captured else (min(WARM_UP_STEPS, steps), steps)
        train_args.max_steps = warm_up + timed
        if recipe == "article":
            trainer = article_trainer(model, tokenizer, train_args, rows)
        else:
            trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(), rows, rows)
        clock = Clock(device, warm_up)
        trainer.add_callback(clock)
        with whole_rows() if apart else contextlib.nullcontext():
            trainer.train()
    rows_a_second = ROWS_A_STEP * timed / clock.seconds(warm_up, warm_up + timed)
    found = {"samples_per_second": rows_a_second,
             "real_tokens_per_second": rows_a_second * statistics.fmean(map(len, rows["input_ids"])),
             "seconds_to_first_step": clock.seconds(0, 1), "loss": trainer.state.log_history[-1]["train_loss"]}
    if device != "cpu":
        found["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def whole_rows():
    """A context within which no row shares its beginning with others."""
    return patch("shared_prefix.shares_prefix", return_value=False)


def _for(device: str, options: dict) -> dict:
    """`options`, or what is left of them on a CPU, where there are no CUDA graphs and nothing is compiled in a test."""
    if device != "cpu":
        return options
    of_gpus = ("recipe", "compile_layers", "keep_fewer_activations", "optim")
    return {name: value for name, value in options.items() if name not in of_gpus}


def loss_difference(folder: str, rows: Dataset, device: str) -> float:
    """Largest difference between our loss and the model's own over all logits, on the same batches of 16."""
    free_memory()
    model, tokenizer = load_model(folder, device)
    differences = []
    for start in range(0, min(len(rows), 4 * ROWS_A_STEP), ROWS_A_STEP):
        prefix, input_ids, labels = batch_of(rows, start, tokenizer, device)
        whole = torch.cat([prefix.expand(len(input_ids), -1), input_ids], 1)
        whole_labels = pad(labels, (len(prefix), 0), value=-100)
        length = (whole_labels != -100).cumsum(1).argmax(1) + 1
        mask = (torch.arange(whole.shape[1], device=device) < length[:, None]).long()
        with torch.no_grad():
            full = model(input_ids=whole, labels=whole_labels, attention_mask=mask).loss
            ours = label_position_loss(model, input_ids, labels, prefix=prefix)
        differences.append(abs(full.item() - ours.item()))
    return max(differences)


def batch_of(rows: Dataset, start: int, tokenizer, device: str,
             **padding) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(prefix, input_ids, labels) of 16 rows, as the trainer computes them."""
    prefix = prefix_of(PromptEncoder(tokenizer, Task()), rows)
    rests = RowsAfterPrefix(rows, prefix)
    collate = RightPaddingCollator(tokenizer.pad_token_id, after=len(prefix), **padding)
    batch = collate([rests[i] for i in range(start, min(start + ROWS_A_STEP, len(rows)))])
    return torch.tensor(prefix, device=device), batch["input_ids"].to(device), batch["labels"].to(device)


def free_memory() -> None:
    """Gives back what nothing refers to any more, and starts the peaks anew."""
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


@contextlib.contextmanager
def folder_and_rows(model: str, data: str, device: str) -> Iterator[tuple[str, Dataset]]:
    """`folder_with_weights`, while it is needed, and the examples of `data` for its tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(model, scratch, device)
        yield folder, load_dataset(data, data, AutoTokenizer.from_pretrained(folder))[0]


def choose_rows(rows: Dataset, which: str, n: int, round_: int = 0) -> Dataset:
    """`n` rows for a round: the first ones, the next ones in the next round; or 16 of the longest, over and over."""
    n = min(n, len(rows) // ROWS_A_STEP * ROWS_A_STEP)
    if which == "longest":
        lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        longest = lengths.argsort(descending=True)[:ROWS_A_STEP].tolist()
        return rows.select((longest * n)[:n])
    start = round_ * n % (len(rows) - n + 1)
    return rows.select(range(start, start + n))


def run(model: str, data: str, *, recipes: Sequence[str], rows: int, steps: int, rounds: int, device: str,
        output: str) -> dict:
    """The recipes in turn, `rounds` times; the median of each figure. Written after every measurement."""
    report = {"recipes": {}, "rounds": {recipe: [] for recipe in recipes},
              "device": device_name(device),
              "provenance": {"model": Path(model).name, "data": Path(data).name, "rows": rows, "steps": steps,
                             "rounds": rounds, **code_provenance()}}
    with folder_and_rows(model, data, device) as (folder, dataset):
        first = choose_rows(dataset, "first", rows)
        report["max_loss_difference_on_the_same_batches"] = loss_difference(folder, first, device)
        in_turn = [(round_, recipe) for round_ in range(rounds) for recipe in recipes
                   if round_ == 0 or recipe in MAIN_RECIPES]
        for round_, recipe in tqdm(in_turn, desc="runs"):
            chosen = choose_rows(dataset, RECIPES[recipe].get("rows", "first"), rows, round_)
            runs = report["rounds"][recipe]
            runs.append(measure(recipe, folder, chosen, device, steps))
            report["recipes"][recipe] = {key: statistics.median(found[key] for found in runs) for key in runs[0]}
            write_json(output, report)
    return report


def table(report: dict) -> str:
    """The measured recipes as a Markdown table, the first of them its measure."""
    first = next(iter(report["recipes"]))
    lines = [f"| recipe | peak allocated, GiB | peak reserved, GiB | samples/s | real tokens/s | against {first} |",
             "|---|---|---|---|---|---|"]
    base = report["recipes"][first]["samples_per_second"]
    for name, found in report["recipes"].items():
        memory = [f"{found[key]:.1f}" if key in found else "-" for key in ("peak_allocated_gib", "peak_reserved_gib")]
        lines.append(f"| {name} | {memory[0]} | {memory[1]} | {found['samples_per_second']:.1f} "
                     f"| {found['real_tokens_per_second']:,.0f} | {found['samples_per_second'] / base:.1f}x |")
    return "\n".join(lines)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--data", required=True, help="JSONL records to train on")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES),
                        help="the first is what the others are compared with (default: all)")
    parser.add_argument("--rows", type=int, default=640, help="to train on, in each round others")
    parser.add_argument("--steps", type=int, default=16, help="timed steps of each run; captured ones do whole epochs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/training_benchmark.json")
    args = parser.parse_args(argv)
    disable_progress_bars()
    report = run(args.model, args.data, recipes=args.recipes, rows=args.rows, steps=args.steps, rounds=args.rounds,
                 device=args.device, output=args.output)
    print(table(report))
    print(f"largest difference of the two losses on the same batches: "
          f"{report['max_loss_difference_on_the_same_batches']:.2e}; written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
