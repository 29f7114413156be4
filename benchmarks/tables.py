"""The tables of README.md and benchmarks/README.md, made from results/.

    python -m benchmarks.tables            # rewrites both between their <!-- table: NAME --> marks
    python -m benchmarks.tables --check    # exit code 1 where one differs from results/
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.bases import table as bases_table
from benchmarks.scoring import table as scoring_table
from benchmarks.training import table as training_table

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
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


def training_table_of(*names: str) -> str:
    """The recipes of the training benchmark, all of them or those named."""
    report = _load("training_benchmark")
    recipes = {name: report["recipes"][name] for name in names or report["recipes"]}
    provenance = report["provenance"]
    return (f"{training_table({'recipes': recipes})}\n\n" + _paragraph(
        f"One {report['device']}, one run, {provenance['rows']} rows a round, {_rounds(report)}. Commit "
        f"{provenance['commit'][:7]}."))


def _rounds(report: dict) -> str:
    """How often each recipe was measured."""
    most = max(len(runs) for runs in report["rounds"].values())
    return "one round" if most == 1 else f"medians of {most} rounds (the recipes below the first three: one)"


def training_reading() -> str:
    """What the training benchmark says."""
    recipes = _load("training_benchmark")["recipes"]
    article, small, fast = (recipes[name] for name in ("article", "small", "fast"))
    frugal, longest = recipes["fast_6_gb"], recipes["small_longest_rows"]

    def times(found: dict) -> str:
        return f"{found['samples_per_second'] / article['samples_per_second']:.1f} times"

    def gib(found: dict, kind: str = "allocated") -> str:
        return f"{found[f'peak_{kind}_gib']:.1f} GiB"

    return _paragraph(
        f"`small` allocates {gib(small)} where the article's recipe allocates {gib(article)}, reserves "
        f"{gib(small, 'reserved')} where that reserves {gib(article, 'reserved')}, and makes {times(small)} its "
        "samples a second, with the same paged optimiser; with the longest rows in every batch it allocates "
        f"{gib(longest)} and reserves {gib(longest, 'reserved')}. `fast` makes {times(fast)} the article's samples a "
        f"second in {gib(fast)}, and {times(frugal)} in {gib(frugal)} ({gib(frugal, 'reserved')} reserved) with "
        "`--tokens-per-pass 1024`, for a card of 6 GB. On a GPU like this an eager step lasts as long as the CPU needs "
        "to launch its kernels one by one; both recipes replay them as CUDA graphs. The first run on a machine "
        f"compiles, here {small['seconds_to_first_step']:.0f} s until the first step; the next finds it done "
        f"({fast['seconds_to_first_step']:.0f} s).")


def captured_reading() -> str:
    """Whether the fast path computes the same."""
    report, found = _load("training_benchmark"), _load("captured_gradients")
    return _paragraph(
        "On the same batches our loss differs from the model's own over all logits by at most "
        f"{report['max_loss_difference_on_the_same_batches']:.4f} (bf16). The gradients of the compiled, captured pass "
        f"differ from the eager one's by {found['captured']['gradients']:.1%} of their norm; those of the eager "
        "pass in "
        f"two halves, which is the same sum, by {found['in_two_halves']['gradients']:.1%}: that is what 16 bits do. "
        "With "
        "dropout, a small step along the gradient changes the loss by "
        f"{found['change_of_loss_over_promised_with_dropout']:.2f} of what the gradient promises; 1 would be exact.")


def scoring_methods() -> str:
    report = _load("scoring_benchmark")
    provenance = report["provenance"]
    return f"{scoring_table(report)}\n\n" + _paragraph(
        f"One {report['device']}, {report['methods']['score']['rows']} rows of {provenance['data']}, tokenising "
        "included, "
        f"commit {provenance['commit'][:7]}. Weights and adapter are random here, so that the last two columns say "
        "what "
        "rounding does to a model that is undecided; a trained one was not measured yet.")


def scoring_reading() -> str:
    methods = _load("scoring_benchmark")["methods"]
    fast, plain, generate = (methods[name] for name in ("score_merged_compiled", "score", "generate"))
    return _paragraph(
        f"Qwen2-1.5B's architecture, with random weights, scores {plain['rows_per_second']:.0f} rows a second on an "
        "H100 "
        f"in a plain pass, and {fast['rows_per_second']:,.0f} with `--fast`; writing the answers out, 8 at a time, "
        "gives "
        f"{generate['rows_per_second']:.1f}. `--fast` keeps the weights in 16 bit, merges the adapter into them and "
        "compiles the layers: for many rows, since compiling takes up to half a minute, and at the price of rounding, "
        f"which moved probabilities of that undecided model by up to {fast['max_probability_difference']:.2f}. See "
        "[`benchmarks/`](benchmarks).")


def quantization_table() -> str:
    lines = ["| base weights | bits a weight | error | weights, GiB | load, s | peak of a pass, GiB | pass, s |",
             "|---|---|---|---|---|---|---|"]
    for name, row in _load("studies")["quantization"].items():
        lines.append(f"| {name} | {row['bits_per_weight']:.2f} | {row['relative_error']:.1%} "
                     f"| {row['weights_gib']:.2f} | {row['load_seconds']:.1f} | {row['peak_gib']:.2f} "
                     f"| {row['seconds']:.2f} |")
    return "\n".join(lines)


def optimizers_table() -> str:
    lines = ["| optimiser | step, ms | state on the GPU, MiB | paged, MiB |", "|---|---|---|---|"]
    for name, row in _load("studies")["optimizers"].items():
        lines.append(f"| {name} | {1000 * row['seconds']:.1f} | {row['state_bytes_on_device'] / 2**20:.0f} "
                     f"| {row['state_bytes_managed'] / 2**20:.0f} |")
    return "\n".join(lines)


def lengths_table() -> str:
    lines = ["| tokens a row | all logits, GiB | s | label positions, GiB | s |", "|---|---|---|---|---|"]
    for tokens, row in _load("studies")["lengths"].items():
        cells = [f"{row[loss]['peak_gib']:.1f} | {row[loss]['seconds']:.2f}" if row.get(loss) else "- | -"
                 for loss in ("all_logits", "label_positions")]
        lines.append(f"| {tokens} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def lengths_reading() -> str:
    lengths = _load("studies")["lengths"]
    growth = {loss: (lengths["512"][loss]["peak_gib"] - lengths["64"][loss]["peak_gib"]) * 1024 / (512 - 64)
              for loss in ("all_logits", "label_positions")}
    return _paragraph(f"A token more in each of 16 rows costs {growth['all_logits']:.0f} MiB with the logits of all "
                      f"tokens, and {growth['label_positions']:.1f} MiB without them.")


def batch_sizes_table() -> str:
    lines = ["| rows | peak, GiB | pass, s | samples/s |", "|---|---|---|---|"]
    for rows, row in _load("studies")["batch_sizes"].items():
        lines.append(f"| {rows} | {row['peak_gib']:.1f} | {row['seconds']:.2f} | {row['samples_per_second']:.1f} |")
    return "\n".join(lines)


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
    "training": partial(training_table_of, "article", "plain", "small", "fast", "fast_6_gb"),
    "training_reading": training_reading,
    "training_all": training_table_of,
    "captured": captured_reading,
    "scoring": scoring_reading,
    "scoring_methods": scoring_methods,
    "quantization": quantization_table,
    "optimizers": optimizers_table,
    "lengths": lengths_table,
    "lengths_reading": lengths_reading,
    "batch_sizes": batch_sizes_table,
    "by_category": by_category_table,
    "scale_plan": scale_plan,
    "bases": bases,
}


def _paragraph(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def _load(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def with_tables(text: str) -> str:
    """`text` with what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` made anew."""
    def made(match: re.Match) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"
    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a page differs")
    args = parser.parse_args(argv)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = with_tables(text)
        if args.check and made != text:
            print(f"{page.relative_to(ROOT)} differs from results/: python -m benchmarks.tables", file=sys.stderr)
            return 1
        page.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
