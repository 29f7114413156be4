"""What each change of the recipe buys, from the scores that ``benchmarks.ablations`` kept.

    python -m benchmarks.gains --source DIALOGS --scores DIR [--base NAME] [--output gains.json]

Every variant's F1 and average precision on test minus those of the base, over the seeds that both have: the mean, with
a paired interval for which dialogues are resampled over all of these seeds together. Thresholds are those with the
fewest errors on the eval split, as in ``benchmarks.ensembles``.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from antifraud.provenance import code_provenance
from benchmarks import refusing_in_a_line
from benchmarks.ablations import VARIANTS, Job, choose_variants, difference, prepared, slug
from benchmarks.ensembles import COMPARED, at_chosen_thresholds, mean_differences, read_scores
from data.files import DataError, write_json
from data.records import Skipped, read_records


@dataclasses.dataclass(frozen=True)
class Row:
    """One of the ablations, as it was kept.

    Attributes:
        data: folder of the prepared data.
        scores: file of the probabilities.
    """

    data: Path
    scores: Path


def gains(variants: dict[str, dict[int, Row]], base: dict[int, Row]) -> dict[str, dict]:
    """Of each variant ``seeds``, and `mean_differences` to the base on test.

    Args:
        variants: by name and seed; only seeds that the base has, too.
        base: by seed, what they are compared with.

    Raises:
        DataError: a variant was judged on other test records than the base.
    """
    judged_base = {seed: judged(row) for seed, row in base.items()}
    return {name: {"seeds": sorted(rows), **mean_differences(
        [pair(judged(rows[seed]), judged_base[seed], name, seed) for seed in sorted(rows)], "variant", "base")}
        for name, rows in variants.items()}


def judged(row: Row) -> dict:
    """``records`` of test, and their ``scores``, shifted so that the threshold chosen on eval is at 0.5."""
    splits = {name: read_records(row.data / f"{name}.jsonl", Skipped()) for name in ("eval", "test")}
    scores = read_scores(row.scores, {name: len(records) for name, records in splits.items()})
    eval_split, test = ({"records": splits[name], "scores": scores[name]} for name in ("eval", "test"))
    return at_chosen_thresholds(test, eval_split)


def pair(variant: dict, base: dict, name: str, seed: int) -> dict:
    """What `mean_differences` compares, of two that `judged` returned."""
    if variant["records"] != base["records"]:
        raise DataError(f"{name!r} with seed {seed} was judged on other test records than the base")
    return {"records": base["records"], "variant": variant["scores"], "base": base["scores"]}


def kept_rows(name: str, variant: dict, folder: Path, job: Job) -> dict[int, Row]:
    """By seed, the rows of a variant whose scores lie in `folder`."""
    start = f"{slug(name)}-"
    files = {path.stem.removeprefix(start): path for path in sorted(folder.glob(f"{start}*.npz"))}
    return {int(seed): Row(prepared(job, variant.get("data", {}), int(seed)), path)
            for seed, path in files.items() if seed.isdigit()}


def table(report: dict) -> str:
    """The differences to the base with 95 % intervals, as a Markdown table."""
    lines = [f"| variant, minus {report['base']} | seeds | F1 | average precision |", "|---|---|---|---|"]
    for name, found in report["gains"].items():
        seeds = ", ".join(map(str, found["seeds"]))
        lines.append(f"| {name} | {seeds} | {' | '.join(difference(found[figure]) for figure in COMPARED)} |")
    return "\n".join(lines)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of dialogue CSVs that the ablations were made on")
    parser.add_argument("--scores", type=Path, required=True, metavar="DIR", help="where the ablations kept them")
    parser.add_argument("--base", default=next(iter(VARIANTS)), metavar="NAME", help="default: %(default)r")
    parser.add_argument("--scratch", default="outputs/ablations", help="where prepared data is kept")
    parser.add_argument("--output", default="results/gains.json")
    args = parser.parse_args(argv)
    job, variants = Job("", args.source, Path(args.scratch), "cpu"), choose_variants(None, None)
    choose_variants([args.base], None)  # which refuses one that there is not
    rows = {name: kept_rows(name, variant, args.scores, job) for name, variant in variants.items()}
    base = rows.pop(args.base)
    shared = {name: {seed: row for seed, row in found.items() if seed in base} for name, found in rows.items()}
    shared = {name: found for name, found in shared.items() if found}
    if not shared:
        raise DataError(f"{args.scores}: no scores of {args.base!r} and of another variant with the same seed; "
                        "benchmarks.ablations --scores keeps them")
    report = {"base": args.base, "gains": gains(shared, base), "device": "cpu", "provenance": code_provenance()}
    write_json(args.output, report)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
