"""What a notebook starts with."""

import json
from pathlib import Path

import pytest
import workspace
from workspace import find_workspace, whole_dialogues

from data.records import Skipped, read_records


@pytest.fixture(autouse=True)
def few_dialogues_and_no_choice(monkeypatch):
    monkeypatch.setattr(workspace, "SAMPLE_DIALOGUES", 1200)
    for name in ("FRAUD_MODEL", "FRAUD_DIALOGS", "FRAUD_TRAINING"):
        monkeypatch.delenv(name, raising=False)


def test_on_a_cpu_it_is_the_tiny_model_and_our_dialogues_prepared_once(tmp_path, capsys):
    here = find_workspace(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("tiny-qwen2 on CPU; our sample corpus, split by dialogue: ") and here.ours
    rows = [len(read_records(path, Skipped())) for path in (here.train, here.eval, here.test)]
    assert all(f"{n:,} {name}" in said for n, name in zip(rows, ("train", "eval", "test")))
    assert len(whole_dialogues(here)) == 1200
    before = Path(here.test).stat().st_mtime_ns
    assert find_workspace(tmp_path) == here and Path(here.test).stat().st_mtime_ns == before


def test_the_environment_chooses_model_dialogues_and_training(tmp_path, monkeypatch):
    ours = find_workspace(tmp_path / "first")
    monkeypatch.setenv("FRAUD_MODEL", "somebody/some-model")
    monkeypatch.setenv("FRAUD_DIALOGS", str(ours.dialogs))
    monkeypatch.setenv("FRAUD_TRAINING", json.dumps({"learning_rate": 5e-4}))
    here = find_workspace(tmp_path)
    assert (here.model, here.dialogs, here.ours) == ("somebody/some-model", ours.dialogs, False)
    assert here.training == {"line_loss_weight": 0.3, "learning_rate": 5e-4} and here.lora == {}
    assert here.run != ours.run and here.run.parent.name == "some-model-given"
