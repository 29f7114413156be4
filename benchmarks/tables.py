"""What do README.md and docs/ show of results/? Every table between its ``<!-- table: NAME -->`` and ``<!-- end -->``.

    python -m benchmarks.tables            # writes the tables anew
    python -m benchmarks.tables --check    # exit code 1 where a page differs from results/

Prose is written by hand. A page shows the tables that it names, and need name none.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import ablations, compare, end_to_end, scoring, several_gpus, training
from data.command import command
from data.files import DataError, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FIGURES = ("precision", "recall", "f1", "average_precision")
ARTICLE = {"tn": 1143, "fp": 22, "fn": 215, "tp": 968}  # as published, on eval0819
SETS = {  # the folders of results/reports, in the order of the tables
    "held_out": "held-out dialogues",
    "eval0819_apart": "eval0819, trained without its dialogues",
    "eval0819_onset": "eval0819, trained from onset",
    "eval0819": "eval0819",
    "article_eval0819": "eval0819, the article's recipe",
    "article_split": "the article's split",
    "scams_unseen": "our scams of kinds that train lacks",
}
BASELINES = {"tfidf": "character TF-IDF", "tfidf_line_labels": "TF-IDF + line labels", "encoder": "fine-tuned encoder"}
NOTHING = "Not measured yet."
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reports_on(name: str) -> dict[str, list[dict]]:
    """By model, the reports of all seeds on one of `SETS`."""
    return {folder.name: [_load(path) for path in sorted(folder.glob("seed-*.json"))]
            for folder in sorted((RESULTS / "reports" / name).glob("*")) if folder.is_dir()}


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean and, where they differ as shown, the lowest and the highest."""
    values = list(values)
    if not values or None in values:
        return "-"
    mean, low, high = (f"{value:{form}}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def rows_of(lines: Sequence[Sequence[str]], *head: str) -> str | None:
    """A Markdown table; None without rows."""
    if not lines:
        return None
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _all_seeds(reports: Sequence[dict], *keys: str) -> list[dict]:
    """What every report has under `keys`; nothing where one of them has none."""
    found = []
    for report in reports:
        part = report
        for key in keys:
            part = (part or {}).get(key)
        if part is None:
            return []
        found.append(part)
    return found


def _baselines(reports: Sequence[dict], key: str) -> list[dict]:
    """A baseline's figures in all reports, at its own threshold from eval where it has one."""
    return [{**found, **(found.get("at_threshold") or {})} for found in _all_seeds(reports, "baselines", key)]


# ------------------------------------------------------------------------------------------------ the tables


def front() -> str | None:
    """README's first table: means over the seeds, TF-IDF and all others at thresholds from eval."""
    held_out, rows = reports_on("held_out"), []
    for model, reports in held_out.items():
        article = reports_on("eval0819").get(model, [])
        judged = {f"**{model}**, {len(reports)} seeds": (reports, article, _all_seeds(reports, "ordinary"))}
        for key, said in BASELINES.items():
            judged[said] = (_baselines(reports, key), _baselines(article, key),
                            _all_seeds(reports, "ordinary", "baselines", key, "at_threshold"))
        for said, (ours, theirs, talk) in judged.items():
            if ours:
                figures = [_mean(found, key) for found in (ours, theirs) for key in ("f1", "average_precision")]
                alarms = [_mean(_all_seeds(talk, "by_source", source), "false_alarms_per_hundred_calls", ".0f")
                          for source in ("kdconv", "sample_ordinary_judge")]
                rows.append([said, *figures, *alarms])
    counts = ARTICLE["tp"] / (ARTICLE["tp"] + (ARTICLE["fp"] + ARTICLE["fn"]) / 2)
    rows.append(["the article, as published", "-", "-", f"{counts:.3f}", "-", "-", "-"])
    return rows_of(rows, "model", "held-out F1", "AP", "eval0819 F1", "AP", "alarms per 100 chats (KdConv)",
                   "per 100 ordinary calls of unseen kinds")


def _mean(found: Sequence[dict], key: str, form: str = ".3f") -> str:
    return f"{statistics.fmean(row[key] for row in found):{form}}" if found else "-"


def results() -> str | None:
    """Model and baselines on every set, means of the seeds with the lowest and the highest."""
    precision, recall = (ARTICLE["tp"] / (ARTICLE["tp"] + ARTICLE[other]) for other in ("fp", "fn"))
    f1 = 2 * precision * recall / (precision + recall)
    rows = []
    for name, title in SETS.items():
        if name == "article_eval0819":
            rows.append([title, "as published", "-", f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", "-", "-"])
        for model, reports in reports_on(name).items():
            judged = {f"**{model}**": reports, **{said: _baselines(reports, key) for key, said in BASELINES.items()}}
            alarms = {f"**{model}**": _all_seeds(reports, "ordinary", "all"),
                      **{said: _all_seeds(reports, "ordinary", "baselines", key, "at_threshold", "all")
                         for key, said in BASELINES.items()}}
            rows += [[title, said, str(len(found)), *(spread(row[key] for row in found) for key in FIGURES),
                      spread((row["false_alarms_per_hundred_calls"] for row in alarms[said]), ".1f")]
                     for said, found in judged.items() if found]
    return rows_of(rows, "judged on", "model", "seeds", "precision", "recall", "F1", "average precision",
                   "false alarms per 100 ordinary calls")


def leads() -> str | None:
    """The model minus each baseline, and in how many seeds the paired interval excludes zero."""
    rows = []
    for name, title in SETS.items():
        for model, reports in reports_on(name).items():
            for key, said in BASELINES.items():
                found = _baselines(reports, key)
                if found:
                    rows.append([title, model, said, *(_lead([row[f"model_{figure}_minus_this"] for row in found])
                                                       for figure in ("f1", "average_precision"))])
    return rows_of(rows, "judged on", "model", "minus", "F1, better in", "average precision, better in")


def _lead(found: Sequence[dict]) -> str:
    better = sum(row["interval"] is not None and row["interval"][0] > 0 for row in found)
    return f"{statistics.fmean(row['value'] for row in found):+.3f}, {better}/{len(found)} seeds"


def seeds() -> str | None:
    """Every seed's F1 and its difference to TF-IDF, with intervals."""
    rows = []
    for name, title in SETS.items():
        for model, reports in reports_on(name).items():
            for seed, report in enumerate(reports):
                tfidf = next(iter(_baselines([report], "tfidf")), {})
                differences = [compare.difference(tfidf[key]) if key in tfidf else "-"
                               for key in ("model_f1_minus_this", "model_average_precision_minus_this")]
                low, high = report["intervals"]["f1"]
                rows.append([title, model, str(seed), f"{report['f1']:.3f} ({low:.3f} to {high:.3f})", *differences])
    return rows_of(rows, "judged on", "model", "seed", "F1", "F1 minus TF-IDF's", "average precision minus TF-IDF's")


def ordinary() -> str | None:
    """False alarms in ordinary talk by source: model and baselines, at thresholds from eval."""
    rows = []
    for model, reports in reports_on("held_out").items():
        judged = {model: _all_seeds(reports, "ordinary"),
                  **{said: _all_seeds(reports, "ordinary", "baselines", key, "at_threshold")
                     for key, said in BASELINES.items()}}
        for said, found in judged.items():
            for source in (found[0]["by_source"] if found else ()):
                of_source = _all_seeds(found, "by_source", source)
                figures = (spread((row[f"false_alarms_per_hundred_{what}"] for row in of_source), ".1f")
                           for what in ("calls", "segments"))
                rows.append([source, said, *figures])
    return rows_of(rows, "source", "model", "false alarms per 100 calls", "per 100 segments")


def calls() -> str | None:
    """Whole calls of the held-out dialogues."""
    rows = []
    for model, reports in reports_on("held_out").items():
        found = _all_seeds(reports, "calls")
        if found:
            rows.append([model, *(spread(row[key] for row in found) for key in FIGURES)])
    return rows_of(rows, "model", "precision", "recall", "F1", "average precision")


def probes() -> str | None:
    """What changes of the held-out dialogues do to recall."""
    rows = []
    for model, reports in reports_on("held_out").items():
        for name in (_all_seeds(reports, "probes") or [{}])[0]:
            found = _all_seeds(reports, "probes", name)
            rows.append([model, name, spread(row["recall"] for row in found),
                         spread((row["change"]["recall"]["value"] for row in found), "+.3f")])
    return rows_of(rows, "model", "held-out dialogues, changed", "recall", "change of recall")


def _speed(name: str, table: Callable[[dict], str]) -> Callable[[], str | None]:
    def made() -> str | None:
        path = RESULTS / "speed" / f"{name}.json"
        if not path.is_file():
            return None
        report = _load(path)
        return f"{table(report)}\n\n{measured_on(report)}"
    return made


def measured_on(report: dict) -> str:
    """Device, versions and commit of a measurement, in a line."""
    made = report["provenance"]
    device = "a CPU" if report["device"] == "cpu" else report["device"]
    return (f"{made['model']} on {device}, torch {made['versions']['torch']}, transformers "
            f"{made['versions']['transformers']}, commit {made['commit'][:7]}.")


def quantization_table(report: dict) -> str:
    return rows_of([[name, f"{row['bits_per_weight']:.2f}", f"{row['relative_error']:.1%}", f"{row['weights_gib']:.2f}",
                     f"{row['load_seconds']:.1f}", _peak(row), _seconds(row)]
                    for name, row in report["quantization"].items()],
                   "base weights", "bits a weight", "error", "weights, GiB", "load, s", "peak of a step, GiB", "s")


def lengths_table(report: dict) -> str:
    return rows_of([[tokens, *(cell for loss in ("all_logits", "label_positions")
                               for cell in (_peak(row.get(loss)), _seconds(row.get(loss))))]
                    for tokens, row in report["lengths"].items()],
                   "tokens a row", "all logits, GiB", "s", "label positions, GiB", "s")


def _peak(step: dict | None) -> str:
    return "-" if not step or step["peak_gib"] is None else f"{step['peak_gib']:.1f}"


def _seconds(step: dict | None) -> str:
    return "-" if not step or step["seconds"] is None else f"{step['seconds']:.2f}"


def ablations_on_eval() -> str | None:
    path = RESULTS / "ablations.json"
    return ablations.table(_load(path)) if path.is_file() else None


TABLES: dict[str, Callable[[], str | None]] = {
    "front": front, "results": results, "leads": leads, "seeds": seeds, "ordinary": ordinary, "calls": calls,
    "probes": probes,
    "ablations": ablations_on_eval,
    "training": _speed("training", training.table),
    "training_parts": _speed("training_parts", training.table),
    "scoring": _speed("scoring", scoring.table),
    "several_gpus": _speed("several_gpus", several_gpus.table),
    "end_to_end": _speed("end_to_end", end_to_end.table),
    "quantization": _speed("steps", quantization_table),
    "lengths": _speed("steps", lengths_table),
}


# ------------------------------------------------------------------------------------------ the command line


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(page: str, name: str = "") -> str:
    """`page` with the tables that it names made anew; one whose results are not there says so.

    Raises:
        DataError: it names a table that there is not.
    """
    def made(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise DataError(f"{name}: no table {match[2]!r}; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]() or NOTHING}\n{match[3]}"
    return MARK.sub(made, page)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page would change")
    args = parser.parse_args(argv)
    changed = []
    for path in pages():
        page = path.read_text(encoding="utf-8")
        made = with_tables(page, path.name)
        if made != page:
            changed.append(path)
            if not args.check:
                write_text(path, made)
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {'differs from results/' if args.check else 'written'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
