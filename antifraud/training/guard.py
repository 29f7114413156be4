"""No step on a loss or a gradient that is not finite."""

import math

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from ..checkpoint import newest_complete_checkpoint

SKIPPED_STEPS_LIMIT = 20  # fp16 loss scaling skips steps with infinite gradients while it finds its scale


class TrainingDiverged(FloatingPointError):
    """The loss or a gradient is not finite; says at which step, and which checkpoint is the last good one."""


class FiniteGuard(TrainerCallback):
    """Looks at loss and gradients before each optimiser step, and stops the training if they are not finite.

    With CUDA graphs and the fused optimiser it looks one step later, while the GPU computes: that optimiser skips
    such a step by itself.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.skipped_steps = 0
        self.loss_of_step = torch.zeros((), device=self.args.device)
        self.unread: tuple[int, torch.Tensor, torch.cuda.Event] | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Adds the loss of a batch to that of the step."""
        self.loss_of_step += loss

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Stops before the optimiser takes a step on a loss or a gradient that is not finite."""
        trainer = self.trainer
        norm = self._gradient_norm() if trainer.captured is None else trainer.captured.gradient_norm()
        # Over all processes: FSDP's have a part of the gradients each, and if one stopped alone the rest would hang.
        sums = trainer.accelerator.reduce(torch.stack([self.loss_of_step, norm]), "sum")
        self.loss_of_step = torch.zeros_like(self.loss_of_step)
        step = state.global_step + 1
        if args.cuda_graphs and args.optim == "adamw_torch_fused":
            trainer.optimizer.optimizer.found_inf = (~sums.isfinite().all()).float()
            self.read()
            self.unread = step, *on_the_way_to_the_host(sums)
        else:
            self._require_finite(step, *sums.tolist())

    def on_train_end(self, args, state, control, **kwargs):
        self.read()

    def read(self) -> None:
        """Stops if the last step's loss or gradient, at which nobody looked yet, was not finite."""
        if self.unread:
            step, on_host, copied = self.unread
            self.unread = None
            copied.synchronize()
            self._require_finite(step, *on_host.tolist())

    def require_finite_eval_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDiverged(self._message(f"eval loss {loss}", self.trainer.state.global_step + 1))

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self.trainer.trained_parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(self.args.device)

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        self.skipped_steps = 0 if math.isfinite(norm) else self.skipped_steps + 1
        tolerated = SKIPPED_STEPS_LIMIT if self.args.fp16 else 0
        if not math.isfinite(loss):
            raise TrainingDiverged(self._message(f"loss {loss}", step))
        if self.skipped_steps > tolerated:
            raise TrainingDiverged(self._message(f"gradient norm {norm}", step))

    def _message(self, what: str, step: int) -> str:
        self.trainer.wait_until_sealed()
        return (f"step {step}: {what} is not finite, training stopped; {what_is_kept(self.args.output_dir)}. "
                "Try a lower learning rate")


def on_the_way_to_the_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy that arrives while the CPU goes on; it may be read once the event is over."""
    copy = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    return copy, torch.cuda.current_stream().record_event()


def what_is_kept(output: str) -> str:
    folder, _ = newest_complete_checkpoint(output)
    return f"{folder} is intact" if folder else "no checkpoint was written yet"
