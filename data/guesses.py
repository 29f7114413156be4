"""What --inspect takes a file for: its encoding, delimiter and layout, whose rows are of one call, what labels mean."""

import contextlib
import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .files import DataError
from .formats import (
    ANSWERING,
    COUNTING,
    DELIMITERS,
    FRAUD_WORDS,
    GOOD_NAMES,
    LAYOUTS,
    PAIRS,
    SPEAKING,
    SYNONYMS,
    TABLE_LABELS,
    listed,
)

ENCODINGS = ("utf-8", "gb18030")
PRIVATE, BEYOND_ASCII = re.compile("[\ue000-\uf8ff]"), re.compile("[^\0-\x7f]")
MOST_WORDS = 5  # of a column of labels: 诈骗, 正常, 疑似


def encoding_of(path: str | Path, content: bytes) -> str:
    """The encoding of a text: by its byte-order mark, by its zero bytes, or the first that it is valid in."""
    encodings = ENCODINGS
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ("utf-16",)
    elif b"\0" in content:  # every other byte of ASCII is zero in UTF-16, and no byte is in a text otherwise
        encodings = ("utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be",)
    for encoding in encodings:
        try:
            text = content.decode(encoding)
            if "\0" not in text:
                return "big5hkscs" if encoding == "gb18030" and _is_big5(content, text) else encoding
            place = 1
        except UnicodeDecodeError as error:
            place = content[:error.start].count(b"\n") + 1
    raise DataError(f"{path}:{place}: not text in UTF-8, GB18030, Big5 or UTF-16; if it is one, save it as UTF-8")


def _is_big5(content: bytes, as_gb18030: str) -> bool:
    """Big5 is mostly valid GB18030, where about a third of its characters are for private use."""
    beginning = as_gb18030[:10_000]
    if len(PRIVATE.findall(beginning)) <= len(BEYOND_ASCII.findall(beginning)) / 8:
        return False
    with contextlib.suppress(UnicodeDecodeError):
        return bool(content.decode("big5hkscs"))
    return False


def delimiter_of(text: str) -> str:
    """The delimiter that gives the first rows of a table the same number of columns, and the most of them."""
    def fitness(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row, _ in zip(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), range(100))
                    if any(cell.strip() for cell in row)]
        except csv.Error:
            return 0, 0
        columns = len(rows[0]) if rows else 0
        return (sum(len(row) == columns for row in rows) / len(rows) if columns > 1 else 0), columns
    return max(DELIMITERS.values(), key=fitness)


def layout_of(columns: Sequence[str], sample: Sequence[dict]) -> str:
    """The layout that the keys or columns of a file speak of."""
    def has(key: str) -> bool:
        return key in columns or any(name in columns for name in SYNONYMS[key])
    speaking = SPEAKING if "text" in columns else (*SPEAKING, "start")  # of a recogniser, without all in one text
    messages = next((value for name in ("messages", *SYNONYMS["messages"]) for row in sample
                     for value in [listed(row.get(name))] if isinstance(value, list) and any(
                         isinstance(part, dict) and not part.keys().isdisjoint(speaking) for part in value)), None)
    if messages:
        last = messages[-1] if isinstance(messages[-1], dict) else {}
        return "messages" if (last.get("role") or last.get("from")) in ANSWERING and not has("label") else "turns"
    if "instruction" in columns and "output" in columns:
        return "alpaca"
    if all(map(has, LAYOUTS["lines"])) and (_return(columns, sample) or set(LAYOUTS["dialogues"]) <= set(columns)):
        return "dialogues" if has("is_fraud") else "lines"
    return "texts" if columns and has("input") and not has("label") else "records"


def _return(columns: Sequence[str], sample: Sequence[dict]) -> bool:
    """Whether the same case is there in several rows, or left out in some; otherwise each row is a whole dialogue."""
    name = next(name for name in ("case", *SYNONYMS["case"]) if name in columns)
    cases = {str("" if row.get(name) is None else row[name]).strip() for row in sample}
    return "" in cases or len(cases) < len(sample)


def calls_of_rows(sample: Sequence[dict], but: Collection[str]) -> dict[str, str]:
    """The column that names the call of each row, as ``case``, where a call has several rows; else nothing."""
    for name in SYNONYMS["case"]:
        calls = [] if name in (*but, *COUNTING) else [row.get(name) for row in sample]
        if calls and all(calls) and {*map(type, calls)} <= {str, int} and len({*calls}) < len(calls):
            return {"case": name}
    return {}


def meanings_of(words: dict[str, int], is_table: bool, column: str = "") -> dict[str, bool]:
    """What the labels of a file mean by the usual pairs that have them, those that have the most of them first.

    In a column such as 是否正常 or 质检结果 a yes alone does not tell.
    """
    pairs = [pair for pair in PAIRS if FRAUD_WORDS.search(pair[0])] if GOOD_NAMES.search(column) else PAIRS
    own = TABLE_LABELS if is_table else {}
    words = {word for word in words if word not in own and not word.startswith("{")}
    meanings = {}
    while words & set(pair := max(pairs, key=lambda pair: len(words & set(pair)))):  # the first of several
        meanings |= {pair[0]: True, pair[1]: False}
        words -= set(pair)
    return meanings


def like_labels(sample: Sequence[dict]) -> dict[str, list[str]]:
    """The keys or columns that may be labels by what they hold, whatever they are called, with their words."""
    words = {key: sorted({str(row[key]).strip() for row in sample if row.get(key) not in ("", None)})
             for key in dict.fromkeys(key for row in sample for key in row)}
    return {key: found for key, found in words.items()
            if len(found) <= MOST_WORDS and any({*pair} <= {*found} for pair in PAIRS)}
