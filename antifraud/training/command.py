"""The command line of a training: its options, what is checked before a model is loaded, and how it may stop."""

import argparse
import contextlib
import functools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, HfArgumentParser, TrainingArguments

from data.files import DataError, one_line
from data.prompt import PromptEncoder, Task, add_task_options, task_of
from data.records import Skipped, read_records

from ..checkpoint import Lineage, checkpoints_in, newest_complete_checkpoint
from ..model import (
    QUANTIZATIONS,
    default_device,
    locate_model,
    pick_device,
    require_device,
    require_model_files,
)
from ..provenance import describe_base, describe_data
from .examples import require_both_labels
from .guard import what_is_kept
from .recipes import (
    ARGUMENT_NAMES,
    LATE_NAMES,
    RECIPES,
    FraudTrainingArguments,
    is_first_local_process,
    name_now,
)
from .run_folder import facts_of_run, owned, require_resumable
from .settings import (
    COMMAND_ONLY,
    FIXED,
    option,
    require_honoured,
    require_lora,
    require_strategies,
    require_usable,
)

DESCRIPTION = """QLoRA fine-tuning of a causal language model on fraud dialogues.

Every field of TrainingArguments is an option; one that this trainer cannot honour is refused. The texts and defaults
below are transformers'; the article's recipe and --recipe set others, see build_train_arguments in trainer.py."""


class Parser(HfArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


@functools.cache
def parser() -> Parser:
    made = Parser(FraudTrainingArguments, prog="trainer.py", description=DESCRIPTION, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter,
                  usage="trainer.py --model M --train F --eval F --output DIR [--resume] [options]")
    # Only what the user gives counts: the defaults are the article's, in build_train_arguments.
    made.set_defaults(**dict.fromkeys(ARGUMENT_NAMES))
    for action in made._actions:
        if action.dest in COMMAND_ONLY or action.dest in FIXED and FIXED[action.dest][0] == (None,):
            action.type, action.choices, action.help = str, None, argparse.SUPPRESS  # refused, whatever it says
    for old in set(LATE_NAMES) - ARGUMENT_NAMES:  # as in a command of years ago
        for spelled in (f"--{old}", option(old)):
            made._option_string_actions.setdefault(spelled, made._option_string_actions.get(option(name_now(old))))
    main = made.add_argument_group("fraud fine-tuning")
    main.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    main.add_argument("--train", required=True, help="JSONL records to train on; other formats: docs/data.md")
    main.add_argument("--eval", required=True, help="JSONL records for eval loss, best checkpoint, early stopping")
    main.add_argument("--output", required=True, help="folder for checkpoints and the loss curve")
    main.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in OUTPUT")
    main.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="how to compute the steps: plain "
                      "(any GPU), small (bf16; 3 GiB for Qwen2-1.5B), fast (14 GiB); default: by the free memory")
    main.add_argument("--device", default=default_device(), help="cuda, cuda:N or cpu (default: the GPU if any)")
    main.add_argument("--quantization", choices=QUANTIZATIONS, default="nf4",
                      help="of the base model (default: %(default)s)")
    main.add_argument("--double-quantization", action="store_true",
                      help="quantise the scales, too: a little less memory, the same precision")
    main.add_argument("--dequantize", action="store_true",
                      help="keep the 4-bit values in 16 bit: the same results, more memory")
    main.add_argument("--lora-r", type=int, default=16, help="rank of the adapters (default: %(default)s)")
    main.add_argument("--lora-alpha", type=int, default=32, help="their scale is alpha / r (default: %(default)s)")
    main.add_argument("--lora-dropout", type=float, default=0.2, help="default: %(default)s")
    main.add_argument("--early-stopping-patience", type=int, default=5, help="evaluations; 0 never stops early")
    main.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    add_task_options(made)
    return made


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """(our own options, the fields of TrainingArguments that were given), each with a value that can be used.

    Raises:
        DataError: an option that is refused.
    """
    args = parser().parse_args(argv)
    given = {name: value for name, value in vars(args).items() if name in ARGUMENT_NAMES and value is not None}
    for name, instead in COMMAND_ONLY.items():
        if name in given:
            raise DataError(f"{option(name)} cannot be used: {instead}")
    task_of(args)  # refuses one that cannot be asked
    if args.early_stopping_patience < 0:
        raise DataError(f"--early-stopping-patience must be 0 or more, not {args.early_stopping_patience}")
    if args.device == "cpu" or given.get("use_cpu"):
        args.device, given["use_cpu"] = "cpu", True
    require_device(args.device)
    if args.recipe in ("small", "fast") and (args.device == "cpu" or not torch.cuda.is_available()):
        raise DataError(f"--recipe {args.recipe} needs a GPU; take --recipe plain, or leave it out")
    if ":" in args.device:
        os.environ["ACCELERATE_TORCH_DEVICE"] = args.device  # where Trainer puts the batches
    if args.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(pick_device(args.device))  # before a process looks at the first one's memory
    require_lora(args.lora_r, args.lora_alpha, args.lora_dropout)
    require_strategies(given)
    return args, given


def check_settings(build, *args, **given) -> TrainingArguments:
    """The arguments that `build` makes, all of which are honoured and can be used here.

    Raises:
        DataError: a value that transformers or this trainer refuses.
    """
    try:
        made = build(*args, **given)
    except DataError:
        raise
    except Exception as error:  # transformers checks a hundred fields, each in its own way
        raise DataError(one_line(error)) from None
    require_honoured(made)
    require_usable(made)
    return made


def check_run(args: argparse.Namespace, train_args: TrainingArguments, lora_config) -> Path | None:
    """What can be known before a model is loaded: the files, the task, the output folder; returns what to resume from.

    Raises:
        DataError: one of them cannot be used.
    """
    task = task_of(args) or Task()
    train, held_out = (read_records(path, Skipped()) for path in (args.train, args.eval))
    require_both_labels([record["label"] for record in train], args.train)
    if not held_out:
        raise DataError(f"{args.eval}: it has no records")
    labels = {record["label"] for record in held_out}
    if len(labels) < 2:
        print(f"{args.eval}: all {len(held_out)} records have \"label\": {json.dumps(*labels)}; the best checkpoint "
              "would be the one that says so most often; take records of both labels", file=sys.stderr)
    seen = {record["input"] for record in train}
    repeated = sum(record["input"] in seen for record in held_out)
    if repeated:
        print(f"{args.eval}: {repeated} of {len(held_out)} records are in {args.train}, too; the best checkpoint would "
              "be one that knows them by heart", file=sys.stderr)
    rows_a_step = (train_args.per_device_train_batch_size * train_args.gradient_accumulation_steps
                   * train_args.world_size)
    if len(train) < rows_a_step:
        print(f"{args.train}: {len(train)} records are fewer than the {rows_a_step} of a step; each epoch is "
              "one step", file=sys.stderr)
    output = Path(args.output)
    resume = _where_to_resume(args)
    _require_writable(output)
    folder = locate_model(args.model, with_code=args.trust_remote_code)
    require_model_files(folder, with_code=args.trust_remote_code)
    _require_room(folder, task, args.trust_remote_code)
    if resume:
        lineage = Lineage(task=task, base=describe_base(folder), train_data=describe_data(args.train, 0),
                          quantization={"type": args.quantization, "double": args.double_quantization})
        facts = facts_of_run(lineage, describe_data(args.eval, 0), lora_config, train_args)
        require_resumable(output, facts)
    return resume


def _where_to_resume(args: argparse.Namespace) -> Path | None:
    if not checkpoints_in(args.output):
        if args.resume:
            print(f"{args.output}: holds no checkpoint to resume from: starting anew", file=sys.stderr)
        return None
    if not args.resume:
        raise DataError(f"{args.output}: holds checkpoints of an earlier run; add --resume to go on with it, "
                        "or name another --output")
    folder, passed_over = newest_complete_checkpoint(args.output)
    print(*passed_over, f"resuming from {folder}" if folder else "no complete checkpoint: starting anew",
          sep="\n", file=sys.stderr)
    return folder


def _require_writable(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; name a folder with --output")
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"{output}: cannot be written; {there} is not a folder that can be written to")
    if output.exists() and os.environ.get("RANK", "0") == "0":
        with owned(output):  # refused now, not once the model is loaded
            pass


def _require_room(folder: str, task: Task, trust_remote_code: bool) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the files are the user's, and each tokenizer fails on bad ones in its own way
        raise DataError(f"{folder}: no tokenizer that loads: {one_line(error)}") from None
    PromptEncoder(tokenizer, task)


def only_the_first_process_prints() -> None:
    """Silences this process if another one of this machine tells the same."""
    if not is_first_local_process():
        sys.stdout = sys.stderr = open(os.devnull, "w")


@contextlib.contextmanager
def stopping_explained(output: str) -> Iterator[None]:
    """Says how to go on after Ctrl-C, and what to change when the memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        _let_it_be_heard()
        raise DataError("out of memory: take --recipe small, or a smaller --tokens-per-micro-batch; "
                        f"{what_is_kept(output)}, go on with --resume") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {what_is_kept(output)}; go on with --resume --output {shlex.quote(output)}"
                                ) from None
    except (DataError, FloatingPointError):  # all processes meet them alike
        raise
    except Exception as error:
        _let_it_be_heard()
        if isinstance(error, OSError) and str(error.filename).startswith(output):  # a name too long, a quota
            raise DataError(f"{output}: cannot be written ({error.strerror}); name another --output") from None
        raise


def _let_it_be_heard() -> None:
    """What befalls another process than the first alone, no other one tells."""
    if not is_first_local_process():
        sys.stderr = sys.__stderr__
