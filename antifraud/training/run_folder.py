"""The output folder of a training: one run, one process, and what a run can be resumed with.

``stamp.json`` in it says what the run began with, and ``.lock`` is held while it is written.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

from peft import LoraConfig
from transformers import TrainingArguments

from data.files import DataError
from data.stamp import STAMP_FILE, differences, locked, read_stamp, require_same, write_stamp

from ..checkpoint import Lineage, checkpoints_in, newest_complete_checkpoint, require_complete

ANOTHER_FOLDER = "name another --output"
# May change from one resumption to the next, as long as somebody is told.
SCHEDULE = ("learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps")


def facts_of_run(lineage: Lineage, eval_data: dict, lora: LoraConfig, args: TrainingArguments) -> dict:
    """What a run began with: the task, the files, the base model, its quantisation, LoRA, seed and schedule."""
    rows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"train": lineage.train_data.get("sha256"), "eval": eval_data.get("sha256"),
            "task": dataclasses.asdict(lineage.task), "base": lineage.base.get("fingerprint"),
            "quantization": lineage.quantization,
            "lora": {"r": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout},
            "line_loss_weight": args.line_loss_weight, "seed": args.seed, "rows_a_step": rows_a_step,
            "schedule": {name: str(getattr(args, name)) for name in SCHEDULE}}


@contextlib.contextmanager
def owned(output: Path):
    """The folder, made if it is not there, for this process alone.

    Raises:
        DataError: it cannot be written, or another process trains into it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror}); {ANOTHER_FOLDER}") from None
    with locked(output, ANOTHER_FOLDER):
        yield


def where_to_resume(output: Path, asked_for: str | bool | None) -> Path | None:
    """The checkpoint to go on from: None for a new run, True for the newest complete one."""
    if not asked_for:
        return None
    if asked_for is True:
        return newest_complete_checkpoint(output)[0]
    if not Path(asked_for).is_dir():
        raise DataError(f"{asked_for}: no such folder; a checkpoint is a folder such as {output}/checkpoint-100")
    require_complete(asked_for)
    return Path(asked_for)


def require_resumable(folder: Path, facts: dict) -> list[str]:
    """Refuses to go on from a checkpoint in `folder` with other facts than those its run began with.

    Returns:
        what of the schedule differs, which it may.
    """
    saved = read_stamp(folder) or {}
    schedule = {"schedule": saved["schedule"]} if "schedule" in saved else {}
    require_same(folder, {**facts, **schedule}, f"resume with what it began with, or {ANOTHER_FOLDER}")
    return differences(saved.get("schedule", {}), facts["schedule"])


def begun_with(output: Path, facts: dict, resume: Path | None) -> None:
    """Writes the stamp of a new run, after setting an earlier one aside; compares it in a resumed one.

    A resumed one may have another schedule, and one line says so.
    """
    if resume:
        if changed := require_resumable(resume.parent, facts):
            print(f"{resume.parent}: goes on with another {', '.join(changed)}", file=sys.stderr)
    else:
        _set_aside(output)
    write_stamp(output, facts)


def _set_aside(output: Path) -> None:
    if newest_complete_checkpoint(output)[0] is None:  # what a killed run left half written is written over
        return
    aside = next(path for n in range(1, 10**6) if not (path := output / f"earlier-{n}").exists())
    aside.mkdir()
    for path in [*checkpoints_in(output), output / STAMP_FILE]:
        if path.exists():
            path.rename(aside / path.name)
    print(f"{output}: a new run; the checkpoints of the earlier one are now in {aside}", file=sys.stderr)
