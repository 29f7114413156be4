"""The site: what it is made of. Building it needs mkdocs, and is tested where that is installed."""

import importlib.util
import json
import re

import pytest

from tools import make_page


def test_readme_notebooks_and_docs_are_staged_with_all_that_they_link_to(tmp_path):
    make_page.stage(tmp_path / "source")
    staged = {path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*")}
    assert {"index.md", "notebooks/00_quickstart.ipynb", "docs/results.md"} <= staged
    readme = (make_page.ROOT / "README.md").read_text(encoding="utf-8")
    for address in make_page.LINK.findall(readme):
        assert address in staged or not (make_page.ROOT / address).is_file()


def test_links_between_pages_lead_to_where_the_pages_are_on_the_site(tmp_path):
    make_page.stage(tmp_path / "source")
    assert "](index.md)" in (tmp_path / "source" / "README.zh.md").read_text(encoding="utf-8")
    for page in (tmp_path / "source" / "notebooks").glob("*.ipynb"):
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        addresses = make_page.LINK.findall(text)
        assert addresses
        for address in addresses:  # seen from NAME/index.html, in the folder of the page
            there = (page.parent / page.stem / address).resolve()
            kinds = [kind for kind in (".ipynb", ".md") if there.with_suffix(kind).is_file()]
            assert address.endswith("/") and kinds, address


def test_every_page_is_in_the_navigation_under_its_own_heading():
    start, *others = make_page.navigation()
    assert start == {"Start": "index.md"}
    of_notebooks = next(entry["Notebooks"] for entry in others if "Notebooks" in entry)
    assert [next(iter(entry.values())) for entry in of_notebooks] == [
        f"notebooks/{path.name}" for path in sorted((make_page.ROOT / "notebooks").glob("*.ipynb"))]
    assert all(re.search(r"\?$", next(iter(entry))) for entry in of_notebooks)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs_jupyter") is None, reason="make page installs it")
def test_the_site_has_every_page_a_search_and_nothing_from_elsewhere(tmp_path):
    index = make_page.make_page(tmp_path)
    assert index == tmp_path / "site" / "index.html"
    pages = list((tmp_path / "site" / "notebooks").glob("*/index.html"))
    assert len(pages) == 11 and (tmp_path / "site" / "search" / "search_index.json").is_file()
    for page in [index, *pages]:
        assert not re.search(r'<(script|link)[^>]+(src|href)="https?://', page.read_text(encoding="utf-8"))


