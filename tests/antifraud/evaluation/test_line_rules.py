"""Rules for how much lines count: judged by log-odds that are written down by hand, no model in sight."""

import json

import numpy as np
import pytest
from scipy.special import expit

from antifraud.checkpoint import Decision
from antifraud.evaluation import line_rules
from data.records import write_records

# Log-odds of the lines, then of the answer. A scam has two suspicious lines, ordinary talk one.
SCAM, HARMLESS, ODD, QUIET = [3.0, 3.0, 1.0], [0.0, 0.0, 1.2], [5.0, -5.0, 1.0], [-3.0, -3.0, -3.0]
WINDOWS = {"eval": [[SCAM], [HARMLESS]], "ordinary_eval": [[ODD]] + [[QUIET]] * 19,
           "test": [[HARMLESS, SCAM], [HARMLESS]], "ordinary": [[ODD], [QUIET]]}


def kept() -> dict[str, np.ndarray]:
    found = {}
    for name, dialogues in WINDOWS.items():
        windows = [window for dialogue in dialogues for window in dialogue]
        found |= {f"{name}.odds": np.concatenate(windows), f"{name}.places": np.array([len(one) for one in windows]),
                  f"{name}.windows": np.array([len(dialogue) for dialogue in dialogues])}
    return found


def test_a_dialogue_has_the_score_of_its_highest_window_by_the_rule():
    two_lines = Decision(line_weight=0.5, top_lines=2)
    assert line_rules.scores_from(two_lines, kept(), "test") == pytest.approx(expit([2.0, 0.6]))
    assert line_rules.scores_from(Decision(), kept(), "test") == pytest.approx(expit([1.2, 1.2]))
    assert line_rules.scores_from(two_lines, kept(), "ordinary") == pytest.approx(expit([0.5, -3.0]))


def test_every_rule_is_judged_from_kept_log_odds(tmp_path):
    for name, dialogues in WINDOWS.items():
        write_records(tmp_path / f"{name}.jsonl", [
            {"input": f"甲: 第{row}句", "label": not name.startswith("ordinary") and row == 0, "case": f"{name}/{row}",
             "source": "kdconv"} for row in range(len(dialogues))])
    made = {"model": {"name": "M"}, "device": "a GPU", "commit": "0123456789"}
    np.savez(tmp_path / "kept.npz", provenance=json.dumps(made), **kept())
    assert line_rules.main(["--model", "none", "--checkpoint", "none", "--data", str(tmp_path), "--log-odds",
                            str(tmp_path / "kept.npz"), "--output", str(tmp_path / "rules.json")]) == 0
    np.savez(tmp_path / "other.npz", provenance=json.dumps({**made, "test": "another file"}), **kept())
    assert line_rules.main(["--model", "none", "--checkpoint", "none", "--data", str(tmp_path), "--log-odds",
                            str(tmp_path / "other.npz"), "--output", str(tmp_path / "none.json")]) == 2
    report = json.loads((tmp_path / "rules.json").read_text())
    assert report["provenance"] == made and len(report["rules"]) == len(line_rules.RULES)
    by_rule = {(row["line_weight"], row["top_lines"]): row for row in report["rules"]}
    # One of twenty ordinary calls may alarm. Where one line counts half, the odd one does: 3.0, and the scam has 2.0.
    # Where two do, it does not: 0.5, below the 0.6 of what is harmless.
    assert [by_rule[0.5, lines]["ordinary"]["kdconv"] for lines in (1, 2)] == [50.0, 0.0]
    assert by_rule[0.5, 1]["test"]["recall"] == by_rule[0.5, 2]["test"]["recall_by_call"] == 1.0
    assert expit(0.6) < by_rule[0.5, 2]["threshold"] < expit(2.0)
