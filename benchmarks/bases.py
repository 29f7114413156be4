"""Which base models work: tiny random ones of every architecture, and folders of your own, trained and scored in turn.

    python -m benchmarks.bases [--model FOLDER ...] --output results/bases.json

Each is loaded in NF4, trained for a few steps on dialogues made here, saved, loaded again and scored. A base works if
its loss falls, all scores are finite, the reloaded checkpoint scores as the trained model did, and a score is what
the plain forward pass says. What the scores are worth is no question here: most of these models are random.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import disable_progress_bars
from transformers import set_seed

from antifraud.evaluation.scoring import score_prompts
from antifraud.provenance import code_provenance, describe_base
from benchmarks import refusing_in_a_line
from data.files import one_line, write_json
from data.prompt import PromptEncoder
from data.records import read_records, write_records
from data.sample import sample_dialogues
from data.speakers import format_dialogue
from evaluate import load_model
from evaluate import load_model as load_tuned_model
from tools.make_tiny_base import build_tokenizer, corpus
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.2}
ARCHITECTURES = {  # name: (model class, what its configuration has of its own)
    "Qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen2.5": ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),  # the same class; larger sizes do not tie
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "Llama": ("LlamaForCausalLM", {}),
    "Mistral": ("MistralForCausalLM", {"sliding_window": 16}),
    "Gemma 3": ("Gemma3ForCausalLM", {"final_logit_softcapping": 5.0, "sliding_window": 16,
                                      "layer_types": ["sliding_attention", "full_attention"],
                                      "query_pre_attn_scalar": 16}),
}
MAX_DIFFERENCE = 1e-4


def save_random_base(folder: str | Path, architecture: str, tokenizer) -> str:
    """Saves a random two-layer model of an architecture, and the tokenizer; returns the folder."""
    model_name, options = ARCHITECTURES[architecture]
    model_class = getattr(transformers, model_name)
    set_seed(0)
    config = model_class.config_class(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **SIZES, **options)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_records(path: str | Path, n: int, *, seed: int) -> str:
    """Saves `n` records, half of them fraud, from the sample corpus; returns the path."""
    write_records(path, [
        {"input": format_dialogue([(line.speaker, line.content) for line in dialogue.lines]),
         "label": any(line.is_fraud for line in dialogue.lines)} for dialogue in sample_dialogues(n, seed=seed)])
    return str(path)


def try_base(base: str, train_file: str, eval_file: str, scratch: str | Path, *, steps: int, rows: int,
             learning_rate: float) -> dict:
    """What came of loading, training, saving, reloading and scoring one base; ``works`` says whether all went well."""
    model, tokenizer = load_model(base, "cpu")
    train_dataset, eval_dataset = load_dataset(train_file, eval_file, tokenizer)
    train_args = build_train_arguments(
        str(scratch), max_steps=steps, eval_steps=steps, save_steps=steps, learning_rate=learning_rate, use_cpu=True,
        per_device_train_batch_size=rows, per_device_eval_batch_size=rows, disable_tqdm=True)
    set_seed(0)
    trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(lora_dropout=0.0), train_dataset,
                            eval_dataset)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]

    encoder = PromptEncoder(tokenizer, trainer.model.lineage.task)
    prompts = encoder.prompts([record["input"] for record in read_records(eval_file)])
    scores = score_prompts(trainer.model, encoder, prompts, tokens_a_batch=2048)
    reloaded, _ = load_tuned_model(base, str(scratch), "cpu")
    again = score_prompts(reloaded, encoder, prompts, tokens_a_batch=2048)
    found = {
        "architecture": model.config.architectures[0],
        "chat_template": bool(tokenizer.chat_template),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "loss_before": before,
        "loss_after": after,
        "score_range": [float(scores.min()), float(scores.max())],
        "difference_after_reloading": float(np.abs(again - scores).max()),
        "difference_from_plain_forward": abs(plain_score(reloaded, encoder, prompts[0]) - float(scores[0])),
    }
    found["works"] = (after < before and all(map(math.isfinite, found["score_range"]))
                      and found["difference_after_reloading"] < MAX_DIFFERENCE
                      and found["difference_from_plain_forward"] < MAX_DIFFERENCE)
    return found


@torch.no_grad()
def plain_score(model, encoder: PromptEncoder, prompt: Sequence[int]) -> float:
    """The probability of fraud from the model's own forward pass over one row, all logits computed."""
    logits = model(input_ids=torch.tensor([[*prompt, *encoder.answer_prefix]])).logits[0, -1]
    return logits[list(encoder.label_ids)].double().softmax(dim=-1)[0].item()


def attempt(name: str, base: str, folder: Path, **options) -> dict:
    """`try_base` with the base's name; an error becomes a row too."""
    description = {"name": name, "fingerprint": describe_base(base)["fingerprint"]}
    try:
        return {**description, **try_base(base, str(folder / "train.jsonl"), str(folder / "eval.jsonl"),
                                          folder / f"run-{len(list(folder.iterdir()))}", **options)}
    except Exception as error:  # the table says which bases fail, and how
        return {**description, "works": False, "error": f"{type(error).__name__}: {one_line(error)}"}


def run(architectures: Sequence[str], models: Sequence[str], *, steps: int, model_steps: int) -> dict:
    """A row for each architecture with and without a chat template, and for each folder of `models`."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_records(folder / "train.jsonl", 64, seed=0)
        save_records(folder / "eval.jsonl", 16, seed=1)
        tokenizer = build_tokenizer(corpus(200, seed=2))
        template = tokenizer.chat_template
        for architecture in architectures:
            for tokenizer.chat_template in (template, None):
                base = save_random_base(folder / f"base-{len(rows)}", architecture, tokenizer)
                name = f"{architecture}, random, {'with' if tokenizer.chat_template else 'no'} template"
                rows.append(attempt(name, base, folder, steps=steps, rows=8, learning_rate=1e-2))
        for model in models:
            rows.append(attempt(Path(model).resolve().name, model, folder, steps=model_steps, rows=4,
                                learning_rate=1e-3))
    return {
        "bases": rows,
        "provenance": {"steps": {"random": steps, "models": model_steps}, "quantization": "nf4", "device": "cpu",
                       "data": "64 train and 16 eval dialogues of data.sample, seeds 0 and 1", **code_provenance()},
    }


def table(report: dict) -> str:
    """What was tried and what came out, as a Markdown table."""
    lines = ["| base | class | trainable parameters | loss before | after | works |", "|---|---|---|---|---|---|"]
    for row in report["bases"]:
        if "error" in row:
            lines.append(f"| {row['name']} | | | | | no: {row['error']} |")
        else:
            lines.append(f"| {row['name']} | {row['architecture']} | {row['trainable_parameters']:,} "
                         f"| {row['loss_before']:.3f} | {row['loss_after']:.3f} | {'yes' if row['works'] else 'no'} |")
    return "\n".join(lines)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bases", description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--model", nargs="*", default=[], help="folders of your own models to try as well")
    parser.add_argument("--steps", type=int, default=12, help="training steps of a random base, 8 rows each")
    parser.add_argument("--model-steps", type=int, default=6, help="training steps of a --model, 4 rows each")
    parser.add_argument("--output", default="results/bases.json")
    args = parser.parse_args(argv)
    disable_progress_bars()
    report = run(args.architectures, args.model, steps=args.steps, model_steps=args.model_steps)
    write_json(args.output, report)
    print(table(report))
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
