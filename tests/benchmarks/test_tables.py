"""The tables of both READMEs are what results/ says."""

import json
from pathlib import Path

from benchmarks.tables import PAGES, TABLES, results_table, with_tables

ROOT = Path(__file__).parents[2]


def test_the_pages_show_the_committed_results():
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [with_tables(page) for page in pages] == pages
    assert all(f"<!-- table: {name} -->" in "".join(pages) for name in TABLES)


def test_a_table_that_was_edited_by_hand_is_made_anew():
    edited = "before\n<!-- table: results -->\n| made up |\n<!-- end -->\nafter\n"
    assert with_tables(edited) == f"before\n<!-- table: results -->\n{results_table()}\n<!-- end -->\nafter\n"


def test_every_committed_result_names_its_device_versions_and_commit():
    paths = sorted((ROOT / "results").glob("*.json"))
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    measured = [report for report in reports if "provenance" in report]
    assert len(measured) >= 4
    for report in measured:
        provenance = report["provenance"]
        assert provenance["versions"]["torch"] and (report.get("device") or provenance["device"])
        assert len(provenance["commit"].removesuffix("+changes")) == 40
