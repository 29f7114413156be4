"""The training loop: micro-batches, finite losses only, sealed checkpoints."""

import math
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from data.files import DataError, one_line
from data.prompt import PromptEncoder

from ..checkpoint import (
    Lineage,
    newest_complete_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    save_task_file,
    seal_checkpoint,
)
from ..compiling import can_compile, compile_layers
from ..logits import PADDING_MULTIPLE
from .batches import (
    CAPTURED_MULTIPLE,
    LengthGroupedBatches,
    RightPaddingCollator,
    RowsAfterPrefix,
    filled_up,
    prefix_of,
)
from .cuda_graphs import CapturedPass
from .loss import LineLoss, label_position_loss

# Rows, from which on compiled layers make up for compiling them: 100 s or so, for 1.7 ms a row (Qwen2-1.5B, one H100).
COMPILING_PAYS = 60_000
SKIPPED_STEPS_LIMIT = 20  # fp16 loss scaling skips steps with infinite gradients while it finds its scale


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is not finite; says at which step, and which checkpoint is the last good one."""


class NotCaptured(RuntimeError):
    """A pass cannot be compiled, or captured as a CUDA graph, with this model or on this machine."""


class CheckpointNotWritten(RuntimeError):
    """The disk is full, or refuses a checkpoint for another reason; says which one is the last good one."""


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
                f"{what_is_kept(self.args.output_dir)}. Try a lower learning rate")

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
        blank = [rows] * (filled_up(rows, self.args.per_device_eval_batch_size * self.args.world_size) - rows)
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
                                       f"{what_is_kept(self.args.output_dir)}") from error
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self) -> None:
        read_checkpoint(self.state.best_model_checkpoint)  # a damaged one is refused in one line
        super()._load_best_model()


def _on_the_way_to_the_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy that arrives while the CPU goes on; it may be read once the event is over."""
    copy = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    return copy, torch.cuda.current_stream().record_event()


def what_is_kept(output: str) -> str:
    folder, _ = newest_complete_checkpoint(output)
    return f"{folder} is intact" if folder else "no checkpoint was written yet"


class EarlyStopping(EarlyStoppingCallback):
    """Goes on counting where an interrupted run was."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = sum(
            row["step"] > (state.best_global_step or 0) for row in state.log_history if "eval_loss" in row)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class BetweenSteps(TrainerCallback):
    """What Trainer asks callbacks, not itself, to do between its steps."""

    trainer: LabelPositionTrainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Trainer does so too, but in a resumed run on several processes the sampler is wrapped too deep for it.
        self.trainer.train_batches.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.require_finite_gradients()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.read_unread()
