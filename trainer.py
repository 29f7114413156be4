"""QLoRA fine-tuning of a causal language model on fraud dialogues.

    python trainer.py --model MODEL --train train.jsonl --eval eval.jsonl --output outputs/run [--resume]

MODEL is a folder, a Hugging Face hub id, or ``modelscope:ID``. Every field of `TrainingArguments` is an option:
``--max-steps 4 --learning-rate 2e-4``. On several GPUs, ``accelerate launch --config_file configs/ddp.yaml
trainer.py ...``, or ``configs/fsdp.yaml`` where the model is too large for one. In a notebook, ``%run trainer.py``
or ``import trainer`` gives the five functions below, to be called in their order.
"""

import argparse
import gc
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # so that `%run` finds the library from any folder

from data.command import command, heavy_imports, is_command

with heavy_imports(by_command=is_command(__name__)):
    import torch
    from datasets import Dataset, disable_progress_bars

    from antifraud.checkpoint import LINE_WEIGHT, Decision, lineage_of, newest_complete_checkpoint
    from antifraud.compiling import compiling_put_off
    from antifraud.figures import loss_curve
    from antifraud.model import compute_dtype, compute_in_eval_as_in_training, load_base
    from antifraud.training.adapters import TARGET_MODULES, with_adapters
    from antifraud.training.command import (
        check_run,
        check_settings,
        only_the_first_process_prints,
        parse,
        stopping_explained,
    )
    from antifraud.training.examples import origin_of, read_examples, require_learnable
    from antifraud.training.loop import EarlyStopping, LabelPositionTrainer
    from antifraud.training.recipes import (
        CHECKPOINTING,
        SHARDED_STORAGE,
        FraudTrainingArguments,
        choose_recipe,
        name_now,
        shardable,
        sharded,
    )
    from antifraud.training.settings import require_honoured
    from data.files import DataError
    from data.prompt import Task, task_of

    with compiling_put_off():
        from peft import LoraConfig
        from transformers import TrainingArguments


def load_model(model_path: str, device: str = "cuda", *, quantization: str = "nf4", double_quantization: bool = False,
               dequantize: bool = False, trust_remote_code: bool = False):
    """Loads a causal LM with 4-bit base weights, and its tokenizer. Dettmers et al., QLoRA, 2023.

    Args:
        model_path: a folder, a Hugging Face hub id, or ``modelscope:ID``.
        device: ``cuda``, ``cuda:N`` or ``cpu``; ``cuda`` means the CPU where there is no GPU, and says so.
        quantization: ``nf4``, ``fp4``, or ``none`` for 16-bit weights.
        double_quantization: quantise the quantisation constants too (0.4 bit a weight less).
        dequantize: keep the values that 4 bits can hold in 16 bit: the same results, 2 bytes a weight.

    Returns:
        (model, tokenizer); the computation is in bf16 where the GPU has it, else fp16, and fp32 on a CPU.
    """
    return load_base(model_path, device, quantization=quantization, double_quantization=double_quantization,
                     storage=SHARDED_STORAGE if sharded() else None, dequantize=dequantize,
                     trust_remote_code=trust_remote_code)


def load_dataset(train_path: str, eval_path: str, tokenizer, *, task: Task = Task()) -> tuple[Dataset, Dataset]:
    """The examples of a train and an eval file, tokenised with the task's prompt.

    Columns: ``input_ids`` and ``labels``, lists of equal length, -100 on the prompt. How they were made travels
    in ``dataset.info.description`` to the checkpoint. Records without a dialogue and truncated dialogues are
    counted on standard error; many records are tokenised on all cores. Where all records say which of their lines are
    part of a fraud, ``line_ends``, the place of each line's last token in ``input_ids``, and ``line_labels``.
    """
    return read_examples(train_path, tokenizer, task), read_examples(eval_path, tokenizer, task)


def build_train_arguments(output_path: str, *, recipe: str = "auto", **overrides) -> TrainingArguments:
    """The article's recipe as `TrainingArguments`; any field may be overridden here or assigned afterwards.

    Batch 16, learning rate 1e-4 with 5 % warm-up and cosine decay, weight decay 0.01, 3 epochs, 32-bit AdamW,
    evaluation and checkpoint every 100 steps, the best checkpoint kept. ``use_cpu=True`` keeps off the GPU.

    Args:
        recipe: how to compute it; the steps are the same. ``plain``: checkpointed activations and the paged
            optimiser, for every GPU. ``fast``: each micro-batch a CUDA graph, fused optimiser; a GPU with bf16, or
            several with a copy of the model each. ``small``: the same with short micro-batches, selective recomputation
            and the paged optimiser. ``auto``: ``fast`` with micro-batches as large as the free memory allows, and
            selective recomputation where that is not enough for the largest, or ``small`` where it is little, or
            ``plain`` where the model is sharded or there is no bf16. A line on standard error says what was chosen.
    """
    overrides = {name_now(name): value for name, value in overrides.items()}
    on_gpu = torch.cuda.is_available() and not overrides.get("use_cpu", False)
    dtype = compute_dtype("cuda" if on_gpu else "cpu")
    chosen = (choose_recipe(recipe, dtype, **overrides) if on_gpu
              else shardable({"optim": "paged_adamw_32bit"}))
    settings = {
        "output_dir": str(output_path),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 256 if on_gpu else 64,  # at most: tokens limit it, too; the loss is the same
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
        "train_sampling_strategy": "group_by_length",  # rows of similar length: few padded tokens
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
    args = FraudTrainingArguments(**{**settings, **overrides})
    args._n_gpu = min(1, args.n_gpu)  # several GPUs mean DDP (accelerate launch), never DataParallel: 4-bit breaks it
    args._constructed = True
    return args


def build_loraconfig(**overrides) -> LoraConfig:
    """The article's LoRA: rank 16, alpha 32, dropout 0.2 on all seven projections of a decoder layer.

    18,464,768 trainable parameters on Qwen2-1.5B. Hu et al., LoRA, 2021.
    """
    settings = {"task_type": "CAUSAL_LM", "target_modules": list(TARGET_MODULES), "inference_mode": False,
                "r": 16, "lora_alpha": 32, "lora_dropout": 0.2}
    return LoraConfig(**{**settings, **overrides})


def build_trainer(model, tokenizer, train_args: TrainingArguments, lora_config: LoraConfig, train_dataset: Dataset,
                  eval_dataset: Dataset, *, early_stopping_patience: int = 5,
                  task: Task | None = None) -> LabelPositionTrainer:
    """Attaches LoRA adapters, prints how much of the model is trained, and puts the trainer together.

    Adapters of an earlier call are taken off first; a `PeftModel` is trained further with those that it has.

    ``trainer.train()`` does the rest, and stops early when the eval loss has not improved for
    `early_stopping_patience` evaluations (0: never). ``trainer.model`` ends as the best checkpoint, and remembers its
    task for `evaluate_with_model`.

    Args:
        task: of datasets that `load_dataset` did not make.

    Raises:
        DataError: a dataset does not say what it asks, or a setting cannot be honoured.
    """
    require_honoured(train_args)
    require_learnable(train_args, train_dataset)
    (train_task, train_data), (eval_task, eval_data) = (
        origin_of(dataset) if task is None else (task, {}) for dataset in (train_dataset, eval_dataset))
    if train_task != eval_task:
        raise DataError("train and eval dataset were made with different tasks; load both with one load_dataset")
    compute_in_eval_as_in_training(model)  # a notebook may have loaded it by itself
    lineage = lineage_of(model)
    lineage.task, lineage.train_data = train_task, train_data
    lineage.decision = Decision(line_weight=LINE_WEIGHT if train_args.line_loss_weight else 0.0)
    model = with_adapters(model, lora_config, train_args.seed)
    model.lineage = lineage
    model.print_trainable_parameters()
    stops_early = early_stopping_patience and train_args.eval_strategy != "no"
    return LabelPositionTrainer(
        model=model, args=train_args, train_dataset=train_dataset, eval_dataset=eval_dataset,
        processing_class=tokenizer, callbacks=[EarlyStopping(early_stopping_patience)] if stops_early else [],
        lineage=lineage, eval_data=eval_data)


# ------------------------------------------------------------------------------------------ the command line


def train(args: argparse.Namespace, train_options: dict) -> Path:
    """What the command does; returns the best checkpoint's folder."""
    train_args = check_settings(build_train_arguments, args.output, recipe=args.recipe, **train_options)
    lora_config = build_loraconfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout)
    resume_from = check_run(args, train_args, lora_config)
    model, tokenizer = load_model(args.model, args.device, quantization=args.quantization,
                                  double_quantization=args.double_quantization, dequantize=args.dequantize,
                                  trust_remote_code=args.trust_remote_code)
    train_dataset, eval_dataset = load_dataset(args.train, args.eval, tokenizer, task=task_of(args) or Task())
    trainer = build_trainer(model, tokenizer, train_args, lora_config, train_dataset, eval_dataset,
                            early_stopping_patience=args.early_stopping_patience)
    trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_if_nothing_is_saved()
    if trainer.is_world_process_zero():
        try:
            loss_curve(trainer.state.log_history).save(Path(args.output) / "loss_curve.png")
        except OSError as error:
            print(f"{args.output}/loss_curve.png: not written ({error.strerror})", file=sys.stderr)
    return Path(trainer.state.best_model_checkpoint or newest_complete_checkpoint(args.output)[0] or args.output)


@command
def main(argv: Sequence[str] | None = None) -> int:
    only_the_first_process_prints()
    args, train_options = parse(argv)
    disable_progress_bars()
    with stopping_explained(args.output):
        best = train(args, train_options)
    model, checkpoint, data = map(shlex.quote, (args.model, str(best), args.eval))
    print(f"best checkpoint: {best}\nnext: python evaluate.py --model {model} --checkpoint {checkpoint} --data {data}")
    return 0


if is_command(__name__):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers send it: stop as on Ctrl-C
    code = main()
    gc.freeze()  # or Python would look for garbage among a million objects before it ends: seconds
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so do launchers once a process has ended: let this one end too
    sys.exit(code)
