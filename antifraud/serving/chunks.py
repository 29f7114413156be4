"""A JSONL file of any size, read in chunks that are always cut in the same places, and the row in each of its lines."""

import codecs
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.files import DataError, how_to_read
from data.normalise import is_blank
from data.records import parse_object, why_not_writable
from data.sources import as_object, load_json, refuse_other

CHUNK_BYTES = 16 * 2**20  # a chunk ends here even if it has fewer rows: what bounds the memory
LONGEST_LINE = 16 * 2**20  # bytes; a longer line is an error, and is never held in memory whole
TRIED_ROWS = 100  # of which one at least must be a row, or the file is of another format
OWN_KEYS = ("line", "error", "probability", "is_fraud", "windows", "window_lines")  # those of the output


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of the input, the first of them numbered `first`, up to the byte offset `end`.

    A line is None where it is longer than `LONGEST_LINE`.
    """

    first: int
    lines: list[bytes | None]
    end: int


def read_chunks(path: str | Path, batch_rows: int) -> Iterator[Chunk]:
    """The lines of a file, `batch_rows` or about `CHUNK_BYTES` at a time, always cut in the same places."""
    try:
        with open(path, "rb") as file:
            first, start, lines = 1, 0, []
            while (line := file.readline(LONGEST_LINE)):
                lines.append(None if _passes_longest(file, line) else line)
                if len(lines) == batch_rows or file.tell() - start >= CHUNK_BYTES:
                    yield Chunk(first, lines, file.tell())
                    first, start, lines = first + len(lines), file.tell(), []
            if lines:
                yield Chunk(first, lines, file.tell())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _passes_longest(file, line: bytes) -> bool:
    """Whether a line is longer than `LONGEST_LINE`; reads on to its end, and keeps nothing of that."""
    rest, longer = line, False
    while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
        rest = file.readline(LONGEST_LINE)
        longer = longer or bool(rest.strip(b"\r\n"))
    return longer


def require_rows(path: str | Path) -> None:
    """Refuses a file without rows, and one of another format, of which each line would be an error.

    One bad row among good ones, the first included, is an error of its own line alone.

    Raises:
        DataError: it says what the file is, or what is wrong with its first row, and the remedy.
    """
    lines = enumerate((line for chunk in read_chunks(path, TRIED_ROWS) for line in chunk.lines), start=1)
    filled = ((number, line) for number, line in lines if line is None or line.removeprefix(codecs.BOM_UTF8).strip())
    tried = [(number, _why_no_row(line)) for number, line in itertools.islice(filled, TRIED_ROWS)]
    n_bad = sum(why is not None for _, why in tried)
    if 2 * n_bad > len(tried):
        refuse_other(path)  # by what its first line looks like, which may be the bad one
    if not tried:
        raise DataError(f"{path}: no rows; expected one JSON object a line with 'input'")
    if n_bad == len(tried):
        number, why = tried[0]
        raise DataError(f"{path}:{number}: {why}; to read or convert it: {how_to_read(path)}")


def _why_no_row(line: bytes | None) -> str | None:
    try:
        _object_in(line)
    except DataError as error:
        return str(error)


def parse_row(line: bytes | None) -> dict:
    """The row that a line of the input holds.

    Raises:
        DataError: it holds none that can be scored and written.
    """
    row = _object_in(line)
    if is_blank(row["input"]):
        raise DataError("'input' is empty")
    taken = [key for key in OWN_KEYS if key in row]
    if taken:
        raise DataError(f"key '{taken[0]}' is one that the output needs; rename it")
    return row


def other_keys(line: bytes | None) -> dict:
    """What a line that cannot be scored says beside that, as its `id`; nothing where it holds no object."""
    with contextlib.suppress(DataError):
        return {key: value for key, value in as_object(load_json(_text_in(line))).items()
                if key not in OWN_KEYS and why_not_writable({key: value}) is None}
    return {}


def _object_in(line: bytes | None) -> dict:
    return parse_object(_text_in(line), required={"input": str})


def _text_in(line: bytes | None) -> str:
    if line is None:
        raise DataError(f"longer than {LONGEST_LINE // 2**20} MiB")
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # joined files have several
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataError("blank line")
    return text
