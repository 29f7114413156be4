"""Merges a checkpoint's adapter into its base model: one plain folder that every server loads.

    python -m antifraud.serving.export --model MODEL --checkpoint DIR --output DIR [--report report.json] [--data F]

The adapter was trained over 4-bit weights. ``--merge-into dequantized`` adds it to what those weights stand for, so
the answers stay those of the checkpoint; ``original`` adds it to the base model's own 16-bit weights, which the
adapter has never seen. ``--data`` measures what merging changes. The folder is complete or not there at all.
"""

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig

from data.command import command
from data.files import DataError, complete_or_absent, one_line, refuse_existing, write_json, write_text
from data.prompt import PromptEncoder
from data.records import Skipped, read_records

from ..checkpoint import TASK_FILE, Lineage, find_checkpoint, read_checkpoint, require_same_base
from ..evaluation.scoring import predict
from ..model import default_device, load_base, load_tuned, locate_model, with_adapter
from ..provenance import anonymous, describe_base, describe_data, versions
from .gguf_writer import require_gguf_support, write_gguf
from .model_card import read_report, render_card

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MERGE_INTO = ("dequantized", "original")
EXPORT_FILE = "export.json"


def export(model_path: str, checkpoint_path: str, output: str | Path, *, merge_into: str = "dequantized",
           dtype: str = "bf16", report_path: str | None = None, data_path: str | None = None, rows: int | None = None,
           gguf: bool = False, device: str = "cpu", base_id: str | None = None,
           trust_remote_code: bool = False) -> dict:
    """Writes the merged model, its task, its card and on request a GGUF file into `output`.

    Args:
        merge_into: ``dequantized`` (the weights the adapter was trained over) or ``original``; the same, and called
            ``original``, where the base was not quantised.
        dtype: of the written weights, ``bf16``, ``fp16`` or ``fp32``; sums are formed in fp32 and rounded once.
        report_path: report of ``evaluate.py --output`` on this checkpoint, for the model card.
        data_path: JSONL records on which the merged model is compared with the checkpoint; `rows` of them.
        device: where those are scored; merging itself takes place on the CPU.
        base_id: the base model's id on the Hugging Face hub, for the card, where `model_path` is a folder.

    Returns:
        what ``export.json`` holds: base, adapter, how they were merged, and the comparison or None.

    Raises:
        DataError: `output` exists and is not empty, or model, checkpoint, report or data are not what they should be.
    """
    if rows and not data_path:
        raise DataError(f"--rows {rows} says on how many of --data to compare; give --data, too, or leave it out")
    refuse_existing(output)
    folder = find_checkpoint(checkpoint_path)
    lineage = read_checkpoint(folder)
    if _quantization(lineage)["type"] == "none":
        merge_into = "original"  # there is nothing else that the adapter was trained over
    base_folder = locate_model(model_path, with_code=trust_remote_code)
    report = read_report(report_path, lineage) if report_path else None
    if gguf:
        require_gguf_support(_config(base_folder, trust_remote_code))
    reference, dialogues = None, []
    if data_path:
        dialogues = _dialogues(data_path, rows)
        reference = _release(predict(*load_tuned(
            base_folder, str(folder), device, trust_remote_code=trust_remote_code), dialogues))

    model, tokenizer = merge(base_folder, folder, merge_into, trust_remote_code=trust_remote_code)
    to_dtype(model, DTYPES[dtype])
    lineage.base = model.lineage.base
    facts = {"base": {**lineage.base, "hub_id": base_id or _hub_id(model_path)},
             "adapter": {"checkpoint": lineage.checkpoint, "sha256": lineage.adapter_sha256},
             "trained_over": _quantization(lineage), "merged_into": merge_into, "dtype": dtype,
             "gguf": f"model-{dtype}.gguf" if gguf else None, "comparison": None, "versions": versions()}
    with complete_or_absent(output) as unfinished:
        save_model(model, tokenizer, lineage, unfinished)
        if gguf:
            write_gguf(model, tokenizer, unfinished / facts["gguf"], name=Path(output).name)
        prompt = PromptEncoder(tokenizer, lineage.task)
        del model
        if reference is not None:
            merged = predict(*load_tuned(
                str(unfinished), device=device, trust_remote_code=trust_remote_code), dialogues)
            facts["comparison"] = {**compare(reference, merged, lineage.decision.threshold), "device": device,
                                   "data": anonymous(describe_data(data_path, len(dialogues)))}
        write_json(unfinished / EXPORT_FILE, facts)
        write_text(unfinished / "README.md", render_card(Path(output).name, facts, lineage, prompt, report))
    return facts


# ------------------------------------------------------------------------------------------------- the weights


def merge(base_folder: str | Path, checkpoint: str | Path, merge_into: str = "dequantized", *,
          trust_remote_code: bool = False):
    """(model, tokenizer) on the CPU in fp32, the checkpoint's adapter added to the base weights."""
    lineage = read_checkpoint(checkpoint)
    require_same_base(lineage, describe_base(base_folder), checkpoint)
    saved = _quantization(lineage) if merge_into == "dequantized" else {"type": "none", "double": False}
    base, tokenizer = load_base(str(base_folder), "cpu", quantization=saved["type"],
                                double_quantization=saved["double"], trust_remote_code=trust_remote_code)
    if saved["type"] != "none":
        base = base.dequantize()
    try:
        model = with_adapter(base, checkpoint, base_folder).merge_and_unload(safe_merge=True)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{checkpoint}: adapter cannot be merged into {base_folder}: {one_line(error)}") from None
    return model.eval(), tokenizer


def _quantization(lineage: Lineage) -> dict:
    """How the adapter's base weights were quantised; NF4 where a checkpoint of plain PEFT does not say."""
    return lineage.quantization or {"type": "nf4", "double": False}


def to_dtype(model, dtype: torch.dtype) -> None:
    """Rounds the weights of `model` in place; refuses what the type cannot hold (fp16 ends at 65504)."""
    model.to(dtype)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise DataError(f"{name} does not fit into {str(dtype).removeprefix('torch.')}; export with --dtype bf16")


def save_model(model, tokenizer, lineage: Lineage, folder: Path) -> None:
    """Weights, config, tokenizer, chat template, a greedy generation config, and ``fraud_task.json``."""
    saved = model.generation_config
    # A base model's temperature or repetition penalty is meant for chat and would change the two words compared.
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=saved.bos_token_id, eos_token_id=saved.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = dataclasses.asdict(dataclasses.replace(lineage, train_data=anonymous(lineage.train_data)))
    del fields["checkpoint"]
    write_json(folder / TASK_FILE, {**fields, "versions": versions()})


# ---------------------------------------------------------------------------------------- what merging changes


def compare(reference: np.ndarray, merged: np.ndarray, threshold: float) -> dict:
    """How far two models' probabilities of fraud for the same dialogues lie apart."""
    difference = np.abs(merged - reference)
    return {"max_probability_difference": float(difference.max()),
            "mean_probability_difference": float(difference.mean()),
            "labels_flipped": int(((reference >= threshold) != (merged >= threshold)).sum()),
            "threshold": threshold}


def _dialogues(path: str, rows: int | None) -> list[str]:
    skipped = Skipped()
    records = read_records(path, skipped)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    return [record["input"] for record in records[:rows]]


def _release(value):
    """`value`, after giving back the memory of the model that it was computed with."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return value


def _config(folder: str, trust_remote_code: bool):
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # as `load_base` says it, where no GGUF file is asked for
        raise DataError(f"{folder}: not a causal language model that loads: {one_line(error)}") from error


def _hub_id(model_path: str) -> str | None:
    return None if Path(model_path).is_dir() or ":" in model_path else model_path


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m antifraud.serving.export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the base model: a folder, a hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", required=True, help="checkpoint-N, or a run's folder for its best one")
    parser.add_argument("--output", required=True, help="folder to write; new or empty")
    parser.add_argument("--report", help="report of evaluate.py --output on this checkpoint, for the model card")
    parser.add_argument("--data", help="JSONL records on which to compare the merged model with the checkpoint")
    parser.add_argument("--rows", type=_positive, help="compare on the first N of them only")
    parser.add_argument("--merge-into", choices=MERGE_INTO, default=MERGE_INTO[0],
                        help="base weights that the adapter is added to (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the weights (default: %(default)s)")
    parser.add_argument("--gguf", action="store_true", help="also write a GGUF file for llama.cpp (pip install gguf)")
    parser.add_argument("--base-id", help="the base model's id on the hub, for the card, if --model is a folder")
    parser.add_argument("--device", default=default_device(), help="for --data; default: the GPU if there is one")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def print_summary(output: str, facts: dict) -> None:
    print(f"{output}: {facts['base']['name']} with {facts['adapter']['checkpoint']} merged into its "
          f"{facts['merged_into']} weights, {facts['dtype']}")
    print(json.dumps({"gguf": facts["gguf"], "comparison": facts["comparison"]}, ensure_ascii=False, indent=2))


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    facts = export(args.model, args.checkpoint, args.output, merge_into=args.merge_into, dtype=args.dtype,
                   report_path=args.report, data_path=args.data, rows=args.rows, gguf=args.gguf,
                   device=args.device, base_id=args.base_id, trust_remote_code=args.trust_remote_code)
    print_summary(args.output, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
