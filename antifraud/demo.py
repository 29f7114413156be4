"""The whole job on what the project brings along: sample corpus, tiny Qwen2, NF4 + LoRA, training, evaluation.

    python -m antifraud.demo --output outputs/demo

The same functions as the real job, in minutes on a CPU and without a network. The sample dialogues were written for
this project; how well a tiny model learns them says nothing about real calls.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import disable_progress_bars

from data.files import DataError, write_json
from data.prepare import Settings, describe, prepare
from data.sample import write_sample
from evaluate import evaluate
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

from .checkpoint import checkpoints_in
from .figures import save_loss_curve, save_report_figure

BASE = Path(__file__).parents[1] / "data" / "tiny-qwen2"
DIALOGUES = 6000
PIECE_LENGTHS = (500,)  # characters; the sample dialogues are short and judged whole
SHARES = (0.9, 0.05, 0.05)
NOISY_COPIES = 0.5  # of the train records; without them noise costs the tiny model more of its recall
# A tiny model needs larger steps than Qwen2-1.5B, and has nothing to gain from dropout.
TRAINING = {"num_train_epochs": 1, "learning_rate": 3e-3, "line_loss_weight": 0.3, "eval_steps": 200, "save_steps": 200,
            "per_device_eval_batch_size": 64, "use_cpu": True}
LORA_DROPOUT = 0.0


def run(output: str | Path, *, dialogues: int = DIALOGUES, seed: int = 0) -> dict:
    """Makes the corpus, trains, evaluates on the test split; returns the report it also writes."""
    output = Path(output)
    print(f"1. {dialogues} sample dialogues, dealt to train, eval and test by dialogue")
    write_sample(output / "dialogs", dialogues, seed=seed)
    print(describe(prepare(output / "dialogs", output / "data", Settings(
        lengths=PIECE_LENGTHS, shares=SHARES, augment=NOISY_COPIES, seed=seed))))
    train_path, eval_path, test_path = (str(output / "data" / f"{name}.jsonl") for name in ("train", "eval", "test"))

    print(f"\n2. fine-tuning {BASE.name}: NF4 base weights, LoRA adapters")
    model, tokenizer = load_model(str(BASE), "cpu")
    train_dataset, eval_dataset = load_dataset(train_path, eval_path, tokenizer)
    train_args = build_train_arguments(str(output / "run"), seed=seed, **TRAINING)
    trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(lora_dropout=LORA_DROPOUT),
                            train_dataset, eval_dataset)
    trainer.model.print_trainable_parameters()
    trainer.train()
    save_loss_curve(trainer.state.log_history, output / "loss_curve.png")

    print(f"\n3. judging {trainer.state.best_model_checkpoint} on dialogues it has not seen, beside the baselines")
    report = evaluate(str(BASE), str(output / "run"), test_path, "cpu", debug=True, full=True)
    write_json(output / "report.json", report)
    save_report_figure(report, output / "report.png")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m antifraud.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="outputs/demo")
    parser.add_argument("--dialogues", type=int, default=DIALOGUES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    disable_progress_bars()
    try:
        if checkpoints_in(Path(args.output) / "run"):
            shutil.rmtree(Path(args.output) / "run")  # only ever what an earlier demo left there
        run(args.output, dialogues=args.dialogues, seed=args.seed)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\nwritten to {args.output}: report.json, report.png, loss_curve.png, run/checkpoint-N")
    return 0


if __name__ == "__main__":
    sys.exit(main())
