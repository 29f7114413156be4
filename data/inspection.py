"""What a file of data is, what it would become, and what is wrong with it: ``python -m data.prepare --inspect FILE``.

Only here, by `guesses`, is anything guessed, and what is guessed is printed as options: encoding, delimiter, layout,
columns and the meaning of labels. Reading for training and evaluation takes the options and guesses nothing.
"""

import argparse
import collections
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .command import command
from .convert import (
    SHOWN_ROWS,
    calls_of,
    conversion,
    convert,
    join_warnings,
    label_warnings,
    numbers_of,
    spoken_lines,
    suffixes_of,
    whole_calls,
)
from .files import DataError, grouped, how_to_read
from .formats import (
    DELIMITERS,
    GOOD_NAMES,
    LAYOUTS,
    LINES,
    SYNONYMS,
    Reading,
    add_reading_options,
    asked,
    meaning_of,
)
from .guesses import calls_of_rows, delimiter_of, encoding_of, layout_of, like_labels, meanings_of
from .normalise import is_blank
from .records import dialogue_rows, dialogues_of, record_rows
from .sources import SUFFIXES, WORKBOOK, Source, open_source, read_bytes, refuse_transcript, short, workbook_sheets

SHOWN_PROBLEMS, SHOWN_CHARACTERS = 20, 100
SAMPLE_ROWS = 1000  # that the layout and the columns are told from, with later ones that first fill a column


def inspect(path: str | Path, given: dict | None = None) -> dict:
    """What a file is and what reading it gives.

    Args:
        path: a file of any of the known kinds.
        given: fields of a `Reading` that are asked for; the others are found.

    Returns:
        ``kind`` (as `Source.kind`), ``encoding`` (None of a workbook), ``other_sheets`` (not read), ``columns``,
        ``reading``, ``options`` (none where it is of the project's own format), ``refused`` (why they are needed, where
        it is nearly so), ``becomes`` ("records" or "dialogues"), ``rows``, ``good``, ``label_words`` (how often which
        is written), ``skipped`` and ``problems`` (with places), ``warnings`` (of what may be read wrongly), ``first``
        (good rows, or calls), ``read`` (all records or dialogues); and of these ``labels`` (a dialogue is fraud if a
        line is), ``lengths``, ``duplicates`` (whose text appears before) and ``contradictions`` (texts with both
        labels).

    Raises:
        DataError: no such file, or one that is none of the known kinds.
    """
    reading, source, sample = find_reading(path, dict(given or {}))
    refused = _first_refused(path) if reading == Reading() and source.kind == "JSON Lines" else ""
    good, skipped, problems = _read_all(path, reading)
    sheets = workbook_sheets(path, read_bytes(path)) if reading.sheet else ()
    other_sheets = [name for name in sheets if name != reading.sheet]
    if not (good or skipped or problems):
        raise DataError(f"{path}: no rows in it; expected records or dialogues as in docs/data.md"
                        + f"; name another sheet with --sheet: {', '.join(other_sheets)}" * bool(other_sheets))
    read = dialogues_of(path, good) if reading.layout in LINES else good
    if reading.layout == "lines":
        read = calls_of(read, {})
    return {
        "path": str(path),
        "kind": source.kind,
        "encoding": None if source.kind == "Excel workbook" else reading.encoding,
        "other_sheets": other_sheets,
        "columns": list(dict.fromkeys(key for row in sample for key in row)),
        "reading": reading,
        "options": [] if _is_native(source, reading) and not refused else reading.options(),
        "refused": refused,
        "becomes": "dialogues" if reading.layout == "dialogues" else "records",
        "rows": len(good) + len(skipped) + len(problems),
        "good": len(good),
        "label_words": _label_words(sample, reading),
        "warnings": [*(join_warnings(spoken_lines(path, reading) if skipped else good, sample, reading)
                       if reading.layout in LINES else []), *_label_hints(sample, reading)],
        "first": (read if reading.layout == "lines" else good)[:SHOWN_ROWS],
        "skipped": skipped,
        "problems": problems,
        "read": read,
        **numbers_of(read),
    }


def _label_hints(sample: Sequence[dict], reading: Reading) -> list[str]:
    """One line for each column that may be the label where none is read."""
    key = "is_fraud" if reading.layout == "lines" else "label"
    is_read = reading.has_labels and (reading.layout != "turns" or any(reading.names["label"] in row for row in sample))
    return [] if is_read else [
        f"no label is read; where it is {column!r} ({', '.join(words)}): "
        f"{shlex.join(['--columns', f'{key}={column}'])}"
        + f" --label-values {meaning_of(words[0], {}, column)}" * bool(GOOD_NAMES.search(column))
        for column, words in like_labels(sample).items() if column not in reading.names.values()]


def _read_all(path: str | Path, reading: Reading) -> tuple[list, list[str], list[str]]:
    """(good rows, places of skipped rows, problems)."""
    good, skipped, problems = [], [], []
    try:
        rows = (dialogue_rows if reading.layout in LINES else record_rows)(path, reading)
        for number, row in tqdm(rows, desc="reading", unit=" rows", delay=2, disable=None):
            if isinstance(row, DataError):
                problems.append(str(row))
            elif row is None or isinstance(row, str):
                skipped.append(f"{path}:{number}: {row or 'the row is empty'}")
            elif isinstance(row, dict) and is_blank(row["input"]):
                skipped.append(f"{path}:{number}: 'input' is empty")
            else:
                good.append(row)
    except DataError as error:  # of the file from there on
        problems.append(str(error))
    return good, skipped, problems


def _is_native(source: Source, reading: Reading) -> bool:
    kind = {"records": "JSON Lines", "texts": "JSON Lines", "dialogues": "CSV"}.get(reading.layout)
    return source.kind == kind and reading == Reading(reading.layout)


def _first_refused(path: str | Path) -> str:
    """What is wrong, to `read_records`, with the first record that options would make readable; empty without one."""
    try:
        for (_, row), (_, asked) in zip(record_rows(path), record_rows(path, Reading())):
            if isinstance(row, DataError) and isinstance(asked, dict):
                return str(row).partition(f"; to read another format: {how_to_read(path)}")[0]
    except DataError:
        pass  # it is among the problems
    return ""


# -------------------------------------------------------------------------------------------------- the guessing


def find_reading(path: str | Path, given: dict) -> tuple[Reading, Source, list[dict]]:
    """(the reading that fits a file, its source, the rows that it was told from); what is `given` stays."""
    content = read_bytes(path)
    if content.startswith(WORKBOOK):
        given = {"sheet": _sheet(path, content), **given}
    else:
        given = {"encoding": encoding_of(path, content), **given}
        Reading(encoding=given["encoding"])  # refuses one that is unknown
        try:
            text = content.decode(given["encoding"]).removeprefix("\ufeff")
        except UnicodeError:
            raise DataError(f"{path}: not {given['encoding'].upper()}; leave --encoding away to find it") from None
        if text.lstrip()[:1] not in ("[", "{"):
            if "layout" not in given:
                refuse_transcript(path, text)
            given = {"delimiter": delimiter_of(text), **given}
    source = open_source(path, **{name: given[name] for name in ("encoding", "delimiter", "sheet") if name in given})
    sample, filled = [], {}
    with contextlib.suppress(DataError):  # it is among the problems when all is read
        for _, row in source.rows:
            if not isinstance(row, dict):
                continue
            new = {key for key, value in row.items() if value not in ("", None)} - filled.keys()
            if new or len(sample) < SAMPLE_ROWS:
                sample.append(row)
            filled |= dict.fromkeys(new)
    columns = dict.fromkeys(key for row in sample for key in row)
    known = [key for key in columns if key in filled or key in ("speaker", *SYNONYMS["speaker"])]  # no label to come
    asked_for = {name: key for key, name in given.get("columns", {}).items()}
    given = {"layout": layout_of([asked_for.get(key, key) for key in known],
                                 [{asked_for.get(key, key): value for key, value in row.items()} for row in sample]),
             **given}
    names = LAYOUTS[given["layout"]] if given["layout"] in LAYOUTS else {}
    found = {key: other for key, name in names.items() if name not in columns
             for other in [next((other for there in (filled, columns) for other in SYNONYMS.get(key, ())
                                 if other in there), None)] if other}
    if given["layout"] == "alpaca" and not any(row.get("input") for row in sample):
        found["input"] = "instruction"  # where all is in one text
    given["columns"] = {**found, **given.get("columns", {})}
    if given["layout"] not in LINES and "case" not in (*columns, *given["columns"]):
        given["columns"] |= calls_of_rows(sample, but=given["columns"].values())
    if "label_values" not in given:
        reading = Reading(**given)
        given["label_values"] = meanings_of(_label_words(sample, reading), source.is_table,
                                            reading.names.get(_label_key(reading), ""))
    return Reading(**given), source, sample


def _sheet(path: str | Path, content: bytes) -> str:
    """The first of several sheets that hold something; none has to be named where one does."""
    sheets = list(workbook_sheets(path, content))
    return sheets[0] if len(sheets) > 1 else ""


def _label_key(reading: Reading) -> str:
    return "is_fraud" if reading.layout == "dialogues" else "label"


def _label_words(sample: Sequence[dict], reading: Reading) -> dict[str, int]:
    """How often the file writes which label, where it is no boolean."""
    if reading.layout == "messages":
        last = [row[reading.names["messages"]][-1] for row in sample
                if isinstance(row.get(reading.names["messages"]), list) and row[reading.names["messages"]]]
        values = [message.get("content", message.get("value")) for message in last if isinstance(message, dict)]
    elif not reading.has_labels:
        values = []
    else:
        name = reading.names[_label_key(reading)]
        values = [row[name] for row in sample if name in row]
    return dict(collections.Counter(str(value).strip() for value in values
                                    if type(value) in (str, int, float) and str(value).strip()).most_common())


# ------------------------------------------------------------------------------------------------- for the reader


def describe(report: dict) -> str:
    """The report as text for a terminal."""
    reading = report["reading"]
    how = [report["kind"]]
    if report["encoding"]:
        how.append(report["encoding"].upper())
    if report["kind"] == "CSV":
        how.append("separated by " + next((name for name, d in DELIMITERS.items() if d == reading.delimiter),
                                          repr(reading.delimiter)))
    if reading.sheet:
        how.append(f"sheet {reading.sheet}")
    nothing = "none needed, it is of the format of this project" if report["read"] else "none found"
    lines = [f"{report['path']}: {', '.join(how)}",
             f"  keys or columns: {short(', '.join(report['columns']), 200) or 'none'}",
             f"  becomes: {report['becomes']}, layout {reading.layout}",
             f"  options: {shlex.join(report['options']) or nothing}"]
    if report["refused"]:
        lines.append(f"  without them: {report['refused']}")
    if report["other_sheets"]:
        lines.append(f"  other sheets, not read: {', '.join(report['other_sheets'])}")
    of_lines = {"speaker", "说话人", "发言人", "角色"} & set(report["columns"]) or "case" in reading.columns
    if reading.layout in ("records", "texts") and of_lines:
        lines.append("  each row is a dialogue of its own; where it is one line of a dialogue: --layout dialogues, or "
                     "--layout lines without labels, and --columns case=NAME for the column that names the dialogue")
    lines += _numbers(report)
    lines += [f"  {i}. {_row_text(row)}" for i, row in enumerate(report["first"], start=1)]
    for name in ("skipped", "problems"):
        found = report[name]
        if found:
            each = grouped(report["path"], found)
            rest = len(each) - SHOWN_PROBLEMS
            lines += [f"  {name}: {len(found)}", *(f"    {place}" for place in each[:SHOWN_PROBLEMS]),
                      *([f"    and {rest} others"] if rest > 0 else [])]
    return "\n".join(lines)


def _numbers(report: dict) -> list[str]:
    labels, lengths = report["labels"], report["lengths"]
    labelled = labels["fraud"] + labels["non-fraud"]
    lines = [f"  rows: {report['rows']}, of which {report['good']} can be read; {report['becomes']}: "
             f"{len(report['read'])}"]
    words = ", ".join(f"{short(word, 30)} ({count})" for word, count in list(report["label_words"].items())[:10])
    if words:
        lines.append(f"  labels as written, in the first {SAMPLE_ROWS} rows: {words}"
                     + "; of several kinds: check what each means" * (len(report["reading"].label_values) > 2))
    if report["read"]:
        lines += [f"  labels as read: {labels['fraud']} fraud, {labels['non-fraud']} non-fraud "
                  f"({labels['fraud'] / labelled:.1%} fraud)"
                  + f", {len(report['read']) - labelled} without a label" * (labelled < len(report["read"]))
                  if labelled else
                  "  no labels: only for evaluate.py --predict",
                  f"  characters: {lengths['min']} to {lengths['max']}, median {lengths['median']:g}",
                  f"  repeated: {report['duplicates']}; with both labels: {report['contradictions']}"]
    return lines


def _row_text(row: dict | tuple) -> str:
    if isinstance(row, dict):
        label = {True: "fraud    ", False: "non-fraud", None: "no label "}[row.get("label")]
        return f"{label}  {short(row['input'], SHOWN_CHARACTERS)}"
    case, line = row
    said = short(f"{case} | {line.speaker}: {line.content}", SHOWN_CHARACTERS)
    return f"{'fraud    ' if line.is_fraud else 'non-fraud'}  {said}"


# ------------------------------------------------------------------------------------------------------- commands


def is_asked_for(argv: Sequence[str] | None) -> bool:
    """Whether a command line is one of this module."""
    return any(word.split("=")[0] == "--inspect" for word in (sys.argv[1:] if argv is None else argv))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("--inspect", required=True, metavar="FILE", help="a file, or a folder for each of its files")
    parser.add_argument("--convert", metavar="OUT", help="write it in the project's own format: records and whole "
                                                         "calls as .jsonl, dialogues to train on as .csv")
    add_reading_options(parser)
    args = parser.parse_args(argv)
    paths = _files(args.inspect)
    if args.convert and len(paths) > 1:
        raise DataError(f"{args.inspect}: is a folder; --convert takes one file")
    faulty = False
    for path in paths:
        try:
            report = inspect(path, asked(args))
            if (args.convert or "").lower().endswith(".jsonl") or not report["good"]:
                report = whole_calls(report)
        except DataError as error:
            if len(paths) == 1:
                raise
            print(error)
            faulty = True
            continue
        try:
            following = convert(report, args.convert) if args.convert else ""
        finally:
            print(describe(report))
        faulty |= bool(report["problems"]) or not report["read"]
        of_labels = label_warnings(report["read"]) if report["becomes"] == "dialogues" else []
        for warning in [*report["warnings"], *of_labels]:
            print(f"  warning: {warning}")
        if args.convert:
            print(f"written to {args.convert}; next: {following}")
        elif report["read"] and not report["problems"]:
            if report["becomes"] == "dialogues":
                print(f"  to make whole calls of it: {conversion(report, '.jsonl')}")
            if report["options"]:
                print(f"  to convert it: {conversion(report, suffixes_of(report)[-1])}")
    return 2 if faulty else 0


def _files(path: str) -> list[Path]:
    if not Path(path).is_dir():
        return [Path(path)]
    there = sorted(file for file in Path(path).iterdir() if not file.name.startswith((".", "~$")))
    files = [file for file in there if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{path}: a folder without files that end in {', '.join(SUFFIXES)}; for a folder of "
                        "transcripts: \"Transcripts\" in docs/data.md")
    if len(files) < len(there):
        others = ", ".join(file.name for file in there if file not in files)
        print(f"{path}: passed over {short(others, 200)}; a file of another suffix is inspected if it is named itself")
    return files
