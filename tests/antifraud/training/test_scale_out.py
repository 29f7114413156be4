"""Several processes train as one does: the same rows a step, the same losses, one adapter. CPU processes over gloo."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers import make_records
from processes import ROOT, run, run_together
from safetensors.torch import load_file

import evaluate
from antifraud.checkpoint import checkpoints_in, newest_complete_checkpoint
from antifraud.training.loss import label_position_loss
from data.records import write_records
from trainer import load_dataset, load_model

ROWS, EVAL_ROWS, STEPS = 45, 21, 6  # neither number divides by 16 or by 2


@pytest.fixture(scope="module")
def arguments(base, tmp_path_factory):
    """The command's arguments for `STEPS` steps of 16 rows into `output`."""
    data = tmp_path_factory.mktemp("data")
    write_records(data / "train.jsonl", make_records(ROWS))
    write_records(data / "eval.jsonl", make_records(EVAL_ROWS, first_case=100))

    def build(output, *more: str) -> list[str]:
        return ["--model", base, "--train", str(data / "train.jsonl"), "--eval", str(data / "eval.jsonl"), "--output",
                str(output), "--device", "cpu", "--max-steps", str(STEPS), "--eval-steps", "2", "--save-steps", "2",
                "--logging-steps", "1", "--learning-rate", "1e-2", "--lora-dropout", "0", "--disable-tqdm", "true",
                "--resume", *more]
    return build


def change_training_step(changed) -> None:
    """Trainer's step, and then `changed` (trainer, inputs, loss) returns the loss."""
    from transformers import Trainer

    original = Trainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        return changed(self, inputs, original(self, model, inputs, *args, **kwargs))

    Trainer.training_step = training_step


def write_down_rows(folder: str) -> None:
    """Each row that a step sees goes to FOLDER/RANK.jsonl: [step, its tokens]; a blank row has none."""
    def note(trainer, inputs, loss):
        with open(f"{folder}/{os.environ.get('RANK', 0)}.jsonl", "a") as file:
            for row in inputs["input_ids"].tolist():
                while row and row[-1] == 0:  # padding
                    row.pop()
                file.write(json.dumps([trainer.state.global_step, row]) + "\n")
        return loss
    change_training_step(note)


def capture_and_count(folder: str) -> None:
    """Captured micro-batches without a GPU; what there was of them goes to FOLDER/RANK.json."""
    from captured import EagerMicroBatch, capture_on_cpu

    from antifraud.training.loop import LabelPositionTrainer

    counted = {"reductions": 0}
    average, train = EagerMicroBatch.average_gradients, LabelPositionTrainer.train

    def counting(self, processes):
        counted["reductions"] += 1
        average(self, processes)

    def trained(self, **options):
        train(self, **options)
        counted.update(micro_batches=len(self.captured.shapes), wrapped=self.model_wrapped is not self.model)
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(counted))

    capture_on_cpu()
    EagerMicroBatch.average_gradients = counting
    LabelPositionTrainer.train = trained


def nan_on_the_second(step: int) -> None:
    def spoil(trainer, inputs, loss):
        return loss * float("nan") if os.environ["RANK"] == "1" and trainer.state.global_step == step else loss
    change_training_step(spoil)


def die_at(step: int) -> None:
    def die(trainer, inputs, loss):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss
    change_training_step(die)


@pytest.fixture(scope="module")
def layouts(arguments, tmp_path_factory) -> dict[str, Path]:
    """The same 16 rows a step in three ways: folders with ``run``, ``rows/RANK.jsonl`` and the logs."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "accumulated", "two")}
    for name, folder in folders.items():
        (folder / "rows").mkdir()
        before = (write_down_rows, str(folder / "rows"))
        if name == "two":
            codes = run_together(arguments(folder / "run", "--per-device-train-batch-size", "8"), folder / "log", 2,
                                 before=before)
        else:
            sizes = {"one": ("16", "1"), "accumulated": ("8", "2")}[name]
            codes = [run(arguments(folder / "run", "--per-device-train-batch-size", sizes[0],
                                   "--gradient-accumulation-steps", sizes[1]), folder / "log", before=before)]
        assert not any(codes), [log.read_text() for log in folder.glob("log*")]
    return folders


def rows_by_step(folder: Path) -> list[list]:
    steps = [[] for _ in range(STEPS)]
    for path in (folder / "rows").iterdir():
        for line in path.read_text().splitlines():
            step, row = json.loads(line)
            steps[step].append(row)
    return [sorted(rows) for rows in steps]


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / f"checkpoint-{STEPS}" / "adapter_model.safetensors")


def assert_close(one: Path, other: Path, *, loss: float, weight: float) -> None:
    for row, other_row in zip(history(one), history(other), strict=True):
        for name in {"loss", "eval_loss"} & row.keys():
            assert other_row[name] == pytest.approx(row[name], abs=loss), row["step"]
    weights, others = adapter(one), adapter(other)
    assert weights.keys() == others.keys()
    assert max((weights[name] - others[name]).abs().max() for name in weights) < weight


# ------------------------------------------------------------------------------------------------ as one process


def test_each_step_sees_the_same_rows_however_they_are_spread(layouts):
    one, accumulated, two = (rows_by_step(layouts[name]) for name in ("one", "accumulated", "two"))
    assert one == accumulated == two
    epoch = [row for rows in one[:3] for row in rows]
    assert sum(row == [] for row in epoch) == 48 - ROWS and len({tuple(row) for row in epoch if row}) == ROWS
    assert one[0] != one[3]


def test_losses_eval_losses_and_the_adapter_are_those_of_one_process(layouts):
    assert_close(layouts["one"], layouts["two"], loss=1e-5, weight=1e-4)
    assert_close(layouts["one"], layouts["accumulated"], loss=1e-5, weight=1e-4)
    assert max(value.abs().max() for name, value in adapter(layouts["two"]).items() if "lora_B" in name) > 1e-2


def test_a_checkpoint_of_two_processes_gives_its_eval_loss_on_one(base, layouts, arguments):
    """Row by row, unpadded: no row is counted twice, each label token counts once."""
    folder = layouts["two"] / "run"
    best = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["best_metric"]
    model, tokenizer = evaluate.load_model(base, str(folder), "cpu")
    eval_file = arguments(folder)[5]
    dataset, _ = load_dataset(eval_file, eval_file, tokenizer)
    with torch.no_grad():
        losses = [label_position_loss(model, torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]]), 1)
                  for row in dataset]
    n_labels = sum(label != -100 for row in dataset for label in row["labels"])
    assert len(losses) == EVAL_ROWS
    assert best == pytest.approx(float(sum(losses)) / n_labels, abs=1e-5)


def test_only_the_first_process_prints(layouts):
    first, second = ((layouts["two"] / f"log.{rank}").read_text() for rank in (0, 1))
    for text in ("trainable params", "'eval_loss'", "best checkpoint: "):
        assert text in first and text not in second


def test_processes_that_capture_for_themselves_take_the_steps_of_one_with_one_reduction_each(
        layouts, arguments, tmp_path):
    """Each cuts its rows into micro-batches of its own, of which there may be more than the other has."""
    more = ("--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2", "--cuda-graphs", "true",
            "--compile-layers", "false", "--tokens-per-micro-batch", "200")
    assert run_together(arguments(tmp_path / "run", *more), tmp_path / "log", 2,
                        before=(capture_and_count, str(tmp_path))) == [0, 0], (tmp_path / "log.0").read_text()
    assert_close(layouts["one"], tmp_path, loss=1e-5, weight=1e-4)
    counted = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [count["reductions"] for count in counted] == [STEPS, STEPS]
    assert counted[0]["micro_batches"] > 2 * STEPS and not counted[0]["wrapped"]


# ------------------------------------------------------------------------------------------------------ stopping


def test_a_nan_on_one_process_stops_both_with_one_line(arguments, tmp_path):
    codes = run_together(arguments(tmp_path / "run", "--per-device-train-batch-size", "8"), tmp_path / "log", 2,
                         before=(nan_on_the_second, 2))
    first, second = ((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert codes == [2, 2]
    assert first.splitlines()[-1].startswith("step 3: loss nan ")
    assert "checkpoint-2" in first.splitlines()[-1] and "step 3" not in second
    assert "Traceback" not in first + second


def refuse_the_folder_on_the_first() -> None:
    """As where another process takes the folder while the model is loaded."""
    from antifraud.training import checkpoints
    from data.files import DataError

    def taken(*args):
        raise DataError("taken")

    if os.environ["RANK"] == "0":
        checkpoints.owned = taken


def test_a_folder_that_is_taken_stops_both_with_one_line(arguments, tmp_path):
    codes = run_together(arguments(tmp_path / "run", "--per-device-train-batch-size", "8"), tmp_path / "log", 2,
                         before=(refuse_the_folder_on_the_first,))
    first, second = ((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert codes == [2, 2] and first.splitlines()[-1] == "taken" and "Traceback" not in first + second
    assert checkpoints_in(tmp_path / "run") == []


def test_early_stopping_is_decided_alike(arguments, tmp_path):
    more = ("--per-device-train-batch-size", "8", "--learning-rate", "0", "--max-steps", "10",
            "--early-stopping-patience", "2")
    assert run_together(arguments(tmp_path / "run", *more), tmp_path / "log", 2) == [0, 0]
    assert [folder.name for folder in checkpoints_in(tmp_path / "run")] == [f"checkpoint-{n}" for n in (2, 4, 6)]


def test_two_killed_processes_go_on_to_the_same_end(layouts, arguments, tmp_path):
    args = arguments(tmp_path / "run", "--per-device-train-batch-size", "8")
    assert set(run_together(args, tmp_path / "log", 2, before=(die_at, 5))) == {-9}
    assert newest_complete_checkpoint(tmp_path / "run") == (tmp_path / "run" / "checkpoint-4", [])
    assert run_together(args, tmp_path / "log", 2) == [0, 0]
    assert_close(layouts["two"], tmp_path, loss=1e-6, weight=1e-6)


# --------------------------------------------------------------------------------------------- accelerate launch


def test_accelerate_reads_the_configuration_files():
    for name, kind in (("ddp", "multi_gpu"), ("fsdp", "use_fsdp")):
        path = str(ROOT / "configs" / f"{name}.yaml")
        assert load_config_from_file(path).num_processes == 2
        launch, _, _ = _validate_launch_command(
            launch_command_parser().parse_args(["--config_file", path, "--num_processes", "3", "trainer.py"]))
        assert getattr(launch, kind) and launch.num_processes == 3 and launch.mixed_precision == "no"


def shard_on_cpu() -> None:
    """Shards the model (FSDP2) on CPUs, where Accelerate falls back to DDP without a word; says what is sharded."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    initialise = AcceleratorState.__init__

    def initialise_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def tell(trainer, inputs, loss):
        if trainer.state.global_step == 0:
            parameters = dict(trainer.model.named_parameters())
            base = [name for name in parameters if name.endswith("base_layer.weight")]
            for names in (parameters, base):
                print("sharded:", sum(isinstance(parameters[name], DTensor) for name in names), len(names))
        return loss

    AcceleratorState.__init__ = initialise_sharded
    change_training_step(tell)


@pytest.fixture
def train_sharded(arguments, tmp_path):
    """Trains into ``run`` with the configuration for FSDP, on two processes that share a step's 16 rows: exit codes."""
    launch, _, _ = _validate_launch_command(launch_command_parser().parse_args(
        ["--config_file", str(ROOT / "configs" / "fsdp.yaml"), "trainer.py"]))
    env = {name: value for name, value in prepare_multi_gpu_env(launch).items() if os.environ.get(name) != value}

    def train(*more: str) -> list[int]:
        def once() -> list[int]:
            return run_together(arguments(tmp_path / "run", "--per-device-train-batch-size", "8", *more),
                                tmp_path / "log", 2, before=(shard_on_cpu,), env=dict(env))
        codes = once()
        return once() if -11 in codes else codes  # a signal, once in dozens of runs, as gloo gathered states
    return train


def test_fsdp_shards_the_4_bit_weights_and_trains_and_resumes_as_one_process_does(layouts, train_sharded, tmp_path):
    log = tmp_path / "log.0"
    assert train_sharded() == [0, 0], log.read_text()
    told = [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("sharded:")]
    assert len(told) == 2 and all(sharded == of != "0" for sharded, of in told)
    assert_close(layouts["one"], tmp_path, loss=1e-3, weight=1e-3)
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")
    assert train_sharded() == [0, 0], log.read_text()
    assert f"{tmp_path / 'run' / 'checkpoint-4'}\n" in log.read_text()
    assert_close(layouts["one"], tmp_path, loss=1e-3, weight=1e-3)


def test_an_optimiser_that_cannot_step_sharded_weights_is_refused(train_sharded, tmp_path):
    assert set(train_sharded("--optim", "paged_adamw_32bit")) == {2}
    said, other = ((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert "paged_adamw_32bit" in said.splitlines()[-1] and "--optim adamw_torch" in said
    assert "adamw" not in other  # though torch may warn there that the first process has gone
    assert not (tmp_path / "run").exists()


def test_4_bit_weights_lie_in_32_bit_where_they_are_to_be_sharded_whatever_is_computed_in(base, monkeypatch):
    """In 16 bit a GPU alters those whose bytes read as NaN on the way from the shards to the whole."""
    monkeypatch.setattr("antifraud.model.compute_dtype", lambda device: torch.bfloat16)
    for shardable, dtype in (("false", torch.uint8), ("true", torch.float32)):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", shardable)
        model, _ = load_model(base, "cpu")
        assert model.get_submodule("model.layers.0.self_attn.q_proj").weight.dtype is dtype
