"""A folder holds one run, of one process, and a run goes on only with what it began with."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets
from helpers import make_records, train_briefly

import trainer as trainer_module
from antifraud.checkpoint import checkpoints_in, find_checkpoint
from antifraud.training.run_folder import owned
from data.files import DataError
from data.records import write_records
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model


@pytest.fixture(scope="module")
def finished(base, train_file, eval_file, tmp_path_factory) -> Path:
    """A run of two steps, made by the command."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert trainer_module.main(arguments(base, train_file, eval_file, output)) == 0
    return output


def arguments(base, train_file, eval_file, output, *more: str) -> list[str]:
    return ["--model", base, "--train", str(train_file), "--eval", str(eval_file), "--output", str(output),
            "--device", "cpu", "--max-steps", "2", "--eval-steps", "2", "--save-steps", "2", "--disable-tqdm", "true",
            *more]


@pytest.fixture
def not_loaded(monkeypatch):
    """Ends a test in an error where a model would be loaded."""
    def load_model(*args, **kwargs):
        raise AssertionError("a model was loaded")
    monkeypatch.setattr(trainer_module, "load_model", load_model)


@pytest.mark.parametrize("more, field", [
    (("--instruction", "是不是诈骗？", "--answers", "是", "否"), "instruction"), (("--quantization", "none"), "type"),
    (("--lora-r", "8"), "lora.r"), (("--lora-dropout", "0"), "dropout"), (("--seed", "7"), "seed"),
    (("--keep-speaker-names",), "neutral_speakers")])
def test_a_run_does_not_go_on_with_other_settings(base, train_file, eval_file, finished, not_loaded, capsys, more,
                                                  field):
    assert trainer_module.main(arguments(base, train_file, eval_file, finished, "--resume", *more)) == 2
    assert field in capsys.readouterr().err.splitlines()[-1]


def test_a_run_does_not_go_on_with_other_files_or_another_base(base, train_file, eval_file, finished, not_loaded,
                                                               tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    write_records(other, make_records(24, first_case=7))
    for files, field in (((other, eval_file), "train"), ((train_file, other), "eval")):
        assert trainer_module.main(arguments(base, *files, finished, "--resume")) == 2
        assert field in capsys.readouterr().err.splitlines()[-1]
    changed = Path(shutil.copytree(base, tmp_path / "base"))
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    assert trainer_module.main(arguments(str(changed), train_file, eval_file, finished, "--resume")) == 2
    assert "base" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_another_process_trains_into_is_refused(base, train_file, eval_file, finished, not_loaded):
    with owned(finished):
        assert trainer_module.main(arguments(base, train_file, eval_file, finished, "--resume")) == 2


def test_an_output_that_is_a_file_and_files_that_are_not_there_are_refused(base, train_file, eval_file, not_loaded,
                                                                          tmp_path):
    (tmp_path / "file").touch()
    fraud = tmp_path / "fraud.jsonl"
    write_records(fraud, [record for record in make_records(20) if record["label"]])
    for files, output in (((train_file, eval_file), "file"), (("none.jsonl", eval_file), "a"),
                          ((train_file, "none.jsonl"), "b"), ((fraud, eval_file), "c")):
        assert trainer_module.main(arguments(base, *files, tmp_path / output)) == 2
    assert trainer_module.main(arguments(base, train_file, eval_file, tmp_path / "d", "--max-length", "5")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "fraud.jsonl"]


def test_a_second_shorter_run_in_a_notebook_leaves_nothing_of_the_first_to_be_evaluated(base, train_file, eval_file,
                                                                                      tmp_path):
    train_briefly(base, train_file, eval_file, tmp_path, max_steps=4)
    second = train_briefly(base, train_file, eval_file, tmp_path, max_steps=2)
    assert str(find_checkpoint(tmp_path)) == second.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert {folder.name for folder in checkpoints_in(tmp_path / "earlier-1")} == {"checkpoint-2", "checkpoint-4"}
    with pytest.raises(DataError):
        second.train(resume_from_checkpoint=str(tmp_path / "no-such"))


def test_something_is_saved_whatever_the_strategy(base, train_file, eval_file, tmp_path, capsys):
    output = tmp_path / "输出 一"
    command = arguments(base, train_file, eval_file, output, "--save-strategy", "no", "--load-best-model-at-end",
                        "false", "--label-smoothing-factor", "0.1")
    assert trainer_module.main([*command, "--resume"]) == 0
    assert f"{output}: holds no checkpoint" in capsys.readouterr().err  # said, before a training from the beginning
    assert [folder.name for folder in checkpoints_in(output)] == ["checkpoint-2"]
    assert json.loads((output / "stamp.json").read_text())["seed"] == 42
    assert trainer_module.main([*command, "--resume", "--max-steps", "3"]) == 0
    assert "checkpoint-3" in {folder.name for folder in checkpoints_in(output)}
    assert f"best checkpoint: {output / 'checkpoint-3'}" in capsys.readouterr().out
    (output / "checkpoint-3" / "fraud_task.json").unlink()  # what a killed run leaves is no saved model
    (output / "checkpoint-2" / "fraud_task.json").unlink()
    assert trainer_module.main([*command, "--resume", "--max-steps", "1"]) == 0
    assert f"best checkpoint: {output / 'checkpoint-1'}" in capsys.readouterr().out


def test_a_run_that_was_copied_goes_on_with_its_own_best_checkpoint(base, train_file, eval_file, tmp_path):
    train_briefly(base, train_file, eval_file, tmp_path / "first", max_steps=2)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    went_on = train_briefly(base, train_file, eval_file, tmp_path / "copy", max_steps=3,
                            resume=str(tmp_path / "copy" / "checkpoint-2"))
    assert Path(went_on.state.best_model_checkpoint).parent == tmp_path / "copy"


def test_a_resumed_run_takes_the_learning_rate_that_it_is_given(base, train_file, eval_file, tmp_path, capsys):
    options = {"lr_scheduler_type": "constant", "logging_steps": 1}
    train_briefly(base, train_file, eval_file, tmp_path, max_steps=2, **options)
    for steps, rate in ((4, 1e-3), (6, 1e-4)):
        went_on = train_briefly(base, train_file, eval_file, tmp_path, max_steps=steps, learning_rate=rate,
                                resume=str(tmp_path / f"checkpoint-{steps - 2}"), **options)
        assert "another learning_rate" in capsys.readouterr().err
    assert [row["learning_rate"] for row in went_on.state.log_history if "learning_rate" in row] == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_a_run_goes_on_with_the_optimiser_of_another_recipe_or_device(base, train_file, eval_file, tmp_path):
    def losses(name, optim, resume=None, **options):
        run = train_briefly(base, train_file, eval_file, tmp_path / name, optim=optim, logging_steps=1,
                            lora_dropout=0.0, resume=resume and str(tmp_path / name / "checkpoint-2"), **options)
        return [row["loss"] for row in run.state.log_history if "loss" in row], run

    for name, begun, goes_on in (("to small", "adamw_torch_fused", "paged_adamw_32bit"),
                                 ("to fast", "paged_adamw_32bit", "adamw_torch_fused")):
        whole, _ = losses(name, begun)
        resumed, run = losses(name, goes_on, resume=True, weight_decay=0.5)
        assert resumed == pytest.approx(whole, rel=1e-2)
        assert run.optimizer.param_groups[0]["weight_decay"] == 0.5
    losses("sgd", "sgd")
    with pytest.raises(DataError, match="another kind of optimiser"):
        losses("sgd", "adamw_torch", resume=True)


def test_a_training_too_short_for_its_intervals_says_so(base, train_file, eval_file, tmp_path, capsys):
    train_briefly(base, train_file, eval_file, tmp_path / "long enough")
    assert "before the end" not in capsys.readouterr().err
    train_briefly(base, train_file, eval_file, tmp_path, max_steps=3, eval_steps=10, save_steps=100, warmup_steps=9)
    said = capsys.readouterr().err
    for what, name in (("evaluation", "--eval-steps is 10"), ("checkpoint", "--save-steps is 100"),
                       ("full learning rate", "--warmup-steps is 9")):
        assert f"no {what} before the end: the training has 3 steps, and {name}; give a smaller one\n" in said


def test_eval_rows_that_are_in_train_are_counted(base, train_file, tmp_path, not_loaded, capsys):
    others = tmp_path / "eval.jsonl"
    write_records(others, [{"input": f"甲: 别处的话{i}", "label": i == 0} for i in range(2)])
    for path, repeated in ((others, ""), (train_file, f"{train_file}: 48 of 48 records are in {train_file}, too")):
        with pytest.raises(AssertionError, match="a model was loaded"):
            trainer_module.main(arguments(base, train_file, path, tmp_path / "run"))
        said = capsys.readouterr().err
        assert repeated in said if repeated else " records are in " not in said


def test_eval_rows_of_one_label_are_pointed_out(base, train_file, eval_file, tmp_path, not_loaded, capsys):
    one_label = tmp_path / "eval.jsonl"
    write_records(one_label, [{"input": f"甲: 别处的话{i}", "label": False} for i in range(2)])
    for path, said in ((one_label, f'{one_label}: all 2 records have "label": false'), (eval_file, None)):
        with pytest.raises(AssertionError, match="a model was loaded"):
            trainer_module.main(arguments(base, train_file, path, tmp_path / "run"))
        printed = capsys.readouterr().err
        assert said in printed if said else "records have" not in printed


def test_a_folder_that_cannot_be_made_is_one_line(base, train_file, eval_file, tmp_path, capsys):
    output = tmp_path / ("诈骗" * 50)  # 300 bytes; 255 is the most
    assert trainer_module.main(arguments(base, train_file, eval_file, output)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{output}: cannot be written (")


def test_a_dataset_that_does_not_say_its_task_is_refused(base, train_file, eval_file, tmp_path):
    model, tokenizer = load_model(base, "cpu")
    train, held_out = load_dataset(train_file, eval_file, tokenizer)
    args = build_train_arguments(str(tmp_path), use_cpu=True)
    for unknown in (concatenate_datasets([train, held_out]), Dataset.from_list(train.to_list())):
        with pytest.raises(DataError):
            build_trainer(model, tokenizer, args, build_loraconfig(), unknown, held_out)
    with pytest.raises(DataError):
        build_trainer(model, tokenizer, args, build_loraconfig(), train.filter(lambda row: row["labels"][-5:] ==
                      train[0]["labels"][-5:]), held_out)
