"""The committed notebooks: one fresh run each, readable, and each with a question, a picture and an answer."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
every_notebook = pytest.mark.parametrize("name", BOOKS)
LONGEST_CELL = 30  # lines
PLACES = re.compile(r"/(home|root|tmp|usr|work|opt|Users)/|site-packages|[A-Z]:\\")


def code_cells(name):
    return [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]


def outputs(name):
    return [output for cell in code_cells(name) for output in cell.outputs]


def texts(name):
    """All that a reader can read in the outputs."""
    return "\n".join("".join(output.get("text", "")) + "".join(
        str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
        for output in outputs(name))


def test_the_series_is_numbered_without_a_gap():
    assert [name[:2] for name in BOOKS] == [f"{number:02}" for number in range(1, len(BOOKS) + 1)]
    assert all(re.fullmatch(r"\d\d_[a-z]+(_[a-z0-9]+)+\.ipynb", name) for name in BOOKS)


@every_notebook
def test_it_was_run_once_from_top_to_bottom(name):
    assert [cell.execution_count for cell in code_cells(name)] == list(range(1, len(code_cells(name)) + 1))
    assert not [output for output in outputs(name) if output.output_type == "error"]


@every_notebook
def test_its_outputs_hold_no_noise(name):
    assert not [output for output in outputs(name) if output.get("name") == "stderr"]
    assert not PLACES.search(texts(name))
    assert "Warning" not in texts(name) and "it/s]" not in texts(name)


@every_notebook
def test_it_asks_shows_and_answers(name):
    cells = BOOKS[name].cells
    assert cells[0].cell_type == "markdown" and re.match(r"# .+\?\n", cells[0].source + "\n")
    assert any("image/png" in output.get("data", {}) for output in outputs(name))
    answers = [cell for cell in code_cells(name) if "Takeaway" in cell.source]
    assert answers == code_cells(name)[-1:]  # computed by its own cells, and last
    shown = "".join(str(output.get("data", {}).get("text/markdown", "")) for output in answers[0].outputs)
    assert "Takeaway" in shown and re.search(r"\d", shown)
    following = list(BOOKS)[list(BOOKS).index(name) + 1:][:1]
    assert cells[-1].cell_type == "markdown" and all(f"({next_name})" in cells[-1].source for next_name in following)


@every_notebook
def test_its_cells_are_short_and_say_where_the_figures_come_from(name):
    assert all(cell.source.count("\n") < LONGEST_CELL for cell in code_cells(name))
    assert all(len(line) <= 120 for cell in code_cells(name) for line in cell.source.split("\n"))
    assert "find_workspace()" in code_cells(name)[0].source and code_cells(name)[0].outputs


@every_notebook
def test_the_readme_lists_it_as_its_question(name):
    question = BOOKS[name].cells[0].source.splitlines()[0].lstrip("# ")
    assert f"[{question}](notebooks/{name})" in (ROOT / "README.md").read_text(encoding="utf-8")
