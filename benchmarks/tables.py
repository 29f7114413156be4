"""What do README.md and docs/ show of results/? Every table between its ``<!-- table: NAME -->`` and ``<!-- end -->``.

    python -m benchmarks.tables            # writes the tables anew
    python -m benchmarks.tables --check    # exit code 1 where a page differs from results/
"""

import argparse
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from antifraud.evaluation.calls import exact_interval
from antifraud.evaluation.metrics import rates
from benchmarks import ablations, end_to_end, scoring, several_gpus, training
from data.command import command
from data.files import DataError, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
ARTICLE = {"tn": 1143, "fp": 22, "fn": 215, "tp": 968}  # as published, on eval0819
SETS = {  # the folders of results/reports, in the order of the tables
    "held_out": "held-out dialogues", "held_out_calls": "held-out calls, read whole",
    "eval0819_apart": "eval0819, trained without its dialogues", "eval0819_onset": "eval0819, trained from onset",
    "eval0819": "eval0819", "scams_unseen": "our scams of kinds that train lacks"}
CALIBRATED = {name: SETS[name] for name in list(SETS)[:4]}  # each with a model or a calibration of its own
ARTICLE_SETS = {"article_split": "its own shuffled test", "article_eval0819": "eval0819"}  # trained by its recipe
FRONT_SETS = {"held_out": "held-out F1", "eval0819_apart": "eval0819 F1, its dialogues not in train",
              "eval0819": "eval0819 F1"}
PEERS = {"tfidf": "character TF-IDF", "tfidf_line_labels": "TF-IDF + line labels", "encoder": "fine-tuned encoder"}
SIMPLER = {"untuned": "the base, not tuned", "speaker_names": "TF-IDF of the speakers' names alone"}
CHANGES = {("change",): "its change", ("change_of_tfidf",): "TF-IDF: of recall",
           ("change_of_encoders", "encoder"): "encoder: of recall"}
PER_HUNDRED = "false_alarms_per_hundred_calls"
SOURCES = {  # of ordinary talk
    "kdconv": "chats (KdConv)",
    "crosswoz": "calls to a tourist service (CrossWOZ), a kind that train has",
    "sample_ordinary_judge": "our sample, kinds that train lacks",
    "sample_ordinary_train": "our sample, kinds that train has",
}
AP, ORDINARY_HEAD = "held-out average precision", ("alarms per 100 chats", "per 100 ordinary calls of unseen kinds")
IN_CHINESE = {  # cells of README's table
    "held-out F1": "未见过的对话 F1", "eval0819 F1, its dialogues not in train": "原文评测集 F1（训练里没有它的对话）",
    "eval0819 F1": "原文评测集 F1", AP: "未见过的对话平均精度",
    ORDINARY_HEAD[0]: "每百段闲聊误报", ORDINARY_HEAD[1]: "每百段新类型日常通话误报", "character TF-IDF": "字符 TF-IDF",
    "TF-IDF + line labels": "TF-IDF + 逐行标注", "fine-tuned encoder": "微调编码器",
    "the article, as published": "原文公布的结果", " seeds |": " 个种子 |", "| model |": "| 方法 |"}
NOTHING = "Nothing in results/ yet."
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reports_on(name: str) -> dict[str, list[dict]]:
    """By model, the reports of all seeds on one of `SETS`."""
    return {folder.name: [{"seed": path.stem[5:], **_load(path)} for path in sorted(folder.glob("seed-*.json"))]
            for folder in sorted((RESULTS / "reports" / name).glob("*")) if folder.is_dir()}


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def judged_on(sets: Mapping[str, str]) -> Iterator[tuple[str, str, list[dict]]]:
    """(title of a set, model, its reports there); the title names the model where a set has several."""
    for name, title in sets.items():
        found = reports_on(name)
        for model, reports in found.items():
            yield title if len(found) == 1 else f"{title}, {model}", model, reports


def under(reports: Iterable[dict], *keys: str) -> list[dict]:
    """What the reports have under `keys`; those that have nothing there are left out."""
    found = []
    for report in reports:
        for key in keys:
            report = (report or {}).get(key)
        found += [] if report is None else [report]
    return found


def baseline(reports: Sequence[dict], key: str) -> list[dict]:
    """A baseline's figures, at its own threshold from eval where it has one, and else at 0.5."""
    return [{**found, **(found.get("at_threshold") or {})} for found in under(reports, "baselines", key)]


def spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean and, where they differ as shown, the lowest and the highest."""
    values = list(values)
    if not values or None in values:
        return "-"
    mean, low, high = (f"{value:{form}}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def mean(values: Iterable[float | None], form: str = ".3f") -> str:
    return spread(values, form).partition(" ")[0]


def markdown(lines: Sequence[Sequence[str]], *head: str) -> str | None:
    """A Markdown table; None without rows."""
    rows = (f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
    return "\n".join(rows) if lines else None


def front() -> str | None:
    """README's first table: means over the seeds, all at thresholds from eval."""
    sets = {name: title for name, title in FRONT_SETS.items() if reports_on(name)}
    models = list(dict.fromkeys(model for name in sets for model in reports_on(name)))
    rows = []
    for model in models:
        reports = {name: reports_on(name).get(model, []) for name in sets}
        for key, said in PEERS.items() if model == models[0] else ():
            rows.append([said, mean(under(reports.get("held_out", []), "baselines", key, "average_precision")),
                         *(mean(row["f1"] for row in baseline(reports[name], key)) for name in sets),
                         *_alarms(under(reports.get("held_out", []), "ordinary", "baselines", key, "at_threshold"))])
        rows.append([f"**QLoRA, {model}**, {max(map(len, reports.values()))} seeds",
                     mean(under(reports.get("held_out", []), "average_precision")),
                     *(mean(row["f1"] for row in reports[name]) for name in sets),
                     *_alarms(under(reports.get("held_out", []), "ordinary"))])
    published = f"{rates(list(ARTICLE.values()))['f1']:.3f}"
    rows.append(["the article, as published", "-", *(published if name == "eval0819" else "-" for name in sets), *"--"])
    return markdown([row for row in rows if set(row[1:]) != {"-"}], "model", AP, *sets.values(), *ORDINARY_HEAD)


def front_zh() -> str | None:
    """The same for readers of Chinese."""
    return functools.reduce(lambda made, pair: made.replace(*pair), IN_CHINESE.items(), front() or "")


def _alarms(talk: Sequence[dict]) -> list[str]:
    return [mean((row[PER_HUNDRED] for row in under(talk, "by_source", source)), ".1f")
            for source in ("kdconv", "sample_ordinary_judge")]


def results() -> str | None:
    """Model and baselines on every set, means of the seeds with the lowest and the highest."""
    rows, rules = [], set()
    for title, model, reports in judged_on(SETS):
        rules |= set(map(_rule, under(reports, "calibration", "fitted_on")))
        judged = {said: baseline(reports, key) for key, said in (SIMPLER | PEERS).items()} | {f"**{model}**": reports}
        rows += [[title, said, str(len(found)), *(spread(row[key] for row in found)
                                                  for key in ("precision", "recall", "f1", "average_precision"))]
                 for said, found in judged.items() if found]
    made = markdown(rows, "judged on", "model", "seeds", "precision", "recall", "F1", "average precision")
    return made and f"{made}\n\nThresholds: {'; '.join(sorted(rules))}."


def _rule(calibration: dict) -> str:
    """How a threshold was found on the eval split."""
    bound = calibration.get("ordinary")
    return ", ".join(calibration["target"]).replace("_", " ").replace("f1", "F1") + " on eval" + (
        f" with at most {bound['at_most_per_hundred_calls']:g} alarms in 100 ordinary calls" if bound else "")


def article() -> str | None:
    """The article's recipe in our code, with generated answers, beside what it published."""
    figures = ("precision", "recall", "accuracy", "f1")
    published = rates(list(ARTICLE.values()))
    rows = [["eval0819, as published", "-", *(f"{published[key]:.3f}" for key in figures), "-"],
            *([title, str(len(reports)), *(spread(report[key] for report in reports) for key in figures),
               spread((report["unparsed"] for report in reports), ".0f")]
              for title, _, reports in judged_on(ARTICLE_SETS))]
    return markdown(rows, "judged on", "seeds", "precision", "recall", "accuracy", "F1", "answers that are neither")


def leads() -> str | None:
    """The model minus each peer, and in how many seeds the paired interval lies above or below zero."""
    rows = []
    for title, _, reports in judged_on(SETS):
        for key, said in PEERS.items():
            found = baseline(reports, key)
            if found:
                rows.append([title, said, *(cell for figure in ("f1", "average_precision")
                                            for cell in _lead(under(found, f"model_{figure}_minus_this")))])
    return markdown(rows, "judged on", "minus", "F1", "better in", "worse in", "average precision", "better in",
                    "worse in")


def _lead(found: Sequence[dict]) -> tuple[str, str, str]:
    intervals = [row["interval"] for row in found if row["interval"]]
    better, worse = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return mean((row["value"] for row in found), "+.3f"), f"{better}/{len(found)}", f"{worse}/{len(found)}"


def seeds() -> str | None:
    """Every seed's threshold, which lines count, F1 and average precision with intervals, and calibration error."""
    rows = [[title, report["seed"], f"{report['threshold']:.3f}", _lines(report.get("provenance", {})),
             *(_with_interval(report[key], report["intervals"][key]) for key in ("f1", "average_precision")),
             spread(under([report], "calibration", "after", "ece"))]
            for title, _, reports in judged_on(SETS) for report in reports]
    return markdown(rows, "judged on", "seed", "threshold", "lines that count", "F1", "average precision", "ECE")


def _with_interval(value: float | None, interval: Sequence[float] | None, form: str = ".3f") -> str:
    return "-" if None in (value, interval) else f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def _lines(made: dict) -> str:
    return f"{made['top_lines']}, {made['line_weight']:.0%}" if made.get("line_weight") else "-"


def line_rules() -> str | None:
    """F1 on eval by each rule that calibrating tried, at the threshold that was found with it."""
    found = [([title, report["seed"]], {_lines(rule): f"{rule['f1']:.3f}" for rule in tried})
             for title, _, reports in judged_on(CALIBRATED) for report in reports
             for tried in under([report], "calibration", "fitted_on", "line_rules")]
    rules = [rule for _, f1_by in found[:1] for rule in f1_by]
    return markdown([[*of, *map(f1_by.get, rules)] for of, f1_by in found], "calibrated for", "seed", *rules)


def differences() -> str | None:
    """Every seed's difference to every peer, with paired intervals."""
    rows = [[title, said, report["seed"], *(_difference(found[f"model_{figure}_minus_this"])
                                            for figure in ("f1", "average_precision"))]
            for title, _, reports in judged_on(SETS) for key, said in PEERS.items()
            for report in reports for found in baseline([report], key)]
    return markdown(rows, "judged on", "minus", "seed", "F1", "average precision")


def _difference(found: dict | None) -> str:
    return _with_interval(found["value"], found["interval"], "+.3f") if found else "-"


def ordinary() -> str | None:
    """False alarms in ordinary talk by source: model and peers, at thresholds from eval, with each seed's interval."""
    rows = []
    for _, model, reports in judged_on({"held_out": ""}):
        judged = {said: under(reports, "ordinary", "baselines", key, "at_threshold") for key, said in PEERS.items()}
        judged[f"**{model}**"] = under(reports, "ordinary")
        for source in sorted({source for talk in under(reports, "ordinary", "by_source") for source in talk}):
            for said, found in judged.items():
                of_source = under(found, "by_source", source)
                by_seed = [_with_interval(row[PER_HUNDRED], [100 * end for end in exact_interval(
                    row["alarmed_calls"], row["calls"])], ".1f") for row in of_source]
                if of_source:
                    rows.append([SOURCES.get(source, source), mean((row["calls"] for row in of_source), ".0f"), said,
                                 *(mean((row[f"false_alarms_per_hundred_{what}"] for row in of_source), ".1f")
                                   for what in ("calls", "segments")), "; ".join(by_seed)])
    return markdown(rows, "source", "calls", "model", "alarms per 100 calls", "per 100 segments",
                    "per 100 calls, seed by seed")


def calls() -> str | None:
    """Whole calls of the held-out dialogues: model and peers."""
    rows, counted = [], []
    for _, model, reports in judged_on({"held_out": ""}):
        of_model = under(reports, "calls")
        counted += of_model
        judged = {said: under(of_model, "baselines", key) for key, said in PEERS.items()} | {f"**{model}**": of_model}
        for said, found in judged.items():
            if found:
                better, worse = _lead(under(found, "model_average_precision_minus_this"))[1:]
                rows.append([said, *(spread(row[key] for row in found) for key in
                                     ("precision", "recall", "average_precision")),
                             *(spread(row["recall"] for row in under(found, "at_false_alarms_per_hundred", alarms))
                               for alarms in ("1", "5")),
                             "-" if found is of_model else f"{better}, {worse}"])
    made = markdown(rows, "model", "precision", "recall", "average precision", "recall at 1 false alarm per 100",
                    "at 5", "average precision of ours better, worse in")
    return made and f"{made}\n\n{_counted(counted)}"


def _counted(found: Sequence[dict]) -> str:
    """How many calls figures by call are of."""
    corpus, non_fraud, judged = ("/".join(sorted({str(value) for value in values})) for values in (
        (row["n"] for row in found), (row["tn"] + row["fp"] for row in found),
        (row.get("non_fraud_calls", row["tn"] + row["fp"]) for row in found)))
    return f"{corpus} calls a seed, {non_fraud} of them non-fraud; false alarms are counted in {judged} such calls."


def early_warning() -> str | None:
    """How early a call that goes on is found out: model and peers, thresholds from eval."""
    rows = []
    for _, model, reports in judged_on({"early_warning": ""}):
        for said, keys in ((PEERS["tfidf"], ["tfidf"]), (PEERS["encoder"], ["encoders", "encoder"]),
                           (f"**{model}**", [])):
            for of_seeds in zip(*under(reports, *keys, "at")):
                test = under(of_seeds, "test")
                rows.append([f"{of_seeds[0]['wanted_false_alarms_per_hundred']:g}", said, str(len(test)),
                             spread((row["false_alarms_per_hundred"] for row in test), ".1f"),
                             spread((row["false_alarms_per_hundred"] for row in under(of_seeds, "ordinary")), ".1f"),
                             spread(row["recall"] for row in test),
                             spread((quartiles[1] for quartiles in under(test, "share_of_dialogue")), ".0%")])
    return markdown(rows, "false alarms per 100 wanted", "model", "seeds", "false alarms per 100 on test",
                    "in ordinary calls", "recall", "half of those found by")


def probes() -> str | None:
    """What changes of the held-out dialogues do to the model and to the peers that were asked."""
    rows, shown = [], {}
    for _, _, reports in judged_on({"held_out": ""}):
        found = {name: under(reports, "probes", name) for of_seed in under(reports, "probes") for name in of_seed}
        shown = {of: said for of, said in CHANGES.items() if any(under(row, *of) for row in found.values())}
        rows += [[name, spread(seed["recall"] for seed in row),
                  *(spread((seed["value"] for seed in under(row, *of, figure)), "+.3f")
                    for of in shown for figure in ("recall", "f1"))] for name, row in found.items()]
    return markdown(rows, "held-out dialogues, changed", "recall",
                    *(head for said in shown.values() for head in (said, "of F1")))


def normaliser() -> str | None:
    """Accuracy on dialogues as other programs write them down, with and without the normaliser."""
    rows = []
    for _, _, reports in judged_on({"held_out": ""}):
        for name, said in (("line_ends_not_normalised", "CRLF, blanks at line ends"),
                           ("time_stamps_not_normalised", "a time before each speaker")):
            if without := under(reports, "probes", name):
                rows.append([said, *(spread(row["accuracy"] for row in found) for found in
                                     (reports, under(reports, "probes", "formatting"), without))])
    return markdown(rows, "written with", "accuracy as it was", "all changes, with the normaliser",
                    "this change, without it")


def _speed(name: str, table: Callable[[dict], str]) -> Callable[[], str | None]:
    def made() -> str | None:
        path = RESULTS / "speed" / f"{name}.json"
        if not path.is_file():
            return f"Not measured yet: there is no results/speed/{name}.json."
        report = _load(path)
        skipped = [f"Not measured: {name}, since {why}." for name, why in report.get("skipped", {}).items()]
        return "\n\n".join([table(report), *skipped, measured_on(report)])
    return made


def measured_on(report: dict) -> str:
    """Device, versions and commit of a measurement, in a line."""
    made = report["provenance"]
    device = "a CPU" if report["device"] == "cpu" else report["device"]
    return (f"{made['model']} on {device}, torch {made['versions']['torch']}, transformers "
            f"{made['versions']['transformers']}, commit {made['commit'][:7]}.")


def quantization_table(report: dict) -> str:
    return markdown([[name, f"{row['bits_per_weight']:.2f}", f"{row['relative_error']:.1%}",
                      f"{row['weights_gib']:.2f}", f"{row['load_seconds']:.1f}", *_step(row)]
                     for name, row in report["quantization"].items()],
                    "base weights", "bits a weight", "error", "weights, GiB", "load, s", "peak of a step, GiB", "s")


def lengths_table(report: dict) -> str:
    return markdown([[tokens, *_step(row.get("all_logits")), *_step(row.get("label_positions"))]
                     for tokens, row in report["lengths"].items()],
                    "tokens a row", "all logits, GiB", "s", "label positions, GiB", "s")


def _step(step: dict | None) -> list[str]:
    return [f"{step[key]:{form}}" if step and step[key] is not None else "-"
            for key, form in (("peak_gib", ".1f"), ("seconds", ".2f"))]


TABLES: dict[str, Callable[[], str | None]] = {
    **{made.__name__: made for made in (front, front_zh, results, article, leads, seeds, line_rules, differences,
                                        ordinary, calls, early_warning, probes, normaliser)},
    "ablations": lambda: ablations.table(_load(found)) if (found := RESULTS / "ablations.json").is_file() else None,
    **{name: _speed(name, benchmark.table) for name, benchmark in {
        "training": training, "scoring": scoring, "several_gpus": several_gpus, "end_to_end": end_to_end,
        "end_to_end_cpu": end_to_end}.items()},
    "lengths": _speed("steps", lengths_table), "quantization": _speed("steps", quantization_table),
}


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
            print(f"{path.relative_to(ROOT)}: {'differs from results/' if args.check else 'written'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
