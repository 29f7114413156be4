"""What a notebook starts with."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import workspace
from transformers import TrainerState
from workspace import find_workspace, whole_dialogues

from antifraud.checkpoint import Lineage
from data.files import DataError
from data.records import Skipped, read_records


@pytest.fixture(autouse=True)
def few_dialogues_and_no_choice(monkeypatch):
    monkeypatch.setattr(workspace, "SAMPLE_DIALOGUES", 600)
    monkeypatch.setattr(workspace, "SAMPLE_PER_KIND", 2)
    monkeypatch.setattr(workspace, "PER_KIND", 3)
    for name in ("FRAUD_MODEL", "FRAUD_DIALOGS", "FRAUD_TRAINING"):
        monkeypatch.delenv(name, raising=False)


def test_on_a_cpu_it_is_the_tiny_model_and_our_dialogues_prepared_once(tmp_path, capsys):
    here = find_workspace(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("tiny-qwen2 on CPU; our sample corpus, split by dialogue: ") and here.ours
    rows = [len(read_records(path, Skipped())) for path in (here.train, here.eval, here.test)]
    assert all(f"{n:,} {name}" in said for n, name in zip(rows, ("train", "eval", "test")))
    assert len(whole_dialogues(here)) == 600
    before = Path(here.test).stat().st_mtime_ns
    assert find_workspace(tmp_path) == here and Path(here.test).stat().st_mtime_ns == before


def test_the_environment_chooses_model_dialogues_and_training(tmp_path, monkeypatch):
    ours = find_workspace(tmp_path / "first")
    monkeypatch.setenv("FRAUD_MODEL", "somebody/some-model")
    monkeypatch.setenv("FRAUD_DIALOGS", str(ours.dialogs))
    monkeypatch.setenv("FRAUD_TRAINING", json.dumps({"learning_rate": 5e-4}))
    here = find_workspace(tmp_path)
    assert (here.model, here.dialogs, here.ours) == ("somebody/some-model", ours.dialogs, False)
    assert here.training == {**workspace.TRAINING, "learning_rate": 5e-4} and here.lora == {}
    assert f"; dialogues of {ours.dialogs}, split" in str(here)
    public = dataclasses.replace(here, dialogs=workspace.PUBLIC / "dialogs")
    assert "; dialogues of the public corpus, split" in str(public)
    assert here.run != ours.run and here.run.parent.name.startswith("some-model-given-")
    assert len(read_records(here.train, Skipped())) > len(read_records(ours.train, Skipped()))


@pytest.mark.parametrize("given", ["{max_steps: 5}", "[5]", "5"])
def test_training_arguments_that_are_no_json_object_are_refused_by_their_variable(given, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAUD_TRAINING", given)
    with pytest.raises(DataError, match=re.escape(f"FRAUD_TRAINING={given}: not a JSON object")):
        find_workspace(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"file.*: cannot be written \(.*\); .*find_workspace\(Path\("):
        find_workspace(tmp_path / "file")


def test_a_training_that_a_notebook_waits_for_says_how_far_it_is(tmp_path, capsys):
    says, state = workspace.SaidSteps(tmp_path), TrainerState(max_steps=1400)
    says.on_train_begin(None, state, None)
    state.global_step = 350
    says.on_evaluate(None, state, None, metrics={"eval_loss": 0.0197})
    says.on_train_begin(None, state, None)
    said = capsys.readouterr()
    assert not said.out and said.err.splitlines() == [
        f"no finished training in {tmp_path}: it trains now, 1,400 steps in all", "step 350 of 1,400: eval loss 0.0197",
        f"no finished training in {tmp_path}: it trains now from step 350 on, 1,400 steps in all"]


def test_ordinary_talk_of_other_kinds_chooses_and_judges_and_some_is_in_train(tmp_path, monkeypatch):
    here = find_workspace(tmp_path / "ours")
    sources = {path: {record.get("source") for record in read_records(path, Skipped())}
               for path in (here.train, here.ordinary_eval, here.ordinary)}
    learnt, chosen, judged = "sample_ordinary_train", "sample_ordinary_choose", "sample_ordinary_judge"
    assert list(sources.values()) == [{None, learnt}, {learnt, chosen}, {learnt, judged}]

    for name in ("crosswoz", "kdconv"):  # beside given dialogues, where data.fetch has brought them
        (tmp_path / "public" / "everyday").mkdir(parents=True, exist_ok=True)
        (tmp_path / "public" / "everyday" / f"{name}.csv").write_text("case,speaker,content,is_fraud\n" + "".join(
            f"{name}-{case},甲,今天第{case}次问{name}的路怎么走,False\n" for case in range(40)), encoding="utf-8")
    monkeypatch.setattr(workspace, "PUBLIC", tmp_path / "public")
    monkeypatch.setenv("FRAUD_DIALOGS", str(here.dialogs))
    given = find_workspace(tmp_path / "given")
    sources = [{record.get("source") for record in read_records(path, Skipped())}
               for path in (given.train, given.ordinary_eval, given.ordinary)]
    assert sources == [{None, "crosswoz", learnt}, {"crosswoz", learnt, chosen},
                       {"crosswoz", "kdconv", learnt, judged}]


def test_a_training_that_was_stopped_is_not_taken_for_a_finished_one(run_folder, tmp_path, monkeypatch):
    trained, calibrated = [], []
    monkeypatch.setattr(workspace, "_train", lambda here: trained.append(here.run.parent.name))
    monkeypatch.setattr(workspace, "calibrate", lambda here: calibrated.append(here.run.parent.name))
    monkeypatch.setattr(workspace, "find_checkpoint", lambda run: run)
    monkeypatch.setattr(workspace, "read_checkpoint", lambda run: Lineage(
        calibration={"f1": 1.0} if run.parent.name == "stopped" else {}))
    for name, checkpoints in (("none", ()), ("stopped", (40,)), ("finished", (40, 80))):
        for step in checkpoints:
            shutil.copytree(Path(run_folder) / f"checkpoint-{step}", tmp_path / name / "run" / f"checkpoint-{step}")
        (tmp_path / name).mkdir(exist_ok=True)
        here = workspace.Workspace("m", "cpu", tmp_path, tmp_path, tmp_path / name / "run", ours=True)
        assert workspace.trained_checkpoint(here) == str(here.run)
    assert trained == ["none", "stopped"] and calibrated == ["none", "finished"]


def test_other_dialogues_models_and_arguments_have_folders_of_their_own(tmp_path, monkeypatch):
    folders, first = [], []
    for content in ("滑翔伞", "浮潜"):
        for label, line in (("诈骗", "请转账到安全账户,True"), ("闲聊", f"周末{content}吗,False")):
            (tmp_path / content).mkdir(exist_ok=True)
            (tmp_path / content / f"{label}.csv").write_text("case,speaker,content,is_fraud\n" + "".join(
                f"{case},{speaker},第{case}段{line}\n" for case in range(40) for speaker in "甲乙"), encoding="utf-8")
        monkeypatch.setenv("FRAUD_DIALOGS", str(tmp_path / content))
        folders.append(find_workspace(tmp_path / "work").data)
        first.append(Path(folders[-1] / "train.jsonl").read_text(encoding="utf-8"))
    assert len(set(folders)) == 2 and "滑翔伞" in first[0] and "滑翔伞" not in first[1]
    assert find_workspace(tmp_path / "work").data == folders[1]
    monkeypatch.setenv("FRAUD_TRAINING", json.dumps({"max_steps": 3}))
    assert find_workspace(tmp_path / "work").run.parent not in [folder.parent for folder in folders]
