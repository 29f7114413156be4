"""How much memory and time does a training step take, in our recipes, in the article's, and in others' libraries?

    python -m benchmarks.training --model MODEL --data train.jsonl [--recipes article small fast unsloth ...]
    python -m benchmarks.training --model MODEL --study --output results/speed/steps.json

MODEL is a folder with Qwen2-1.5B-Instruct, or with its config and tokenizer alone: memory and speed do not depend on
what the weights are, so random ones are made. Rounds of the recipes follow each other, so that a drift of the machine
meets all of them; each figure is the median over rounds. Compiling and capturing are not in the speed, but given as
the seconds to the first step. Others' libraries are measured in a process of their own, where they are installed.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from safetensors import safe_open
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback

from antifraud import logits
from antifraud.model import default_device
from antifraud.provenance import code_provenance, device_name
from antifraud.training.loss import label_position_loss
from benchmarks import GIB, all_logits_loss, folder_with_weights, free_memory, measure_step, wait_for, with_adapters
from data.command import command
from data.files import DataError, write_json
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

ROWS_A_STEP = 16  # the article's batch
WARM_UP_STEPS, EPOCHS_TIMED = 4, 2  # of what is not captured, and of what is
COLUMNS = ["input_ids", "labels"]


def plain_trainer(model, tokenizer, args, rows: Dataset) -> Trainer:
    """transformers' Trainer as it is: padding with a mask, logits for every token."""
    return Trainer(model=model, args=args, train_dataset=rows.select_columns(COLUMNS),
                   data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True))


# Each of these makes a trainer of a model's folder, arguments and rows.


def our_trainer(folder: str, args, rows: Dataset, device: str, **loading) -> Trainer:
    model, tokenizer = load_model(folder, device, **loading)
    return build_trainer(model, tokenizer, args, build_loraconfig(), rows, rows)


def article_trainer(folder: str, args, rows: Dataset, device: str) -> Trainer:
    """What the article builds: logits for every token, random batches, padding with a mask."""
    model, tokenizer = load_model(folder, device)
    model = get_peft_model(model, build_loraconfig())
    model.enable_input_require_grads()
    return plain_trainer(model, tokenizer, args, rows)


def unsloth_trainer(folder: str, args, rows: Dataset, device: str, checkpointing: str | bool = "unsloth") -> Trainer:
    """Unsloth's model under transformers' Trainer; without dropout, which its fast kernels need."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(folder, max_seq_length=1024, dtype=torch.bfloat16,
                                                         load_in_4bit=True)
    lora = build_loraconfig()
    model = FastLanguageModel.get_peft_model(
        model, r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=0, bias="none",
        target_modules=list(lora.target_modules), use_gradient_checkpointing=checkpointing, random_state=args.seed)
    return plain_trainer(model, tokenizer, args, rows)


def trl_trainer(folder: str, args, rows: Dataset, device: str) -> Trainer:
    """TRL's SFTTrainer on rows that are tokenised already."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_model(folder, device)
    known = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.name in known}
    config = SFTConfig(**{**given, "max_length": None, "packing": False,
                          "dataset_kwargs": {"skip_prepare_dataset": True}})
    return SFTTrainer(model=model, args=config, train_dataset=rows.select_columns(COLUMNS),
                      processing_class=tokenizer, peft_config=build_loraconfig(),
                      data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True))


# -------------------------------------------------------------------------------------------------- the recipes


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a training is measured.

    Attributes:
        options: of `build_train_arguments`.
        build: makes the trainer; ``loading`` are its further arguments.
        longest: every batch is filled with the longest rows.
        whole_rows: what all rows begin with is computed in each of them.
        package: of a peer; measured in a process of its own that imports this first.
    """

    options: dict
    build: Callable[..., Trainer] = our_trainer
    loading: dict = dataclasses.field(default_factory=dict)
    longest: bool = False
    whole_rows: bool = False
    package: str | None = None


PLAIN = {"recipe": "plain", "tokens_per_micro_batch": 0, "train_sampling_strategy": "random"}
GROUPED = {**PLAIN, "optim": "adamw_torch_fused", "gradient_checkpointing": False,
           "train_sampling_strategy": "group_by_length"}
FAST = {"recipe": "fast", "compile_layers": True}
RECIPES = {
    "article": Recipe(PLAIN, article_trainer),
    "small": Recipe({"recipe": "small"}),
    "fast": Recipe(FAST),
    "unsloth": Recipe(GROUPED, unsloth_trainer, package="unsloth"),
    "unsloth_no_checkpointing": Recipe(GROUPED, unsloth_trainer, {"checkpointing": False}, package="unsloth"),
    "liger": Recipe({**GROUPED, "optim": "paged_adamw_32bit", "use_liger_kernel": True}, article_trainer,
                    package="liger_kernel"),
    "trl": Recipe(PLAIN, trl_trainer, package="trl"),
    "plain": Recipe({"recipe": "plain"}),
    "plain_not_checkpointed": Recipe({"recipe": "plain", "gradient_checkpointing": False,
                                      "optim": "adamw_torch_fused"}),
    "small_longest_rows": Recipe({"recipe": "small"}, longest=True),
    "fast_not_compiled": Recipe({"recipe": "fast", "compile_layers": False}),
    "fast_dequantized": Recipe(FAST, loading={"dequantize": True}),
    "fast_recomputing": Recipe({**FAST, "selective_recomputation": True}),
    "fast_6_gb": Recipe({**FAST, "tokens_per_micro_batch": 1024}),
    "fast_longest_rows": Recipe(FAST, longest=True),
    "fast_whole_rows": Recipe(FAST, whole_rows=True),
}
MAIN_RECIPES = ("article", "small", "fast")  # measured in every round, the others in the first
OF_GPUS = ("recipe", "compile_layers", "selective_recomputation", "optim")  # left out on a CPU


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
            wait_for(self.device)
            self.marks[state.global_step] = time.perf_counter()

    def seconds(self, first: int, last: int) -> float:
        """From the end of step `first` to that of step `last`; 0 is before the first."""
        return self.marks[last] - self.marks[first]


def measure(name: str, folder: str, rows: Dataset, device: str, steps: int) -> dict:
    """One short training run of a recipe; a captured one warms up for an epoch, in which all shapes occur."""
    free_memory()
    torch._dynamo.reset()  # what the recipes before have compiled counts towards a limit, past which nothing is
    recipe, epoch = RECIPES[name], len(rows) // ROWS_A_STEP
    options = {key: value for key, value in recipe.options.items() if device != "cpu" or key not in OF_GPUS}
    with tempfile.TemporaryDirectory() as output:
        args = build_train_arguments(
            output, eval_strategy="no", save_strategy="no", logging_steps=10**6, load_best_model_at_end=False,
            disable_tqdm=True, use_cpu=device == "cpu", **options)
        captured = args.cuda_graphs
        warm_up, timed = (epoch, EPOCHS_TIMED * epoch) if captured else (min(WARM_UP_STEPS, steps), steps)
        args.max_steps = warm_up + timed
        trainer = recipe.build(folder, args, rows, device, **recipe.loading)
        clock = Clock(device, warm_up)
        trainer.add_callback(clock)
        with whole_rows() if recipe.whole_rows else contextlib.nullcontext():
            trainer.train()
    rows_a_second = ROWS_A_STEP * timed / clock.seconds(warm_up, warm_up + timed)
    found = {"samples_per_second": rows_a_second,
             "real_tokens_per_second": rows_a_second * statistics.fmean(map(len, rows["input_ids"])),
             "seconds_to_first_step": clock.seconds(0, 1), "loss": trainer.state.log_history[-1]["train_loss"]}
    if device != "cpu":
        found["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return found


def measure_apart(name: str, folder: str, rows: Dataset, device: str, steps: int) -> dict:
    """`measure` in a process that imports the peer's package before transformers, as its makers ask.

    Raises:
        DataError: it failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rows.save_to_disk(f"{scratch}/rows")
        script = (f"import {RECIPES[name].package}\nimport json, sys\nfrom datasets import load_from_disk\n"
                  "from benchmarks.training import measure\nname, folder, rows, device, steps, output = sys.argv[1:]\n"
                  "found = measure(name, folder, load_from_disk(rows), device, int(steps))\n"
                  "json.dump(found, open(output, 'w'))\n")
        done = subprocess.run(
            [sys.executable, "-c", script, name, folder, f"{scratch}/rows", device, str(steps), f"{scratch}/found"],
            capture_output=True, text=True, env={**os.environ, "UNSLOTH_DISABLE_STATISTICS": "1"})
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DataError(f"{name}: {said[-1]}")
        return json.loads(Path(f"{scratch}/found").read_text(encoding="utf-8"))


def whole_rows():
    """A context within which no row shares its beginning with others."""
    return logits.replaced(logits, shares_prefix=lambda *_: False)


@contextlib.contextmanager
def folder_and_rows(model: str, data: str, device: str) -> Iterator[tuple[str, Dataset]]:
    """`folder_with_weights`, while it is needed, and the examples of `data` for its tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(model, scratch, device)
        yield folder, load_dataset(data, data, AutoTokenizer.from_pretrained(folder))[0]


def choose_rows(rows: Dataset, longest: bool, n: int, round_: int = 0) -> Dataset:
    """`n` rows for a round: the first ones, the next ones in the next round; or 16 of the longest, over and over."""
    n = min(n, len(rows) // ROWS_A_STEP * ROWS_A_STEP)
    if longest:
        lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        longest_rows = lengths.argsort(descending=True)[:ROWS_A_STEP].tolist()
        return rows.select((longest_rows * n)[:n])
    start = round_ * n % (len(rows) - n + 1)
    return rows.select(range(start, start + n))


def run(model: str, data: str, *, recipes: Sequence[str], rows: int, steps: int, rounds: int, device: str,
        output: str) -> dict:
    """The recipes in turn, `rounds` times; the median of each figure. Written after every measurement."""
    report = {"recipes": {}, "skipped": {}, "rounds": {}, "device": device_name(device),
              "provenance": {"model": Path(model).name, "data": Path(data).name, "rows": rows, "steps": steps,
                             "rounds": rounds, **code_provenance()}}
    for name in recipes:
        if RECIPES[name].package and importlib.util.find_spec(RECIPES[name].package) is None:
            report["skipped"][name] = f"{RECIPES[name].package} is not installed"
            print(f"{name}: skipped, {report['skipped'][name]}", file=sys.stderr)
    with folder_and_rows(model, data, device) as (folder, dataset):
        in_turn = [(round_, name) for round_ in range(rounds) for name in recipes
                   if name not in report["skipped"] and (round_ == 0 or name in MAIN_RECIPES)]
        for round_, name in tqdm(in_turn, desc="runs"):
            chosen = choose_rows(dataset, RECIPES[name].longest, rows, round_)
            measured = measure_apart if RECIPES[name].package else measure
            try:
                runs = [*report["rounds"].get(name, []), measured(name, folder, chosen, device, steps)]
            except DataError as error:  # a peer's failure costs the others nothing
                report["skipped"][name] = str(error)
                print(f"{name}: skipped, {error}", file=sys.stderr)
            else:
                report["rounds"][name] = runs
                report["recipes"][name] = {key: statistics.median(found[key] for found in runs) for key in runs[0]}
            write_json(output, report)
    return report


# -------------------------------------------------------------------------------- one step: four bits, lengths

QUANTIZATIONS = {  # what `load_model` is told
    "none": {"quantization": "none"},
    "fp4": {"quantization": "fp4"},
    "nf4": {"quantization": "nf4"},
    "nf4_double": {"quantization": "nf4", "double_quantization": True},
}
TOKENS = 176  # the mean of the data
LENGTHS = (64, 128, 256, 512, 1024)
ALL_LOGITS_UP_TO = 512  # tokens a row; the logits of 16 rows of 1,024 are 5 GiB in 16 bit, and several copies of it


def study_quantization(folder: str, device: str, rows: int = ROWS_A_STEP, tokens: int = TOKENS) -> dict[str, dict]:
    """Load time, size, error and a step of LoRA training for each way to store the base weights."""
    return {name: study_one(folder, device, rows, tokens, options) for name, options in QUANTIZATIONS.items()}


def study_one(folder: str, device: str, rows: int, tokens: int, options: dict) -> dict:
    """One row of `study_quantization`; its model is gone when the next one's memory is measured."""
    free_memory()
    before = torch.cuda.memory_allocated() if device != "cpu" else 0
    started = time.perf_counter()
    model, _ = load_model(folder, device, **options)
    wait_for(device)
    found = {"load_seconds": time.perf_counter() - started,
             "weights_gib": ((torch.cuda.memory_allocated() if device != "cpu" else
                              sum(parameter.nbytes for parameter in model.parameters())) - before) / GIB,
             **storage_of_linear_weights(model, folder)}
    step = measure_step(with_adapters(model), label_position_loss, rows, tokens)
    return found | (step or {"peak_gib": None, "seconds": None})


@torch.no_grad()
def storage_of_linear_weights(model: nn.Module, folder: str) -> dict[str, float]:
    """How the linear weights of the decoder are stored, against those in the files of `folder`.

    Returns:
        ``relative_error``: RMS of (loaded - saved) over RMS of saved; ``bits_per_weight``: quantisation constants
        included.
    """
    layers = {f"{name}.weight": layer.weight for name, layer in model.named_modules()
              if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings()}
    error = power = n_weights = n_bytes = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in layers.keys() & set(file.keys()):
                weight, saved = layers.pop(name), file.get_tensor(name).to(model.device).float()
                state = getattr(weight, "quant_state", None)
                values = weight if state is None else dequantize_4bit(weight.data, state)
                error += (values.float() - saved).square().sum(dtype=torch.float64).item()
                power += saved.square().sum(dtype=torch.float64).item()
                # Double quantisation makes the blocks' constants 8 bit, with constants again.
                constants = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
                n_weights, n_bytes = n_weights + saved.numel(), n_bytes + sum(
                    tensor.nbytes for tensor in (weight.data, *constants))
    if layers or not n_weights:
        raise DataError(f"{folder}: its files do not hold the linear weights under the model's own names")
    return {"relative_error": (error / power) ** 0.5, "bits_per_weight": 8 * n_bytes / n_weights}


def study_lengths(folder: str, device: str, rows: int = ROWS_A_STEP,
                  lengths: Sequence[int] = LENGTHS) -> dict[str, dict]:
    """A step by tokens a row: with logits at every token, and at those with labels only."""
    model = with_adapters(load_model(folder, device)[0])
    return {str(tokens): {name: measure_step(model, loss, rows, tokens)
                          for name, loss in (("all_logits", all_logits_loss), ("label_positions", label_position_loss))
                          if name != "all_logits" or tokens <= ALL_LOGITS_UP_TO} for tokens in lengths}


def study(model: str, device: str, output: str) -> dict:
    """Both studies of a single step, written to `output`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(model, scratch, device)
        torch.manual_seed(0)
        report = {"quantization": study_quantization(folder, device), "lengths": study_lengths(folder, device),
                  "device": device_name(device),
                  "provenance": {"model": Path(model).name, "rows": ROWS_A_STEP, "tokens": TOKENS, **code_provenance()}}
    write_json(output, report)
    return report


# ------------------------------------------------------------------------------------------ the command line


def table(report: dict) -> str:
    """The measured recipes as a Markdown table, the first of them its measure."""
    first = next(iter(report["recipes"]), "the first")
    lines = [f"| recipe | peak allocated, GiB | peak reserved, GiB | samples/s | real tokens/s | against {first} |",
             "|---|---|---|---|---|---|"]
    base = report["recipes"].get(first, {}).get("samples_per_second")
    for name, found in report["recipes"].items():
        memory = [f"{found[key]:.1f}" if key in found else "-" for key in ("peak_allocated_gib", "peak_reserved_gib")]
        lines.append(f"| {name} | {memory[0]} | {memory[1]} | {found['samples_per_second']:.1f} "
                     f"| {found['real_tokens_per_second']:,.0f} | {found['samples_per_second'] / base:.1f}x |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--data", help="JSONL records to train on")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME",
                        help=f"the first is what the others are compared with: {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--rows", type=int, default=640, help="to train on, in each round others")
    parser.add_argument("--steps", type=int, default=16, help="timed steps of each run; captured ones do whole epochs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--study", action="store_true", help="quantisation and length of rows, a single step each")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/speed/training.json")
    args = parser.parse_args(argv)
    if not args.study and not args.data:
        parser.error("--data is needed, unless with --study")
    disable_progress_bars()
    if args.study:
        study(args.model, args.device, args.output)
    else:
        print(table(run(args.model, args.data, recipes=args.recipes, rows=args.rows, steps=args.steps,
                        rounds=args.rounds, device=args.device, output=args.output)))
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
