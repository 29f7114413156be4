"""The README's tables, made from results/.

    python -m benchmarks.tables            # rewrites README.md between its <!-- table: NAME --> marks
    python -m benchmarks.tables --check    # exit code 1 where README.md differs from results/
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bases import table as bases_table
from benchmarks.training import table as training_table

ROOT = Path(__file__).parents[1]
ARTICLE = {"tn": 1143, "fp": 22, "fn": 215, "tp": 968}  # as published, on eval0819


def results_table() -> str:
    """Precision, recall and F1 of the article, of the stand-in and of TF-IDF, with 95 % intervals where known."""
    precision, recall = (ARTICLE["tp"] / (ARTICLE["tp"] + ARTICLE[other]) for other in ("fp", "fn"))
    lines = ["| judged on | model | precision | recall | F1 | recall, speakers renamed |", "|---|---|---|---|---|---|",
             f"| the article's eval set | article: Qwen2-1.5B, QLoRA (published) | {precision:.3f} | {recall:.3f} "
             f"| {2 * precision * recall / (precision + recall):.3f} | not measured |"]
    for name, data in (("standin_eval0819", "the article's eval set"),
                       ("standin_split_by_case", "dialogues never seen, split by dialogue")):
        report = _load(name)
        lines.append(f"| {data} | stand-in (Gemma 3 270M, cut), this project | "
                     + " | ".join(_with_interval(report, metric) for metric in ("precision", "recall", "f1"))
                     + f" | {report['speakers_renamed']['recall']:.3f} |")
        tfidf = report["baselines"]["tfidf"]
        lines.append(f"| {data} | character TF-IDF, same train split | "
                     + " | ".join(f"{tfidf[metric]:.3f}" for metric in ("precision", "recall", "f1"))
                     + " | same text |")
    return "\n".join(lines)


def _with_interval(report: dict, metric: str) -> str:
    low, high = report["intervals"][metric]
    return f"**{report[metric]:.3f}** ({low:.3f} to {high:.3f})"


def reading() -> str:
    """What the results say, and what they do not."""
    held_out, eval0819 = _load("standin_split_by_case"), _load("standin_eval0819")
    seen = eval0819["overlap_with_train"]["rows_sharing_a_line"]
    difference = held_out["baselines"]["tfidf"]["model_f1_minus_this"]
    low, high = difference["interval"]
    verdict = "is better than TF-IDF" if low > 0 else "cannot be told apart from TF-IDF"
    names = held_out["baselines"]["speaker_names"]["f1"]
    agreement = _load("standin_generate")["agreement_of_methods"]
    return "\n".join([
        f"Read the article's eval set with care: {seen:.0%} of its rows share a whole line with our train split; both",
        f"come from one corpus. On dialogues that were held out, the stand-in **{verdict}** by F1",
        f"(difference {difference['value']:+.3f}, 95 % interval of the paired bootstrap {low:+.3f} to {high:+.3f}).",
        "The last column is what it does hold: who the speakers are called changes nothing. In this corpus the names",
        f"alone, without a word of what is said, reach F1 {names:.3f}. Scored and written answers agreed on",
        f"{agreement['agree']} of {agreement['rows']} test rows.",
    ])


def training_benchmark_table() -> str:
    report = _load("training_benchmark")
    steps, rounds = report["provenance"]["steps"], report["provenance"]["rounds"]
    return (f"{training_table(report)}\n\nMedians over {rounds} round(s) of {steps} timed steps on one "
            f"{report['device']}; few steps, so take the speeds as a first reading.")


def by_category_table() -> str:
    """Where the stand-in is right and wrong, by kind of dialogue, hardest first."""
    lines = ["| kind | rows | precision | recall | F1 |", "|---|---|---|---|---|"]
    rows = _load("standin_split_by_case")["by_category"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["f1"] or 0.0):
        if row["tp"] + row["fn"]:
            lines.append(f"| {name} | {row['n']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |")
        else:
            lines.append(f"| {name} (no fraud in it) | {row['n']} | {row['fp']} false alarms | - | - |")
    return "\n".join(lines)


def scale_plan() -> str:
    """What a hundred million dialogues would take at the measured rate, on paper."""
    report = _load("standin_split_by_case")
    rate = report["rows_per_second"]
    hours = 1e8 / rate / 3600
    return "\n".join([
        f"On paper: the stand-in scored {rate:.0f} rows a second on an {report['provenance']['device']} that two other",
        f"evaluations shared. A hundred million such rows are 1e8 / {rate:.0f} s = {hours:.0f} GPU-hours, or "
        f"{hours / 8:.1f} hours on eight GPUs,",
        "if reading and writing keep up; input and output are then about 100 GB and 10 GB at 1 kB and 100 bytes a row. "
        "Qwen2-1.5B's",
        "own rate is for you to measure: `--predict` prints it.",
    ])


def bases() -> str:
    return bases_table(_load("bases"))


TABLES = {
    "results": results_table,
    "reading": reading,
    "training": training_benchmark_table,
    "by_category": by_category_table,
    "scale_plan": scale_plan,
    "bases": bases,
}


def _load(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def with_tables(text: str) -> str:
    """`text` with what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` made anew."""
    def made(match: re.Match) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"
    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where README.md differs")
    args = parser.parse_args(argv)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if args.check:
        if with_tables(text) != text:
            print("README.md differs from results/: python -m benchmarks.tables", file=sys.stderr)
            return 1
        return 0
    readme.write_text(with_tables(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
