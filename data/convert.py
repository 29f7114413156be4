"""What ``--inspect`` read, written in the project's own formats, and the commands that go on from there."""

import collections
import itertools
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .files import DataError, require_paths
from .formats import Reading
from .records import Dialogue, Line, dialogue_rows, dialogues_of, write_dialogues, write_records
from .sources import SUFFIXES, short
from .speakers import format_dialogue

LABELS_OF_CALLS = ("every dialogue has one label in all its lines, so the greeting of a fraud counts as fraud, too; "
                   "where this is the label of the call, convert the file to whole calls, a .jsonl: \"A label for the "
                   "whole call\" in docs/data.md")

SHOWN_ROWS = 10
# Of a line, as a column is called.
TIMES = re.compile("(开始|開始|起始|发言|發言|说话|說話|发送|發送|消息)?(时间|時間)(戳)?|序号|序號|句序|轮次|輪次|"
                   "time|timestamp|(start|begin|create)_?(time|timestamp)?(_?ms)?")
HALF_DAY = re.compile("[上下]午|[ap]m", re.IGNORECASE)  # whose numbers begin again at noon


def convert(report: dict, output: str | Path) -> str:
    """Writes an inspected file: records and whole calls as JSON Lines, dialogues to train on as CSV.

    Returns:
        the command that goes on with what was written; for whole calls with labels, to train on, also the one to score
        them.

    Raises:
        DataError: something is wrong with the file, or `output` is there already or has another suffix.
    """
    if report["problems"]:
        raise DataError(f"{report['problems'][0]} ({len(report['problems'])} problems in all; nothing was written)")
    if not report["good"]:
        raise DataError(f"{report['path']}: nothing to read in it; nothing was written")
    require_paths(report["path"], output)
    if Path(output).exists():
        raise DataError(f"{output}: already there; name another file, or remove it")
    suffix = Path(output).suffix.lower()
    if suffix not in suffixes_of(report):
        raise DataError(f"{output}: {report['becomes']} are written as {' or '.join(suffixes_of(report))}; name a file "
                        "that ends so")
    to_split = shlex.join(["python", "-m", "data.prepare", "--source", str(output), "--output", "DIR"])
    if suffix == ".csv":
        write_dialogues(output, report["read"])
        return to_split
    records = whole_calls(report)["read"]
    write_records(output, records)
    labels = {record.get("label") for record in records}
    what = ["--data", str(output)]
    if None in labels:
        what = ["--predict", str(output), "--output", str(Path(output).with_suffix(".answers.jsonl"))]
    scored = shlex.join(["python", "evaluate.py", "--model", "MODEL", "--checkpoint", "DIR", *what])
    if labels != {True, False}:
        return scored
    different = {(record["case"], record["input"], record["label"]) for record in records if record.get("case")}
    again = [case for case, count in collections.Counter(case for case, *_ in different).items() if count > 1]
    if again:
        return (f"{scored}\n  not to be split into train, eval and test: cases in several rows with other words or "
                f"labels: {len(again)}, as {short(again[0])!r}; make one row of each call")
    return f"{to_split}\n  or, to judge a model that is there: {scored}"


def suffixes_of(report: dict) -> tuple[str, ...]:
    """What an inspected file may be written as, what it becomes by itself last."""
    return (".jsonl", ".csv") if report["becomes"] == "dialogues" else (".jsonl",)


def conversion(report: dict, suffix: str) -> str:
    """The command that converts an inspected file to one of that suffix, to be pasted."""
    path = Path(report["path"])
    target = path.with_suffix(suffix)
    if any(path.with_suffix(other).exists() for other in SUFFIXES if other != path.suffix.lower()):
        target = path.with_name(f"{path.stem}-{path.suffix[1:]}{suffix}")  # or both would become the same file
    if target.exists():
        target = target.with_name(f"{target.stem}.native{suffix}")
    return shlex.join(["python", "-m", "data.prepare", "--inspect", str(path), *report["options"],
                       "--convert", str(target)])


def calls_of(dialogues: Iterable[Dialogue], labels: Mapping[str, bool]) -> list[dict]:
    """A record for each whole dialogue, under the number that its file gives it, with the label that `labels` knows."""
    return [{"input": format_dialogue([(line.speaker, line.content) for line in dialogue.lines]),
             **({"label": labels[dialogue.case]} if dialogue.case in labels else {}),
             "case": dialogue.case.removeprefix(f"{dialogue.category}/")} for dialogue in dialogues]


def whole_calls(report: dict) -> dict:
    """The report of labelled lines as that of the whole calls that a ``.jsonl`` has of them; any other as it is.

    The calls have the lines without a label, too: the label may be in the first line alone, or in a row without words
    above the lines.
    """
    if report["becomes"] != "dialogues" or report["problems"]:
        return report
    path, reading = report["path"], report["reading"]
    wordless = replace(reading, columns={**reading.columns, "content": reading.names["case"]})
    labelled = dialogues_of(path, [row for _, row in dialogue_rows(path, wordless) if isinstance(row, tuple)])
    rows = list(_unlabelled_rows(path, reading))
    lines = [row for _, row in rows if isinstance(row, tuple)]
    calls = calls_of(dialogues_of(path, lines),
                     {dialogue.case: any(line.is_fraud for line in dialogue.lines) for dialogue in labelled})
    return {**report, "becomes": "records", "good": len(lines), "first": calls[:SHOWN_ROWS], "read": calls,
            "skipped": [f"{path}:{number}: {row}" for number, row in rows if isinstance(row, str)], **numbers_of(calls)}


def spoken_lines(path: str | Path, reading: Reading) -> list[tuple[str, Line]]:
    """All lines of a table with the calls that they belong to, those without a label, too."""
    return [row for _, row in _unlabelled_rows(path, reading) if isinstance(row, tuple)]


def _unlabelled_rows(path: str | Path, reading: Reading) -> Iterator[tuple[int, tuple[str, Line] | DataError | str]]:
    columns = {key: name for key, name in reading.columns.items() if key != "is_fraud"}
    return dialogue_rows(path, replace(reading, layout="lines", columns=columns))


def numbers_of(read: Sequence[dict | Dialogue]) -> dict:
    """``labels``, ``lengths``, ``duplicates`` and ``contradictions`` of records or dialogues: see `inspect`."""
    texts, labels = list(map(_text, read)), list(map(_label, read))
    labels_of = collections.defaultdict(set)
    for text, label in zip(texts, labels):
        labels_of[text.strip()].add(label)
    return {"labels": {"fraud": labels.count(True), "non-fraud": labels.count(False)},
            "lengths": {"min": min(map(len, texts)), "median": statistics.median(map(len, texts)),
                        "max": max(map(len, texts))} if texts else {},
            "duplicates": len(texts) - len(labels_of),
            "contradictions": sum({True, False} <= labels for labels in labels_of.values())}


def _text(item: dict | Dialogue) -> str:
    return item["input"] if isinstance(item, dict) else "\n".join(line.content for line in item.lines)


def _label(item: dict | Dialogue) -> bool | None:  # None without one
    return item.get("label") if isinstance(item, dict) else any(line.is_fraud for line in item.lines)


def join_warnings(lines: Iterable[tuple[str, Line]], sample: Iterable[dict], reading: Reading) -> list[str]:
    """One line where two calls may have been joined, and one where lines are not as they were spoken.

    Args:
        lines: all of them with their calls, as they follow one another.
        sample: rows, with all their columns.
    """
    runs = collections.Counter(case for case, _ in itertools.groupby(case for case, _ in lines))
    again = [case for case, count in runs.items() if count > 1]
    warnings = [f"dialogues that go on after lines of others: {len(again)}, as {short(again[0])!r}; all lines of a "
                "number are joined: where it was given to two calls, make two numbers of it"] if again else []
    names = dict.fromkeys(name for row in sample for name in row)
    for name in filter(lambda name: TIMES.fullmatch(re.sub(r"[(（].*", "", name).strip().lower()), names):
        last, back = {}, {}
        for row in sample:
            case, text = str(row.get(reading.names["case"])), str(row.get(name))
            time = [] if HALF_DAY.search(text) else [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
            if time and time < last.get(case, time):
                back[case] = True
            last[case] = time or last.get(case, time)
        if back:
            return [*warnings, f"dialogues with lines that go back in the column {name!r}: {len(back)}, as "
                               f"{short(next(iter(back)))!r}; lines are joined as they stand in the file: where they "
                               "were spoken in another order, sort it first"]
    return warnings


def label_warnings(dialogues: Sequence[Dialogue]) -> list[str]:
    """One line where the labels of lines seem to be those of whole calls: in a fraud, all lines are fraud."""
    frauds = [dialogue.lines for dialogue in dialogues if any(line.is_fraud for line in dialogue.lines)]
    mixed = any(not line.is_fraud for lines in frauds for line in lines)
    return [LABELS_OF_CALLS] if not mixed and any(len(lines) > 1 for lines in frauds) else []
