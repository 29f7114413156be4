"""Checkpoints that are complete or passed over, in a folder that holds one run."""

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments

from data.files import DataError, one_line

from ..checkpoint import (
    in_folder,
    newest_complete_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    save_task_file,
    seal_checkpoint,
)
from .guard import what_is_kept
from .recipes import sharded
from .run_folder import begun_with, facts_of_run, owned, where_to_resume
from .settings import names_kept, option

ADAM_NAMES = ("exp_avg", "exp_avg_sq"), ("state1", "state2")  # PyTorch's for AdamW's two averages, bitsandbytes'
BNB_WRAPPED = "__bnb_optimizer_quant_state__"  # in which bitsandbytes wraps all but the step
OF_THE_SAVED = ("params", "lr", "initial_lr")  # what a schedule goes on from; weight decay and betas may change


class CheckpointNotWritten(DataError):
    """The disk is full, or refuses a checkpoint for another reason; says which one is the last good one."""


class BestIsHere(TrainerCallback):
    """A run that was moved or copied goes on with its own best checkpoint, not with that of the old place."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.best_model_checkpoint:
            here = in_folder(args.output_dir, state.best_model_checkpoint)
            state.best_model_checkpoint = str(here) if here.is_dir() else None


class NothingBeforeTheEnd(TrainerCallback):
    """Says of a short training that it ends before what was to come after more steps than it has."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        none_before = {"evaluation": args.eval_strategy == "steps" and state.eval_steps,
                       "checkpoint": args.save_strategy == "steps" and state.save_steps,
                       "full learning rate": args.get_warmup_steps(state.max_steps)}
        for (what, after), name in zip(none_before.items(), ("eval_steps", "save_steps", "warmup_steps")):
            if after and after > state.max_steps:
                print(f"no {what} before the end: the training has {state.max_steps} steps, and {option(name)} is "
                      f"{after:g}; give a smaller one", file=sys.stderr)


class SealedCheckpoints(Trainer):
    """Trainer whose checkpoints prove that they are complete, and whose output folder belongs to one run."""

    sealing: tuple[Path, Future] | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Trainer's, in a folder that no other process writes.

        Checkpoints of an earlier run are set aside, unless this one goes on from them.

        Args:
            resume_from_checkpoint: a folder, or True for the newest complete checkpoint.

        Raises:
            DataError: another process trains into the folder, there is no such checkpoint, or it is one of a run with
                other data, another task, base model, quantisation, LoRA settings or seed.
        """
        output = Path(self.args.output_dir)
        resume = where_to_resume(output, resume_from_checkpoint)
        with contextlib.ExitStack() as held:
            refusal = self._refusal(output, resume, held) if self.is_world_process_zero() else None
            [refusal] = broadcast_object_list([refusal])  # if the first process stopped alone the rest would wait
            if refusal:
                raise refusal
            try:
                return super().train(resume_from_checkpoint=str(resume) if resume else None, **kwargs)
            finally:
                self.wait_until_sealed()

    def _refusal(self, output: Path, resume: Path | None, held: contextlib.ExitStack) -> DataError | None:
        try:
            held.enter_context(owned(output))
            begun_with(output, self.facts(), resume)
        except DataError as error:
            return error
        return None

    def facts(self) -> dict:
        """What a checkpoint of this run can only be resumed with."""
        return facts_of_run(self.lineage, self.eval_data, self.model.active_peft_config, self.args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's, which goes on with the checkpoint's optimiser and learning rate whatever was asked for."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if checkpoint and not sharded():
            usual = optimizer.load_state_dict
            optimizer.load_state_dict = lambda saved: usual(_as_kept_by(self.args, optimizer, saved, checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        vars(optimizer).pop("load_state_dict", None)
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        for place, peak in enumerate(getattr(schedule, "base_lrs", [])):  # one that waits for a plateau has none
            if peak not in (0, self.args.learning_rate):
                share = self.args.learning_rate / peak
                schedule.base_lrs[place] = self.args.learning_rate
                schedule._last_lr[place] *= share  # what is logged
                self.optimizer.param_groups[place]["lr"] *= share

    def save_if_nothing_is_saved(self) -> None:
        """Writes the model as it ended, where no checkpoint was due: a training is never for nothing."""
        newest, _ = newest_complete_checkpoint(self.args.output_dir)
        as_it_ended = newest and newest.name == f"checkpoint-{self.state.global_step}"
        unsaved = newest is None or self.args.save_strategy == "no" and not as_it_ended
        [unsaved] = broadcast_object_list([unsaved])  # all processes save, or none
        if unsaved:
            self._save_checkpoint(self.model, trial=None)
            self.wait_until_sealed()

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_task_file(output_dir or self.args.output_dir, self.lineage)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's; then a list of the files proves that none is missing, and only then older checkpoints go.

        The latter two while the training goes on: until the files are on the disk, and read again, takes longer than
        to hand them to the system.
        """
        self.guard.read()
        self.wait_until_sealed()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self._said_in_a_line(folder):
                if self.args.should_save:
                    remove_checkpoint(folder)  # what a killed run left
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process writes its own random state
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            writer = ThreadPoolExecutor(1)
            self.sealing = folder, writer.submit(_seal, folder, self.state.best_model_checkpoint, limit)
            writer.shutdown(wait=False)  # ends with what it was given

    def wait_until_sealed(self) -> None:
        """Until the last checkpoint is complete.

        Raises:
            CheckpointNotWritten: it never will be.
        """
        if self.sealing:
            (folder, sealed), self.sealing = self.sealing, None
            with self._said_in_a_line(folder):
                sealed.result()

    @contextlib.contextmanager
    def _said_in_a_line(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, DataError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save, on a full disk
                raise
            raise CheckpointNotWritten(
                f"{folder}: cannot be written ({one_line(error)}); is the disk full? "
                f"{what_is_kept(self.args.output_dir)}; make room, then go on with --resume") from error

    def _load_best_model(self) -> None:
        self.wait_until_sealed()
        self.accelerator.wait_for_everyone()  # the first process seals what all of them read
        read_checkpoint(self.state.best_model_checkpoint)  # a damaged one is refused in one line
        super()._load_best_model()


def _as_kept_by(args: TrainingArguments, optimizer: torch.optim.Optimizer, saved: dict, checkpoint: str) -> dict:
    """The saved state of an optimiser, perhaps another, for `optimizer`, with whose settings the run goes on.

    Recipe, free memory and device choose between PyTorch's AdamW and that of bitsandbytes: the same under other names.

    Raises:
        DataError: it is of another kind.
    """
    wanted, state = names_kept(args), saved["state"]
    kept = {place: {**values, **values.get(BNB_WRAPPED, {})} for place, values in state.items()}
    names = {name for values in kept.values() for name in values} - {BNB_WRAPPED}
    new = next((pair for pair in ADAM_NAMES if wanted == {*pair, "step"}), None)
    if new and not wanted <= names:
        old = next((pair for pair in ADAM_NAMES if names == {*pair, "step"}), None)
        if not old:
            raise DataError(f"{checkpoint}: was written by another kind of optimiser than --optim {args.optim.value}; "
                            "resume with the one that it was begun with, or name another --output")
        state = {place: {"step": int(values["step"]), **{name: values[was] for name, was in zip(new, old)}}
                 for place, values in kept.items()}
    groups = [{**group, **{name: value for name, value in own.items() if name not in OF_THE_SAVED}}
              for group, own in zip(saved["param_groups"], optimizer.param_groups)]
    return {**saved, "state": state, "param_groups": groups}


def _seal(folder: Path, best: str | None, limit: int | None) -> None:
    seal_checkpoint(folder)
    rotate_checkpoints(folder.parent, folder, best, limit)
