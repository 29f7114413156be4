"""Read and write the two file formats of the project, strictly.

*Records* are JSONL, one object a line: ``input`` (str) and ``label`` (bool), optionally ``instruction``,
``case``, ``category``, ``fraud_speaker`` and ``source`` (str), ``position`` (the share of a dialogue that
comes before the piece, 0 to 1), and ``line_labels`` (of each line of ``input``, whether it is part of a fraud).
*Dialogues* are CSV, one spoken line a row: ``case, speaker, content, is_fraud``. Nothing is coerced, dropped
or defaulted in silence: a bad file raises `DataError`, whose one line names the file, the line, the key and
the remedy.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from .files import DataError, numbered_lines, write_text

CSV_COLUMNS = ("case", "speaker", "content", "is_fraud")
REQUIRED_KEYS = {"input": str, "label": bool}
OPTIONAL_KEYS = {"instruction": str, "case": str, "category": str, "fraud_speaker": str, "source": str,
                 "position": float, "line_labels": list}
KINDS = {str: "a string", bool: "true or false, without quotes", float: "a number", list: "a list of true and false"}
CSV_LABELS = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}


@dataclass(frozen=True)
class Line:
    """One spoken line and whether it is part of a fraud."""

    speaker: str
    content: str
    is_fraud: bool


@dataclass(frozen=True)
class Dialogue:
    """One conversation; `case` is unique within a corpus, `category` is the kind of scam or of honest talk."""

    case: str
    category: str
    lines: tuple[Line, ...]


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


# ---------------------------------------------------------------------------------------------- JSONL records


def read_records(path: str | Path, skipped: Skipped | None = None) -> list[dict]:
    """All records of a JSONL file; see `read_numbered_records`."""
    return [record for _, record in read_numbered_records(path, skipped)]


def read_numbered_records(path: str | Path, skipped: Skipped | None = None) -> list[tuple[int, dict]]:
    """(line number from 1, record) of all records of a JSONL file.

    Args:
        path: the file; UTF-8, with or without a byte-order mark, LF or CRLF.
        skipped: where to note records whose ``input`` is empty. Without it an empty ``input`` is an error.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or a line is not a good record.
    """
    records = []
    for number, text in numbered_lines(path):
        record = parse_record(text, f"{path}:{number}")
        if record["input"].strip():
            records.append((number, record))
        elif skipped is None:
            raise DataError(f"{path}:{number}: 'input' is empty; remove the line or give it a dialogue")
        else:
            skipped.add(f"{path}:{number}: 'input' is empty")
    if not records:
        raise DataError(f"{path}: no records; expected one JSON object a line with 'input' and 'label'")
    return records


def parse_record(text: str, place: str) -> dict:
    """One record from its JSON text; `place` (``path:line``) opens every error."""
    try:
        record = parse_object(text, required=REQUIRED_KEYS, optional=OPTIONAL_KEYS)
        if "line_labels" in record:
            _check_line_labels(record["line_labels"], record["input"])
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    return record


def _check_line_labels(labels: list, dialogue: str) -> None:
    lines = dialogue.count("\n") + 1
    if len(labels) != lines:
        raise DataError(f"key 'line_labels' has {len(labels)} labels, 'input' has {lines} lines")
    for label in labels:
        if not isinstance(label, bool):
            raise DataError(f"key 'line_labels' must be {KINDS[list]}, found {_kind(label)} in it")


def parse_object(text: str, *, required: Mapping[str, type], optional: Mapping[str, type] = MappingProxyType({})
                 ) -> dict:
    """The JSON object in `text`, with the keys it must and may have; others are let through.

    Raises:
        DataError: it is none, has a key twice or of another kind, or cannot be written again.
    """
    try:
        found = json.loads(text.rstrip("\r\n"), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise DataError("nested too deeply") from None
    except ValueError as error:  # a key twice; a number of 5,000 digits
        raise DataError(str(error)) from None
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, found {_kind(found)}")
    for key, kind in required.items():
        if key not in found:
            raise DataError(f"key '{key}' is missing")
        _check_kind(found[key], kind, key)
    for key, kind in optional.items():
        if key in found:
            _check_kind(found[key], kind, key)
    for key, value in found.items():
        _check_writable(key, value)
    return found


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {double!r} appears twice")
    return record


def _check_kind(value: object, kind: type, key: str) -> None:
    # True is an int to Python, and JSON writes 0.0 as 0 as it likes.
    fits = isinstance(value, kind) or kind is float and type(value) is int
    if not fits:
        raise DataError(f"key '{key}' must be {KINDS[kind]}, found {_kind(value)}")
    if key == "position" and not 0 <= value <= 1:
        raise DataError(f"key 'position' must be from 0 to 1, found {_kind(value)}")


def _kind(value: object) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    shown = json.dumps(value, ensure_ascii=True)
    name = {str: "the string", bool: "", type(None): ""}.get(type(value), "the number")
    return f"{name} {shown if len(shown) <= 40 else shown[:37] + '...'}".strip()


def _check_writable(key: str, value: object) -> None:
    """Python's JSON reader lets through what is neither JSON nor text: NaN, and half a surrogate pair (``\\ud800``)."""
    try:
        json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"key {key!r} holds half a surrogate pair, which is not text") from None
    except ValueError:
        raise DataError(f"key {key!r} holds NaN or Infinity, which are not JSON") from None
    except RecursionError:
        raise DataError(f"key {key!r} is nested too deeply") from None


def write_records(path: str | Path, records: Iterable[dict]) -> None:
    """Write records as JSONL, atomically: the file is complete or untouched."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def groups_of(records: Sequence[dict]) -> list[str] | None:
    """The dialogue that each record is a piece of, where all records say so."""
    return [record["case"] for record in records] if all("case" in record for record in records) else None


# ---------------------------------------------------------------------------------------------- CSV dialogues


def read_dialogues(path: str | Path, skipped: Skipped) -> list[Dialogue]:
    """All dialogues of a CSV file, or of every ``*.csv`` in a folder (in name order).

    A file's name without ``.csv`` and without a trailing count such as ``(200)`` is its dialogues' category;
    their `case` becomes ``category/case``, since files number their cases independently. Rows with an empty
    ``content`` or an empty ``is_fraud`` are noted in `skipped`; any other fault is an error.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_dialogue_file(path, skipped)
    files = sorted(path.glob("*.csv"))
    if not files:
        raise DataError(f"{path}: no *.csv files in this folder; expected columns {', '.join(CSV_COLUMNS)}")
    dialogues = [dialogue for file in files for dialogue in _read_dialogue_file(file, skipped)]
    cases = [dialogue.case for dialogue in dialogues]
    if len(set(cases)) < len(cases):
        double = next(case for case in cases if cases.count(case) > 1)
        raise DataError(f"{path}: two files hold the case {double!r}; rename one of the files")
    return dialogues


def _read_dialogue_file(path: Path, skipped: Skipped) -> list[Dialogue]:
    category = re.sub(r"\s*\(\d+\)$", "", path.stem)
    lines_of_case: dict[str, list[Line]] = {}
    for number, row in _csv_rows(path):
        place = f"{path}:{number}"
        if not row["case"].strip():
            raise DataError(f"{place}: column 'case' is empty; every line belongs to a dialogue")
        empty = [name for name in ("content", "is_fraud") if not row[name].strip()]
        if empty:
            skipped.add(f"{place}: column '{empty[0]}' is empty")
            continue
        if row["is_fraud"] not in CSV_LABELS:
            raise DataError(f"{place}: column 'is_fraud' must be True or False, found {row['is_fraud']!r}")
        line = Line(row["speaker"].strip(), row["content"].strip(), CSV_LABELS[row["is_fraud"]])
        lines_of_case.setdefault(row["case"].strip(), []).append(line)
    if not lines_of_case:
        raise DataError(f"{path}: no dialogue lines; expected rows of {', '.join(CSV_COLUMNS)}")
    return [Dialogue(f"{category}/{case}", category, tuple(lines)) for case, lines in lines_of_case.items()]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of each data row; a quoted field may span lines, the number is that of its last."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}:1: column '{missing[0]}' is missing; expected {', '.join(CSV_COLUMNS)}")
        double = [name for name in CSV_COLUMNS if reader.fieldnames.count(name) > 1]
        if double:
            raise DataError(f"{path}:1: column '{double[0]}' appears twice")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames)} columns; "
                                "quote contents that hold a comma")
            yield reader.line_num, row
    except csv.Error as error:
        # line_num is that of the last good row: an open quote swallows the rest, and it opens in the row after.
        raise DataError(f"{path}:{reader.line_num + 1}: not CSV ({error})") from None


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
