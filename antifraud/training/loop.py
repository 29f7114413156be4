"""The training loop: rows of similar length, the loss at label positions, and what guards it."""

from functools import cached_property

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from data.prompt import PromptEncoder

from ..checkpoint import Lineage
from ..logits import PADDING_MULTIPLE
from .batches import (
    CAPTURED_MULTIPLE,
    LengthGroupedBatches,
    RightPaddingCollator,
    RowsAfterPrefix,
    filled_up,
    prefix_of,
)
from .checkpoints import SealedCheckpoints
from .guard import FiniteGuard
from .loss import LineLoss, label_position_loss
from .micro_batches import MicroBatches


class LabelPositionTrainer(SealedCheckpoints, MicroBatches):
    """Trainer with logits at label positions only and length-grouped batches; a run on several processes equals one."""

    def __init__(self, *args, lineage: Lineage, eval_data: dict, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lineage = lineage
        self.eval_data = eval_data
        self.encoder = PromptEncoder(self.processing_class, lineage.task)
        self.prefix = torch.tensor(prefix_of(self.encoder, self.train_dataset, self.eval_dataset),
                                   dtype=torch.long, device=self.args.device)
        self.data_collator = RightPaddingCollator(self.processing_class.pad_token_id,
                                                  CAPTURED_MULTIPLE if self.args.cuda_graphs else PADDING_MULTIPLE,
                                                  after=len(self.prefix))
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the targets of the whole step
        self.guard = FiniteGuard(self)
        self.add_callback(self.guard)
        self.add_callback(NewOrderEachEpoch(self))

    # ------------------------------------------------------------------------------------------------- the loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = label_position_loss(model, **inputs, n_labels=num_items_in_batch, prefix=self.prefix,
                                   line_loss=self.line_loss(), label_smoothing=self.args.label_smoothing_factor)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all
        return (loss, {}) if return_outputs else loss

    def line_loss(self, n_positions: int | None = None) -> LineLoss | None:
        """The auxiliary line loss, if there is one."""
        if not self.args.line_loss_weight:
            return None
        return LineLoss(self.encoder.label_ids, self.args.line_loss_weight, n_positions)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Trainer's count of labels, and of the lines to learn of."""
        targets = [torch.cat([part for name, part in batch.items() if name != "input_ids"], dim=-1)
                   for batch in batch_samples]
        return super()._get_num_items_in_batch([{"labels": labels} for labels in targets], device)

    # ----------------------------------------------------------------------------------------------- evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Adds to the sums of `evaluation_loop`, and never holds logits."""
        for part in self.micro_batches(self._prepare_inputs(inputs)):
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

    def evaluate(self, *args, **kwargs):
        self.guard.read()
        metrics = super().evaluate(*args, **kwargs)
        self.guard.require_finite_eval_loss(metrics.get("eval_loss", 0.0))
        return metrics

    # ------------------------------------------------------------------------------------------ rows and batches

    def get_batch_samples(self, *args, **kwargs):
        """Trainer's, but none for a resumed run that had already ended: Trainer would go one step too far."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _get_dataloader(self, dataset, *args, is_training=False, **kwargs):
        lines = is_training and self.args.line_loss_weight > 0  # eval loss is about the answer alone
        return super()._get_dataloader(RowsAfterPrefix(dataset, self.prefix.tolist(), lines), *args,
                                       is_training=is_training, **kwargs)

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

    def floating_point_ops(self, inputs) -> int:
        """Trainer's, whose count of the parameters walks through the whole model at every step."""
        return 6 * inputs["input_ids"].numel() * self.n_parameters

    @cached_property
    def n_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)


class NewOrderEachEpoch(TrainerCallback):
    """Trainer tells the sampler of a new epoch, too, but of several resumed processes wraps it too deep for that."""

    def __init__(self, trainer: LabelPositionTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.train_batches.set_epoch(int(state.epoch or 0))


class EarlyStopping(EarlyStoppingCallback):
    """Goes on counting where an interrupted run was."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = sum(
            row["step"] > (state.best_global_step or 0) for row in state.log_history if "eval_loss" in row)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience
