"""QLoRA fine-tuning of a causal language model on fraud dialogues.

    python trainer.py --model MODEL --train train.jsonl --eval eval.jsonl --output outputs/run [--resume]

MODEL is a folder, a Hugging Face hub id, or ``modelscope:ID``. Every field of `TrainingArguments` is an option:
``--max-steps 4 --learning-rate 2e-4``. On several GPUs, ``accelerate launch --config_file configs/ddp.yaml
trainer.py ...``, or ``configs/fsdp.yaml`` where the model is too large for one. In a notebook, ``%run trainer.py``
or ``import trainer`` gives the five functions below, to be called in their order.
"""

import argparse
import builtins
import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, pad
from transformers import (
    EarlyStoppingCallback,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from checkpoints import (
    Lineage,
    checkpoints_in,
    describe_data,
    lineage_of,
    newest_complete_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    save_task_file,
    seal_checkpoint,
)
from cuda_graphs import NOT_COMPILED, CapturedPass, can_compile, compile_layers
from data.prompt import PromptEncoder, Task
from data.records import DataError, Skipped, read_records
from figures import save_loss_curve
from models import (
    PADDING_MULTIPLE,
    compute_dtype,
    compute_in_eval_as_in_training,
    default_device,
    load_model,
    logits_only_at,
    one_line,
    pad_right,
    padded_length,
    unwrapped,
    word_logits_besides,
)
from shared_prefix import common_prefix, model_inputs

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CAPTURED_MULTIPLE = 16  # tokens: a CUDA graph for every 16th length, 2 % of padding more
# Rows, from which on compiled layers make up for compiling them: 100 s or so, for 1.7 ms a row (Qwen2-1.5B, one H100).
COMPILING_PAYS = 60_000
GROUPED_BATCHES = 50  # rows of so many batches are sorted together: few padded tokens, yet a new mix every epoch
SHARDABLE_OPTIMIZER = "adamw_torch"  # bitsandbytes' optimisers step whole tensors only
SKIPPED_STEPS_LIMIT = 20  # fp16 loss scaling skips steps with infinite gradients while it finds its scale

# Names that transformers 5 removed or renamed. Assigning them after construction would be ignored in silence.
LATE_NAMES = {
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# The first is its name since transformers 5.20.
CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing")
                     if name in {field.name for field in dataclasses.fields(TrainingArguments)})
# Three ways to compute the same steps: on every GPU, in little memory, or fast.
RECIPES = {
    "plain": {CHECKPOINTING: True, "optim": "paged_adamw_32bit", "tokens_per_pass": 4096},
    "small": {CHECKPOINTING: False, "optim": "paged_adamw_32bit", "tokens_per_pass": 512, "cuda_graphs": True,
              "keep_fewer_activations": True},
    "fast": {CHECKPOINTING: False, "optim": "adamw_torch_fused", "tokens_per_pass": 4096, "cuda_graphs": True},
}
# What `fast` needs for Qwen2-1.5B: see results/training_benchmark.json and _captured.json, with a reserve of a third.
BYTES_A_TOKEN = 3.5 * 2**20  # of a pass
BYTES_A_TOKEN_KEEPING_FEWER = 2.5 * 2**20
BYTES_APART = 3 * 2**30  # weights, adapters, optimiser
FEWEST_TOKENS = 1024  # a pass; with less, too many passes a step


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is not finite; says at which step, and which checkpoint is the last good one."""


class NotCaptured(RuntimeError):
    """A pass cannot be compiled, or captured as a CUDA graph, with this model or on this machine."""


class CheckpointNotWritten(RuntimeError):
    """The disk is full, or refuses a checkpoint for another reason; says which one is the last good one."""


def build_loraconfig(**overrides) -> LoraConfig:
    """The article's LoRA: rank 16, alpha 32, dropout 0.2 on all seven projections of a decoder layer.

    18,464,768 trainable parameters on Qwen2-1.5B. Hu et al., LoRA, 2021.
    """
    settings = {"task_type": "CAUSAL_LM", "target_modules": list(TARGET_MODULES), "inference_mode": False,
                "r": 16, "lora_alpha": 32, "lora_dropout": 0.2}
    return LoraConfig(**{**settings, **overrides})


# ---------------------------------------------------------------------------------------------------- the data


def load_dataset(train_path: str, eval_path: str, tokenizer, *, task: Task = Task()) -> tuple[Dataset, Dataset]:
    """The examples of a train and an eval file, tokenised with the task's prompt.

    Columns: ``input_ids`` and ``labels``, lists of equal length, -100 on the prompt. How they were made travels
    in ``dataset.info.description`` to the checkpoint. Records without a dialogue and truncated dialogues are
    counted on standard error. Where all records say which of their lines are part of a fraud, ``line_ends``, the place
    of each line's last token in ``input_ids``, and ``line_labels``.
    """
    return _examples(train_path, tokenizer, task), _examples(eval_path, tokenizer, task)


def _examples(path: str, tokenizer, task: Task) -> Dataset:
    skipped = Skipped()
    records = read_records(path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    encoder = PromptEncoder(tokenizer, task)
    examples = encoder.examples([record["input"] for record in records], [record["label"] for record in records])
    if encoder.truncated:
        print(f"{path}: {encoder.truncated} dialogues longer than {encoder.room} tokens lose their end",
              file=sys.stderr)
    if all("line_labels" in record for record in records):
        for example, record in zip(examples, records):
            ends = encoder.line_ends(example["input_ids"][:example["labels"].count(-100)])
            known = len(ends) == len(record["line_labels"])  # not of a dialogue that lost its end
            example |= {"line_ends": ends if known else [], "line_labels": record["line_labels"] if known else []}
    dataset = Dataset.from_list(examples)
    origin = {"task": dataclasses.asdict(task), "data": describe_data(path, len(records))}
    dataset.info.description = json.dumps(origin, ensure_ascii=False)
    return dataset


def _origin_of(dataset: Dataset) -> tuple[Task, dict]:
    """(task, data file) that `load_dataset` noted; the defaults for a dataset made by other means."""
    try:
        origin = json.loads(dataset.info.description)
        return Task(**origin["task"]), origin["data"]
    except (AttributeError, ValueError, KeyError, TypeError):
        return Task(), {}


class RightPaddingCollator:
    """Pads a batch on the right, without an attention mask.

    In a causal model no token attends to what follows it, so padding on the right is exact without a mask and
    keeps the fastest attention kernel. (Left padding needs a mask, and with SDPA it gave NaN gradients.)
    """

    def __init__(self, pad_token_id: int, multiple: int = PADDING_MULTIPLE, after: int = 0) -> None:
        """
        Args:
            multiple: with the `after` tokens that precede every row, rows become as long as a multiple of so many.
        """
        self.pad_token_id = pad_token_id
        self.multiple = multiple
        self.after = after

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels``, both [rows, tokens]."""
        fillers = {"input_ids": self.pad_token_id, "labels": -100}
        return {name: pad_right([example[name] for example in examples], filler, self.multiple, self.after)
                for name, filler in fillers.items()}

    def width(self, tokens: int) -> int:
        """How long a row of so many tokens becomes, if it is the longest."""
        return padded_length(tokens, self.multiple, self.after)


def prefix_of(encoder: PromptEncoder, *datasets: Dataset) -> list[int]:
    """What all rows begin with: the prompt's head, or the part of it in datasets that were made by other means."""
    head = encoder.head
    for rows in datasets:
        shortest_prompt = min(labels.count(-100) for labels in rows["labels"])
        head = common_prefix(head, rows["input_ids"], shortest_prompt - 1)
    return head


BLANK_ROW = {"input_ids": [0], "labels": [-100]}
LINE_LABELS = {True: -101, False: -102}  # where a line ends: is it part of a fraud? See `label_position_loss`.


class RowsAfterPrefix(torch.utils.data.Dataset):
    """Rows without the prefix of all, and after the last one a blank row, which teaches nothing and has no loss.

    The latter fills up the last batch. Without it, processes that share the batches would get rows twice.
    """

    def __init__(self, rows: Dataset, prefix: Sequence[int], label_word: int | None = None,
                 lines: bool = False) -> None:
        """
        Args:
            prefix: token ids that all rows begin with.
            label_word: which token of the answer to learn alone; None for the whole answer.
            lines: whether to learn of each line, too, whether it is part of a fraud.
        """
        # Arrow takes 100 us to give a row: 2 ms of a step that lasts 40.
        columns = {name: list(rows[name]) for name in BLANK_ROW}
        if common_prefix(prefix, columns["input_ids"], len(prefix)) != prefix:
            raise DataError("a dataset has rows that do not begin as those of the training; make it with the same task")
        self.columns = {name: [np.array(ids[len(prefix):], dtype=np.int32) for ids in column]
                        for name, column in columns.items()}
        if label_word is not None:
            for labels in self.columns["labels"]:
                learned = (labels != -100).argmax() + label_word
                labels[:learned] = labels[learned + 1:] = -100
        if lines:
            for labels, ends, of_lines in zip(self.columns["labels"], rows["line_ends"], rows["line_labels"]):
                for end, is_fraud in zip(ends, of_lines):
                    labels[end + 1 - len(prefix)] = LINE_LABELS[is_fraud]
        self.lengths = [len(ids) for ids in self.columns["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict:
        return {name: column[row] for name, column in self.columns.items()} if row < len(self) else BLANK_ROW

    def most_labels(self) -> tuple[int, int]:
        """The most labels that a row has in its answer, and the most lines that are labelled."""
        labels = self.columns["labels"]
        return max(int((row >= 0).sum()) for row in labels), max(int((row < -100).sum()) for row in labels)


def _filled_up(rows: int, batch_size: int) -> int:
    """The number of rows once blank ones have filled up the last batch."""
    return math.ceil(rows / batch_size) * batch_size


class LengthGroupedBatches(torch.utils.data.Sampler[int]):
    """Row numbers such that every `batch_size` of them are of similar length, batches in random order.

    Sorting runs each group from long to short, and length tells the classes apart: without shuffling the batches
    the optimiser would see the class mix drift. Depends on `seed` and epoch alone, so a resumed run sees the
    same batches. With `batch_size` rows an optimiser step, so does a run on more processes, or with more gradient
    accumulation. The number after the last row stands for the blank one that fills up the last step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return _filled_up(len(self.lengths), self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        rows = len(self.lengths)
        order = torch.randperm(rows, generator=generator)
        whole = rows - rows % self.batch_size  # the last, smaller batch stays last
        batches = []
        for group in order[:whole].split(GROUPED_BATCHES * self.batch_size):
            batches.extend(group[self.lengths[group].argsort(stable=True)].split(self.batch_size))
        for batch in torch.randperm(len(batches), generator=generator):
            yield from batches[batch].tolist()
        yield from order[whole:].tolist() + [rows] * (len(self) - rows)


# ------------------------------------------------------------------------------------------------ the training


@dataclass(frozen=True)
class LineLoss:
    """That the model is to say "fraud" or "not fraud" after each line, too.

    Attributes:
        words: token ids of the two.
        weight: of a line, where that of a token of the answer is 1.
        n_positions: as for `label_position_loss`.
    """

    words: tuple[int, int]
    weight: float
    n_positions: int | None = None


def label_position_loss(model, input_ids: torch.Tensor, labels: torch.Tensor, n_labels=None,
                        n_positions: int | None = None, prefix: torch.Tensor | None = None,
                        line_loss: LineLoss | None = None) -> torch.Tensor:
    """Cross-entropy of the labels that are not -100, equal to the model's own loss over all logits.

    Args:
        model: a causal LM, wrapped or not.
        input_ids, labels: [rows, tokens], padded on the right, labels -100 where there is nothing to learn.
        n_labels: what to divide the sum by; the labels of this batch unless gradients are accumulated.
        n_positions: at how many tokens to compute logits, at least the number of labels. Without it they are
            counted, for which the CPU waits for the GPU; a CUDA graph cannot.
        prefix: [tokens] that precede every row, and are computed once.
        line_loss: what to make of labels below -100, which say of the line that ends before them whether it is part of
            a fraud (`LINE_LABELS`): of these, the cross-entropy between two words only.

    Returns:
        A scalar in fp32.
    """
    targets = pad(labels[:, 1:], (0, 1), value=-100).flatten()  # the logits at a token predict the next one
    n_labels = (targets != -100).sum() if n_labels is None else n_labels
    positions = _places_of(targets >= 0, n_positions)
    prefix = input_ids[0, :0] if prefix is None else prefix
    with contextlib.ExitStack() as selecting:
        if line_loss is not None:
            line_ends = _places_of(targets < -100, line_loss.n_positions)
            line_logits = selecting.enter_context(
                word_logits_besides(unwrapped(model), line_ends, line_loss.words, after=len(prefix)))
        selecting.enter_context(logits_only_at(unwrapped(model), positions, after=len(prefix)))
        logits = model(**model_inputs(model, prefix, input_ids)).logits
    loss = cross_entropy(logits.float(), targets[positions].clamp(min=-100), reduction="sum")
    if line_loss is not None:
        words = LINE_LABELS[True] - targets[line_ends]  # -101 and -102 are words 0 and 1; others are not below -100
        words = words.masked_fill(targets[line_ends] >= -100, -100)
        loss = loss + line_loss.weight * cross_entropy(line_logits.pop(), words, reduction="sum")
    return loss / n_labels


def _places_of(wanted: torch.Tensor, number: int | None) -> torch.Tensor:
    """[number] the places at which `wanted`, [n] bool, holds, and others if there are fewer; None: counted."""
    if number is None:
        return wanted.nonzero().squeeze(1)
    return wanted.to(torch.uint8).argsort(descending=True, stable=True)[:number]


class LabelPositionTrainer(Trainer):
    """Trainer with logits at label positions only, length-grouped batches, and no step on a non-finite loss.

    A checkpoint of it is complete or passed over, and a run on several processes equals that on one.
    """

    def __init__(self, *args, lineage: Lineage, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lineage = lineage
        self.encoder = PromptEncoder(self.processing_class, lineage.task)
        self.prefix = torch.tensor(prefix_of(self.encoder, self.train_dataset, self.eval_dataset),
                                   dtype=torch.long, device=self.args.device)
        self.data_collator = RightPaddingCollator(self.processing_class.pad_token_id,
                                                  CAPTURED_MULTIPLE if self.args.cuda_graphs else PADDING_MULTIPLE,
                                                  after=len(self.prefix))
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the labels of the whole step
        self.skipped_steps = 0
        self.loss_of_step = torch.zeros((), device=self.args.device)
        self.unread: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
        self.captured_pass: CapturedPass | None = None
        self.compiled: bool | None = None  # not known before the first step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = label_position_loss(model, inputs["input_ids"], inputs["labels"], num_items_in_batch,
                                   prefix=self.prefix, line_loss=self.line_loss())
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all
        return (loss, {}) if return_outputs else loss

    def line_loss(self, n_positions: int | None = None) -> LineLoss | None:
        """What to learn of single lines, if anything."""
        if not self.args.line_loss_weight:
            return None
        return LineLoss(self.encoder.label_ids, self.args.line_loss_weight, n_positions)

    def get_batch_samples(self, *args, **kwargs):
        """Trainer's, but none for a resumed run that had already ended: Trainer would go one step too far."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Adds to the sums of `evaluation_loop`, and never holds logits."""
        for part in self._passes(self._prepare_inputs(inputs)):
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled for training only
                loss = label_position_loss(model, part["input_ids"], part["labels"], n_labels=1, prefix=self.prefix)
            self.eval_sums += torch.stack([loss, (part["labels"] != -100).sum()])
        return None, None, None

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's, with the mean loss over all labels, however rows are spread over batches and processes."""
        self.eval_sums = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, n_labels = self.accelerator.reduce(self.eval_sums, "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / n_labels
        return output

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of a batch, in passes of at most ``tokens_per_pass`` tokens."""
        inputs = self._prepare_inputs(inputs)
        if self.compiled is None:
            self.compiled = self._compile_if_it_pays()
        one_pass = self._captured_pass if self.args.cuda_graphs else super().training_step
        losses = [one_pass(model, part, num_items_in_batch) for part in self._passes(inputs)]
        loss = torch.stack(losses).sum()
        self.loss_of_step += loss
        return loss

    def _passes(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """`inputs` cut into equal numbers of rows; the gradients add up to those of the whole batch."""
        rows = self._rows_a_pass(*inputs["input_ids"].shape)
        parts = zip(*(tensor.split(rows) for tensor in inputs.values()))
        return [dict(zip(inputs, part)) for part in parts]

    def _rows_a_pass(self, rows: int, width: int) -> int:
        """The most rows, of those that divide a batch, with which a pass keeps to its tokens."""
        limit = self.args.tokens_per_pass
        if not limit or self.args.world_size > 1:  # a sharded model would wait for a pass that the others don't make
            return rows
        return next((n for n in range(rows, 0, -1) if rows % n == 0
                     and len(self.prefix) + n * width <= limit), 1)

    def floating_point_ops(self, inputs) -> int:
        """Trainer's, whose count of the parameters walks through the whole model at every step."""
        return 6 * inputs["input_ids"].numel() * self.n_parameters

    @cached_property
    def n_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    @cached_property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model):
        """Trainer's, in one buffer instead of hundreds of tensors where there is one."""
        if self.captured_pass is None:
            return super()._clip_grad_norm(model)
        return self.captured_pass.clip_gradients(self.args.max_grad_norm)

    def _captured_pass(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        if not model.training:  # it walks through 2,000 modules, for milliseconds
            model.train()
        try:
            if self.captured_pass is None:
                self.captured_pass = self._capture(model)
            return self.captured_pass(inputs["input_ids"], inputs["labels"], num_items_in_batch)
        except RuntimeError as error:
            cause = error.__context__ or error  # what ended a capture, which then fails to end
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotCaptured(f"a pass cannot be compiled or captured as a CUDA graph here ({one_line(cause)}); "
                              "take --recipe plain") from error

    def _compile_if_it_pays(self) -> bool:
        rows_to_come = (self.state.max_steps - self.state.global_step) * self.args.train_batch_size
        pays = self.args.cuda_graphs and rows_to_come >= COMPILING_PAYS and can_compile()
        asked_for = self.args.compile_layers or self.args.keep_fewer_activations
        wanted = asked_for or pays and self.args.compile_layers is None
        if wanted:
            self.model.enable_input_require_grads()  # else the first layer is compiled for itself: its input has none
            compile_layers(self.model, keep_fewer=self.args.keep_fewer_activations)
        return wanted

    def _capture(self, model) -> CapturedPass:
        rows, dataset = self.args.per_device_train_batch_size, self.train_rows
        widths = {self.data_collator.width(length) for length in dataset.lengths}
        shapes = [(self._rows_a_pass(rows, width), width) for width in sorted(widths)]
        most_labels, most_lines = dataset.most_labels()

        def loss(input_ids, labels, n_labels):
            return label_position_loss(model, input_ids, labels, n_labels, n_positions=len(labels) * most_labels,
                                       prefix=self.prefix, line_loss=self.line_loss(len(labels) * most_lines))

        return CapturedPass(loss, self.trained_parameters, shapes)

    def evaluate(self, *args, **kwargs):
        self.read_unread()
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise TrainingDiverged(self._divergence(f"eval loss {metrics['eval_loss']}"))
        return metrics

    def require_finite_gradients(self) -> None:
        """Stops before the optimiser takes a step on a loss or a gradient that is not finite."""
        if self.captured_pass is None:
            gradients = [p.grad for p in self.trained_parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(self.args.device)
        else:
            norm = self.captured_pass.gradient_norm()
        # Over all processes: FSDP's have a part of the gradients each, and if one stopped alone the rest would hang.
        found = self.accelerator.reduce(torch.stack([self.loss_of_step, norm]), "sum")
        self.loss_of_step = torch.zeros_like(self.loss_of_step)
        step = self.state.global_step + 1
        if self.args.cuda_graphs and self.args.optim == "adamw_torch_fused":
            # It skips such a step by itself, on the GPU, so that the CPU can go on while the GPU computes.
            self.optimizer.optimizer.found_inf = (~found.isfinite().all()).float()
            self.read_unread()
            self.unread = step, *_on_the_way_to_the_host(found)
        else:
            self._require_finite(step, *found.tolist())

    def read_unread(self) -> None:
        """Stops if the last step's loss or gradient, at which nobody looked yet, was not finite."""
        if self.unread:
            step, on_host, copied = self.unread
            self.unread = None
            copied.synchronize()
            self._require_finite(step, *on_host.tolist())

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        self.skipped_steps = 0 if math.isfinite(norm) else self.skipped_steps + 1
        tolerated = SKIPPED_STEPS_LIMIT if self.args.fp16 else 0
        if not math.isfinite(loss):
            raise TrainingDiverged(self._divergence(f"loss {loss}", step))
        if self.skipped_steps > tolerated:
            raise TrainingDiverged(self._divergence(f"gradient norm {norm}", step))

    def _divergence(self, what: str, step: int | None = None) -> str:
        return (f"step {step or self.state.global_step + 1}: {what} is not finite, training stopped; "
                f"{_what_is_kept(self.args.output_dir)}. Try a lower learning rate")

    def _get_dataloader(self, dataset, *args, is_training=False, **kwargs):
        label_word = len(self.encoder.answer_prefix) if self.args.label_word_only else None
        lines = is_training and self.args.line_loss_weight > 0  # eval loss is about the answer alone
        rows = RowsAfterPrefix(dataset, self.prefix.tolist(), label_word, lines)
        return super()._get_dataloader(rows, *args, is_training=is_training, **kwargs)

    def _get_train_sampler(self, train_dataset):
        rows_a_step = (self.args.per_device_train_batch_size * self.args.world_size
                       * self.args.gradient_accumulation_steps)
        self.train_rows = train_dataset
        self.train_batches = LengthGroupedBatches(train_dataset.lengths, rows_a_step, self.args.seed)
        return self.train_batches

    def _get_eval_sampler(self, eval_dataset):
        rows = len(eval_dataset)
        blank = [rows] * (_filled_up(rows, self.args.per_device_eval_batch_size * self.args.world_size) - rows)
        return torch.tensor(eval_dataset.lengths).argsort(stable=True).tolist() + blank  # any sequence is a sampler

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_task_file(output_dir or self.args.output_dir, self.lineage)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's; then a list of the files proves that none is missing, and only then older checkpoints go."""
        self.read_unread()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                remove_checkpoint(folder)  # what a killed run left
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its own random state
            if self.args.should_save:
                seal_checkpoint(folder)
                rotate_checkpoints(self.args.output_dir, folder, self.state.best_model_checkpoint, limit)
        except (OSError, SafetensorError, DataError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save, on a full disk
                raise
            raise CheckpointNotWritten(f"{folder}: cannot be written ({one_line(error)}); is the disk full? "
                                       f"{_what_is_kept(self.args.output_dir)}") from error
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self) -> None:
        read_checkpoint(self.state.best_model_checkpoint)  # a damaged one is refused in one line
        super()._load_best_model()


def _on_the_way_to_the_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy that arrives while the CPU goes on; it may be read once the event is over."""
    copy = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    return copy, torch.cuda.current_stream().record_event()


def _what_is_kept(output: str) -> str:
    folder, _ = newest_complete_checkpoint(output)
    return f"{folder} is intact" if folder else "no checkpoint was written yet"


class _EarlyStopping(EarlyStoppingCallback):
    """Goes on counting where an interrupted run was."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = sum(
            row["step"] > (state.best_global_step or 0) for row in state.log_history if "eval_loss" in row)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class _Between(TrainerCallback):
    """What Trainer asks callbacks, not itself, to do between its steps."""

    trainer: LabelPositionTrainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Trainer does so too, but in a resumed run on several processes the sampler is wrapped too deep for it.
        self.trainer.train_batches.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.require_finite_gradients()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.read_unread()


@dataclass
class FraudTrainingArguments(TrainingArguments):
    """TrainingArguments and six of our own. Fields may be assigned afterwards, under transformers 4's names too.

    A name that this version of transformers does not know is refused; the base class would ignore it.
    """

    cuda_graphs: bool = field(default=False, metadata={"help": "Replay each pass as a CUDA graph; one GPU, bf16."})
    compile_layers: bool | None = field(default=None, metadata={
        "help": "Fuse small kernels, which takes a minute to compile; default: with CUDA graphs, in a long run, and "
                "where fewer activations are to be kept."})
    keep_fewer_activations: bool = field(default=False, metadata={
        "help": "Compiled layers keep a third less for the backward pass, which computes it again. Same gradients."})
    tokens_per_pass: int = field(default=0, metadata={
        "help": "Cut a batch into passes of at most so many tokens, padding included; 0: one pass. Same gradients."})
    label_word_only: bool = field(default=False, metadata={
        "help": "Learn the one token that tells the two answers apart, not how an answer is written."})
    line_loss_weight: float = field(default=0.0, metadata={
        "help": "Learn of each line, too, whether it is part of a fraud; such a label counts so much, one of the "
                "answer's tokens 1."})

    def __setattr__(self, name: str, value) -> None:
        if getattr(self, "_constructed", False) and not name.startswith("_") and name not in ARGUMENT_NAMES:
            if LATE_NAMES.get(name) not in ARGUMENT_NAMES and not hasattr(self, name):
                raise AttributeError(f"TrainingArguments has no {name!r} in this version of transformers")
        if getattr(self, "_constructed", False) and LATE_NAMES.get(name) in ARGUMENT_NAMES:
            name = LATE_NAMES[name]
        super().__setattr__(name, value)


ARGUMENT_NAMES = {field.name for field in dataclasses.fields(FraudTrainingArguments)}


def build_train_arguments(output_path: str, *, recipe: str = "auto", **overrides) -> TrainingArguments:
    """The article's recipe as `TrainingArguments`; any field may be overridden here or assigned afterwards.

    Batch 16, learning rate 1e-4 with 5 % warm-up and cosine decay, weight decay 0.01, 3 epochs, 32-bit AdamW,
    evaluation and checkpoint every 100 steps, the best checkpoint kept. ``use_cpu=True`` keeps off the GPU.

    Args:
        recipe: how to compute it; the steps are the same. ``plain``: checkpointed activations and the paged
            optimiser, for every GPU and several of them. ``fast``: each pass a CUDA graph, fused optimiser; a
            single GPU with bf16. ``small``: the same with short passes, fewer activations kept and the paged
            optimiser. ``auto``: ``fast`` with passes as large as the free memory allows, and fewer activations kept
            where that is not enough for the largest, or ``small`` where it is little, or ``plain`` where there are
            several GPUs or no bf16. A line on standard error says what was chosen.
    """
    on_gpu = torch.cuda.is_available() and not overrides.get("use_cpu", False)
    dtype = compute_dtype("cuda" if on_gpu else "cpu")
    chosen = (_choose_recipe(recipe, dtype, overrides.get("compile_layers")) if on_gpu
              else _shardable({"optim": "paged_adamw_32bit"}))
    settings = {
        "output_dir": str(output_path),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64 if on_gpu else 16,  # the loss is the same
        "num_train_epochs": 3,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # below 1: a share of all steps
        "weight_decay": 0.01,
        **chosen,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu": not on_gpu,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
        "eval_strategy": "steps",
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # the filter would log plausible losses for a run that is all NaN
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "accelerator_config": {"non_blocking": on_gpu},  # the next batch travels while the GPU computes
        "report_to": "none",
    }
    aliases = {"gradient_checkpointing": CHECKPOINTING, "gradient_checkpointing_kwargs": f"{CHECKPOINTING}_kwargs"}
    args = FraudTrainingArguments(**{**settings, **{aliases.get(k, k): v for k, v in overrides.items()}})
    args._n_gpu = min(1, args.n_gpu)  # several GPUs mean DDP (accelerate launch), never DataParallel: 4-bit breaks it
    args._constructed = True
    return args


def _choose_recipe(recipe: str, dtype: torch.dtype, compile_layers: bool | None = None) -> dict:
    """The settings of `recipe`, or those for the memory that is free; says so in a line.

    Args:
        compile_layers: whether layers are to be compiled, without which they cannot keep fewer activations; default:
            where that is possible.
    """
    compiles = can_compile() if compile_layers is None else compile_layers
    if recipe not in ("auto", *RECIPES):
        raise DataError(f"recipe must be auto, {', '.join(RECIPES)}, not {recipe!r}")
    free, _ = torch.cuda.mem_get_info()
    one_gpu = os.environ.get("WORLD_SIZE", "1") == "1"
    if recipe == "auto":
        settings = settings_for(free, compiles) if one_gpu and dtype is torch.bfloat16 else RECIPES["plain"]
    else:
        settings = RECIPES[recipe]
    settings = _shardable(settings)
    if not compiles:
        settings = {name: value for name, value in settings.items() if name != "keep_fewer_activations"}
    if _speaks():
        said = [f"{name} {value}" for name, value in settings.items()]
        if settings.get("cuda_graphs") and compile_layers is None and not compiles:
            said.append(NOT_COMPILED)
        print(f"recipe {recipe}, {dtype}, {free / 2**30:.0f} GiB free: {', '.join(said)}", file=sys.stderr)
    return settings


def _sharded() -> bool:
    """Whether ``accelerate launch`` was told to shard the model."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _shardable(settings: dict) -> dict:
    """`settings`, with an optimiser that can step a sharded model where the model will be one."""
    return {**settings, "optim": SHARDABLE_OPTIMIZER} if _sharded() else settings


def settings_for(free: int, compiles: bool = True) -> dict:
    """CUDA graphs with passes as large as `free` bytes allow, or the recipe for little memory.

    Where the largest passes do not fit, compiled layers keep fewer activations: that costs less time than more passes.
    """
    fast, room = RECIPES["fast"], free - BYTES_APART
    if room >= fast["tokens_per_pass"] * BYTES_A_TOKEN:
        return fast
    tokens = int(room / (BYTES_A_TOKEN_KEEPING_FEWER if compiles else BYTES_A_TOKEN)) // 512 * 512
    if tokens < FEWEST_TOKENS:
        return RECIPES["small"]
    return {**fast, "tokens_per_pass": min(tokens, fast["tokens_per_pass"]), "keep_fewer_activations": compiles}


def build_trainer(model, tokenizer, train_args: TrainingArguments, lora_config: LoraConfig, train_dataset: Dataset,
                  eval_dataset: Dataset, *, early_stopping_patience: int = 5) -> LabelPositionTrainer:
    """Attaches LoRA adapters and makes the trainer; ``trainer.train()`` does the rest.

    Training stops early when the eval loss has not improved for `early_stopping_patience` evaluations (0: never).
    ``trainer.model`` ends as the best checkpoint, and remembers its task for `evaluate_with_model`.
    """
    _require_capturable(train_args)
    _require_shardable(train_args)
    _require_compiled(train_args)
    _require_line_labels(train_args, train_dataset)
    compute_in_eval_as_in_training(model)  # a notebook may have loaded it by itself
    lineage = lineage_of(model)
    task, lineage.train_data = _origin_of(train_dataset)
    lineage.task = dataclasses.replace(task, learned_lines=train_args.line_loss_weight > 0)
    if not isinstance(model, PeftModel):
        set_seed(train_args.seed)  # Trainer does so too late for the adapters' first values
        linear = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if set(lora_config.target_modules) == set(TARGET_MODULES) and not set(TARGET_MODULES) <= linear:
            lora_config.target_modules = "all-linear"  # Phi-3 and GPT-2 name their projections otherwise
        model = get_peft_model(model, lora_config)
    model.lineage = lineage
    between = _Between()
    callbacks = [between]
    if early_stopping_patience and train_args.eval_strategy != "no":
        callbacks.append(_EarlyStopping(early_stopping_patience))
    between.trainer = LabelPositionTrainer(
        model=model, args=train_args, train_dataset=train_dataset, eval_dataset=eval_dataset,
        processing_class=tokenizer, callbacks=callbacks, lineage=lineage)
    return between.trainer


def _require_capturable(train_args: TrainingArguments) -> None:
    """Raises DataError where CUDA graphs are asked for and cannot be captured."""
    if not train_args.cuda_graphs:
        return
    reasons = {"the computation is not on a GPU": train_args.device.type != "cuda",
               "they compute in bf16 only": not train_args.bf16,
               "there are several processes": train_args.world_size > 1,
               f"{CHECKPOINTING} draws random numbers anew; give a smaller tokens_per_pass instead":
                   getattr(train_args, CHECKPOINTING)}
    for reason, holds in reasons.items():
        if holds:
            raise DataError(f"cuda_graphs cannot be used: {reason}")


def _require_compiled(train_args: TrainingArguments) -> None:
    """Raises DataError where what only compiled layers can do is asked for without them."""
    if train_args.keep_fewer_activations and train_args.compile_layers is False:
        raise DataError("keep_fewer_activations needs compiled layers; leave it out, or --compile-layers false")


def _require_line_labels(train_args: TrainingArguments, train_dataset: Dataset) -> None:
    """Raises DataError where lines are to be learned and the records do not say what they are."""
    if train_args.line_loss_weight > 0 and "line_labels" not in train_dataset.column_names:
        raise DataError("line_loss_weight needs records with 'line_labels', as data.prepare writes them; prepare the "
                        "train split again, or leave it out")


def _require_shardable(train_args: TrainingArguments) -> None:
    """Raises DataError where an optimiser is asked for that cannot step a sharded model."""
    if _sharded() and any(part in train_args.optim for part in ("paged", "bit", "bnb")):
        raise DataError(f"{train_args.optim.value} cannot step weights that are sharded: bitsandbytes' optimisers take "
                        f"whole tensors; take --optim {SHARDABLE_OPTIMIZER}")


# ------------------------------------------------------------------------------------------ the command line


def train(args: argparse.Namespace, train_options: dict) -> Path:
    """What the command does; returns the best checkpoint's folder."""
    resume_from = _where_to_resume(args)
    wording = {name: value for name, value in (("instruction", args.instruction), ("answers", args.answers)) if value}
    task = Task(neutral_speakers=not args.keep_speaker_names, max_length=args.max_length, **wording)
    if args.device == "cpu":
        train_options["use_cpu"] = True
    model, tokenizer = load_model(args.model, args.device, quantization=args.quantization,
                                  double_quantization=args.double_quantization, dequantize=args.dequantize,
                                  trust_remote_code=args.trust_remote_code, shardable=_sharded())
    train_dataset, eval_dataset = load_dataset(args.train, args.eval, tokenizer, task=task)
    lora_config = build_loraconfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout)
    train_args = build_train_arguments(args.output, recipe=args.recipe, **train_options)
    trainer = build_trainer(model, tokenizer, train_args, lora_config, train_dataset, eval_dataset,
                            early_stopping_patience=args.early_stopping_patience)
    trainer.model.print_trainable_parameters()
    trainer.train(resume_from_checkpoint=resume_from)
    if trainer.is_world_process_zero():
        try:
            save_loss_curve(trainer.state.log_history, Path(args.output) / "loss_curve.png")
        except OSError as error:
            raise DataError(f"{args.output}/loss_curve.png: cannot be written ({error.strerror})") from error
    return Path(trainer.state.best_model_checkpoint or checkpoints_in(args.output)[-1])


def _where_to_resume(args: argparse.Namespace) -> str | None:
    if not checkpoints_in(args.output):
        return None
    if not args.resume:
        raise DataError(f"{args.output}: holds checkpoints of an earlier run; add --resume to go on with it, "
                        "or name another --output")
    folder, passed_over = newest_complete_checkpoint(args.output)
    print(*passed_over, f"resuming from {folder}" if folder else "no complete checkpoint: starting anew",
          sep="\n", file=sys.stderr)
    return str(folder) if folder else None


def _parser() -> argparse.ArgumentParser:
    parser = HfArgumentParser(FraudTrainingArguments, prog="trainer.py", description=__doc__, allow_abbrev=False,
                              formatter_class=argparse.RawDescriptionHelpFormatter,
                              usage="trainer.py --model M --train F --eval F --output DIR [--resume] [options]")
    # Only what the user gives counts: the defaults are the article's, in build_train_arguments.
    parser.set_defaults(**dict.fromkeys(ARGUMENT_NAMES))
    main = parser.add_argument_group("fraud fine-tuning")
    main.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    main.add_argument("--train", required=True, help="JSONL records to train on")
    main.add_argument("--eval", required=True, help="JSONL records for eval loss, best checkpoint, early stopping")
    main.add_argument("--output", required=True, help="folder for checkpoints and the loss curve")
    main.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in OUTPUT")
    main.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="how to compute the steps: plain "
                      "(any GPU), small (bf16; 3 GiB for Qwen2-1.5B), fast (14 GiB); default: by the free memory")
    main.add_argument("--device", default=default_device(), help="cuda, cuda:N or cpu (default: the GPU if any)")
    main.add_argument("--quantization", choices=("nf4", "fp4", "none"), default="nf4")
    main.add_argument("--double-quantization", action="store_true")
    main.add_argument("--dequantize", action="store_true", help="keep the 4-bit values in 16 bit: faster, more memory")
    main.add_argument("--lora-r", type=int, default=16)
    main.add_argument("--lora-alpha", type=int, default=32)
    main.add_argument("--lora-dropout", type=float, default=0.2)
    main.add_argument("--early-stopping-patience", type=int, default=5, help="evaluations; 0 never stops early")
    main.add_argument("--instruction", help="text before the dialogue, instead of the project's own")
    main.add_argument("--answers", nargs=2, metavar=("FRAUD", "HONEST"),
                      help="label words, instead of the JSON; needs an --instruction that asks for them")
    main.add_argument("--max-length", type=int, default=Task.max_length, help="tokens a row; the dialogue is cut")
    main.add_argument("--keep-speaker-names", action="store_true", help="to show why names are made neutral")
    main.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    train_options = {name: value for name, value in vars(args).items()
                     if name in ARGUMENT_NAMES and value is not None}
    refused = "use --output, not --output-dir" if "output_dir" in train_options else ""
    if args.answers and not args.instruction:
        refused = "--answers needs an --instruction that asks for them"
    if refused:
        print(f"trainer.py: {refused}", file=sys.stderr)
        return 2
    disable_progress_bars()
    try:
        with _others_silent():
            best = train(args, train_options)
    except (DataError, TrainingDiverged, NotCaptured) as error:  # alike on all processes
        return _stop(error if _speaks() else "")
    except CheckpointNotWritten as error:
        return _stop(f"{error}; make room, then go on with --resume")
    except torch.OutOfMemoryError:
        return _stop("out of memory: take --recipe small, or a smaller --tokens-per-pass; "
                     f"{_what_is_kept(args.output)}, go on with --resume")
    except KeyboardInterrupt:
        kept = f"stopped; {_what_is_kept(args.output)}; go on with --resume --output {args.output}"
        return _stop(kept if _speaks() else "", exit_code=130)
    if _speaks():
        print(f"best checkpoint: {best}")
        print(f"next: python evaluate.py --model {args.model} --checkpoint {best} --data {args.eval}")
    return 0


def _stop(line, exit_code: int = 2) -> int:
    if line:
        print(line, file=sys.stderr)
    return exit_code


def _speaks() -> bool:
    """Whether this is the process that prints, of those that ``accelerate launch`` started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextlib.contextmanager
def _others_silent():
    if _speaks():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# %run gives a notebook's script the name __main__ as well; there the command line is not this file's.
if __name__ == "__main__" and not hasattr(builtins, "__IPYTHON__"):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers send it: stop as on Ctrl-C
    code = main()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so do launchers once a process has ended: let this one end too
    sys.exit(code)
