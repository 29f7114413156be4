"""Runs the notebooks afresh and keeps their outputs.

    python -m tools.run_notebooks                   # the whole series, in place (make notebooks)
    python -m tools.run_notebooks --to DIR          # leaves the committed ones alone
    python -m tools.run_notebooks 04 07             # some of them
    python -m tools.run_notebooks --colab https://github.com/OWNER/REPOSITORY    # runs none of them

Those that measure time run alone, and first: the one that trains is among them, and the others judge its checkpoint.
The rest then runs side by side. What would differ without a reason is left out of the outputs: progress bars,
warnings, and where files lie on this machine.

`--colab` is for whoever publishes the code: it gives every notebook a badge that opens it in Google Colab, from the
branch `main`, and a first cell that fetches the code there.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from data.command import command
from data.files import DataError

FOLDER = Path(__file__).parents[1] / "notebooks"
TIMED = ("03", "05", "06", "10")
SIDE_BY_SIDE = min(4, max(2, (os.cpu_count() or 1) // 4))
TIMEOUT = 3600  # seconds a cell
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"https://github\.com/(?!OWNER/)(\w[\w-]*/\w[\w.-]*?)(\.git)?/?", re.ASCII)
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
BADGE_LINE = re.compile(r"^\[!\[Open in Colab\].*\n?", re.MULTILINE)
IN_COLAB = """\
import os, sys
if "google.colab" in sys.modules and not os.path.exists("workspace.py"):  # Colab opened it without its code
    !test -d fraud || git clone --quiet --depth 1 {} fraud
    os.chdir("fraud/notebooks")
    sys.path.insert(0, os.getcwd())
    !sh ../tools/colab.sh"""


def notebooks(numbers: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The series in its order, or the notebooks of those numbers."""
    return [path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if not numbers or path.name[:2] in numbers]


def run(path: Path, target: Path) -> float:
    """Runs one from its own folder, in a fresh kernel; writes it to `target`; returns seconds.

    Raises:
        CellExecutionError: a cell failed; the notebook is written up to there.
    """
    book = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    try:
        NotebookClient(book, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
                       ).execute()
    finally:
        tidy(book)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, target)
    return time.perf_counter() - started


def tidy(book: nbformat.NotebookNode) -> None:
    """Takes out of a notebook what would differ from run to run, or machine to machine, without a reason."""
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                     "language_info": {"name": "python"}}
    for cell in book.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs
                        if output.get("name") != "stderr" and WIDGET not in output.get("data", {})]
        for output in cell.outputs:
            if "text" in output:
                output.text = output.text.replace(str(FOLDER.parent) + os.sep, "")
        cell.outputs = joined(cell.outputs)


def joined(outputs: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with what was printed in a row as one: how many pieces it comes in is chance."""
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def link_to_colab(address: str, folder: Path = FOLDER) -> None:
    """Gives every notebook a badge under its title, and a cell that fetches the code in Colab, from that address.

    Raises:
        DataError: that is no address of a repository on GitHub, where Colab can open notebooks from.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise DataError(f"--colab takes https://github.com/OWNER/REPOSITORY, with your own names, not {address!r}")
    for path in notebooks(folder=folder):
        book = nbformat.read(path, as_version=4)
        title, _, rest = BADGE_LINE.sub("", book.cells[0].source).partition("\n")
        badge = BADGE.format(f"https://colab.research.google.com/github/{match[1]}/blob/main/notebooks/{path.name}")
        book.cells[0].source = "\n".join([title, badge, rest])
        book.cells = [cell for cell in book.cells if "colab" not in cell.metadata.get("tags", ())]
        fetch = nbformat.v4.new_code_cell(IN_COLAB.format(f"https://github.com/{match[1]}"), id="colab",
                                          metadata={"tags": ["colab"]})
        book.cells.insert(1, fetch)
        nbformat.write(book, path)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="00 ... 10 (default: all)")
    parser.add_argument("--to", type=Path, default=FOLDER, help="where to write the executed notebooks")
    parser.add_argument("--colab", metavar="ADDRESS", help="where on GitHub Colab finds the code: runs nothing")
    args = parser.parse_args(argv)
    if args.colab is not None:
        link_to_colab(args.colab)
        return 0
    failed = run_all(notebooks(args.numbers), args.to)
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return 1 if failed else 0


def run_all(books: Sequence[Path], to: Path) -> list[str]:
    """Runs them, the timed ones first; returns the names of those that failed."""
    failed = []

    def one(path: Path) -> None:
        try:
            print(f"{path.name}: {run(path, to / path.name):.0f} s", flush=True)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr, flush=True)
            failed.append(path.name)

    timed = [path for path in books if path.name.startswith(TIMED)]
    for path in timed:
        one(path)
    # Kernels that each take all cores wait for each other: it was twice as slow.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(one, [path for path in books if path not in timed]))
    return failed


if __name__ == "__main__":
    sys.exit(main())
