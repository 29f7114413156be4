"""What a checkpoint says about itself, and the checks before it is believed.

A ``checkpoint-N/`` folder is what PEFT and Trainer write plus ``fraud_task.json``: the prompt and label words it
was taught, the base model's fingerprint, the adapter's sha256, the data it saw and the versions it was made with.
Once the folder is finished, the file also lists the sha256 of every other file: with the list, nothing is missing.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from data.files import DataError, require_output, write_json
from data.prompt import Task

from .provenance import (
    anonymous,
    code_provenance,
    describe_base,
    describe_data,
    device_name,
    file_sha256,
    versions,
)

TASK_FILE = "fraud_task.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
STATE_FILE = "trainer_state.json"
LINE_WEIGHT = 0.5  # of a line-aware checkpoint until `--calibrate` finds what suits it


@dataclasses.dataclass(frozen=True)
class Decision:
    """How the scores of a model become a probability and an answer.

    Attributes:
        threshold: probability of fraud from which on a dialogue is called one.
        temperature, bias: the log-odds of a score become a probability's: divided by the one, and the other added; see
            `evaluation.calibration`.
        line_weight: how much of a score, in log-odds, is the mean of the most suspicious lines and not the answer; for
            a model trained with the auxiliary line loss.
        top_lines: how many lines that mean is of.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    bias: float = 0.0
    line_weight: float = 0.0
    top_lines: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.threshold, (int, float)) and 0 <= self.threshold <= 1):
            raise DataError(f"threshold must be a number from 0 to 1, not {self.threshold!r}")
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            raise DataError(f"temperature must be a number above zero, not {self.temperature!r}")
        if not (isinstance(self.bias, (int, float)) and math.isfinite(self.bias)):
            raise DataError(f"bias must be a number, not {self.bias!r}")
        if not (isinstance(self.line_weight, (int, float)) and 0 <= self.line_weight <= 1):
            raise DataError(f"line_weight must be a number from 0 to 1, not {self.line_weight!r}")
        if not (isinstance(self.top_lines, int) and self.top_lines >= 1):
            raise DataError(f"top_lines must be a whole number from 1 on, not {self.top_lines!r}")

    @property
    def line_aware(self) -> bool:
        """Whether lines count."""
        return self.line_weight > 0

    def log_odds(self, of_answer: float, of_lines: Sequence[float]) -> float:
        """Of a dialogue, by those of its answer and of each of its lines."""
        if not self.line_aware or not len(of_lines):
            return of_answer
        highest = sorted(of_lines)[-self.top_lines:]
        return (1 - self.line_weight) * of_answer + self.line_weight * sum(highest) / len(highest)


@dataclasses.dataclass
class Lineage:
    """Where a model comes from: kept on it as ``model.lineage``, saved with every checkpoint.

    Attributes:
        task: the prompt and how an answer is read.
        decision: how scores become probabilities and answers.
        base: ``name`` and ``fingerprint`` of the base model.
        quantization: ``type`` (nf4, fp4 or none) and ``double`` of the base weights.
        train_data: ``name``, ``path``, ``sha256`` and ``rows`` of the train file, where known.
        calibration: on what data the decision of the task was found, and how that went.
        averaged: sha256 of each adapter that this one is the mean of; empty for one that was trained.
        adapter_sha256: of the saved adapter; empty before it is saved.
        checkpoint: the folder's name; empty for an untuned model.
    """

    task: Task = dataclasses.field(default_factory=Task)
    decision: Decision = dataclasses.field(default_factory=Decision)
    base: dict = dataclasses.field(default_factory=dict)
    quantization: dict = dataclasses.field(default_factory=dict)
    train_data: dict = dataclasses.field(default_factory=dict)
    calibration: dict = dataclasses.field(default_factory=dict)
    averaged: list[str] = dataclasses.field(default_factory=list)
    adapter_sha256: str = ""
    checkpoint: str = ""


def lineage_of(model) -> Lineage:
    """The lineage kept on a model; a bare one for a model that was loaded by other means."""
    lineage = getattr(model, "lineage", None)
    if lineage is None:
        folder = getattr(model.config, "_name_or_path", "") or ""
        base = describe_base(folder) if os.path.isdir(folder) else {"name": folder, "fingerprint": None}
        lineage = model.lineage = Lineage(base=base, quantization=quantization_of(model))
    return lineage


def quantization_of(model) -> dict:
    """``type`` (nf4, fp4, int8 or none) and ``double`` of a model's weights, as they were loaded."""
    config = getattr(model.config, "quantization_config", None)
    if getattr(config, "load_in_8bit", False):
        return {"type": "int8", "double": False}
    if not getattr(config, "load_in_4bit", False):
        return {"type": "none", "double": False}
    return {"type": config.bnb_4bit_quant_type, "double": config.bnb_4bit_use_double_quant}


def save_task_file(folder: str | Path, lineage: Lineage) -> None:
    """Writes ``fraud_task.json`` beside an adapter that has just been saved."""
    saved = dataclasses.replace(lineage, adapter_sha256=file_sha256(Path(folder) / ADAPTER_FILE))
    fields = dataclasses.asdict(saved)
    del fields["checkpoint"]
    write_json(Path(folder) / TASK_FILE, {**fields, "versions": versions()})


def seal_checkpoint(folder: str | Path) -> None:
    """Marks a checkpoint as finished: adds the sha256 of all its files to ``fraud_task.json``, in one stroke.

    Raises:
        OSError, DataError: a file cannot be read, or the list not be written.
    """
    folder = Path(folder)
    saved = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / TASK_FILE)
    for path in files:
        path.chmod(0o644)  # safetensors leaves its file to its maker alone
        with open(path, "r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())  # a list that reaches the disk before its files proves nothing
    known = {ADAPTER_FILE: saved["adapter_sha256"]}
    names = [path.relative_to(folder).as_posix() for path in files]
    saved["files"] = {name: known.get(name) or file_sha256(folder / name) for name in names}
    write_json(folder / TASK_FILE, saved)


def require_calibratable(folder: str | Path) -> None:
    """Raises DataError for a folder that a calibration cannot be kept in."""
    path = Path(folder) / TASK_FILE
    if read_task_file(path) is None:
        raise DataError(f"{folder}: no {TASK_FILE} to keep a calibration in; copy it from where the adapter comes from")
    require_output(path)


def save_calibration(folder: str | Path, decision: Decision, calibration: dict) -> None:
    """Rewrites decision and calibration in a checkpoint's ``fraud_task.json``, in one stroke; its seal stays as it is.

    Raises:
        DataError: no such file (plain PEFT wrote the checkpoint), or it cannot be written.
    """
    require_calibratable(folder)
    path = Path(folder) / TASK_FILE
    saved = json.loads(path.read_text(encoding="utf-8"))
    task, _ = _task_and_decision(saved)  # which older checkpoints kept as one
    write_json(path, {**saved, "task": dataclasses.asdict(task), "decision": dataclasses.asdict(decision),
                      "calibration": calibration})


def require_complete(folder: str | Path) -> None:
    """Raises DataError unless the checkpoint holds every file it was finished with, unaltered."""
    folder = Path(folder)
    read_checkpoint(folder)
    try:
        files = dict(json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: no list of its files in {TASK_FILE}; its writing was not finished") from None
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing")
        if file_sha256(folder / name) != sha256:
            raise DataError(f"{folder / name}: truncated or altered")


def read_checkpoint(folder: str | Path) -> Lineage:
    """The lineage of a checkpoint, after checking that its adapter is whole, unaltered and finite.

    A folder without ``fraud_task.json``, from plain PEFT, is taken to have been taught the default task.

    Raises:
        DataError: no adapter there, or one that is truncated, altered or not finite.
    """
    folder = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name}; a checkpoint is a folder such as outputs/run/checkpoint-100")
    lineage = read_task_file(folder / TASK_FILE) or Lineage()
    lineage.checkpoint = folder.resolve().name  # "." has none, and would read as an untuned model
    try:
        sha256 = file_sha256(folder / ADAPTER_FILE)
    except OSError as error:
        raise DataError(f"{folder / ADAPTER_FILE}: {error.strerror}") from None
    if lineage.adapter_sha256 not in ("", sha256):
        raise DataError(f"{folder / ADAPTER_FILE}: sha256 {sha256[:12]} is not the {lineage.adapter_sha256[:12]} "
                        f"in {TASK_FILE}: truncated or altered; copy it again or use an earlier checkpoint")
    lineage.adapter_sha256 = sha256
    _require_finite_adapter(folder / ADAPTER_FILE)
    return lineage


def read_task_file(path: Path) -> Lineage | None:
    """What a checkpoint or an exported model says about itself; None where it says nothing."""
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        task, decision = _task_and_decision(saved)
        calibration = dict(saved.get("calibration", {}))
        if "wish" in calibration:  # what the target was called until November 2026
            calibration["target"] = calibration.pop("wish")
        known = {field.name: saved[field.name] for field in dataclasses.fields(Lineage) if field.name in saved}
        lineage = Lineage(**{**known, "task": task, "decision": decision, "calibration": calibration})
        _require_usable(lineage)
        return lineage
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a task file of this project ({error})") from None


def _require_usable(lineage: Lineage) -> None:
    """Raises DataError for what an edit by hand may have left in a task file, and what would fail much later."""
    for field in dataclasses.fields(Lineage):
        value, kind = getattr(lineage, field.name), type(getattr(Lineage(), field.name))
        if not isinstance(value, kind):
            raise DataError(f"{field.name} must be a {kind.__name__}, not {value!r}")
    if not isinstance(lineage.base.get("fingerprint", ""), (str, type(None))):
        raise DataError(f"fingerprint of base must be a str, not {lineage.base['fingerprint']!r}")
    quantization = lineage.quantization
    known = isinstance(quantization.get("type"), str) and isinstance(quantization.get("double"), bool)
    if quantization and not known:
        raise DataError(f"quantization must have a type and say whether it is double, not {quantization}")


def _task_and_decision(saved: dict) -> tuple[Task, Decision]:
    """Those of a task file of any version.

    Until November 2026 the decision stood among the task's fields, and texts were asked as they were. Of a line-aware
    checkpoint of then, one line counts as much as the answer.
    """
    task, decision = {"normaliser": 0, **saved["task"]}, dict(saved.get("decision", {}))
    for old, new in (("threshold", "threshold"), ("temperature", "temperature"), ("learned_lines", "line_aware")):
        if old in task:
            decision.setdefault(new, task.pop(old))
    if "line_aware" in decision:
        decision |= {True: {"line_weight": 0.5, "top_lines": 1}, False: {}}[decision.pop("line_aware")]
    return Task(**task), Decision(**decision)


def _require_finite_adapter(path: Path) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as adapter:
            for name in adapter.keys():
                if not torch.isfinite(adapter.get_tensor(name)).all():
                    raise DataError(f"{path}: tensor {name} is not finite; use an earlier checkpoint")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: truncated or not a safetensors file ({error})") from None


def require_same_base(lineage: Lineage, base: dict, folder: str | Path) -> None:
    """Refuses an adapter that was trained on another base model than the one loaded."""
    trained_on, loaded = lineage.base.get("fingerprint"), base.get("fingerprint")
    if trained_on and loaded and trained_on != loaded:
        raise DataError(f"{folder}: trained on {lineage.base.get('name')} ({trained_on[:12]}), not on "
                        f"{base.get('name')} ({loaded[:12]}); pass that base with --model")


# ------------------------------------------------------------------------------------------------ finding them


def checkpoints_in(output: str | Path) -> list[Path]:
    """The ``checkpoint-N`` folders of a training run, oldest first."""
    folders = [path for path in Path(output).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda folder: int(folder.name.split("-")[1]))


def newest_complete_checkpoint(output: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint to resume from, and one line for each newer one that is not complete."""
    passed_over = []
    for folder in reversed(checkpoints_in(output)):
        try:
            require_complete(folder)
            return folder, passed_over
        except (DataError, OSError) as error:
            passed_over.append(f"passing over {folder.name}: {error}")
    return None, passed_over


def rotate_checkpoints(output: str | Path, newest: Path, best: str | None, limit: int | None) -> None:
    """Deletes checkpoints until `limit` are left: unfinished ones first, then the oldest, never `newest` or `best`."""
    folders = checkpoints_in(output)
    spare = [folder for folder in folders if folder not in (newest, Path(best or newest))]
    spare.sort(key=_is_sealed)  # a stable sort: oldest first within each half
    for folder in spare[:max(0, len(folders) - limit)] if limit else []:
        remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint, its list of files first: deleted by half, it is no complete one.

    Of one that was moved elsewhere and is linked to, only the link goes.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    (folder / TASK_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_sealed(folder: Path) -> bool:
    try:
        return "files" in json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint meant by `path`: itself, or the best one of a training run's output folder.

    What a killed run left half written or a copy truncated is passed over, unless there is nothing else. A run of
    another program, whose Trainer names its best checkpoint too, seals none.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; a checkpoint is a folder such as outputs/run/checkpoint-100")
    folders = checkpoints_in(path)
    if (path / ADAPTER_FILE).is_file() or not folders:
        return path
    candidates = list(filter(_is_sealed, folders)) or folders
    for newest in reversed(candidates):
        try:
            state = json.loads((newest / STATE_FILE).read_text(encoding="utf-8"))
            # Not ``best_global_step``: where evaluations come more often than checkpoints, it may have none.
            best = in_folder(path, state["best_model_checkpoint"] or newest.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        whole = next(filter(_is_whole, dict.fromkeys((best, newest))), None)
        if whole:
            return whole
    return candidates[-1]


def in_folder(output: str | Path, checkpoint: str) -> Path:
    """The checkpoint of that name in `output`, where the run may have been moved or copied to since it was written."""
    return Path(output) / checkpoint.replace("\\", "/").rpartition("/")[2]


def _is_whole(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except DataError:
        return False
    return True


def refuse_train_data(model, *paths: str | Path) -> None:
    """Raises a DataError for a file that the checkpoint was trained on."""
    for path in paths:
        if file_sha256(path) == lineage_of(model).train_data.get("sha256"):
            raise DataError(f"{path}: the checkpoint was trained on it; give the split that was kept apart for this")


def provenance_of(model, data_path: str | Path, rows: int) -> dict:
    """What a figure was measured with: model, checkpoint, data, device, versions, commit."""
    lineage = lineage_of(model)
    return {
        "model": {**lineage.base, "quantization": lineage.quantization},
        "checkpoint": {"name": lineage.checkpoint, "adapter_sha256": lineage.adapter_sha256,
                       "averaged": lineage.averaged} if lineage.checkpoint else None,
        "neutral_speakers": lineage.task.neutral_speakers,
        "max_length": lineage.task.max_length,
        "line_weight": lineage.decision.line_weight,
        "top_lines": lineage.decision.top_lines,
        "data": anonymous(describe_data(data_path, rows)),
        "train_data": anonymous(lineage.train_data) or None,
        "device": device_name(model.device),
        **code_provenance(),
    }
