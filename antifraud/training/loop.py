"""The training loop: rows of similar length, the loss at label positions, and what guards it."""

import contextlib
from functools import cached_property

import torch
from peft.helpers import disable_input_dtype_casting
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import EarlyStoppingCallback, TrainerCallback

from data.prompt import PromptEncoder

from ..checkpoint import Lineage
from ..logits import PADDING_MULTIPLE
from .batches import (
    CAPTURED_MULTIPLE,
    IGNORED,
    LengthGroupedBatches,
    RightPaddingCollator,
    RowsAfterPrefix,
    batches_by_tokens,
    prefix_of,
)
from .checkpoints import BestIsHere, NothingBeforeTheEnd, SealedCheckpoints
from .guard import FiniteGuard
from .loss import LineLoss, label_position_loss
from .micro_batches import MicroBatches
from .recipes import sharded

# Padded tokens of a batch in evaluation, which keeps nothing for a backward pass: on a GPU those of scoring, ...
EVAL_TOKENS = {"cuda": 32768, "cpu": 4096}
# ... or so many times those of a micro-batch: 0.2 MiB a token, logits at the answers included, where training takes
# 3.5, all of which stays with the CUDA graphs. That is within the reserve of `recipes.settings_for`.
EVAL_MICRO_BATCHES = 4
FEWEST_EVAL_TOKENS = 4096


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
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin:  # or 4-bit weights would be cast, and adapters used in 16 bit; see `autocast`
            plugin.mixed_precision_policy = MixedPrecisionPolicy()
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the targets of the whole step
        self.guard = FiniteGuard(self)
        self.add_callback(self.guard)
        self.add_callback(BestIsHere)
        self.add_callback(NothingBeforeTheEnd)
        self.add_callback(NewOrderEachEpoch(self))

    # ------------------------------------------------------------------------------------------------- the loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.autocast():
            loss = label_position_loss(model, **inputs, n_labels=num_items_in_batch, prefix=self.prefix,
                                       line_loss=self.line_loss(), label_smoothing=self.args.label_smoothing_factor)
        if num_items_in_batch is not None:
            loss = self.of_all_processes(loss)
        return (loss, {}) if return_outputs else loss

    def autocast(self) -> contextlib.AbstractContextManager:
        """The mixed precision of a sharded model; Accelerate gives it to the others."""
        return self.accelerator.autocast() if sharded() else contextlib.nullcontext()

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

    def get_eval_dataloader(self, eval_dataset=None):
        """Batches of as many tokens as the device has room for; read once, since every evaluation has the same rows."""
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            return self._eval_batches(eval_dataset)
        return self._own_eval_batches

    def get_test_dataloader(self, test_dataset):
        """For ``trainer.predict``, which tells the loss alone; `evaluate.py` scores."""
        return self._eval_batches(test_dataset)

    @cached_property
    def _own_eval_batches(self) -> torch.utils.data.DataLoader:
        return self._eval_batches(self.eval_dataset)

    def _eval_batches(self, dataset) -> torch.utils.data.DataLoader:
        args = self.args
        rows = RowsAfterPrefix(dataset, self.prefix.tolist())  # without lines: eval loss is about the answer alone
        tokens = EVAL_TOKENS[args.device.type]
        if args.tokens_per_micro_batch:  # which says how much memory there is
            tokens = min(tokens, max(FEWEST_EVAL_TOKENS, EVAL_MICRO_BATCHES * args.tokens_per_micro_batch))
        batches = batches_by_tokens(rows.lengths, self.data_collator.width, tokens=tokens - len(self.prefix),
                                    most_rows=args.per_device_eval_batch_size, processes=args.world_size)
        return torch.utils.data.DataLoader(rows, batch_sampler=batches[args.process_index::args.world_size],
                                           collate_fn=self.data_collator, pin_memory=args.dataloader_pin_memory)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Adds to the sums of `evaluation_loop`, for which nothing waits, and never holds logits."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        # Layers are compiled for training only.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.autocast():
            loss = label_position_loss(model, inputs["input_ids"], labels, n_labels=1, prefix=self.prefix,
                                       n_positions=len(labels) * self.most_eval_labels)
        self.eval_sums += torch.stack([loss, (labels != IGNORED).sum()])
        return None, None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's, with the mean loss over all labels, however rows are spread over batches and processes."""
        self.eval_sums = torch.zeros(2, device=self.args.device)
        self.most_eval_labels = dataloader.dataset.most_targets("labels")
        # PEFT would make the inputs of its 32-bit adapters 32-bit, which autocast undoes at once.
        with disable_input_dtype_casting(self.model, active=self.args.bf16 or self.args.fp16):
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
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
        lines = is_training and self.args.line_loss_weight > 0
        return super()._get_dataloader(RowsAfterPrefix(dataset, self.prefix.tolist(), lines), *args,
                                       is_training=is_training, **kwargs)

    def _get_train_sampler(self, train_dataset):
        rows_a_step = (self.args.per_device_train_batch_size * self.args.world_size
                       * self.args.gradient_accumulation_steps)
        self.train_rows = train_dataset
        self.train_batches = LengthGroupedBatches(train_dataset.lengths, rows_a_step, self.args.seed)
        return self.train_batches

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
