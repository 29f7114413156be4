"""The committed notebooks: one fresh run each, readable, and each with a question, a picture and an answer.

And what Google Colab does with one of them: it opens it alone, and the first cell gets the code there.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
SPEC = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools" / "run_notebooks.py")
run_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_notebooks)
every_notebook = pytest.mark.parametrize("name", BOOKS)
LONGEST_CELL = 30  # lines
PLACEHOLDER = "https://github.com/OWNER/REPOSITORY"
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


def opening(name, address=None):
    """What the first cell does before it imports anything of ours; with another address, where one is given."""
    lines, insert, _ = code_cells(name)[0].source.partition('sys.path.insert(0, "..")\n')
    assert insert and lines.count('\nREPOSITORY = "') == 1
    return run_notebooks.REPOSITORY_LINE.sub(f'REPOSITORY = "{address}"', lines + insert) if address else lines + insert


@every_notebook
def test_all_open_alike(name):
    assert opening(name) == opening(PATHS[0].name)


@pytest.fixture
def copies(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in PATHS:
        shutil.copy(path, folder)
    return folder


def lines_of(folder):
    return {path.name: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.ipynb"))}


def test_a_published_address_goes_into_a_badge_and_the_first_cell_of_each_and_nowhere_else(copies):
    before = lines_of(ROOT / "notebooks")
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    after = lines_of(copies)
    assert list(after) == list(before)
    for name, lines in after.items():
        badge, line = (line for line in lines if line not in before[name])
        assert f"(https://colab.research.google.com/github/someone/fraud/blob/main/notebooks/{name})" in badge
        assert "colab-badge.svg" in badge and r'REPOSITORY = \"https://github.com/someone/fraud\"' in line
        gone = [line for line in before[name] if line not in lines]
        assert all("REPOSITORY =" in line or "colab-badge.svg" in line for line in gone)
        book = nbformat.read(copies / name, as_version=4)
        assert book.cells[0].source.splitlines()[1].startswith("[![Open in Colab]")
        assert run_notebooks.title_of(book) == run_notebooks.title_of(BOOKS[name])


@pytest.mark.parametrize("again", ["https://github.com/someone/fraud", "https://github.com/someone/fraud.git",
                                   "https://github.com/someone/fraud/", "https://github.com/someone/fraud.git/"])
def test_writing_the_address_again_changes_nothing(copies, again):
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    before = lines_of(copies)
    run_notebooks.link_to_colab(again, copies)
    assert lines_of(copies) == before


def test_another_address_replaces_the_first(copies):
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    run_notebooks.link_to_colab("https://github.com/some-one/fraud.calls", copies)
    for lines in lines_of(copies).values():
        text = "\n".join(lines)
        assert "someone/fraud" not in text and text.count("some-one/fraud.calls") == 2 and text.count("badge.svg") == 1


@pytest.mark.parametrize("address", ["", "someone/fraud", "http://github.com/someone/fraud", "https://github.com/someone",
                                     "https://gitlab.com/someone/fraud", "https://github.com/someone/fraud/tree/main",
                                     'https://github.com/someone/fraud"', PLACEHOLDER])
def test_what_is_no_address_of_a_repository_is_refused_in_a_line(address, capsys):
    before = lines_of(ROOT / "notebooks")
    assert run_notebooks.main(["--colab", address]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and repr(address) in said.err
    assert lines_of(ROOT / "notebooks") == before


def test_a_page_keeps_the_link_to_colab(copies, tmp_path):
    run_notebooks.link_to_colab("https://github.com/someone/fraud", copies)
    run_notebooks.make_page([copies / "01_read_dialogues.ipynb"], tmp_path / "page")
    page = (tmp_path / "page" / "01_read_dialogues.html").read_text(encoding="utf-8")
    assert "someone/fraud/blob/main/notebooks/01_read_dialogues.ipynb" in page and 'href="02_set_the_bar.html"' in page


AS_COLAB = """
import os, sys, types
from IPython.core.interactiveshell import InteractiveShell
sys.modules["google.colab"] = types.ModuleType("google.colab")
InteractiveShell.instance().run_cell(sys.argv[1]).raise_error()
import workspace
print(os.getcwd(), workspace.MARK)
"""


@pytest.fixture
def colab(tmp_path):
    """Runs a cell as Colab does: in an empty folder, on its own; its pip only writes down what it is asked for."""
    home, folder = tmp_path / "home", tmp_path / "content"
    for made in (home, folder, tmp_path / "bin"):
        made.mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\n(echo "pip $*"; [ "$1" = uninstall ] || cat) >> "{tmp_path / "pip.txt"}"\n')
    pip.chmod(0o755)
    environment = {**os.environ, "HOME": str(home), "IPYTHONDIR": str(home), "PYTHONWARNINGS": "ignore",
                   "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(cell):
        return subprocess.run([sys.executable, "-c", AS_COLAB, cell], cwd=folder, env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    run.folder, run.asked = folder, tmp_path / "pip.txt"
    return run


@pytest.fixture
def published(tmp_path):
    """A repository to clone, with what the first cell needs of ours."""
    code = tmp_path / "published"
    (code / "notebooks").mkdir(parents=True)
    (code / "workspace.py").write_text("MARK = 'the clone'\n")
    shutil.copy(ROOT / "requirements.txt", code)
    shutil.copy(ROOT / "notebooks" / "colab.sh", code / "notebooks")
    git = ["git", "-C", code, "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *command], check=True)
    return code.as_uri()


def test_in_colab_the_first_cell_gets_the_code_there_and_only_once(colab, published):
    cell = opening(PATHS[0].name, published)
    for _ in ("first", "after a restart of the kernel"):
        done = colab(cell)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{colab.folder / 'fraud' / 'notebooks'} the clone"] and not done.stderr
    assert [path.name for path in colab.folder.iterdir()] == ["fraud"]


def test_in_colab_what_it_brings_itself_stays(colab, published):
    colab(opening(PATHS[0].name, published))
    asked = colab.asked.read_text().splitlines()
    pins = [line for line in asked if "==" in line]
    assert {line.split("==")[0] for line in pins} == {"transformers", "peft", "bitsandbytes", "accelerate"}
    assert set(pins) <= set((ROOT / "requirements.txt").read_text().splitlines())
    assert asked[-1].startswith("pip uninstall") and asked[-1].endswith(" torchao")


def test_in_colab_an_address_that_nobody_filled_in_is_named_in_a_line(colab):
    done = colab(opening(PATHS[0].name, PLACEHOLDER))
    assert done.returncode != 0 and not list(colab.folder.iterdir()) and not colab.asked.exists()
    assert "REPOSITORY, two lines above, has to be the address" in done.stderr.splitlines()[-1]


def test_elsewhere_the_first_cell_says_nothing_and_fetches_nothing(tmp_path):
    code = "from IPython.core.interactiveshell import InteractiveShell as Shell; import sys; " \
           "Shell.instance().run_cell(sys.argv[1]).raise_error(); print(sys.path[0])"
    done = subprocess.run([sys.executable, "-c", code, opening(PATHS[0].name)], cwd=tmp_path,
                          env={**os.environ, "IPYTHONDIR": str(tmp_path / "home")}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("..\n", "") and not (tmp_path / "fraud").exists()
