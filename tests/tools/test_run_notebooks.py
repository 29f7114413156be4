"""The committed notebooks: readable, of one run each where they hold outputs; how they are run, and opened in Colab."""

import ast
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import run_notebooks

ROOT = Path(__file__).parents[2]
PATHS = run_notebooks.notebooks()
BOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
every_notebook = pytest.mark.parametrize("name", BOOKS)
USUAL_CELL, LONGEST_CELL, MOST_CELLS = 8, 15, 30  # lines, lines, cells
OURS = {"antifraud", "benchmarks", "data", "evaluate", "tools", "trainer", "workspace"}
PLACES = re.compile(r"/(home|root|tmp|usr|work|opt|Users)/|site-packages|[A-Z]:\\")


def code_cells(name):
    """Those of the notebook itself, without the one that fetches it in Colab."""
    return [cell for cell in BOOKS[name].cells
            if cell.cell_type == "code" and "colab" not in cell.metadata.get("tags", ())]


def outputs(name):
    return [output for cell in code_cells(name) for output in cell.outputs]


def texts(name):
    """All that a reader can read in the outputs."""
    return "\n".join("".join(output.get("text", "")) + "".join(
        str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
        for output in outputs(name))


def test_the_series_is_numbered_without_a_gap():
    assert [name[:2] for name in BOOKS] == [f"{number:02}" for number in range(11)]
    assert all(re.fullmatch(r"\d\d_[a-z]+(_[a-z0-9]+)*\.ipynb", name) for name in BOOKS)


@every_notebook
def test_its_first_cell_finds_the_workspace_in_two_lines(name):
    assert code_cells(name)[0].source == "from workspace import find_workspace\nhere = find_workspace()"


@every_notebook
def test_its_cells_are_short(name):
    lines = [cell.source.count("\n") + 1 for cell in code_cells(name)]
    assert statistics.median(lines) <= USUAL_CELL and max(lines) <= LONGEST_CELL
    assert len(BOOKS[name].cells) <= MOST_CELLS
    assert max(len(line) for cell in code_cells(name) for line in cell.source.split("\n")) <= 120


@every_notebook
def test_it_asks_answers_and_hands_over(name):
    cells = BOOKS[name].cells
    assert cells[0].cell_type == "markdown" and re.match(r"# .+\?\n", cells[0].source + "\n")
    assert [cell for cell in code_cells(name) if "Takeaway" in cell.source] == code_cells(name)[-1:]
    following = list(BOOKS)[list(BOOKS).index(name) + 1:][:1]
    assert cells[-1].cell_type == "markdown" and all(f"({next_name})" in cells[-1].source for next_name in following)


@every_notebook
def test_its_links_to_other_notebooks_and_headings_are_there(name):
    for cell in BOOKS[name].cells:
        if cell.cell_type == "markdown":
            for address in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source):
                assert (ROOT / "notebooks" / address).is_file(), address


@every_notebook
def test_what_it_imports_of_the_project_is_there(name):
    for cell in code_cells(name):
        source = "\n".join(line for line in cell.source.split("\n") if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, imported.name) for imported in node.names), ast.unparse(node)


@every_notebook
def test_outputs_are_those_of_one_run_from_top_to_bottom_without_noise(name):
    counts = [cell.execution_count for cell in code_cells(name)]
    assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))
    assert bool(outputs(name)) == (counts[0] is not None)
    assert not [output for output in outputs(name) if output.output_type == "error" or output.get("name") == "stderr"]
    assert not PLACES.search(texts(name)) and "Warning" not in texts(name) and "it/s]" not in texts(name)


@every_notebook
def test_its_pictures_are_also_in_words(name):
    for output in outputs(name):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 20


# ------------------------------------------------------------------------------------------------ how they are run


def test_of_a_run_only_what_would_be_the_same_again_is_kept():
    printed = [new_output("stream", name="stderr", text="100%|####| 5/5 [00:01<00:00, 5it/s]"),
               new_output("stream", name="stdout", text=f"read {ROOT}/data/"),
               new_output("stream", name="stdout", text="train.jsonl\n"),
               new_output("display_data", data={run_notebooks.WIDGET: {"model_id": "x"}}),
               new_output("display_data", data={"image/png": "aGk="}, metadata={"image/png": {"alt": "hi"}})]
    cell = new_code_cell("1", execution_count=1, outputs=printed, metadata={"execution": {"started": "now"}})
    book = new_notebook(cells=[new_markdown_cell("# Why?"), cell],
                        metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}})
    run_notebooks.tidy(book)
    assert [output.output_type for output in book.cells[1].outputs] == ["stream", "display_data"]
    assert book.cells[1].outputs[0].text == "read data/train.jsonl\n" and not book.cells[1].metadata
    assert book.cells[1].outputs[1].metadata["image/png"]["alt"] == "hi"
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


# ---------------------------------------------------------------------------------------------------------- Colab


@pytest.fixture
def copies(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in PATHS[:2]:
        shutil.copy(path, folder)
    return folder


def books_of(folder):
    return {path.name: nbformat.read(path, as_version=4) for path in run_notebooks.notebooks(folder=folder)}


def test_a_published_address_goes_into_a_badge_and_a_cell_of_its_own_and_changes_nothing_else(copies):
    before = books_of(copies)
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    for name, book in books_of(copies).items():
        badge = book.cells[0].source.splitlines()[1]
        assert f"(https://colab.research.google.com/github/someone/fraud/blob/main/notebooks/{name})" in badge
        assert "https://github.com/someone/fraud " in book.cells[1].source
        assert [cell.source for cell in book.cells[2:]] == [cell.source for cell in before[name].cells[1:]]


@pytest.mark.parametrize("again", ["https://github.com/someone/fraud", "https://github.com/someone/fraud/",
                                   "https://github.com/someone/fraud.git"])
def test_writing_the_address_again_changes_nothing(copies, again):
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    before = books_of(copies)
    run_notebooks.link_to_colab(again, copies)
    assert books_of(copies) == before


def test_another_address_replaces_the_first(copies):
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    run_notebooks.link_to_colab("https://github.com/some-one/fraud.calls", copies)
    for path in copies.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "someone/fraud" not in text and text.count("some-one/fraud.calls") == 2 and text.count("badge.svg") == 1


@pytest.mark.parametrize("address", ["", "someone/fraud", "http://github.com/someone/fraud", "https://github.com/someone",
                                     "https://gitlab.com/someone/fraud", "https://github.com/someone/fraud/tree/main",
                                     'https://github.com/someone/fraud"', "https://github.com/OWNER/REPOSITORY"])
def test_what_is_no_address_of_a_repository_is_refused_in_a_line(address, capsys):
    before = [path.read_bytes() for path in PATHS]
    assert run_notebooks.main(["--colab", address]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and repr(address) in said.err
    assert [path.read_bytes() for path in PATHS] == before


AS_COLAB = """
import os, sys, types
from IPython.core.interactiveshell import InteractiveShell
sys.modules["google.colab"] = types.ModuleType("google.colab")
InteractiveShell.instance().run_cell(sys.argv[1]).raise_error()
import workspace
print(os.getcwd(), workspace.MARK)
"""


def test_in_colab_the_first_cell_gets_the_code_once_and_keeps_what_colab_brings(tmp_path):
    """Run as Colab does: in an empty folder, on its own; pip only writes down what it is asked for."""
    code = tmp_path / "published"
    (code / "notebooks").mkdir(parents=True)
    (code / "notebooks" / "workspace.py").write_text("MARK = 'the clone'\n")
    (code / "tools").mkdir()
    shutil.copy(ROOT / "requirements.txt", code)
    shutil.copy(ROOT / "tools" / "colab.sh", code / "tools")
    git = ["git", "-C", code, "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *command], check=True)
    home, folder, asked = tmp_path / "home", tmp_path / "content", tmp_path / "pip.txt"
    for made in (home, folder, tmp_path / "bin"):
        made.mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\n(echo "pip $*"; [ "$1" = uninstall ] || cat) >> "{asked}"\n')
    pip.chmod(0o755)
    environment = {**os.environ, "HOME": str(home), "IPYTHONDIR": str(home), "PYTHONWARNINGS": "ignore",
                   "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    cell = run_notebooks.IN_COLAB.format(code.as_uri())
    for _ in ("first", "after a restart of the kernel"):
        done = subprocess.run([sys.executable, "-c", AS_COLAB, cell], cwd=folder, env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{folder / 'fraud' / 'notebooks'} the clone"] and not done.stderr
    assert [path.name for path in folder.iterdir()] == ["fraud"]
    pins = [line for line in asked.read_text().splitlines() if "==" in line]
    assert {line.split("==")[0] for line in pins} == {"transformers", "peft", "bitsandbytes", "accelerate"}
    assert set(pins) <= set((ROOT / "requirements.txt").read_text().splitlines())
