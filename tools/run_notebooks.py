"""Runs the notebooks afresh and keeps their outputs; makes a page of them.

    python -m tools.run_notebooks                   # the whole series, in place (make notebooks)
    python -m tools.run_notebooks --to DIR          # leaves the committed ones alone
    python -m tools.run_notebooks 04 07 --page      # some of them; and DIR/page/index.html
    python -m tools.run_notebooks --colab https://github.com/OWNER/REPOSITORY    # runs none of them

Those that measure time run alone, and first: the one that trains is among them, and the others judge its checkpoint.
The rest then runs side by side. What would differ without a reason is left out of the outputs: progress bars,
warnings, and where files lie on this machine.

`--colab` is for whoever publishes the code: it writes that address into the first cell of every notebook, which fetches
the code in Google Colab, and a badge under every title, which opens the notebook there, from the branch `main`.
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

FOLDER = Path(__file__).parents[1] / "notebooks"
TIMED = ("03", "05", "06", "10")
SIDE_BY_SIDE = min(4, max(2, (os.cpu_count() or 1) // 4))
TIMEOUT = 3600  # seconds a cell
INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>QLoRA against fraud</title>
<style>body {{ font: 18px/1.6 system-ui, sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style>
<h1>QLoRA against fraud</h1>
<ol>
{links}
</ol>
</html>
"""
LINK = re.compile(r'(href="\w+)\.ipynb')  # from one notebook to another, not to Colab
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"https://github\.com/(?!OWNER/)(\w[\w-]*/\w[\w.-]*?)(\.git)?/?", re.ASCII)
REPOSITORY_LINE = re.compile(r'^REPOSITORY = ".*"$', re.MULTILINE)
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
BADGE_LINE = re.compile(r"^\[!\[Open in Colab\].*\n?", re.MULTILINE)


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


def make_page(books: Sequence[Path], folder: Path) -> Path:
    """An HTML page of each executed notebook, and one that lists them by their titles."""
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    links = []
    for path in books:
        book = nbformat.read(path, as_version=4)
        html, _ = exporter.from_notebook_node(book, {"metadata": {"name": title_of(book)}})
        (folder / f"{path.stem}.html").write_text(LINK.sub(r"\1.html", html), encoding="utf-8")
        links.append(f'<li><a href="{path.stem}.html">{title_of(book)}</a></li>')
    index = folder / "index.html"
    index.write_text(INDEX.format(links="\n".join(links)), encoding="utf-8")
    return index


def title_of(book: nbformat.NotebookNode) -> str:
    return book.cells[0].source.splitlines()[0].lstrip("# ")


def link_to_colab(address: str, folder: Path = FOLDER) -> None:
    """Writes where the code is published into the first cell of every notebook, and a badge under its title.

    Raises:
        ValueError: that is no address of a repository on GitHub, where Colab can open notebooks from.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f"--colab takes https://github.com/OWNER/REPOSITORY, with your own names, not {address!r}")
    for path in notebooks(folder=folder):
        book = nbformat.read(path, as_version=4)
        title, _, rest = BADGE_LINE.sub("", book.cells[0].source).partition("\n")
        badge = BADGE.format(f"https://colab.research.google.com/github/{match[1]}/blob/main/notebooks/{path.name}")
        book.cells[0].source = "\n".join([title, badge, rest])
        first = next(cell for cell in book.cells if cell.cell_type == "code")
        first.source = REPOSITORY_LINE.sub(f'REPOSITORY = "https://github.com/{match[1]}"', first.source, count=1)
        nbformat.write(book, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="01 ... 10 (default: all)")
    parser.add_argument("--to", type=Path, default=FOLDER, help="where to write the executed notebooks")
    parser.add_argument("--page", action="store_true", help="make an HTML page of them, in outputs/page")
    parser.add_argument("--no-run", action="store_true", help="take the notebooks as they are: for --page")
    parser.add_argument("--colab", metavar="ADDRESS", help="where on GitHub Colab finds the code: runs nothing")
    args = parser.parse_args(argv)
    if args.colab is not None:
        return publish(args.colab)
    books = notebooks(args.numbers)
    if not args.no_run:
        failed = run_all(books, args.to)
        if failed:
            print("failed:", *failed, file=sys.stderr)
            return 1
    if args.page:
        print(make_page([args.to / path.name for path in books], FOLDER.parent / "outputs" / "page"))
    return 0


def publish(address: str) -> int:
    try:
        link_to_colab(address)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


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
