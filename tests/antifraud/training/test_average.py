"""A model soup: what it is, that it is a checkpoint like any other, and what none can be made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import train_briefly
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy.special import logit

import evaluate
from antifraud.checkpoint import Decision, read_checkpoint, require_complete
from antifraud.evaluation.scoring import score_prompts
from antifraud.provenance import file_sha256
from antifraud.serving.export import export
from antifraud.training import average
from antifraud.training.average import average_checkpoints
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import Skipped, read_records
from trainer import load_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, train_file, eval_file, run_folder) -> list[Path]:
    """Two checkpoints of one recipe, with different seeds."""
    other = tmp_path_factory.mktemp("other")
    train_briefly(base, train_file, eval_file, other, max_steps=20, eval_steps=20, save_steps=20, seed=7)
    return [Path(run_folder) / "checkpoint-80", other / "checkpoint-20"]


def log_odds_of(model, tokenizer, file: str) -> np.ndarray:
    encoder = PromptEncoder(tokenizer, Task())
    dialogues = [record["input"] for record in read_records(file, Skipped())]
    return logit(score_prompts(model, encoder, encoder.prompts(dialogues)))


def test_it_is_what_peft_makes_of_them(runs, base, eval_file, tmp_path):
    average_checkpoints(runs, tmp_path / "averaged")
    ours = log_odds_of(*evaluate.load_model(base, str(tmp_path / "averaged"), "cpu"), eval_file)
    model, tokenizer = load_model(base, "cpu")
    model = PeftModel.from_pretrained(model, str(runs[0]), "one")
    model.load_adapter(str(runs[1]), "other")
    model.add_weighted_adapter(["one", "other"], [0.5, 0.5], "average", combination_type="cat")
    model.set_adapter("average")
    np.testing.assert_allclose(ours, log_odds_of(model.eval(), tokenizer, eval_file), atol=1e-3)
    one, other = (log_odds_of(*evaluate.load_model(base, str(folder), "cpu"), eval_file) for folder in runs)
    assert min(np.abs(ours - one).max(), np.abs(ours - other).max()) > 0.1  # neither of the two


def test_it_is_a_finished_checkpoint_that_says_what_it_is_made_of_and_is_not_calibrated(runs, tmp_path):
    calibrated = shutil.copytree(runs[0], tmp_path / "calibrated")
    path = calibrated / "fraud_task.json"
    saved = json.loads(path.read_text())
    saved["decision"].update(temperature=2.0, threshold=0.9)
    path.write_text(json.dumps({**saved, "calibration": {"rows": 3}}))
    assert average.main(["--checkpoints", str(calibrated), str(runs[1]), "--output", str(tmp_path / "averaged")]) == 0
    require_complete(tmp_path / "averaged")
    lineage = read_checkpoint(tmp_path / "averaged")
    assert (lineage.task, lineage.decision, lineage.calibration) == (Task(), Decision(), {})
    assert lineage.averaged == [file_sha256(folder / "adapter_model.safetensors") for folder in runs]
    assert lineage.train_data == read_checkpoint(runs[0]).train_data
    config = json.loads((tmp_path / "averaged" / "adapter_config.json").read_text())
    trained = json.loads((runs[0] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2 * trained["r"], 2 * trained["lora_alpha"])


def test_it_is_judged_and_exported_like_any_other(runs, base, eval_file, tmp_path):
    average_checkpoints(runs, tmp_path / "averaged")
    command = ["--model", base, "--checkpoint", str(tmp_path / "averaged"), "--data", eval_file, "--device", "cpu"]
    assert evaluate.main([*command, "--calibrate", "--cost-ratio", "1"]) == 0
    assert evaluate.main([*command, "--output", str(tmp_path / "report.json")]) == 0
    made_with = json.loads((tmp_path / "report.json").read_text())["provenance"]["checkpoint"]
    assert made_with["averaged"] == read_checkpoint(tmp_path / "averaged").averaged
    facts = export(base, str(tmp_path / "averaged"), tmp_path / "merged", dtype="fp32", data_path=eval_file)
    assert facts["comparison"]["max_probability_difference"] < 1e-4


def edited(folder: Path, target: Path, file: str, **changes) -> Path:
    """A copy of a checkpoint with some fields of one of its JSON files changed."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **changes}))
    return target


@pytest.mark.parametrize("file, changes, why", [
    ("fraud_task.json", {"base": {"name": "x", "fingerprint": "0"}}, "base model"),
    ("fraud_task.json", {"train_data": {"name": "x", "sha256": "0"}}, "train file"),
    ("fraud_task.json", {"task": {"instruction": "Is it? "}}, "instruction"),
    ("adapter_config.json", {"lora_alpha": 8}, "lora_alpha"),
    ("adapter_config.json", {"target_modules": ["q_proj"]}, "target_modules"),
    ("adapter_config.json", {"use_rslora": True}, "use_rslora"),
    ("adapter_config.json", {"target_modules": None}, "adapter_config.json")])
def test_trainings_of_different_recipes_are_refused_in_a_line(runs, tmp_path, capsys, file, changes, why):
    other = edited(runs[1], tmp_path / "other", file, **changes)
    assert average.main(["--checkpoints", str(runs[0]), str(other), "--output", str(tmp_path / "averaged")]) == 2
    said = capsys.readouterr().err.strip()
    assert why in said and str(other) in said and "\n" not in said
    assert not (tmp_path / "averaged").exists()


def test_one_training_alone_one_twice_and_a_folder_in_use_are_refused(runs, tmp_path):
    with pytest.raises(DataError, match="--checkpoints"):
        average_checkpoints(runs[:1], tmp_path / "averaged")
    with pytest.raises(DataError, match="--seed"):
        average_checkpoints([runs[0], runs[1], runs[0]], tmp_path / "averaged")
    with pytest.raises(DataError, match="already there"):
        average_checkpoints(runs, runs[0])


def test_an_adapter_with_more_than_two_factors_a_matrix_is_refused(runs, tmp_path):
    other = shutil.copytree(runs[1], tmp_path / "other")
    (other / "fraud_task.json").unlink()  # which knows the sha256
    path = other / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.zeros(1)}, path)
    twin = shutil.copytree(runs[0], tmp_path / "twin")
    (twin / "fraud_task.json").unlink()
    with pytest.raises(DataError, match="lm_head.weight"):
        average_checkpoints([twin, other], tmp_path / "averaged")
