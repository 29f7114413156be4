"""A JSONL file of any size, read in chunks that are always cut in the same places, and the row in each of its lines."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.files import DataError
from data.normalise import is_blank
from data.records import parse_object

CHUNK_BYTES = 16 * 2**20  # a chunk ends here even if it has fewer rows: what bounds the memory
LONGEST_LINE = 16 * 2**20  # bytes; a longer line is an error, and is never held in memory whole
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


def parse_row(line: bytes | None) -> dict:
    """The row that a line of the input holds.

    Raises:
        DataError: it holds none that can be scored and written.
    """
    if line is None:
        raise DataError(f"longer than {LONGEST_LINE // 2**20} MiB")
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # joined files have several
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataError("blank line")
    row = parse_object(text, required={"input": str})
    if is_blank(row["input"]):
        raise DataError("'input' is empty")
    taken = [key for key in OWN_KEYS if key in row]
    if taken:
        raise DataError(f"key '{taken[0]}' is one that the output needs; rename it")
    return row
