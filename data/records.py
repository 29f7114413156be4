"""Read and write the two file formats of the project, strictly.

*Records* are JSONL, one object a line: ``input`` (str) and ``label`` (bool), optionally ``instruction``,
``case``, ``category``, ``fraud_speaker`` and ``source`` (str), ``position`` (the share of a dialogue that
comes before the segment, 0 to 1), and ``line_labels`` (of each line of ``input``, whether it is part of a fraud).
*Dialogues* are CSV, one spoken line a row: ``case, speaker, content, is_fraud``. Other formats are read where a
`Reading` asks for them. Nothing is coerced, dropped or defaulted in silence: a bad file raises `DataError`, whose
one line names the file, the line, the key and the remedy.
"""

import collections
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from .files import DataError, how_to_read, numbered_lines, write_text
from .formats import IDS, LAYOUTS, Reading, label_of, named_row, record_of
from .normalise import is_blank, normalise
from .sources import TABLE_SUFFIXES, Source, as_object, load_json, open_source, refuse_other, short, shown
from .speakers import split_lines

CSV_COLUMNS = tuple(LAYOUTS["dialogues"])
REQUIRED_KEYS = {"input": str, "label": bool}
OPTIONAL_KEYS = {"instruction": str, "case": str, "category": str, "fraud_speaker": str, "source": str,
                 "position": float, "line_labels": list}
KINDS = {str: "a string", bool: "true or false, without quotes", float: "a number", list: "a list of true and false"}
SHORTENED = re.compile(r"\d(\.\d+)?E\+\d+", re.IGNORECASE)  # a number of many digits, to Excel and pandas
NATIVE_DIALOGUES = Reading("dialogues")
NOT_OF_CALLS = ("line_labels", "fraud_speaker", "source")  # what nobody knows of them; where ordinary talk is from


@dataclass(frozen=True)
class Line:
    """One spoken line and whether it is part of a fraud."""

    speaker: str
    content: str
    is_fraud: bool


@dataclass(frozen=True)
class Dialogue:
    """One conversation; `case` is unique within a corpus, `category` is the kind of scam or of ordinary talk.

    One that is labelled as a whole has this label in all its lines, and its record in `call`.
    """

    case: str
    category: str
    lines: tuple[Line, ...]
    call: dict | None = field(default=None, hash=False)


@dataclass
class Skipped:
    """Named and counted: what a reader passed over although the file as a whole is good."""

    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.places.append(place)

    def __len__(self) -> int:
        return len(self.places)

    def summary(self, shown: int = 5) -> str:
        rest = f" and {len(self) - shown} more" if len(self) > shown else ""
        return f"skipped {len(self)}: " + "; ".join(self.places[:shown]) + rest


# ------------------------------------------------------------------------------------------------------- records


def read_records(path: str | Path, skipped: Skipped | None = None) -> list[dict]:
    """All records of a file; see `read_numbered_records`."""
    return [record for _, record in read_numbered_records(path, skipped)]


def read_numbered_records(path: str | Path, skipped: Skipped | None = None) -> list[tuple[int, dict]]:
    """(line number from 1, record) of all records of a file.

    Args:
        path: JSON Lines in UTF-8, with or without a byte-order mark, LF or CRLF.
        skipped: where to note rows whose ``input`` is empty. Without it that is an error.

    Raises:
        DataError: the file is missing, empty, of another format, or a row is not a good record.
    """
    skipped_rows = Skipped()
    records = []
    for number, record in record_rows(path):
        if isinstance(record, DataError):
            raise record
        if not is_blank(record["input"]):
            records.append((number, record))
        elif skipped is None:
            raise DataError(f"{path}:{number}: 'input' is empty; remove the line or give it a dialogue")
        else:
            skipped_rows.add(f"{path}:{number}: 'input' is empty")
    if not records:
        raise DataError(f"{path}: no records; " + ("'input' is empty in every row" if skipped_rows else
                                                   "expected one JSON object a line with 'input' and 'label'"))
    if skipped is not None:
        skipped.places += skipped_rows.places
    return records


def record_rows(path: str | Path, reading: Reading | None = None) -> Iterator[tuple[int, dict | DataError | None]]:
    """(line number, record) of each row; None where the row is empty, the error where it is not a good record."""
    if reading is None:
        refuse_other(path)
        for number, text in numbered_lines(path):
            yield number, _tried(f"{path}:{number}", lambda text: _native_record(path, text), text)
        return
    required = {"input": str} if reading.layout in ("texts", "turns") else REQUIRED_KEYS
    source = _opened(path, reading)
    for number, row in source.rows:
        if isinstance(row, dict):
            row = _tried(f"{path}:{number}",
                         lambda row: _checked(record_of(row, reading, source.is_table), required), row)
        yield number, row


def _native_record(path: str | Path, text: str) -> dict:
    value = load_json(text.rstrip("\r\n"))
    try:
        return _checked(value)
    except DataError as error:
        if isinstance(value, dict) and (not ("input" in value and isinstance(value.get("label"), bool))
                                        or any(type(value.get(key)) is int for key in IDS)):
            raise DataError(f"{error}; to read another format: {how_to_read(path)}") from None
        raise


def _opened(path: str | Path, reading: Reading) -> Source:
    return open_source(path, encoding=reading.encoding, delimiter=reading.delimiter, sheet=reading.sheet)


def _tried(place: str, read: Callable[[object], object], row: object) -> object:
    """What `read` makes of a row, or the error, which says where."""
    try:
        return read(row)
    except DataError as error:
        return DataError(f"{place}: {error}")


def _checked(value: object, required: Mapping[str, type] = MappingProxyType(REQUIRED_KEYS)) -> dict:
    """The record that `value` is.

    Raises:
        DataError: it is none; without a place.
    """
    record = _check_object(value, required, OPTIONAL_KEYS)
    if "line_labels" in record:
        _check_line_labels(record["line_labels"], record["input"])
    return record


def _check_line_labels(labels: list, dialogue: str) -> None:
    lines = dialogue.count("\n") + 1
    if len(labels) != lines:
        raise DataError(f"key 'line_labels' has {len(labels)} labels, 'input' has {lines} lines")
    for label in labels:
        if not isinstance(label, bool):
            raise DataError(f"key 'line_labels' must be {KINDS[list]}, found {shown(label)} in it")


def parse_object(text: str, *, required: Mapping[str, type], optional: Mapping[str, type] = MappingProxyType({})
                 ) -> dict:
    """The JSON object in `text`, with the keys it must and may have; others are let through.

    Raises:
        DataError: it is none, has a key twice or of another kind, or cannot be written again.
    """
    return _check_object(load_json(text.rstrip("\r\n")), required, optional)


def _check_object(value: object, required: Mapping[str, type], optional: Mapping[str, type]) -> dict:
    record = as_object(value)
    for key, kind in required.items():
        if key not in record:
            raise DataError(f"key '{key}' is missing; found: {short(', '.join(record)) or 'no keys'}")
        _check_kind(record[key], kind, key)
    for key, kind in optional.items():
        if key in record:
            _check_kind(record[key], kind, key)
    _check_writable(record)
    return record


def _check_kind(value: object, kind: type, key: str) -> None:
    # True is an int to Python, and JSON writes 0.0 as 0 as it likes.
    fits = isinstance(value, kind) or kind is float and type(value) is int
    if not fits:
        raise DataError(f"key '{key}' must be {KINDS[kind]}, found {shown(value)}")
    if key == "position" and not 0 <= value <= 1:
        raise DataError(f"key 'position' must be from 0 to 1, found {shown(value)}")


def _check_writable(record: Mapping[str, object]) -> None:
    """Python's JSON reader lets through what is neither JSON nor text: NaN, and half a surrogate pair (``\\ud800``)."""
    if why_not_writable(record) is None:  # all keys at once, and one by one where something is wrong
        return
    for key, value in record.items():
        why = why_not_writable({key: value})
        if why is not None:
            raise DataError(f"key {key!r} {why}")


def why_not_writable(record: Mapping[str, object]) -> str | None:
    """What keeps keys from being written as JSON; None where nothing does."""
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is not text"
    except ValueError:
        return "holds NaN or Infinity, which are not JSON"
    except RecursionError:
        return "is nested too deeply"
    return None


def write_records(path: str | Path, records: Iterable[dict]) -> None:
    """Write records as JSONL, atomically: the file is complete or untouched."""
    write_text(path, records_text(records))


def records_text(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def groups_of(records: Sequence[dict]) -> list[str] | None:
    """The dialogue that each record is a segment of, where all records say so."""
    return [record["case"] for record in records] if all(record.get("case") for record in records) else None


# ----------------------------------------------------------------------------------------------------- dialogues


def read_dialogues(path: str | Path, skipped: Skipped, reading: Reading | None = None) -> list[Dialogue]:
    """All dialogues of a table, or of every one in a folder (in name order); of `call_files` whole calls.

    A file's name without its suffix and without a trailing number such as ``(200)`` is its dialogues' category;
    their `case` becomes ``category/case``, since files number their cases independently. Of files that would share a
    case by this, as numbered downloads, it becomes ``category (number)/case``. Rows with an empty
    ``content`` or an empty ``is_fraud`` are noted in `skipped`, and a folder's tables that are not read; any other
    fault is an error.

    Args:
        path: without `reading` CSV in UTF-8 with commas; a folder's ``*.csv``.
        reading: how tables of another kind are to be read; then also a folder's ``*.tsv`` and ``*.xlsx``.
    """
    path = Path(path)
    if reading and reading.layout != "dialogues":
        raise DataError(f"{path}: --layout {reading.layout} gives records, dialogues are expected here; write "
                        f"--layout dialogues, for rows of {', '.join(CSV_COLUMNS)}, or make whole calls of it: "
                        f"{how_to_read(path)} --convert calls.jsonl")
    calls = [] if reading else call_files(path)
    if calls:
        _name_others(path, calls, (".jsonl",), skipped)
        return _calls(calls, skipped)
    if not path.is_dir():
        return _read_dialogue_file(path, skipped, reading)
    suffixes = TABLE_SUFFIXES if reading else (".csv",)
    files = sorted(file for file in path.iterdir()
                   if file.suffix.lower() in suffixes and not file.name.startswith((".", "~$")))  # Excel's lock files
    if not files:
        raise DataError(f"{path}: no {' '.join(f'*{suffix}' for suffix in suffixes)} files in this folder; expected "
                        f"columns {', '.join(CSV_COLUMNS)}; to look at other files: {how_to_read(path)}")
    _name_others(path, files, suffixes, skipped)
    read = {file: _read_dialogue_file(file, skipped, reading) for file in files}
    shared = _repeated_cases(read.values())
    for file, dialogues in read.items():
        if any(dialogue.case in shared for dialogue in dialogues):
            read[file] = [replace(dialogue, case=file.stem + dialogue.case.removeprefix(dialogue.category))
                          for dialogue in dialogues]
    for double in sorted(_repeated_cases(read.values())):
        raise DataError(f"{path}: two files hold the case {double!r}; rename one of the files")
    return [dialogue for dialogues in read.values() for dialogue in dialogues]


def call_files(path: str | Path) -> list[Path]:
    """The files of calls that are labelled as a whole: a ``.jsonl``, or those of a folder without CSV."""
    path = Path(path)
    files = [file for file in (sorted(path.iterdir()) if path.is_dir() else [path])
             if file.suffix.lower() in (".csv", ".jsonl") and not file.name.startswith(".")]
    return files if all(file.suffix.lower() == ".jsonl" for file in files) else []


def _name_others(path: Path, files: Sequence[Path], suffixes: Sequence[str], skipped: Skipped) -> None:
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        other = file.suffix.lower() in (*TABLE_SUFFIXES, ".xls", ".jsonl") or file.is_dir() and any(file.glob("*.csv"))
        if other and file not in files and not file.name.startswith((".", "~$")):
            skipped.add(f"{file}: not read; of a folder only its {' '.join(f'*{suffix}' for suffix in suffixes)} are")


def _calls(files: Iterable[Path], skipped: Skipped) -> list[Dialogue]:
    calls: dict[str, Dialogue] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        for number, record in read_numbered_records(file, skipped):
            case = record.get("case") or f"{file.stem}/{number}"
            call = {**record, "input": normalise(record["input"]), "case": case}
            if case in calls and all(call[key] == calls[case].call[key] for key in ("input", "label")):
                skipped.add(f"{file}:{number}: the case {case!r} again, word for word")
                continue
            if case in calls:
                raise DataError(f"{file}:{number}: the case {case!r} is there twice; a call is one record, all of it"
                                if file_of[case] == file else f"{file}:{number}: the case {case!r} is in "
                                f"{file_of[case]}, too; where it is another call, give it another case in one of them")
            file_of[case] = file
            lines = (Line(name or "", said, record["label"]) for name, said in split_lines(call["input"]))
            calls[case] = Dialogue(case, record.get("category", ""), tuple(lines), call)
    return list(calls.values())


def _repeated_cases(read: Iterable[list[Dialogue]]) -> set[str]:
    found = collections.Counter(dialogue.case for dialogues in read for dialogue in dialogues)
    return {case for case, count in found.items() if count > 1}


def _read_dialogue_file(path: Path, skipped: Skipped, reading: Reading | None) -> list[Dialogue]:
    lines: list[tuple[str, Line]] = []
    for number, row in dialogue_rows(path, reading):
        if isinstance(row, DataError):
            raise row
        if isinstance(row, str):
            skipped.add(f"{path}:{number}: {row}")
        else:
            lines.append(row)
    if not lines:
        raise DataError(f"{path}: no dialogue lines; expected rows of {', '.join(CSV_COLUMNS)}")
    return dialogues_of(path, lines)


def dialogues_of(path: str | Path, lines: Iterable[tuple[str, Line]]) -> list[Dialogue]:
    """The dialogues of one file from its lines and the cases that they belong to."""
    category = re.sub(r"\s*[(（]\d+[)）]$", "", Path(path).stem)
    lines_of_case: dict[str, list[Line]] = {}
    for case, line in lines:
        lines_of_case.setdefault(case, []).append(line)
    return [Dialogue(f"{category}/{case}", category, tuple(lines)) for case, lines in lines_of_case.items()]


def dialogue_rows(path: str | Path, reading: Reading | None = None
                  ) -> Iterator[tuple[int, tuple[str, Line] | DataError | str]]:
    """(line number, (case, line)) of each row; a string says why a row is passed over, an error what is wrong.

    Of the layout ``lines`` no line is fraud, since none has a label.
    """
    reading = reading or NATIVE_DIALOGUES
    source = _opened(path, reading)
    for number, row in source.rows:
        if isinstance(row, dict):
            row = _tried(f"{path}:{number}", lambda row: _dialogue_row(row, reading, source.is_table), row)
        yield number, "the row is empty" if row is None else row


def _dialogue_row(row: dict, reading: Reading, is_table: bool) -> tuple[str, Line] | str:
    row = named_row(row, reading)
    texts = {}
    for key in ("case", "speaker", "content"):
        value = str(row[key]) if type(row[key]) is int else row[key]
        if not isinstance(value, str):
            raise DataError(f"key '{reading.names[key]}' must be a string, found {shown(value)}")
        texts[key] = value.strip()
    if not texts["case"]:
        raise DataError(f"column '{reading.names['case']}' is empty; every line belongs to a dialogue: fill the column "
                        "down (where a CSV was made of merged cells, give the workbook itself)")
    if is_table and SHORTENED.fullmatch(texts["case"]):
        raise DataError(f"column '{reading.names['case']}' holds {texts['case']}, which a spreadsheet made of a longer "
                        "number, and of several the same; export the column as text")
    label = row["is_fraud"] if reading.layout == "dialogues" else False
    for key, empty in (("content", is_blank(texts["content"])),
                       ("is_fraud", label is None or isinstance(label, str) and not label.strip())):
        if empty:
            return f"column '{reading.names[key]}' is empty"
    is_fraud = label_of(label, reading, is_table, reading.names.get("is_fraud", ""))
    return texts["case"], Line(texts["speaker"], texts["content"], is_fraud)


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write dialogues of one category as CSV, atomically; `read_dialogues` gives them back."""
    text = io.StringIO(newline="")
    # Quoted, since csv takes a bare CR for the end of a row but does not quote it of its own accord.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(CSV_COLUMNS)
    for dialogue in dialogues:
        case = dialogue.case.removeprefix(f"{dialogue.category}/")
        for line in dialogue.lines:
            writer.writerow((case, line.speaker, line.content, line.is_fraud))
    write_text(path, text.getvalue())
