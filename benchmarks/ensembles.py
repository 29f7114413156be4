"""What several models say together, and together with TF-IDF, from the scores that ``benchmarks.ablations`` kept.

    python -m benchmarks.ensembles --source DIALOGS --scores DIR --variants NAME ... [--seeds 0 1 2]
                                   [--tfidf-with-lines] [--parts NAME ...]

``average`` is the mean of the variants' log-odds; ``stack`` is a logistic regression on that mean and TF-IDF's
log-odds, fitted on the eval split. Both are judged on test against TF-IDF, seed by seed and as the mean over the seeds,
and no row that they are judged on was used to fit them. TF-IDF is fitted on the train split of the first variant; with
``--tfidf-with-lines`` it is the one that knows the labels of lines, too (``baselines.TfidfWithLines``). Judged are the
pieces, at threshold 0.5 and at thresholds with the fewest errors on the eval split, and whole dialogues, by the mean
log-odds of their pieces (one is a fraud if one of its pieces is); TF-IDF likewise. ``--parts`` takes of every variant
what the ablations kept besides: "answer" or "lines" of a model that learned of lines, "training 0" and so on of one
whose weights are an average.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from antifraud.evaluation.calibration import choose_threshold
from antifraud.evaluation.metrics import average_precision_of, confusion_counts, rates, with_intervals
from antifraud.provenance import code_provenance
from benchmarks import refusing_in_a_line
from benchmarks.ablations import Job, choose_variants, difference, judge, judged_paths, prepared, slug, tfidf_scores
from data.files import DataError, write_json
from data.records import Skipped, groups_of, read_records

ENSEMBLES = ("average", "stack")
WHOLE_DIALOGUES = "test, whole dialogues"
CHOSEN_THRESHOLDS = "test, thresholds from eval"
COMPARED = ("f1", "average_precision")
SMALLEST = 1e-7  # scores are kept in float32, which has 1.0 for what is closer to it


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities.astype(float), SMALLEST, 1 - SMALLEST))


def average(models: Sequence[np.ndarray]) -> np.ndarray:
    """[rows] the mean of the log-odds of several models' probabilities, each [rows]."""
    return np.mean([log_odds(probabilities) for probabilities in models], axis=0)


def fit_stack(y_true: Sequence[bool], model: np.ndarray, tfidf: np.ndarray) -> LogisticRegression:
    """A logistic regression on two columns of log-odds, each [rows]."""
    return LogisticRegression().fit(np.column_stack([model, tfidf]), y_true)


def by_dialogue(found: dict) -> dict:
    """What `judge_seed` returns of a set, with one record a dialogue and the mean of its pieces' log-odds."""
    records, dialogues = found["records"], groups_of(found["records"])
    pieces = {}
    for row, dialogue in enumerate(dialogues):
        pieces.setdefault(dialogue, []).append(row)
    return {"records": [{"case": dialogue, "label": any(records[row]["label"] for row in rows)}
                        for dialogue, rows in pieces.items()],
            **{name: expit([log_odds(found[name][rows]).mean() for rows in pieces.values()])
               for name in ("tfidf", *ENSEMBLES)}}


def at_chosen_thresholds(found: dict, eval_split: dict) -> dict:
    """What `judge_seed` returns of a set, with log-odds shifted so that the threshold chosen on eval is at 0.5."""
    y_true = [record["label"] for record in eval_split["records"]]
    shifted = {"records": found["records"]}
    for name in found.keys() - {"records"}:
        threshold = np.array(choose_threshold(y_true, eval_split[name], cost_ratio=1))
        shifted[name] = expit(log_odds(found[name]) - log_odds(threshold))
    return shifted


def judge_seed(data: Path, files: Sequence[Path], also: Sequence[str] = (), with_lines: bool = False,
               parts: Sequence[str] = ()) -> tuple[dict, dict[str, dict]]:
    """Both ensembles of one seed, on test, each of `also`, test at thresholds from eval, and whole dialogues.

    Returns:
        the stack's weights; and by set ``records``, and [rows] the probabilities of ``tfidf``, ``average``, ``stack``.

    Raises:
        DataError: a file of scores is not of this data.
    """
    paths = judged_paths(data, also)
    sets = {name: read_records(path, Skipped()) for name, path in paths.items()}
    rows = {name: len(records) for name, records in sets.items()}
    models = [read_scores(path, rows, part) for path in files for part in parts or [None]]
    model = {name: average([scores[name] for scores in models]) for name in sets}
    tfidf = tfidf_scores(data, paths, with_lines)
    stack = fit_stack([record["label"] for record in sets["eval"]], model["eval"], log_odds(tfidf["eval"]))
    weights = dict(zip(("model", "tfidf", "intercept"), [*stack.coef_[0], *stack.intercept_]))
    judged = {
        name: {"records": sets[name], "tfidf": tfidf[name], "average": expit(model[name]),
               "stack": stack.predict_proba(np.column_stack([model[name], log_odds(tfidf[name])]))[:, 1]}
        for name in sets}
    eval_split = judged.pop("eval")
    return weights, {**judged, CHOSEN_THRESHOLDS: at_chosen_thresholds(judged["test"], eval_split),
                     WHOLE_DIALOGUES: by_dialogue(judged["test"])}


def mean_differences(seeds: Sequence[dict], model: str, other: str = "tfidf") -> dict[str, dict]:
    """F1 and average precision of one model minus another's, their means over the seeds, with 95 % intervals.

    A dialogue that is in the test splits of several seeds is drawn for all of them together: they are not independent.

    Args:
        seeds: of each ``records``, and the probabilities of both under their names, as `judge_seed` returns them.
    """
    labels = [np.array([record["label"] for record in seed["records"]]) for seed in seeds]
    ends = np.cumsum([len(y_true) for y_true in labels])
    areas = [[average_precision_of(y_true, seed[name]) for name in (model, other)]
             for y_true, seed in zip(labels, seeds)]

    def differences(weights: np.ndarray | None) -> dict[str, float]:
        found = {"f1": [], "average_precision": []}
        weights_of_seeds = [None] * len(seeds) if weights is None else np.split(weights, ends[:-1])
        for y_true, seed, (area, other_area), drawn in zip(labels, seeds, areas, weights_of_seeds):
            f1, other_f1 = (rates(confusion_counts(y_true, seed[name] >= 0.5, drawn))["f1"]
                            for name in (model, other))
            found["f1"].append(f1 - other_f1)
            found["average_precision"].append(area(drawn) - other_area(drawn))
        return {name: statistics.fmean(values) for name, values in found.items()}

    groups = [groups_of(seed["records"]) for seed in seeds]
    joint = None if None in groups else [group for of_seed in groups for group in of_seed]
    return with_intervals(differences, int(ends[-1]), joint)


def judge_ensembles(data: dict[int, Path], files: dict[int, Sequence[Path]], also: Sequence[str] = (),
                    with_lines: bool = False, parts: Sequence[str] = ()) -> dict:
    """``average`` and ``stack`` against TF-IDF on what `judge_seed` judges, by seed and over all of them.

    Args:
        data: by seed, the folder of prepared data that its models were trained on.
        files: by seed, the scores that its models gave.
        with_lines: against the TF-IDF that knows the labels of lines.
        parts: of each file, what to average instead of the variant's own scores.
    """
    seeds = {seed: judge_seed(data[seed], files[seed], also, with_lines, parts) for seed in data}
    by_set = {name: {seed: sets[name] for seed, (_, sets) in seeds.items()} for name in next(iter(seeds.values()))[1]}
    return {
        "stack_weights": {seed: weights for seed, (weights, _) in seeds.items()},
        "judged_on": {name: {ensemble: {
            "seeds": {seed: judge(found["records"], found[ensemble], 0.5, found["tfidf"])
                      for seed, found in of_seeds.items()},
            "mean_difference_to_tfidf": mean_differences(list(of_seeds.values()), ensemble),
        } for ensemble in ENSEMBLES} for name, of_seeds in by_set.items()},
    }


def read_scores(path: Path, rows: dict[str, int], part: str | None = None) -> dict[str, np.ndarray]:
    """The probabilities that a row of the ablations kept, of the sets that `rows` counts; of a `part`, if one is named.
    """
    of_part = f", {part}" if part else ""
    try:
        with np.load(path) as file:
            scores = {name: file[name + of_part] for name in rows if name + of_part in file}
    except (OSError, ValueError, BadZipFile):
        raise DataError(f"{path}: not a file of scores") from None
    for name, number in rows.items():
        if name not in scores:
            raise DataError(f"{path}: has no scores of {name}{of_part}")
        if len(scores[name]) != number:
            raise DataError(f"{path}: has {len(scores[name])} scores of {name}, which has {number} records: "
                            "it was made on other data")
    return scores


def table(report: dict) -> str:
    """F1 and average precision, and their differences to TF-IDF's with 95 % intervals, as a Markdown table."""
    lines = ["| judged on | ensemble | seed | F1 | average precision | F1 minus TF-IDF's "
             "| average precision minus TF-IDF's |", "|---|---|---|---|---|---|---|"]
    for name, ensembles in report["judged_on"].items():
        for ensemble, found in ensembles.items():
            for seed, judged in found["seeds"].items():
                differences = [difference(judged["tfidf"][f"model_{figure}_minus_this"], "+.4f") for figure in COMPARED]
                lines.append(f"| {name} | {ensemble} | {seed} | {_figure(judged['f1'])} "
                             f"| {_figure(judged['average_precision'])} | {' | '.join(differences)} |")
            means = [_mean([judged[figure] for judged in found["seeds"].values()]) for figure in COMPARED]
            differences = [difference(found["mean_difference_to_tfidf"][figure], "+.4f") for figure in COMPARED]
            lines.append(f"| {name} | {ensemble} | **mean** | {' | '.join(map(_figure, means))} "
                         f"| {' | '.join(differences)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensembles", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of dialogue CSVs that the ablations were made on")
    parser.add_argument("--scores", type=Path, required=True, metavar="DIR", help="where the ablations kept them")
    parser.add_argument("--variants", nargs="+", required=True, metavar="NAME", help="whose scores to average")
    parser.add_argument("--more-variants", metavar="FILE", help="as for the ablations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--also", nargs="*", default=[], metavar="JSONL", help="judge on these, too")
    parser.add_argument("--tfidf-with-lines", action="store_true", help="against the one that knows lines' labels")
    parser.add_argument("--parts", nargs="+", default=[], metavar="NAME", help="of every variant, as \"training 0\"")
    parser.add_argument("--scratch", default="outputs/ablations", help="where prepared data is kept")
    parser.add_argument("--output", default="results/ensembles.json")
    args = parser.parse_args(argv)
    variants = choose_variants(args.variants, args.more_variants)
    job = Job("", args.source, Path(args.scratch), "cpu")
    data = {seed: prepared(job, variants[args.variants[0]].get("data", {}), seed) for seed in args.seeds}
    files = {seed: [args.scores / f"{slug(name)}-{seed}.npz" for name in args.variants] for seed in args.seeds}
    report = {"variants": args.variants, "parts": args.parts, "tfidf_with_lines": args.tfidf_with_lines,
              **judge_ensembles(data, files, args.also, args.tfidf_with_lines, args.parts), "device": "cpu",
              "provenance": code_provenance()}
    write_json(args.output, report)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
