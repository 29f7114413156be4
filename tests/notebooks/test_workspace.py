"""What a notebook starts with, and what is kept of its run."""

import importlib.util
import json
from pathlib import Path

import nbformat
import pytest
import workspace
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from workspace import find_workspace, whole_dialogues

from data.records import Skipped, read_records

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools" / "run_notebooks.py")
run_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_notebooks)


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


def test_of_a_run_only_what_would_be_the_same_again_is_kept():
    outputs = [new_output("stream", name="stderr", text="100%|####| 5/5 [00:01<00:00, 5it/s]"),
               new_output("stream", name="stdout", text=f"read {ROOT}/data/train.jsonl\n"),
               new_output("display_data", data={run_notebooks.WIDGET: {"model_id": "x"}}),
               new_output("display_data", data={"image/png": "aGk="})]
    cell = new_code_cell("1", execution_count=1, outputs=outputs, metadata={"execution": {"started": "now"}})
    book = new_notebook(cells=[new_markdown_cell("# Why?"), cell],
                        metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}})
    run_notebooks.tidy(book)
    assert [output.output_type for output in book.cells[1].outputs] == ["stream", "display_data"]
    assert book.cells[1].outputs[0].text == "read data/train.jsonl\n" and not book.cells[1].metadata
    assert book.metadata["kernelspec"]["name"] == "python3"


def test_a_notebook_runs_from_its_folder_and_a_failing_one_is_named(tmp_path, capsys):
    good = new_notebook(cells=[new_markdown_cell("# Where am I?"),
                               new_code_cell("from pathlib import Path; Path.cwd().name")])
    bad = new_notebook(cells=[new_code_cell("1 / 0")])
    for name, book in (("01_ask_place", good), ("02_fail_early", bad)):
        nbformat.write(book, tmp_path / f"{name}.ipynb")
    failed = run_notebooks.run_all(sorted(tmp_path.glob("*.ipynb")), tmp_path / "executed")
    assert failed == ["02_fail_early.ipynb"] and "ZeroDivisionError" in capsys.readouterr().err
    executed = nbformat.read(tmp_path / "executed" / "01_ask_place.ipynb", as_version=4)
    assert executed.cells[1].outputs[0]["data"]["text/plain"] == "'notebooks'"
    page = run_notebooks.make_page([tmp_path / "executed" / "01_ask_place.ipynb"], tmp_path / "page")
    assert '<a href="01_ask_place.html">Where am I?</a>' in page.read_text()
    assert "Where am I?" in (tmp_path / "page" / "01_ask_place.html").read_text()
