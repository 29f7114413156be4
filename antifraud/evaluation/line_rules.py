"""How much should the most suspicious lines count in a score?

    python -m antifraud.evaluation.line_rules --model MODEL --checkpoint DIR --data PREPARED [--log-odds FILE.npz]

PREPARED is a folder of `data.prepare` with ordinary talk in it. A model that was trained with the auxiliary line loss
says of the answer and of every line how likely it is a fraud; `antifraud.checkpoint.Decision` makes one score of them.
Each rule is judged on eval, at the threshold of the best F1 with at most 5 alarms in a hundred of the ordinary calls
that are kept for choosing, and with that threshold on the test split and on ordinary calls that nobody chose by.
Log-odds are what takes a GPU: with --log-odds they are kept in a file, and taken from it where it is there.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from data.command import command
from data.files import DataError, require_input, write_json
from data.prompt import PromptEncoder
from data.records import Skipped, read_records

from ..checkpoint import Decision, lineage_of
from ..model import default_device, load_tuned
from ..provenance import code_provenance, device_name, file_sha256
from .calibration import LINE_RULES, bounded_threshold, quiet_above
from .calls import by_call, ordinary_report
from .metrics import average_precision, classification_metrics
from .scoring import read_dialogues, score_rows

FILES = ("eval", "ordinary_eval", "test", "ordinary")
FALSE_ALARMS = 5
RULES = ((0.0, 1), *LINE_RULES)  # the answer alone, and what `--calibrate` tries


def log_odds(model, tokenizer, dialogues: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """By file, ``FILE.odds``: of all places of all windows, one after the other; ``FILE.places``: how many a window
    has; ``FILE.windows``: how many a dialogue has."""
    encoder, found = PromptEncoder(tokenizer, lineage_of(model).task), {}
    for name, texts in dialogues.items():
        readings = read_dialogues(encoder, texts, line_aware=True)
        odds = {}
        score_rows(model, [row for reading in readings for row in reading.rows], odds_of=odds, progress=name)
        windows = [odds[row] for reading in readings for row in reading.rows]
        found |= {f"{name}.odds": np.concatenate(windows).astype(np.float32),
                  f"{name}.places": np.array([len(one) for one in windows]),
                  f"{name}.windows": np.array([len(reading.rows) for reading in readings])}
    return found


def scores_from(decision: Decision, kept: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """[dialogues] score of each dialogue of a file, that of its highest window."""
    windows = np.split(kept[f"{name}.odds"].astype(float), np.cumsum(kept[f"{name}.places"])[:-1])
    scores = expit([decision.log_odds(odds[-1], odds[:-1]) for odds in windows])
    return np.maximum.reduceat(scores, np.cumsum([0, *kept[f"{name}.windows"][:-1]]))


def judge(decision: Decision, kept: Mapping[str, np.ndarray], records: Mapping[str, Sequence[dict]]) -> dict:
    """The threshold from eval, and what it gives there (``eval``) and on ``test``; false alarms by source."""
    scores = {name: scores_from(decision, kept, name) for name in FILES}
    above = quiet_above(records["ordinary_eval"], scores["ordinary_eval"], FALSE_ALARMS)
    threshold = bounded_threshold([record["label"] for record in records["eval"]], scores["eval"], above, best_f1=True)
    row = {"line_weight": decision.line_weight, "top_lines": decision.top_lines, "threshold": threshold}
    for name in ("eval", "test"):
        labels = np.array([record["label"] for record in records[name]])
        of_calls, score_of_calls = by_call(records[name], scores[name])
        row[name] = {**classification_metrics(labels, scores[name] >= threshold),
                     "average_precision": average_precision(labels, scores[name]),
                     "recall_by_call": float((score_of_calls >= threshold)[of_calls].mean())}
    alarms = ordinary_report(records["ordinary"], scores["ordinary"], threshold)["by_source"]
    return {**row, "ordinary": {source: found["false_alarms_per_hundred_calls"] for source, found in alarms.items()}}


def run(model: str, checkpoint: str, data: Path, *, kept_in: str | None, device: str, output: str) -> dict:
    """All rules; written to `output`.

    Raises:
        DataError: the log-odds that are kept are of other files.
    """
    records = {name: read_records(data / f"{name}.jsonl", Skipped()) for name in FILES}
    hashes = {name: file_sha256(data / f"{name}.jsonl") for name in FILES}
    if kept_in and Path(kept_in).is_file():
        with np.load(kept_in, allow_pickle=False) as file:
            kept = dict(file)
        provenance = json.loads(str(kept.pop("provenance")))
        other = next((name for name in FILES if provenance.get(name, hashes[name]) != hashes[name]), None)
        if other:
            raise DataError(f"{kept_in}: holds log-odds of another {other}.jsonl; name a new file with --log-odds")
    else:
        loaded, tokenizer = load_tuned(model, checkpoint, device)
        kept = log_odds(loaded, tokenizer, {name: [record["input"] for record in records[name]] for name in FILES})
        provenance = {"model": lineage_of(loaded).base, "adapter_sha256": lineage_of(loaded).adapter_sha256,
                      "train_data": lineage_of(loaded).train_data.get("sha256"), "device": device_name(device),
                      **hashes, **code_provenance()}
        if kept_in:
            np.savez_compressed(kept_in, provenance=json.dumps(provenance), **kept)
    report = {"false_alarms_per_hundred": FALSE_ALARMS, "provenance": provenance, "judged_by": code_provenance(),
              "rules": [judge(Decision(line_weight=weight, top_lines=lines), kept, records)
                        for weight, lines in RULES]}
    write_json(output, report)
    return report


def table(report: dict) -> str:
    """The rules as a Markdown table."""
    lines = ["| the lines count | how many | threshold | eval: average precision | F1 | recall | recall by call "
             "| test: average precision | F1 | recall | recall by call | alarms per 100 chats | per 100 ordinary calls "
             "of unseen kinds |",
             "|---" * 13 + "|"]
    for row in report["rules"]:
        figures = [f"{row[split][key]:.3f}" for split in ("eval", "test")
                   for key in ("average_precision", "f1", "recall", "recall_by_call")]
        alarms = [f"{row['ordinary'][source]:.1f}" for source in ("kdconv", "sample_ordinary_judge")
                  if source in row["ordinary"]]
        lines.append(f"| {row['line_weight']:.0%} | {row['top_lines'] if row['line_weight'] else '-'} "
                     f"| {row['threshold']:.3f} | {' | '.join([*figures, *alarms])} |")
    made = report["provenance"]
    return "\n".join([*lines, "", f"{made['model']['name']} on {made['device']}, commit {made['commit'][:7]}; at most "
                      f"{report['false_alarms_per_hundred']} alarms in 100 ordinary calls that are kept for choosing."])


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m antifraud.evaluation.line_rules", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", required=True, help="trained with --line-loss-weight")
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(FILES)}, each .jsonl")
    parser.add_argument("--log-odds", metavar="FILE.npz", help="where log-odds are kept")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/line_rules.json")
    args = parser.parse_args(argv)
    for name in FILES:
        require_input(args.data / f"{name}.jsonl")
    print(table(run(args.model, args.checkpoint, args.data, kept_in=args.log_odds, device=args.device,
                    output=args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
