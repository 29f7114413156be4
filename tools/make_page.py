"""Makes a site of README, docs and the notebooks as they are, with a search: outputs/page/site/index.html.

    python -m tools.make_page [--output outputs/page]        (make page)

Needs mkdocs, see the extra ``page`` in pyproject.toml, which `make page` installs. Pages are copied to ``source`` with
what they link to, so that every link of theirs that holds in the repository holds on the site. A search in the browser
needs a server: ``python -m http.server --directory outputs/page/site``.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
CONFIG, STYLE = (Path(__file__).with_name(name) for name in ("mkdocs.yml", "page.css"))
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")  # of Markdown, to a file of the repository
README_LINK = re.compile(r"(?<=\]\()((?:\.\./)*)README\.md(?=[)#])")
PAGE_LINK = re.compile(r"(?<=\]\()(?!\w+:)([\w./-]+)\.(?:ipynb|md)(?=[)#])")
IMAGE = re.compile(r'(?:src|href)="(?!\w+:|#)([^"#]+)"')  # of HTML in Markdown


def pages() -> list[Path]:
    """README in its languages, the docs and the notebooks, in the order in which they are read."""
    return [*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")),
            *sorted(ROOT.glob("docs/*.md"))]


def stage(source: Path) -> None:
    """Copies the pages, and the files that they link to, into a folder of the same layout."""
    shutil.rmtree(source, ignore_errors=True)
    copied = pages()
    for page in copied:
        copied += [file for file in linked(page) if file not in copied]
    for file in copied:
        target = source / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in pages():
            target.write_text(with_addresses_of_the_site(file), encoding="utf-8")
        else:
            shutil.copyfile(file, target)
    (source / "README.md").replace(source / "index.md")
    shutil.copyfile(STYLE, source / STYLE.name)


def with_addresses_of_the_site(page: Path) -> str:
    """A page whose links lead where other pages are on the site; mkdocs sees to those between pages of Markdown."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return README_LINK.sub(r"\1index.md", text)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = PAGE_LINK.sub(r"../\1/", "".join(cell["source"]))
    return json.dumps(notebook, ensure_ascii=False)


def linked(page: Path) -> Iterator[Path]:
    """The files of the repository that a page of Markdown links to."""
    if page.suffix == ".md":
        text = page.read_text(encoding="utf-8")
        for address in [*LINK.findall(text), *IMAGE.findall(text)]:
            file = (page.parent / address).resolve()
            if file.is_file() and file.is_relative_to(ROOT.resolve()):
                yield file


def title_of(page: Path) -> str:
    """The first heading of a page."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = nbformat.reads(text, as_version=4).cells[0].source
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), page.stem)


def navigation() -> list[dict]:
    """The nav of mkdocs: README, then notebooks and docs under headings of their own."""
    def entries(folder: str) -> list[dict]:
        return [{title_of(page): page.relative_to(ROOT).as_posix()} for page in pages() if page.parent == ROOT / folder]

    readmes = [{title_of(page): page.name} for page in pages() if page.parent == ROOT and page.name != "README.md"]
    return [{"Start": "index.md"}, *readmes, {"Notebooks": entries("notebooks")}, {"Docs": entries("docs")}]


def make_page(output: Path) -> Path:
    """Builds the site below `output`; returns its first page."""
    output = output.resolve()
    stage(output / "source")
    config = {"INHERIT": str(CONFIG.resolve()), "docs_dir": str(output / "source"), "site_dir": str(output / "site"),
              "nav": navigation()}
    (output / "mkdocs.yml").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")  # is YAML
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", output / "mkdocs.yml"],
                   check=True, cwd=output, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return output / "site" / "index.html"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "page")
    args = parser.parse_args(argv)
    print(make_page(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
