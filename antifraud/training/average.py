"""A model soup: one adapter, the mean of what N trainings of one recipe with different seeds add to the base model.

    python -m antifraud.training.average --checkpoints outputs/run-0 outputs/run-1 outputs/run-2 \\
        --output outputs/soup

Trainings with different seeds err differently, and the mean of their weights can be better than any of them (Wortsman
et al., Model soups, 2022). Inference cost is unchanged: a soup is evaluated like any checkpoint. Merged it is as large
as the base model, and not merged its rank is the sum of theirs. Needs no GPU and no base model. What
``evaluate.py --calibrate`` finds is to be found anew.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data.command import command
from data.files import DataError, complete_or_absent, refuse_existing, write_json

from ..checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    LINE_WEIGHT,
    Decision,
    Lineage,
    find_checkpoint,
    read_checkpoint,
    save_task_file,
    seal_checkpoint,
)

FACTORS = (".lora_A.weight", ".lora_B.weight")
MAY_DIFFER = ("base_model_name_or_path", "peft_version", "inference_mode")  # where the base lay, and who wrote it
OTHER_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


def average_checkpoints(checkpoints: Sequence[str | Path], output: str | Path) -> dict[str, torch.Tensor]:
    """Writes the soup of several trainings as a checkpoint of its own; returns its tensors.

    The mean of N changes B A is one change of N times the rank: the rows of all A below each other, the columns of all
    B beside each other, divided by N (``cat`` in PEFT's ``add_weighted_adapter``).

    Args:
        checkpoints: each a checkpoint, or a training run's folder, whose best one is taken.

    Raises:
        DataError: fewer than two, the same one twice, `output` is there already, or they differ in base model, task,
            train file or LoRA settings.
    """
    refuse_existing(output)
    folders = [find_checkpoint(path) for path in checkpoints]
    if len(folders) < 2:
        raise DataError("a model soup takes two checkpoints or more; name them after --checkpoints")
    lineages = [read_checkpoint(folder) for folder in folders]
    recipes = [{**_lora_settings(folder), **_what_was_learned(lineage)} for folder, lineage in zip(folders, lineages)]
    for folder, recipe in zip(folders[1:], recipes[1:]):
        _require_same(recipes[0], recipe, folders[0], folder)
    _require_different(folders, lineages)
    tensors = mean_of_changes([_factors(folder) for folder in folders])
    number, config = len(folders), json.loads((folders[0] / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    with complete_or_absent(output) as unfinished:
        save_file(tensors, unfinished / ADAPTER_FILE, metadata={"format": "pt"})
        write_json(unfinished / ADAPTER_CONFIG,
                   {**config, "r": number * config["r"], "lora_alpha": number * config["lora_alpha"]})
        save_task_file(unfinished, dataclasses.replace(
            lineages[0], decision=_uncalibrated(lineages[0].decision), calibration={},
            averaged=[lineage.adapter_sha256 for lineage in lineages]))
        seal_checkpoint(unfinished)
    return tensors


def mean_of_changes(adapters: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The factors of the mean of B A over `adapters`, whose own are [rank, in] and [out, rank]; in 32 bit."""
    return {name: torch.cat([adapter[name].float() for adapter in adapters], dim=0) if name.endswith(FACTORS[0])
            else torch.cat([adapter[name].float() for adapter in adapters], dim=1) / len(adapters)
            for name in adapters[0]}


def _factors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / ADAPTER_FILE)
    other = next((name for name in tensors if not name.endswith(FACTORS)), None)
    if other is not None:
        raise DataError(f"{folder / ADAPTER_FILE}: {other} is no factor of plain LoRA, of which alone a soup is made")
    return tensors


def _lora_settings(folder: Path) -> dict:
    """What is to agree in ``adapter_config.json``."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        settings = {**config, "target_modules": sorted(config["target_modules"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the settings of a LoRA adapter ({error})") from None
    used = [name for name in OTHER_KINDS if settings.get(name)]
    if used:
        raise DataError(f"{path}: {used[0]} is set; a soup is made of plain LoRA alone")
    return {name: value for name, value in settings.items() if name not in MAY_DIFFER}


def _what_was_learned(lineage: Lineage) -> dict:
    """Of what, over what, and from which data."""
    return {"base model": lineage.base.get("fingerprint"), "quantization": lineage.quantization,
            "train file": lineage.train_data.get("sha256"), **dataclasses.asdict(lineage.task),
            **dataclasses.asdict(_uncalibrated(lineage.decision))}


def _uncalibrated(decision: Decision) -> Decision:
    return Decision(line_weight=LINE_WEIGHT if decision.line_aware else 0.0)


def _require_same(one: dict, other: dict, folder: Path, other_folder: Path) -> None:
    differs = next((name for name in one if one[name] != other.get(name)), None)
    if differs is not None:
        raise DataError(f"{other_folder}: its {differs} is not that of {folder}; a soup is made of trainings of one "
                        "recipe that differ in --seed alone")


def _require_different(folders: Sequence[Path], lineages: Sequence[Lineage]) -> None:
    seen: dict[str, Path] = {}
    for folder, lineage in zip(folders, lineages):
        if lineage.adapter_sha256 in seen:
            raise DataError(f"{folder}: the same adapter as {seen[lineage.adapter_sha256]}; train with another --seed")
        seen[lineage.adapter_sha256] = folder


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m antifraud.training.average", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="DIR",
                        help="checkpoints, or training runs, whose best one is taken")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the soup")
    args = parser.parse_args(argv)
    tensors = average_checkpoints(args.checkpoints, args.output)
    print(f"{args.output}: a soup of {len(args.checkpoints)} seeds, {len(tensors)} tensors")
    print(f"next: python evaluate.py --model MODEL --checkpoint {shlex.quote(args.output)} --data EVAL.jsonl "
          "--calibrate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
