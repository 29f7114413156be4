"""What several models say together, and together with TF-IDF, from the scores that ``benchmarks.ablations`` kept.

    python -m benchmarks.ensembles --data FOLDER --scores A.npz B.npz ... [--also F.jsonl ...] [--output E.json]

The models must have been judged on the same data: variants of one seed, or one variant with other training seeds.
``average`` is the mean of their log-odds; ``stack`` is a logistic regression on that mean and TF-IDF's log-odds, fitted
on the eval split. Both are judged on test against TF-IDF, and no row that they are judged on was used to fit them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from benchmarks.ablations import judge, judged_paths, tfidf_scores
from data.records import DataError, Skipped, read_records, write_json

SMALLEST = 1e-7  # scores are kept in float32, which has 1.0 for what is closer to it


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities.astype(float), SMALLEST, 1 - SMALLEST))


def average(models: Sequence[np.ndarray]) -> np.ndarray:
    """[rows] the mean of the log-odds of several models' probabilities, each [rows]."""
    return np.mean([log_odds(probabilities) for probabilities in models], axis=0)


def fit_stack(y_true: Sequence[bool], model: np.ndarray, tfidf: np.ndarray) -> LogisticRegression:
    """A logistic regression on two columns of log-odds, each [rows]."""
    return LogisticRegression().fit(np.column_stack([model, tfidf]), y_true)


def judge_ensembles(data: Path, files: Sequence[Path], also: Sequence[str] = ()) -> dict:
    """``average`` and ``stack`` on test and each of `also`; see `benchmarks.ablations.judge`.

    Raises:
        DataError: a file of scores is not of this data.
    """
    paths = judged_paths(data, also)
    sets = {name: read_records(path, Skipped()) for name, path in paths.items()}
    rows = {name: len(records) for name, records in sets.items()}
    models = [read_scores(path, rows) for path in files]
    model = {name: average([scores[name] for scores in models]) for name in sets}
    tfidf = tfidf_scores(data, paths)
    stack = fit_stack([record["label"] for record in sets["eval"]], model["eval"], log_odds(tfidf["eval"]))
    found = {}
    for name in [name for name in sets if name != "eval"]:
        stacked = stack.predict_proba(np.column_stack([model[name], log_odds(tfidf[name])]))[:, 1]
        found[name] = {"average": judge(sets[name], expit(model[name]), 0.5, tfidf[name]),
                       "stack": judge(sets[name], stacked, 0.5, tfidf[name])}
    return {"data": data.name, "scores": [Path(path).name for path in files], "judged_on": found,
            "stack_weights": dict(zip(("model", "tfidf", "intercept"), [*stack.coef_[0], *stack.intercept_]))}


def read_scores(path: Path, rows: dict[str, int]) -> dict[str, np.ndarray]:
    """The probabilities that a row of the ablations kept, of the sets that `rows` counts."""
    try:
        with np.load(path) as file:
            scores = {name: file[name] for name in rows if name in file}
    except (OSError, ValueError, BadZipFile):
        raise DataError(f"{path}: not a file of scores") from None
    for name, number in rows.items():
        if name not in scores:
            raise DataError(f"{path}: has no scores of {name}")
        if len(scores[name]) != number:
            raise DataError(f"{path}: has {len(scores[name])} scores of {name}, which has {number} records: "
                            "it was made on other data")
    return scores


def table(report: dict) -> str:
    """F1 and average precision, and their differences to TF-IDF's with 95 % intervals, as a Markdown table."""
    lines = ["| judged on | ensemble | F1 | average precision | F1 minus TF-IDF's | average precision minus TF-IDF's |",
             "|---|---|---|---|---|---|"]
    for name, ensembles in report["judged_on"].items():
        for ensemble, found in ensembles.items():
            differences = [_difference(found["tfidf"][f"model_{figure}_minus_this"])
                           for figure in ("f1", "average_precision")]
            lines.append(f"| {name} | {ensemble} | {_figure(found['f1'])} | {_figure(found['average_precision'])} "
                         f"| {' | '.join(differences)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _difference(found: dict) -> str:
    if found["interval"] is None:
        return "undefined"
    low, high = found["interval"]
    return f"{found['value']:+.4f} ({low:+.4f} to {high:+.4f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensembles", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared data, as a row of the ablations names it")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, metavar="NPZ", help="which the ablations kept")
    parser.add_argument("--also", nargs="*", default=[], metavar="JSONL", help="judge on these, too")
    parser.add_argument("--output", metavar="JSON")
    args = parser.parse_args(argv)
    try:
        report = judge_ensembles(args.data, args.scores, args.also)
        if args.output:
            write_json(args.output, report)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
