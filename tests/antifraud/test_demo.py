"""`make demo`: the whole job with the project's commands, on kinds that were trained on and on kinds never seen.

On a quarter of its dialogues, unless FRAUD_DEMO is ``full``, as in CI: then it is what a stranger runs, and learns.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from antifraud.demo import UNSEEN_KINDS
from antifraud.evaluation.metrics import figure_text
from data.records import Skipped, read_records

ROOT = Path(__file__).parents[2]
REPORTS = ("report", "report_unseen_kinds")
FULL = os.getenv("FRAUD_DEMO") == "full"


def run_demo(output: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "antifraud.demo", "--output", str(output), *options], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("demo")
    done = run_demo(output, *() if FULL else ("--dialogues", "600"))
    assert done.returncode == 0, done.stderr
    return output, done


def read_report(demo, name: str) -> dict:
    return json.loads((demo[0] / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.skipif(not FULL, reason="a quarter of the dialogues is too few: FRAUD_DEMO=full")
def test_the_tiny_model_learns_to_tell_fraud_on_dialogues_it_has_not_seen(demo):
    report, of_unseen = (read_report(demo, name) for name in REPORTS)
    assert report["n"] >= 100 and of_unseen["n"] >= 80
    assert report["precision"] >= 0.90 and report["recall"] >= 0.90


def test_the_report_is_on_whole_dialogues_apart_from_train_by_the_model_in_four_bits(demo):
    report = read_report(demo, "report")
    assert report["overlap_with_train"]["shared_cases"] == report["overlap_with_train"]["near_duplicates"] == 0
    assert report["speakers_renamed"]["recall"] == report["recall"]
    assert report["provenance"]["model"]["quantization"] == {"type": "nf4", "double": False}


def test_the_second_report_is_on_kinds_that_are_in_no_split_of_the_training(demo):
    kinds = {folder: {record["category"] for name in ("train", "eval", "test")
                      for record in read_records(demo[0] / folder / f"{name}.jsonl", Skipped())}
             for folder in ("data", "data_unseen")}
    assert kinds["data_unseen"] == set(UNSEEN_KINDS) and not kinds["data"] & kinds["data_unseen"]
    report = read_report(demo, "report_unseen_kinds")
    assert set(report["by_category"]) == set(UNSEEN_KINDS)
    assert report["tp"] + report["fn"] > 0 and report["fp"] + report["tn"] > 0


@pytest.mark.parametrize("name", REPORTS)
def test_both_reports_stand_beside_the_baselines_whoever_wins(demo, name):
    assert {"majority", "tfidf", "untuned"} <= read_report(demo, name)["baselines"].keys()


def test_the_figures_that_end_it_fit_a_screen_and_are_those_of_the_reports(demo):
    screen = demo[1].stdout.splitlines()
    assert len(screen) <= 40
    for name in REPORTS:
        report = read_report(demo, name)
        for figure in ("precision", "recall", "f1"):
            ours, of_tfidf = (figure_text(judged[figure]) for judged in (report, report["baselines"]["tfidf"]))
            assert any(ours in line and line.endswith(of_tfidf) for line in screen)


def test_figures_and_checkpoints_lie_beside_the_reports(demo):
    for picture in (*(f"{name}.png" for name in REPORTS), "run/loss_curve.png"):
        assert (demo[0] / picture).read_bytes().startswith(b"\x89PNG")
    assert list(demo[0].glob("run/checkpoint-*/adapter_model.safetensors"))


def test_a_command_that_fails_ends_it_with_what_the_command_said(tmp_path):
    done = run_demo(tmp_path / "out", "--dialogues", "0")
    assert done.returncode == 2 and "--dialogues" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "report.json").exists()
