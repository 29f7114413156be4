"""A batch in micro-batches that fit the memory, each compiled or captured as a CUDA graph where that pays."""

import contextlib
import functools
from functools import cached_property

import torch
from transformers import Trainer

from data.files import DataError, one_line

from ..compiling import can_compile, compile_layers, kernels_kept, selective_recomputation
from .cuda_graphs import CapturedMicroBatch, first_layers
from .loss import label_position_loss

# Rows, from which on compiled layers make up for compiling them: 100 s or so, and 15 where an earlier run left kernels,
# for 1.7 ms a row (Qwen2-1.5B, one H100).
COMPILING_PAYS, COMPILING_PAYS_AGAIN = 60_000, 15_000


class NotCaptured(DataError):
    """A micro-batch cannot be compiled, or captured as a CUDA graph, with this model or on this machine."""


class MicroBatches(Trainer):
    """Trainer whose step runs forward and backward in micro-batches of at most ``tokens_per_micro_batch`` tokens."""

    captured: CapturedMicroBatch | None = None
    compiled: bool | None = None  # not known before the first step

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args.cuda_graphs and self.args.world_size > 1:  # no DDP: its hooks cannot be captured
            self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = self._prepare_inputs(inputs)
        if self.compiled is None:
            self.compiled = self._compile_if_it_pays()
        one = self._captured_step if self.args.cuda_graphs else super().training_step
        with selective_recomputation(self.args.selective_recomputation):  # a layer is compiled when it first runs
            losses = [one(model, part, num_items_in_batch) for part in self.micro_batches(inputs)]
        if self.captured and self.args.world_size > 1 and self.accelerator.sync_gradients:
            self.captured.average_gradients(self.args.world_size)
        loss = torch.stack(losses).sum()
        self.guard.add(loss)
        return loss

    def micro_batches(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """`inputs` cut into equal numbers of rows; the gradients add up to those of the whole batch."""
        rows = self.rows_a_micro_batch(*inputs["input_ids"].shape)
        parts = zip(*(tensor.split(rows) for tensor in inputs.values()))
        return [dict(zip(inputs, part)) for part in parts]

    def rows_a_micro_batch(self, rows: int, width: int) -> int:
        """The most rows, of those that divide a batch, with which a micro-batch keeps to its tokens."""
        limit = self.args.tokens_per_micro_batch
        if not limit or self.args.world_size > 1 and not self.args.cuda_graphs:
            return rows  # DDP and a sharded model would wait for a micro-batch that the others don't make
        return next((n for n in range(rows, 0, -1) if rows % n == 0
                     and len(self.prefix) + n * width <= limit), 1)

    def of_all_processes(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss that was divided by the targets of all processes, before gradients are averaged over them."""
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    @cached_property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model):
        """Trainer's, in one buffer instead of hundreds of tensors where there is one."""
        if self.captured is None:
            return super()._clip_grad_norm(model)
        return self.captured.clip_gradients(self.args.max_grad_norm)

    def _captured_step(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        if not model.training:  # it walks through 2,000 modules, for milliseconds
            model.train()
        try:
            if self.captured is None:
                self._begin_alike()
                self.captured = self._capture(model, tuple(inputs))
            return self.captured(inputs, num_items_in_batch)
        except RuntimeError as error:
            cause = error.__context__ or error  # what ended a capture, which then fails to end
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotCaptured(f"a micro-batch cannot be compiled or captured as a CUDA graph here ({one_line(cause)}); "
                              "take --recipe plain") from error

    def _begin_alike(self) -> None:
        """Gives all processes the first one's adapters, as DDP does."""
        if self.args.world_size > 1:
            for parameter in self.trained_parameters:
                torch.distributed.broadcast(parameter.data, 0)

    def _capture(self, model, names: tuple[str, ...]) -> CapturedMicroBatch:
        batch_size, rows = self.args.per_device_train_batch_size, self.train_rows
        widths = {self.data_collator.width(length) for length in rows.lengths}
        shapes = [(self.rows_a_micro_batch(batch_size, width), width) for width in sorted(widths)]
        most_labels, most_lines = rows.most_targets("labels"), rows.most_targets("line_targets")

        def loss(inputs, n_labels):
            n_rows = len(inputs["labels"])
            return self.of_all_processes(label_position_loss(
                model, **inputs, n_labels=n_labels, n_positions=n_rows * most_labels, prefix=self.prefix,
                line_loss=self.line_loss(n_rows * most_lines), label_smoothing=self.args.label_smoothing_factor))

        # Compiled layers are each compiled for their shapes; others all run the same kernels.
        few = contextlib.nullcontext if self.compiled else functools.partial(first_layers, model)
        return CapturedMicroBatch(loss, self.trained_parameters, shapes, names, few)

    def _compile_if_it_pays(self) -> bool:
        rows_to_come = (self.state.max_steps - self.state.global_step) * self.args.train_batch_size
        enough = rows_to_come >= (COMPILING_PAYS_AGAIN if kernels_kept() else COMPILING_PAYS)
        pays = self.args.cuda_graphs and enough and can_compile()
        asked_for = self.args.compile_layers or self.args.selective_recomputation
        wanted = asked_for or pays and self.args.compile_layers is None
        if wanted:
            self.model.enable_input_require_grads()  # else the first layer is compiled for itself: its input has none
            compile_layers(self.model)
        return wanted
