"""One form for texts that mean the same: line ends, blanks, widths, and one line for each who speaks.

People paste dialogues from chats, transcripts and web pages. What does not change the meaning must not change the
tokens, so every text takes the same form before it becomes a prompt. Three steps: characters (one form for each blank,
line end and width), turns (`transcripts` finds who speaks), and marks (Chinese text has the full-width ones, numbers
and Latin text the half-width ones, as is usual in both).
"""

import html
import re
import unicodedata

from .transcripts import FULL_MARKS, MARKS, MAY_BE_STAMPED, TO_HALF, read_turns, without_columns

# The version; a checkpoint says with which one it was trained, 0 being none. It stays while the texts that models were
# trained on keep their form: chats, subtitles and calls in one line are read better than in the first release, the
# public corpus the same.
NORMALISER = 1

MOST_STEPS = 8

# ------------------------------------------------------------------------------------------------- characters
_BREAKS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_INVISIBLE = [*range(0x09), *range(0x0e, 0x1c), 0x1f, *range(0x7f, 0x85), *range(0x86, 0xa0), 0xad, 0x34f, 0x61c,
              0x115f, 0x1160, 0x17b4, 0x17b5, *range(0x180b, 0x180f), *range(0x200b, 0x2010), *range(0x202a, 0x202f),
              *range(0x2060, 0x2070), 0x3164, *range(0xfe00, 0xfe10), 0xfeff, 0xffa0, *range(0xfff9, 0xfffc),
              *range(0xe0000, 0xe0080), *range(0xe0100, 0xe01f0)]
_COMPATIBLE = [*range(0xfe10, 0xfe1a), *range(0xfe30, 0xfe70), *range(0xff01, 0xfff0)]  # half, full, small, upright
_FORMS = {code: form for code in _COMPATIBLE if len(form := unicodedata.normalize("NFKC", chr(code))) == 1}
_FORMS |= {ord(mark): mark for mark in FULL_MARKS}
_FORMS |= dict.fromkeys(map(ord, "\t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
                            "\u205f\u3000\u2800"), " ")
_FORMS |= dict.fromkeys(map(ord, _BREAKS), "\n") | dict.fromkeys(_INVISIBLE)
_ODD = {*map(chr, _FORMS), "\\", "<", "&"} - set(FULL_MARKS)  # a set is asked faster than a pattern with a wide class
_ENTITY = re.compile(r"&(?:nbsp|lt|gt|quot|#\d{1,6}|#x[0-9A-Fa-f]{1,5});")
# Typed or pasted line ends; C:\new is a path.
_TYPED_BREAK = re.compile(r"</?(?:br|p|div)\s*/?>|(?<![A-Za-z]:)(?:\\r\\n|\\n|\\r(?![A-Za-z]))", re.IGNORECASE)
_BREAK = re.compile(rf"({_TYPED_BREAK.pattern}|[\n{_BREAKS}])", re.IGNORECASE)

# ------------------------------------------------------------------------------------------------------- marks
_CHINESE, _LATIN = re.compile("[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"), re.compile("[A-Za-z]")
_ASCII = re.compile(r"[\x00-\x7f]")  # without any, all marks of Chinese text are as usual
_BLANK_AT_MARK = re.compile(rf" ?([{FULL_MARKS}]) ?")
_MARK_BEFORE_LATIN = re.compile("[，：！？；](?=[0-9A-Za-z/\\\\])")
_INSIDE_LATIN = re.compile("[0-9][，：][0-9]|.：[/\\\\]|[0-9A-Za-z/=][！？；].")  # 3,000, 12:30, https:/, page?id
TO_FULL = str.maketrans(MARKS, FULL_MARKS)


def is_blank(text: str) -> bool:
    """Whether nothing of a text is to be seen: blanks, line ends and zero-width marks are no dialogue."""
    return not any(line.strip() for line in _plain_characters(text))


def normalise(text: str) -> str:
    """`text` in the one form of all texts that mean the same; its own normal form stays as it is."""
    return "\n".join(normalise_lines(text)[0])


def normalise_lines(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The lines of the normal form, and for each the (first, last) line of `text` that it was made from.

    Lines of `text` are counted as in ``line_labels``, by its line feeds. There is at least one line, if an empty one.
    """
    lines, origin = _normalise_once(text)
    for _ in range(MOST_STEPS):  # what one step uncovers another may take for a stamp, too
        if (before := "\n".join(lines)) == text:
            break
        text = before
        lines, places = _normalise_once(text)
        origin = [(origin[first][0], origin[last][1]) for first, last in places]
    return lines, origin


def _normalise_once(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    lines, origin = [], []
    for number, line in enumerate(_plain_characters(_without_columns(text))):
        for part in line.split("\n"):
            if part := part.strip():
                lines.append(part)
                origin.append((number, number))
    stamped = bool(MAY_BE_STAMPED.search(text) or "WEBVTT" in text or "<v " in text)
    turns, origin = read_turns(lines, origin, stamped=stamped)
    return [_joined(name, said) for name, said in turns] or [""], origin or [(0, max(0, text.count("\n")))]


def _without_columns(text: str) -> str:
    """`text` without the tabs or bars behind its speakers: later a tab is a blank like any other."""
    if "\t" not in text and "|" not in text and "｜" not in text:
        return text
    parts = _BREAK.split(text)  # lines, and between them what ends them
    parts[::2] = without_columns(parts[::2])
    return "".join(parts)


def _plain_characters(text: str) -> list[str]:
    """The lines of `text`, one form for each character; other kinds of line end have become line feeds in them."""
    if "  " not in text and unicodedata.is_normalized("NFC", text) and _ODD.isdisjoint(text):
        return text.split("\n")
    return [_plain_line(line) for line in text.split("\n")]


def _plain_line(line: str) -> str:
    line = _ENTITY.sub(lambda entity: html.unescape(entity[0]), line)
    line = unicodedata.normalize("NFC", unicodedata.normalize("NFC", line).translate(_FORMS))
    line = _TYPED_BREAK.sub("\n", line)
    return re.sub(" *\n *", "\n", re.sub("  +", " ", line))


def _joined(name: str | None, said: str) -> str:
    if said and (_ASCII.search(said) or not _CHINESE.search(said)):
        said = _usual_marks(said)
    return said if name is None else f"{name}: {said}"


def _usual_marks(said: str) -> str:
    if _LATIN.search(said) and not _CHINESE.search(said):
        return said.translate(TO_HALF)
    said = said.translate(TO_FULL)
    if " " in said:
        said = _BLANK_AT_MARK.sub(r"\1", said)
    return _MARK_BEFORE_LATIN.sub(_width, said)


def _width(mark: re.Match) -> str:
    """A mark of Chinese text before a digit, letter or slash: half as wide inside a number, a time or an address."""
    place = mark.start()
    return mark[0].translate(TO_HALF) if _INSIDE_LATIN.match(mark.string[max(0, place - 1):place + 2]) else mark[0]
