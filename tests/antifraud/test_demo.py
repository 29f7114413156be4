"""`make demo`: the whole job on the sample corpus, and the tiny model really learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("demo")
    done = subprocess.run([sys.executable, "-m", "antifraud.demo", "--output", str(output)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output, done


def test_the_tiny_model_learns_to_tell_fraud_on_dialogues_it_has_not_seen(demo):
    report = json.loads((demo[0] / "report.json").read_text(encoding="utf-8"))
    assert report["n"] >= 200
    assert report["precision"] >= 0.90 and report["recall"] >= 0.90
    assert report["overlap_with_train"]["shared_cases"] == report["overlap_with_train"]["near_duplicates"] == 0
    assert report["speakers_renamed"]["recall"] == report["recall"]


def test_the_report_stands_beside_the_baselines_whoever_wins(demo):
    report = json.loads((demo[0] / "report.json").read_text(encoding="utf-8"))
    assert {"majority", "tfidf", "untuned"} <= report["baselines"].keys()
    assert report["provenance"]["model"]["quantization"] == {"type": "nf4", "double": False}
    for name in ("majority", "tfidf"):
        assert f"  {name} " in demo[1].stdout


def test_figures_lie_beside_the_report(demo):
    for name in ("report.png", "loss_curve.png"):
        assert (demo[0] / name).read_bytes().startswith(b"\x89PNG")
