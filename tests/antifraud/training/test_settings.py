"""Every option is honoured or refused in one line, before a model is loaded."""

import dataclasses

import pytest
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

import trainer as trainer_module
from antifraud.training.recipes import CHECKPOINTING, FraudTrainingArguments
from antifraud.training.settings import CHECKS, COMMAND_ONLY, FIXED, option, require_honoured
from data.files import DataError
from trainer import build_train_arguments

VALUES = ("-1", "0", "3", "0.5", "nan", "1e400", "true", "x", '{"a": 1}', "{")
FIELDS = sorted({field.name for field in dataclasses.fields(FraudTrainingArguments)})
# What this trainer leaves to Trainer: any value of the right kind has its effect.
LEFT_TO_TRAINER = {
    "activation_checkpointing", "average_tokens_across_devices", "bf16", "compile_layers", "cuda_graphs",
    "dataloader_persistent_workers", "dataloader_pin_memory", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
    "disable_tqdm", "eval_on_start", "eval_strategy", "fp16", "gradient_checkpointing", "ignore_data_skip",
    "load_best_model_at_end", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_nan_inf_filter", "logging_strategy", "lr_scheduler_kwargs", "lr_scheduler_type", "num_train_epochs",
    "optim", "report_to", "run_name", "save_on_each_node", "save_strategy", "selective_recomputation",
    "skip_memory_metrics", "tf32", "use_cpu"}


class Accepted(Exception):
    """The point at which the files would be looked at."""


@pytest.fixture
def attempt(monkeypatch, capsys, tmp_path):
    """(whether the options are taken, what is said if not) of a command line."""
    def accept(*args):
        raise Accepted
    monkeypatch.setattr(trainer_module, "check_run", accept)

    def call(*options: str) -> tuple[bool, str]:
        try:
            code = trainer_module.main(["--model", "m", "--train", "t", "--eval", "e", "--output", str(tmp_path / "o"),
                                        "--device", "cpu", *options])
        except Accepted:
            return True, ""
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and len(said) == 1, (options, said)
        return False, said[0]
    return call


def test_each_field_is_known_to_be_honoured_checked_or_refused():
    known = {*FIXED, *CHECKS, *COMMAND_ONLY, *LEFT_TO_TRAINER}
    assert set(FIELDS) <= known  # a field that a new version brings is looked at first


@pytest.mark.parametrize("name", FIELDS)
def test_any_value_of_any_field_is_taken_or_refused_in_one_line(attempt, name):
    for value in VALUES:
        attempt(f"{option(name)}={value}")


def test_each_optimiser_and_each_schedule_is_made_or_refused_in_one_line(attempt):
    taken = {name for name in OptimizerNames if attempt("--optim", name.value)[0]}
    assert {"adamw_torch", "sgd", "paged_adamw_32bit", "adamw_torch_fused"} <= {name.value for name in taken}
    taken = {name for name in SchedulerType if attempt("--lr-scheduler-type", name.value)[0]}
    assert {"linear", "cosine", "constant"} <= {name.value for name in taken}


@pytest.mark.parametrize("options", [
    ("--learning-rate", "-1e-4"), ("--learning-rate", "nan"), ("--num-train-epochs", "0", "--max-steps", "-1"),
    ("--eval-strategy", "no"), ("--save-strategy", "epoch"), ("--save-strategy", "best", "--eval-strategy", "no"),
    ("--lora-r", "0"), ("--lora-r", "-3"), ("--lora-alpha", "0"), ("--lora-dropout", "1"), ("--lora-dropout", "-0.1"),
    ("--lora-dropout", "nan"), ("--device", "tpu"), ("--device", "cuda:97"), ("--device", "cuda:x"),
    ("--recipe", "fast"), ("--early-stopping-patience", "-1"), ("--resume-from-checkpoint", "/no/such"),
    ("--neftune-noise-alpha", "5"), ("--label-smoothing-factor", "1"), ("--train-sampling-strategy", "random"),
    ("--output-dir", "x"), ("--fp16", "true"), ("--answers", "a", "b"), ("--no-such-option", "1"),
    ("--lr-scheduler-type", "warmup_stable_decay"), ("--report-to", "no_such"), ("--eval-steps", "3"),
    ("--seed", "-1"), ("--per-device-train-batch-size", "0"), ("--dataloader-num-workers", "-1")])
def test_what_cannot_be_honoured_is_refused(attempt, options):
    taken, said = attempt(*options)
    assert not taken and said


@pytest.mark.parametrize("options", [
    (), ("--max-steps", "4", "--eval-steps", "2", "--save-steps", "2"), ("--learning-rate", "0"),
    ("--save-strategy", "epoch", "--eval-strategy", "epoch"), ("--label-smoothing-factor", "0.1"),
    ("--save-strategy", "no", "--load-best-model-at-end", "false"), ("--push-to-hub", "false"),
    ("--eval-strategy", "no", "--load-best-model-at-end", "false"), ("--gradient-checkpointing", "true"),
    ("--optim", "sgd"), ("--lr-scheduler-type", "linear"), ("--bf16", "true"), ("--num-train-epochs", "0.5"),
    ("--warmup-ratio", "0.1", "--evaluation_strategy", "steps", "--no-cuda", "true")])
def test_what_is_honoured_is_taken(attempt, options):
    assert attempt(*options) == (True, "")


def test_names_of_transformers_4_are_taken_in_a_notebook_too(tmp_path):
    args = build_train_arguments(str(tmp_path), no_cuda=True, warmup_ratio=0.1, evaluation_strategy="steps",
                                 gradient_checkpointing=True)
    assert args.warmup_steps == 0.1 and args.use_cpu and getattr(args, CHECKPOINTING)


def test_a_notebook_is_refused_what_the_command_line_is(tmp_path):
    args = build_train_arguments(str(tmp_path), use_cpu=True)
    require_honoured(args)
    args.neftune_noise_alpha = 5.0
    with pytest.raises(DataError):
        require_honoured(args)
    assert isinstance(args, TrainingArguments)


def test_arguments_of_another_kind_are_refused_and_transformers_own_default_is_taken(tmp_path):
    with pytest.raises(DataError):
        require_honoured(TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    require_honoured(build_train_arguments(str(tmp_path), use_cpu=True, eval_strategy="epoch", save_strategy="epoch",
                                           eval_steps=None))
