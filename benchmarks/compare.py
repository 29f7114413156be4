"""Which of two ways to tell fraud is better, beyond chance, over several seeds together?

    python -m benchmarks.compare --data test-0.jsonl test-1.jsonl --model ours-0.jsonl ours-1.jsonl \\
        --other encoder-0.jsonl encoder-1.jsonl [--thresholds T ...] [--output compared.json]

--data names one file of records a seed; --model and --other name the probabilities for each, as ``evaluate.py
--predict`` and the encoder write them. Differences are paired, and dialogues are resampled for all seeds together,
since one dialogue may be in the test splits of several.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from antifraud.evaluation.inputs import read_probabilities
from antifraud.evaluation.metrics import average_precision_of, confusion_counts, none_if_nan, rates, with_intervals
from antifraud.provenance import code_provenance, file_sha256
from data.command import command
from data.files import write_json
from data.records import Skipped, read_numbered_records

COMPARED = ("f1", "average_precision")


def read_seed(data: str, *predictions: str) -> tuple[list[dict], list[np.ndarray]]:
    """Records of a file, and the probabilities for them from each predictions file.

    Raises:
        DataError: a predictions file lacks a record's line.
    """
    numbered = read_numbered_records(data, Skipped())
    return [record for _, record in numbered], [read_probabilities(path, "data", numbered) for path in predictions]


def compare(seeds: Sequence[tuple[list[dict], list[np.ndarray]]],
            thresholds: Sequence[Sequence[float]] | None = None) -> dict:
    """Figures of both, and the first minus the second, by seed and as the mean over seeds.

    Args:
        seeds: for each, records and [first, second] probabilities.
        thresholds: for each seed, those of the two; default: 0.5.
    """
    thresholds = thresholds or [(0.5, 0.5)] * len(seeds)
    groups = [record.get("case", f"{seed}:{row}") for seed, (records, _) in enumerate(seeds)
              for row, record in enumerate(records)]
    ends = np.cumsum([0, *(len(records) for records, _ in seeds)])
    measures = [[_measure(records, of_one, threshold) for of_one, threshold in zip(scores, of_seed, strict=True)]
                for (records, scores), of_seed in zip(seeds, thresholds, strict=True)]

    def differences(weights: np.ndarray | None) -> dict[str, np.ndarray]:
        found = {}
        for seed, (first, second) in enumerate(measures):
            of_seed = None if weights is None else weights[..., ends[seed]:ends[seed + 1]]
            one, other = first(of_seed), second(of_seed)
            found |= {f"{name} {seed}": one[name] - other[name] for name in COMPARED}
        return {**found, **{name: np.mean([found[f"{name} {seed}"] for seed in range(len(measures))], axis=0)
                            for name in COMPARED}}

    found = with_intervals(differences, int(ends[-1]), groups)
    return {"seeds": [{"model": _plain(first(None)), "other": _plain(second(None)),
                       "difference": {name: found[f"{name} {seed}"] for name in COMPARED}}
                      for seed, (first, second) in enumerate(measures)],
            "mean_difference": {name: found[name] for name in COMPARED}}


def _measure(records: Sequence[dict], scores: np.ndarray, threshold: float):
    """Precision, recall, F1, accuracy and average precision as a function of the rows' weights."""
    y_true, y_pred = np.array([record["label"] for record in records]), scores >= threshold
    area = average_precision_of(y_true, scores)
    return lambda weights: {**rates(confusion_counts(y_true, y_pred, weights)), "average_precision": area(weights)}


def _plain(figures: dict) -> dict:
    return {name: none_if_nan(value) for name, value in figures.items()}


def table(found: dict) -> str:
    """Differences by seed and over all, as a Markdown table."""
    rows = [*((str(seed), of_seed["difference"]) for seed, of_seed in enumerate(found["seeds"])),
            ("all", found["mean_difference"])]
    return "\n".join(["| seed | F1 | average precision |", "|---|---|---|",
                      *(f"| {seed} | {' | '.join(difference(of_seed[name]) for name in COMPARED)} |"
                        for seed, of_seed in rows)])


def difference(found: dict) -> str:
    """A difference with its interval, for people."""
    if found["interval"] is None:
        return "undefined"
    low, high = found["interval"]
    return f"{found['value']:+.3f} ({low:+.3f} to {high:+.3f})"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="records, a file for each seed")
    parser.add_argument("--model", nargs="+", required=True, help="predictions of one way, a file for each of --data")
    parser.add_argument("--other", nargs="+", required=True, help="predictions of the other")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T",
                        help="for each seed that of --model, then that of --other (default: 0.5)")
    parser.add_argument("--output", help="where to write the comparison")
    args = parser.parse_args(argv)
    if not len(args.data) == len(args.model) == len(args.other):
        parser.error("--data, --model and --other must name as many files each")
    if args.thresholds and len(args.thresholds) != 2 * len(args.data):
        parser.error("--thresholds needs two numbers for each of --data")
    seeds = [read_seed(*paths) for paths in zip(args.data, args.model, args.other, strict=True)]
    pairs = list(zip(args.thresholds[::2], args.thresholds[1::2])) if args.thresholds else None
    found = compare(seeds, pairs)
    print(table(found))
    if args.output:
        write_json(args.output, {**found, "device": "cpu", "provenance": {
            "files": {name: [file_sha256(path) for path in getattr(args, name)] for name in ("data", "model", "other")},
            "thresholds": args.thresholds, **code_provenance()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
