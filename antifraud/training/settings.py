"""Every setting of a training is honoured or refused, in one line, before a model is loaded."""

import dataclasses
import math
import shutil
from collections.abc import Callable

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from data.files import DataError, one_line

from ..compiling import can_compile
from .recipes import CHECKPOINTING, SHARDABLE_OPTIMIZER, FraudTrainingArguments, sharded

MOST_WORKERS = 64
BACKENDS = (None, "nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl")
UPLOADING = "a training uploads nothing; see antifraud.serving.export"
NO_LOGITS = "evaluation in training keeps no logits, only the loss; see evaluate.py"
SCRIPTS = "trainer.py trains, and evaluates as --eval-strategy says"
COMPILING = "take --compile-layers"
SHARED_PREFIX = "the rows of a batch are computed as one sequence"
TRACKIO = "trackio is not supported"
# What this trainer has its own way for, or none, is refused unless it is one of these values; name: (values, why).
FIXED: dict[str, tuple[tuple, str]] = {
    "optim_args": ((None,), "no optimiser that can be chosen here reads it"),
    "optim_target_modules": ((None,), "adapters are trained, not whole layers"),
    "bf16_full_eval": ((False,), "evaluation computes as training does"),
    "fp16_full_eval": ((False,), "evaluation computes as training does"),
    "torch_compile": ((False,), COMPILING), "torch_compile_backend": ((None,), COMPILING),
    "torch_compile_mode": ((None,), COMPILING),
    "use_liger_kernel": ((False,), "the loss is computed at label positions only, which saves more"),
    "liger_kernel_config": ((None,), "the loss is computed at label positions only, which saves more"),
    "use_cache": ((False,), "training keeps no keys and values"),
    "neftune_noise_alpha": ((None,), SHARED_PREFIX),
    "include_num_input_tokens_seen": (("no", False), SHARED_PREFIX),
    "auto_find_batch_size": ((False,), "take --recipe small, or a smaller --tokens-per-micro-batch"),
    "prediction_loss_only": ((True,), NO_LOGITS), "eval_do_concat_batches": ((True,), NO_LOGITS),
    "eval_use_gather_object": ((False,), NO_LOGITS), "eval_accumulation_steps": ((None,), NO_LOGITS),
    "include_for_metrics": (([],), NO_LOGITS), "batch_eval_metrics": ((False,), NO_LOGITS),
    "metric_for_best_model": ((None, "loss", "eval_loss"), NO_LOGITS),
    "greater_is_better": ((None, False), "the best checkpoint is that with the lowest eval loss"),
    "label_names": ((None,), NO_LOGITS),
    "save_only_model": ((False,), "a run could not go on from its checkpoints"),
    "enable_jit_checkpoint": ((False,), "SIGTERM stops a run, which goes on with --resume"),
    "restore_callback_states_from_checkpoint": ((False,), "early stopping counts on by itself"),
    "push_to_hub": ((False,), UPLOADING), "hub_token": ((None,), UPLOADING), "hub_model_id": ((None,), UPLOADING),
    "hub_private_repo": ((None,), UPLOADING), "hub_always_push": ((False,), UPLOADING),
    "hub_revision": ((None,), UPLOADING), "hub_strategy": (("every_save",), UPLOADING),
    "project": (("huggingface",), TRACKIO), "trackio_space_id": ((None, "trackio"), TRACKIO),
    "trackio_bucket_id": ((None,), TRACKIO), "trackio_static_space_id": ((None,), TRACKIO),
    "full_determinism": ((False,), "a resumed run repeats an uninterrupted one without it"),
    "data_seed": ((None,), "the order of the rows is drawn from --seed"),
    "parallelism_config": ((None,), "take configs/ddp.yaml or configs/fsdp.yaml"),
    "deepspeed": ((None,), "take configs/fsdp.yaml"),
    "fsdp": ((None, "", [], False), "take configs/fsdp.yaml"),
    "ddp_static_graph": ((None, False), "gradients are accumulated over micro-batches"),
    "dataloader_drop_last": ((False,), "blank rows fill up the last batch, so that no row is lost"),
    "dataloader_in_order": ((True,), "a resumed run would see other batches"),
    "remove_unused_columns": ((False,), "the collator takes the columns that it needs"),
    "train_sampling_strategy": (("group_by_length",), "batches are always of rows of similar length"),
    "length_column_name": (("length",), "lengths are counted, not read"),
    "debug": (([], ""), "the finite guard stops at the first loss or gradient that is not finite"),
}
# Of the command line alone: Trainer never reads them, or they have another name here.
COMMAND_ONLY = {
    "output_dir": "use --output", "resume_from_checkpoint": "use --resume, which goes on from the newest checkpoint",
    "do_train": SCRIPTS, "do_eval": SCRIPTS, "do_predict": SCRIPTS, "local_rank": "accelerate launch sets LOCAL_RANK",
    "accelerator_config": "take configs/ddp.yaml or configs/fsdp.yaml", "fsdp_config": "take configs/fsdp.yaml",
    "activation_checkpointing_kwargs": f"use --{CHECKPOINTING.replace('_', '-')} alone",
    "gradient_checkpointing_kwargs": f"use --{CHECKPOINTING.replace('_', '-')} alone",
}


def _whole_from(least: int) -> tuple[Callable, str]:
    return lambda value: isinstance(value, int) and value >= least, f"a whole number from {least} on"


def _or_none(check: tuple[Callable, str]) -> tuple[Callable, str]:
    return lambda value: value is None or check[0](value), check[1]


POSITIVE = (lambda value: 0 < value < math.inf, "a number above 0")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a number from 0 on")
SHARE = (lambda value: 0 <= value < 1, "a number from 0 on and below 1")
# name: (whether a value is one that can be trained with, what was expected)
CHECKS: dict[str, tuple[Callable, str]] = {
    **dict.fromkeys(["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                     "ddp_timeout"], _whole_from(1)),
    **dict.fromkeys(["save_total_limit", "torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"],
                    _or_none(_whole_from(1))),
    **dict.fromkeys(["learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay",
                     "line_loss_weight"], NOT_NEGATIVE),
    **dict.fromkeys(["adam_epsilon", "logging_steps", "save_steps"], POSITIVE),
    "eval_steps": _or_none(POSITIVE),
    **dict.fromkeys(["adam_beta1", "adam_beta2", "label_smoothing_factor"], SHARE),
    "tokens_per_micro_batch": _whole_from(0),
    "max_steps": (lambda value: value == -1 or value >= 1, "-1 (by epochs) or a whole number from 1 on"),
    "seed": (lambda value: 0 <= value < 2**32, "a whole number from 0 on and below 4294967296"),
    "dataloader_num_workers": (lambda value: 0 <= value <= MOST_WORKERS, f"a whole number from 0 to {MOST_WORKERS}"),
    "dataloader_multiprocessing_context": (lambda value: value in (None, "fork", "spawn", "forkserver"),
                                           "fork, spawn or forkserver"),
    "ddp_backend": (lambda value: value in BACKENDS, ", ".join(filter(None, BACKENDS))),
}
NEED_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")


def option(name: str) -> str:
    """What a field is called on the command line."""
    return "--" + name.replace("_", "-")


def require_honoured(args: TrainingArguments) -> None:
    """Raises DataError for a field with a value that this trainer would not honour, or cannot train with."""
    if not isinstance(args, FraudTrainingArguments):
        raise DataError(f"{type(args).__name__} lack what this trainer reads; make them with build_train_arguments")
    fields = {field.name for field in dataclasses.fields(args)}
    for name, (values, why) in FIXED.items():
        if name in fields and getattr(args, name) not in values:
            raise DataError(f"{option(name)} {_shown(getattr(args, name))} cannot be used: {why}")
    for name, (check, expected) in CHECKS.items():
        if name in fields and not check(getattr(args, name)):
            raise DataError(f"{option(name)} must be {expected}, not {getattr(args, name)}")
    if args.max_steps < 1 and not 0 < args.num_train_epochs < math.inf:
        raise DataError(f"--num-train-epochs must be a number above 0, or --max-steps be given, not "
                        f"{args.num_train_epochs}")
    if not args.dataloader_num_workers:
        needing = next((name for name in NEED_WORKERS if getattr(args, name)), None)
        if needing:
            raise DataError(f"{option(needing)} needs --dataloader-num-workers of 1 or more")
    if (getattr(args, f"{CHECKPOINTING}_kwargs") or {}).get("use_reentrant"):
        raise DataError(f"{CHECKPOINTING}_kwargs: use_reentrant must be False, or adapters get no gradients")
    _require_evaluations(args)
    require_capturable(args)
    require_compiled(args)
    require_shardable(args)


def _shown(value) -> str:
    return str(getattr(value, "value", value)) if value != [] else "[]"


def _require_evaluations(args: TrainingArguments) -> None:
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise DataError("--save-strategy best needs evaluations; give --eval-strategy steps or epoch")
    if args.fp16 and args.device.type != "cuda":
        raise DataError("--fp16 needs a GPU; leave it out")


def require_usable(args: TrainingArguments) -> None:
    """Raises DataError where optimiser, schedule, reports or log level cannot be made here: makes each for a moment."""
    try:
        names_kept(args)
    except Exception as error:  # each of forty optimisers, and of the packages that they come from, has its own
        raise DataError(f"--optim {args.optim.value} cannot be used here: {one_line(error)}") from None
    try:
        get_scheduler(args.lr_scheduler_type, torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
                      num_warmup_steps=args.get_warmup_steps(100), num_training_steps=100,
                      scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except Exception as error:  # it calls one of a dozen functions with the user's keywords
        raise DataError(f"--lr-scheduler-type {args.lr_scheduler_type.value} cannot be used with these settings: "
                        f"{one_line(error)}") from None
    try:
        args.get_process_log_level()
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except Exception as error:  # packages that are not installed, and names that there are none of
        raise DataError(f"--report-to, --log-level or --log-level-replica: {one_line(error)}") from None


def names_kept(args: TrainingArguments) -> set[str]:
    """What the optimiser keeps of each parameter."""
    model = torch.nn.Linear(2, 2).to(args.device)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = kind(model.parameters(), **settings)
    model(torch.ones(1, 2, device=args.device)).sum().backward()
    optimizer.step()
    return {name for kept in optimizer.state.values() for name in kept}


def require_lora(r: int, alpha: float, dropout: float) -> None:
    if not 1 <= r <= 4096:
        raise DataError(f"--lora-r must be a whole number from 1 to 4096, not {r}")
    if not 0 < alpha < math.inf:
        raise DataError(f"--lora-alpha must be a number above 0, not {alpha}")
    if not 0 <= dropout < 1:
        raise DataError(f"--lora-dropout must be a number from 0 on and below 1, not {dropout}")


def require_capturable(args: TrainingArguments) -> None:
    """Raises DataError where CUDA graphs are asked for and cannot be captured."""
    if not args.cuda_graphs:
        return
    reasons = {"the computation is not on a GPU": args.device.type != "cuda",
               "they compute in bf16 only": not args.bf16,
               f"{option('torch_empty_cache_steps')} empties what they compute in": args.torch_empty_cache_steps,
               "the model is sharded": sharded(),
               f"{CHECKPOINTING} draws random numbers anew; give a smaller tokens_per_micro_batch instead":
                   getattr(args, CHECKPOINTING)}
    for reason, holds in reasons.items():
        if holds:
            raise DataError(f"cuda_graphs cannot be used: {reason}")


def require_compiled(args: TrainingArguments) -> None:
    """Raises DataError where what only compiled layers can do is asked for and they cannot be compiled."""
    if args.selective_recomputation and args.compile_layers is False:
        raise DataError("selective_recomputation needs compiled layers; leave it out, or --compile-layers false")
    asked_for = args.selective_recomputation or args.compile_layers
    if asked_for and not (can_compile() if args.device.type == "cuda" else shutil.which("g++")):
        raise DataError("layers cannot be compiled here, for want of a C compiler or Triton; take "
                        "--compile-layers false without --selective-recomputation")


def require_shardable(args: TrainingArguments) -> None:
    """Raises DataError where an optimiser is asked for that cannot step a sharded model."""
    if sharded() and any(part in args.optim for part in ("paged", "bit", "bnb")):
        raise DataError(f"{args.optim.value} cannot step weights that are sharded: bitsandbytes' optimisers take "
                        f"whole tensors; take --optim {SHARDABLE_OPTIMIZER}")


def require_strategies(given: dict) -> None:
    """Raises DataError for an unlike --save-strategy and --eval-strategy, between which no checkpoint is the best."""
    save, evaluate = (given.get(name, "steps") for name in ("save_strategy", "eval_strategy"))
    if given.get("load_best_model_at_end", True) and save not in (evaluate, "best"):
        raise DataError(f"--save-strategy {save} and --eval-strategy {evaluate} differ, so that the best checkpoint is "
                        f"not known; give both alike, or add --load-best-model-at-end false")
