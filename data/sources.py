"""What a file is, and its rows with their places: JSON Lines, JSON arrays, CSV in any encoding, Excel workbooks."""

import codecs
import csv
import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from .files import DataError, how_to_read, one_line, refuse_lfs_pointer, require_input
from .transcripts import SPEAKER

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
SUFFIXES = (*TABLE_SUFFIXES, ".json", ".jsonl")
SUBTITLES = (".srt", ".vtt", ".lrc")
WORKBOOK = b"PK\x03\x04"  # a zip archive, as any .xlsx is
WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|meta|table|\?xml)\b", re.IGNORECASE)
MOST_TITLES = 5  # rows, blank ones too
BLANK = re.compile("[\\s\ufeff]*")  # files that were joined have byte-order marks inside


@dataclass(frozen=True)
class Source:
    """The rows of one file with their numbers: as objects, None for a row that is empty, an error for a bad one."""

    kind: str  # "JSON Lines", "JSON objects", "JSON array", "CSV" or "Excel workbook"
    rows: Iterator[tuple[int, dict | DataError | None]]

    @property
    def is_table(self) -> bool:
        return self.kind in ("CSV", "Excel workbook")


def read_bytes(path: str | Path) -> bytes:
    require_input(path)
    refuse_lfs_pointer(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    refuse_archive(path, content[:4096])
    return content


def refuse_archive(path: str | Path, head: bytes) -> None:
    """Refuses what is neither text nor a workbook of today."""
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError(f"{path}: is an old Excel or Word file; save it as .xlsx or as CSV")
    if head.startswith((b"\x1f\x8b", b"PAR1", b"%PDF", b"7z\xbc\xaf", b"Rar!")):
        raise DataError(f"{path}: is an archive or a document, not text; unpack or export it as JSON, CSV or .xlsx")
    if WEB_PAGE.match(head):
        raise DataError(f"{path}: is a web page or XML, which some programs save as an .xls; open it in Excel and save "
                        "it as .xlsx or as CSV")


def refuse_other(path: str | Path) -> None:
    """Refuses a file that cannot be JSON Lines of records, and says what it is and how to read it."""
    refuse_lfs_pointer(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return  # who reads it says what is wrong
    refuse_archive(path, head)
    remedy = f"expected JSON Lines, one object a line; to read or convert it: {how_to_read(path)}"
    if head.startswith(WORKBOOK):
        raise DataError(f"{path}: is an Excel workbook or another archive, {remedy}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16, expected UTF-8 and JSON Lines; to read or convert it: {how_to_read(path)}")
    first = next((line for line in head.removeprefix(codecs.BOM_UTF8).splitlines() if line.strip()), b"").lstrip()
    if first.startswith(b"["):
        raise DataError(f"{path}: is a JSON array, {remedy}")
    if first.strip() == b"{":
        raise DataError(f"{path}: has an object over several lines, {remedy}")
    names = first.decode("gb18030" if not _is_utf8(first) else "utf-8", "replace").strip()
    if not names.startswith("{") and b"\0" in head:
        raise DataError(f"{path}: is not text, or is UTF-16 without its mark; to read or convert it: "
                        f"{how_to_read(path)}")
    if not names.startswith("{") and re.search("[,;\t]", names):
        raise DataError(f"{path}: seems to be a table with the columns {short(names)}, {remedy}")


def refuse_transcript(path: str | Path, text: str) -> None:
    """Refuses a text that is no table, but the lines of one dialogue."""
    suffix, first = Path(path).suffix.lower(), text.lstrip().split("\n", 1)[0]
    if suffix in SUBTITLES or suffix == ".txt" and (SPEAKER.match(first) or first and not re.search("[,;|\t]", first)):
        raise DataError(f"{path}: is the transcript of one dialogue, not a table; \"Transcripts\" in docs/data.md "
                        "makes JSON Lines of a folder of them")


def _is_utf8(content: bytes) -> bool:
    try:
        return content.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def open_source(path: str | Path, *, encoding: str = "utf-8", delimiter: str = ",", sheet: str = "") -> Source:
    """The rows of a file, whatever of the known kinds it is.

    Raises:
        DataError: it cannot be read as a whole; a row that cannot be read is an error among the rows.
    """
    content = read_bytes(path)
    if content.startswith(WORKBOOK):
        return Source("Excel workbook", _table_rows(path, _sheet_cells(path, content, sheet), pad=True))
    try:
        text = content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeError as error:
        place = f"{path}:{content[:error.start].count(10) + 1}" if isinstance(error, UnicodeDecodeError) else path
        raise DataError(f"{place}: not {encoding.upper()}; to find the encoding: {how_to_read(path)}") from None
    text = text.removeprefix("\ufeff")
    start = text.lstrip()[:1]
    if start == "[":
        return Source("JSON array", _array_rows(path, text))
    if start == "{":
        is_lines = _is_json(text.split("\n", 1)[0]) or not _is_json(text, begins=True)
        return Source("JSON Lines", _line_rows(path, text)) if is_lines else Source(
            "JSON objects", _object_rows(path, text))
    return Source("CSV", _table_rows(path, _csv_cells(path, text, delimiter)))


# ------------------------------------------------------------------------------------------------------------ JSON


def load_json(text: str) -> object:
    """The value in `text`; a key that appears twice, among others, is a `DataError` without a place."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise DataError("nested too deeply") from None
    except ValueError as error:  # a key twice; a number of 5,000 digits
        raise DataError(str(error)) from None


def _is_json(text: str, begins: bool = False) -> bool:
    """Whether `text` is a JSON value, or `begins` with one."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[1] == len(text.strip()) or begins
    except (ValueError, RecursionError):
        return False


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {double!r} appears twice")
    return record


def _line_rows(path: str | Path, text: str) -> Iterator[tuple[int, dict | DataError]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, as_object(load_json(line.strip("\ufeff\r")))
            except DataError as error:
                yield number, DataError(f"{path}:{number}: {error}")


def _object_rows(path: str | Path, text: str) -> Iterator[tuple[int, dict | DataError]]:
    """Each of objects that follow one another, over several lines or several in one, with the line it begins in."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    start, line, end = 0, 1, 0
    while (start := BLANK.match(text, end).end()) < len(text):
        line += text.count("\n", end, start)
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not JSON ({one_line(error)})") from None
        yield line, value if isinstance(value, dict) else DataError(
            f"{path}:{line}: expected a JSON object, found {shown(value)}")
        line += text.count("\n", start, end)


def as_object(value: object) -> dict:
    if not isinstance(value, dict):
        remedy = '; a text alone is written {"input": TEXT}' if isinstance(value, str) else ""
        raise DataError(f"expected a JSON object, found {shown(value)}{remedy}")
    return value


def _array_rows(path: str | Path, text: str) -> Iterator[tuple[int, dict | DataError]]:
    """Each element of an array with the line that it begins in."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    position = text.index("[")
    line = 1 + text.count("\n", 0, position)
    expected = "["
    while True:
        start = BLANK.match(text, position + 1).end()
        line += text.count("\n", position, start)
        if expected == "[" and text[start:start + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not a JSON array ({one_line(error)})") from None
        try:
            yield line, as_object(value)
        except DataError as error:
            yield line, DataError(f"{path}:{line}: {error}")
        line += text.count("\n", start, end)
        position = BLANK.match(text, end).end()
        line += text.count("\n", end, position)
        expected = text[position:position + 1]
        if expected == "]":
            return
        if expected != ",":
            raise DataError(f"{path}:{line}: not a JSON array (expected a comma or a closing bracket)")


# ---------------------------------------------------------------------------------------------------------- tables


csv.field_size_limit(2**24)  # a dialogue in a cell may be as long as one in JSON; Python's limit is 128 KiB


def _csv_cells(path: str | Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row; a quoted cell may span lines, the number is that of its last."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    last_good = 0
    try:
        for cells in reader:
            last_good = reader.line_num
            yield last_good, cells
    except csv.Error as error:  # an open quote swallows the rest; it opens in the row after the last good one
        raise DataError(f"{path}:{last_good + 1}: not CSV ({error}); a cell that begins with a quote ends with one, "
                        "and quotes in it are doubled") from None


@lru_cache(1)  # --inspect asks three times, and a thousand rows take a tenth of a second
def workbook_sheets(path: str | Path, content: bytes) -> dict:
    """The sheets of an Excel workbook that hold something, by name."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(f"{path}: is an Excel workbook; to read it: pip install openpyxl (or save it as CSV)") from None
    try:
        with tqdm.wrapattr(io.BytesIO(content), "read", total=len(content), desc=Path(path).name, delay=2,
                           disable=None) as file:
            sheets = openpyxl.load_workbook(file, data_only=True).worksheets
    except Exception as error:  # a zip file of any other kind fails anywhere in there
        raise DataError(f"{path}: an archive, but not an Excel workbook ({one_line(error)}); unpack it") from None
    return {sheet.title: sheet for sheet in sheets if sheet.max_row > 1 or sheet["A1"].value is not None}


def _sheet_cells(path: str | Path, content: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    sheets = workbook_sheets(path, content)
    if name and name not in sheets:
        raise DataError(f"{path}: no sheet {name!r}; found: {', '.join(sheets) or 'none that holds anything'}")
    if len(sheets) > 1 and not name:
        raise DataError(f"{path}: several sheets: {', '.join(sheets)}; name one, as in --sheet "
                        f"{shlex.quote(next(iter(sheets)))}")
    for sheet in [sheets[name]] if name else sheets.values():
        merged = {(row, area.min_col): sheet.cell(area.min_row, area.min_col).value  # Excel keeps the first alone
                  for area in sheet.merged_cells.ranges for row in range(area.min_row + 1, area.max_row + 1)}
        begin = _last_heading(sheet) + 1
        for number, row in enumerate(sheet.iter_rows(min_row=begin, values_only=True), start=begin):
            yield number, [_cell_text(merged.get((number, column), value)) for column, value in enumerate(row, start=1)]


def _last_heading(sheet) -> int:
    """The last row above the names of the columns in which a cell is merged over several of them; 0 without one."""
    last = 0
    filled = [{column for column, value in enumerate(row, start=1) if value is not None}
              for row in islice(sheet.iter_rows(values_only=True), 2 * MOST_TITLES)]
    for number, columns in enumerate(filled, start=1):
        if len(columns) < 2:  # a title, or blank
            continue
        if not any(len(names.intersection(range(area.min_col, area.max_col + 1))) > 1
                   for area in sheet.merged_cells.ranges if area.min_row <= number <= area.max_row
                   for names in filled[area.max_row:area.max_row + 1]):
            break
        last = number
    return last


def _cell_text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        # Excel has no whole numbers, and of those above 15 digits it lost the rest.
        value = int(value) if abs(value) < 1e15 else f"{value:.14E}"
    return "" if value is None else str(value)


def _table_rows(path: str | Path, cells: Iterator[tuple[int, list[str]]], pad: bool = False
                ) -> Iterator[tuple[int, dict | DataError | None]]:
    """Rows under the names of the columns, the first row that holds anything but a title; `pad` where a row ends with
    its last filled cell.
    """
    names = None
    for number, row in _without_title(cells):
        if not any(cell.strip() for cell in row):
            if row and names:  # a blank line is nothing; a line of commas is a row
                yield number, None
        elif names is None:
            names = list(map(_column_name, row))
            double = next((name for name in names if name and names.count(name) > 1), None)
            if double:
                raise DataError(f"{path}:{number}: column '{double}' appears twice")
        elif len(row) == len(names) and all(_column_name(cell) == name for cell, name in zip(row, names)):
            yield number, DataError(f"{path}:{number}: the names of the columns again, as where files were joined; "
                                    "remove the row")
        else:
            yield number, _table_row(f"{path}:{number}", names, row + [""] * (len(names) - len(row)) * pad)


def _column_name(cell: str) -> str:
    """What names a column, without the line breaks of a narrow cell in Excel, which nobody can type in an option."""
    return re.sub(r"\s*[\r\n]\s*", "", cell.strip("\ufeff").strip())


def _without_title(cells: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """The rows without a title above the names of the columns, where that is sure.

    A title fills the first cell alone of a row that has several; the names, further down, fill more of them.
    """
    first = []
    for number, row in cells:
        first.append((number, row))
        filled = [place for place, cell in enumerate(row) if cell.strip()]
        if len(filled) > 1:
            first = first[-1:]
        if filled and (filled != [0] or len(row) == 1) or len(first) > MOST_TITLES:
            break
    yield from first
    yield from cells


def _table_row(place: str, names: Sequence[str], row: Sequence[str]) -> dict | DataError:
    while len(row) > len(names) and not row[-1].strip():
        row = row[:-1]
    if len(row) != len(names):
        title = ", or remove a title above the names of the columns" * (len(names) == 1)
        return DataError(f"{place}: expected {len(names)} columns, found {len(row)}; quote contents that hold the "
                         f"delimiter{title}")
    index = {"Unnamed: 0": row[0]} if not names[0] and row[0].strip() else {}  # of pandas, which calls it so
    unnamed = next((column for column, name in enumerate(names) if column and not name and row[column].strip()), None)
    if unnamed is not None:
        return DataError(f"{place}: something stands in column {unnamed + 1}, which has no name; the first row must "
                         "name it (remove a title above the names)")
    return index | {name: cell for name, cell in zip(names, row) if name}


# --------------------------------------------------------------------------------------------------- for messages


def printable(text: str) -> str:
    """`text` in one line, Chinese as Chinese, with escapes for what is not to be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def short(text: str, length: int = 80) -> str:
    text = printable(text)
    return text if len(text) <= length else text[:length - 3] + "..."


def shown(value: object) -> str:
    """A JSON value for a message, with its kind."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    name = {str: "the string", bool: "", type(None): ""}.get(type(value), "the number")
    return f"{name} {short(json.dumps(value, ensure_ascii=False), 40)}".strip()
