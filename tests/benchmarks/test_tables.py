"""The tables of README and docs are what results/ says."""

import json
import re

import pytest

from benchmarks import tables
from data.files import DataError


def test_the_pages_show_the_committed_results():
    for path in tables.pages():
        page = path.read_text(encoding="utf-8")
        assert tables.with_tables(page, path.name) == page


def test_a_table_that_was_edited_by_hand_is_made_anew_and_an_unknown_one_is_refused():
    edited = "before\n<!-- table: training -->\n| made up |\n<!-- end -->\nafter\n"
    made = tables.with_tables(edited)
    assert "made up" not in made and made.startswith("before\n") and made.endswith("<!-- end -->\nafter\n")
    assert tables.with_tables("no marks\n") == "no marks\n"
    with pytest.raises(DataError):
        tables.with_tables("<!-- table: weather -->\n<!-- end -->", "README.md")


def report(f1, ahead):
    figures = {"precision": f1, "recall": f1, "f1": f1, "average_precision": f1, "intervals": {"f1": [f1 - 0.1, 1.0]}}
    minus = {"value": 0.1, "interval": [0.05, 0.15] if ahead else [-0.05, 0.25]}
    return {**figures, "ordinary": {"all": {"false_alarms_per_hundred_calls": 100 * (1 - f1)}},
            "baselines": {"tfidf": {**figures, "f1": 0.5, "model_f1_minus_this": minus,
                                    "model_average_precision_minus_this": minus}}}


def test_seeds_are_shown_as_their_mean_and_range_and_leads_count_the_seeds_that_are_clear(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert all(tables.TABLES[name]() is None for name in ("leads", "seeds", "calls", "ordinary", "probes", "training"))
    folder = tmp_path / "reports" / "held_out" / "model"
    folder.mkdir(parents=True)
    for seed, found in enumerate([report(0.75, True), report(0.875, False)]):
        (folder / f"seed-{seed}.json").write_text(json.dumps(found))
    first, second, *_ = tables.results().splitlines()[2:]
    assert re.split(r" \| ", first)[2:6] == ["2", "0.812 (0.750 to 0.875)", "0.812 (0.750 to 0.875)",
                                             "0.812 (0.750 to 0.875)"]
    assert first.endswith("| 18.8 (12.5 to 25.0) |") and "| 0.500 |" in second
    assert "| +0.100, 1/2 seeds | +0.100, 1/2 seeds |" in tables.leads()
    assert len(tables.seeds().splitlines()) == 4


def test_every_committed_result_names_its_device_versions_and_commit():
    paths = sorted(tables.RESULTS.rglob("*.json"))
    assert 0 < len(paths) <= 30
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        for made in [row["provenance"] for row in found["rows"]] if "rows" in found else [found["provenance"]]:
            assert made["versions"]["torch"] and (found.get("device") or made["device"]), path
            assert len(made["commit"].removesuffix("+changes")) == 40, path
