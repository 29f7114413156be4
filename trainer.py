"""QLoRA fine-tuning of a causal language model on fraud dialogues.

    python trainer.py --model MODEL --train train.jsonl --eval eval.jsonl --output outputs/run [--resume]

MODEL is a folder, a Hugging Face hub id, or ``modelscope:ID``. Every field of `TrainingArguments` is an option:
``--max-steps 4 --learning-rate 2e-4``. On several GPUs, ``accelerate launch --config_file configs/ddp.yaml
trainer.py ...``, or ``configs/fsdp.yaml`` where the model is too large for one. In a notebook, ``%run trainer.py``
or ``import trainer`` gives the five functions below, to be called in their order.
"""

import argparse
import builtins
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import HfArgumentParser, TrainingArguments, set_seed

from antifraud.checkpoint import (
    Decision,
    checkpoints_in,
    lineage_of,
    newest_complete_checkpoint,
)
from antifraud.figures import save_loss_curve
from antifraud.model import compute_dtype, compute_in_eval_as_in_training, default_device
from antifraud.model import load_base as load_model
from antifraud.training.examples import origin_of, read_examples
from antifraud.training.loop import (
    BetweenSteps,
    CheckpointNotWritten,
    EarlyStopping,
    LabelPositionTrainer,
    NotCaptured,
    TrainingDiverged,
    what_is_kept,
)
from antifraud.training.recipes import (
    ARGUMENT_NAMES,
    CHECKPOINTING,
    RECIPES,
    FraudTrainingArguments,
    choose_recipe,
    is_first_local_process,
    require_capturable,
    require_compiled,
    require_line_labels,
    require_shardable,
    shardable,
    sharded,
)
from data.files import DataError
from data.prompt import Task

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_loraconfig(**overrides) -> LoraConfig:
    """The article's LoRA: rank 16, alpha 32, dropout 0.2 on all seven projections of a decoder layer.

    18,464,768 trainable parameters on Qwen2-1.5B. Hu et al., LoRA, 2021.
    """
    settings = {"task_type": "CAUSAL_LM", "target_modules": list(TARGET_MODULES), "inference_mode": False,
                "r": 16, "lora_alpha": 32, "lora_dropout": 0.2}
    return LoraConfig(**{**settings, **overrides})


# ---------------------------------------------------------------------------------------------------- the data


def load_dataset(train_path: str, eval_path: str, tokenizer, *, task: Task = Task()) -> tuple[Dataset, Dataset]:
    """The examples of a train and an eval file, tokenised with the task's prompt.

    Columns: ``input_ids`` and ``labels``, lists of equal length, -100 on the prompt. How they were made travels
    in ``dataset.info.description`` to the checkpoint. Records without a dialogue and truncated dialogues are
    counted on standard error. Where all records say which of their lines are part of a fraud, ``line_ends``, the place
    of each line's last token in ``input_ids``, and ``line_labels``.
    """
    return read_examples(train_path, tokenizer, task), read_examples(eval_path, tokenizer, task)


# ------------------------------------------------------------------------------------------------ the training


def build_train_arguments(output_path: str, *, recipe: str = "auto", **overrides) -> TrainingArguments:
    """The article's recipe as `TrainingArguments`; any field may be overridden here or assigned afterwards.

    Batch 16, learning rate 1e-4 with 5 % warm-up and cosine decay, weight decay 0.01, 3 epochs, 32-bit AdamW,
    evaluation and checkpoint every 100 steps, the best checkpoint kept. ``use_cpu=True`` keeps off the GPU.

    Args:
        recipe: how to compute it; the steps are the same. ``plain``: checkpointed activations and the paged
            optimiser, for every GPU and several of them. ``fast``: each pass a CUDA graph, fused optimiser; a
            single GPU with bf16. ``small``: the same with short passes, fewer activations kept and the paged
            optimiser. ``auto``: ``fast`` with passes as large as the free memory allows, and fewer activations kept
            where that is not enough for the largest, or ``small`` where it is little, or ``plain`` where there are
            several GPUs or no bf16. A line on standard error says what was chosen.
    """
    on_gpu = torch.cuda.is_available() and not overrides.get("use_cpu", False)
    dtype = compute_dtype("cuda" if on_gpu else "cpu")
    chosen = (choose_recipe(recipe, dtype, overrides.get("compile_layers")) if on_gpu
              else shardable({"optim": "paged_adamw_32bit"}))
    settings = {
        "output_dir": str(output_path),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64 if on_gpu else 16,  # the loss is the same
        "num_train_epochs": 3,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # below 1: a share of all steps
        "weight_decay": 0.01,
        **chosen,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu": not on_gpu,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
        "eval_strategy": "steps",
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # the filter would log plausible losses for a run that is all NaN
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "accelerator_config": {"non_blocking": on_gpu},  # the next batch travels while the GPU computes
        "report_to": "none",
    }
    aliases = {"gradient_checkpointing": CHECKPOINTING, "gradient_checkpointing_kwargs": f"{CHECKPOINTING}_kwargs"}
    args = FraudTrainingArguments(**{**settings, **{aliases.get(k, k): v for k, v in overrides.items()}})
    args._n_gpu = min(1, args.n_gpu)  # several GPUs mean DDP (accelerate launch), never DataParallel: 4-bit breaks it
    args._constructed = True
    return args


def build_trainer(model, tokenizer, train_args: TrainingArguments, lora_config: LoraConfig, train_dataset: Dataset,
                  eval_dataset: Dataset, *, early_stopping_patience: int = 5) -> LabelPositionTrainer:
    """Attaches LoRA adapters and makes the trainer; ``trainer.train()`` does the rest.

    Training stops early when the eval loss has not improved for `early_stopping_patience` evaluations (0: never).
    ``trainer.model`` ends as the best checkpoint, and remembers its task for `evaluate_with_model`.
    """
    require_capturable(train_args)
    require_shardable(train_args)
    require_compiled(train_args)
    require_line_labels(train_args, train_dataset)
    compute_in_eval_as_in_training(model)  # a notebook may have loaded it by itself
    lineage = lineage_of(model)
    lineage.task, lineage.train_data = origin_of(train_dataset)
    lineage.decision = Decision(line_aware=train_args.line_loss_weight > 0)
    if not isinstance(model, PeftModel):
        set_seed(train_args.seed)  # Trainer does so too late for the adapters' first values
        linear = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if set(lora_config.target_modules) == set(TARGET_MODULES) and not set(TARGET_MODULES) <= linear:
            lora_config.target_modules = "all-linear"  # Phi-3 and GPT-2 name their projections otherwise
        model = get_peft_model(model, lora_config)
    model.lineage = lineage
    between = BetweenSteps()
    callbacks = [between]
    if early_stopping_patience and train_args.eval_strategy != "no":
        callbacks.append(EarlyStopping(early_stopping_patience))
    between.trainer = LabelPositionTrainer(
        model=model, args=train_args, train_dataset=train_dataset, eval_dataset=eval_dataset,
        processing_class=tokenizer, callbacks=callbacks, lineage=lineage)
    return between.trainer


# ------------------------------------------------------------------------------------------ the command line


def train(args: argparse.Namespace, train_options: dict) -> Path:
    """What the command does; returns the best checkpoint's folder."""
    resume_from = _where_to_resume(args)
    wording = {name: value for name, value in (("instruction", args.instruction), ("answers", args.answers)) if value}
    task = Task(neutral_speakers=not args.keep_speaker_names, max_length=args.max_length, **wording)
    if args.device == "cpu":
        train_options["use_cpu"] = True
    model, tokenizer = load_model(args.model, args.device, quantization=args.quantization,
                                  double_quantization=args.double_quantization, dequantize=args.dequantize,
                                  trust_remote_code=args.trust_remote_code, shardable=sharded())
    train_dataset, eval_dataset = load_dataset(args.train, args.eval, tokenizer, task=task)
    lora_config = build_loraconfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout)
    train_args = build_train_arguments(args.output, recipe=args.recipe, **train_options)
    trainer = build_trainer(model, tokenizer, train_args, lora_config, train_dataset, eval_dataset,
                            early_stopping_patience=args.early_stopping_patience)
    trainer.model.print_trainable_parameters()
    trainer.train(resume_from_checkpoint=resume_from)
    if trainer.is_world_process_zero():
        try:
            save_loss_curve(trainer.state.log_history, Path(args.output) / "loss_curve.png")
        except OSError as error:
            raise DataError(f"{args.output}/loss_curve.png: cannot be written ({error.strerror})") from error
    return Path(trainer.state.best_model_checkpoint or checkpoints_in(args.output)[-1])


def _where_to_resume(args: argparse.Namespace) -> str | None:
    if not checkpoints_in(args.output):
        return None
    if not args.resume:
        raise DataError(f"{args.output}: holds checkpoints of an earlier run; add --resume to go on with it, "
                        "or name another --output")
    folder, passed_over = newest_complete_checkpoint(args.output)
    print(*passed_over, f"resuming from {folder}" if folder else "no complete checkpoint: starting anew",
          sep="\n", file=sys.stderr)
    return str(folder) if folder else None


def _parser() -> argparse.ArgumentParser:
    parser = HfArgumentParser(FraudTrainingArguments, prog="trainer.py", description=__doc__, allow_abbrev=False,
                              formatter_class=argparse.RawDescriptionHelpFormatter,
                              usage="trainer.py --model M --train F --eval F --output DIR [--resume] [options]")
    # Only what the user gives counts: the defaults are the article's, in build_train_arguments.
    parser.set_defaults(**dict.fromkeys(ARGUMENT_NAMES))
    main = parser.add_argument_group("fraud fine-tuning")
    main.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    main.add_argument("--train", required=True, help="JSONL records to train on")
    main.add_argument("--eval", required=True, help="JSONL records for eval loss, best checkpoint, early stopping")
    main.add_argument("--output", required=True, help="folder for checkpoints and the loss curve")
    main.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in OUTPUT")
    main.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="how to compute the steps: plain "
                      "(any GPU), small (bf16; 3 GiB for Qwen2-1.5B), fast (14 GiB); default: by the free memory")
    main.add_argument("--device", default=default_device(), help="cuda, cuda:N or cpu (default: the GPU if any)")
    main.add_argument("--quantization", choices=("nf4", "fp4", "none"), default="nf4")
    main.add_argument("--double-quantization", action="store_true")
    main.add_argument("--dequantize", action="store_true", help="keep the 4-bit values in 16 bit: faster, more memory")
    main.add_argument("--lora-r", type=int, default=16)
    main.add_argument("--lora-alpha", type=int, default=32)
    main.add_argument("--lora-dropout", type=float, default=0.2)
    main.add_argument("--early-stopping-patience", type=int, default=5, help="evaluations; 0 never stops early")
    main.add_argument("--instruction", help="text before the dialogue, instead of the project's own")
    main.add_argument("--answers", nargs=2, metavar=("FRAUD", "HONEST"),
                      help="label words, instead of the JSON; needs an --instruction that asks for them")
    main.add_argument("--max-length", type=int, default=Task.max_length, help="tokens a row; the dialogue is cut")
    main.add_argument("--keep-speaker-names", action="store_true", help="to show why names are made neutral")
    main.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    train_options = {name: value for name, value in vars(args).items()
                     if name in ARGUMENT_NAMES and value is not None}
    refused = "use --output, not --output-dir" if "output_dir" in train_options else ""
    if args.answers and not args.instruction:
        refused = "--answers needs an --instruction that asks for them"
    if refused:
        print(f"trainer.py: {refused}", file=sys.stderr)
        return 2
    disable_progress_bars()
    try:
        with _others_silent():
            best = train(args, train_options)
    except (DataError, TrainingDiverged, NotCaptured) as error:  # alike on all processes
        return _stop(error if is_first_local_process() else "")
    except CheckpointNotWritten as error:
        return _stop(f"{error}; make room, then go on with --resume")
    except torch.OutOfMemoryError:
        return _stop("out of memory: take --recipe small, or a smaller --tokens-per-pass; "
                     f"{what_is_kept(args.output)}, go on with --resume")
    except KeyboardInterrupt:
        kept = f"stopped; {what_is_kept(args.output)}; go on with --resume --output {args.output}"
        return _stop(kept if is_first_local_process() else "", exit_code=130)
    if is_first_local_process():
        print(f"best checkpoint: {best}")
        print(f"next: python evaluate.py --model {args.model} --checkpoint {best} --data {args.eval}")
    return 0


def _stop(line, exit_code: int = 2) -> int:
    if line:
        print(line, file=sys.stderr)
    return exit_code


@contextlib.contextmanager
def _others_silent():
    if is_first_local_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# %run gives a notebook's script the name __main__ as well; there the command line is not this file's.
if __name__ == "__main__" and not hasattr(builtins, "__IPYTHON__"):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers send it: stop as on Ctrl-C
    code = main()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so do launchers once a process has ended: let this one end too
    sys.exit(code)
