"""Who says what: lines of a dialogue text, neutral roles, and renaming the other way round.

The article's corpus calls the speakers of every harmless meeting 发言人1, 发言人2, ... and those of every scam by
name (some of them 骗子), so a model can score F1 0.914 by reading names alone. Names therefore become neutral
roles, A, B, C, ... in order of appearance, before anything is tokenised: two dialogues that differ only in
speaker names give the same tokens.
"""

import itertools
import string
from collections.abc import Sequence

from .normalise import normalise
from .transcripts import MAY_BE_STAMPED, NARRATOR, SPEAKER, safe_name

PERSONAL_NAMES = ("李明", "王芳", "张伟", "刘洋", "陈静", "杨强", "赵敏", "黄磊", "周婷", "吴刚", "徐丽", "孙浩")


def split_lines(text: str) -> list[tuple[str | None, str]]:
    """(speaker, content) of each line of a dialogue text; speaker None where a line names none."""
    lines = []
    for line in text.split("\n"):
        match = SPEAKER.match(line)
        name = match.group(1).strip() if match else ""
        lines.append((name, line[match.end():]) if name else (None, line))
    return lines


def join_lines(lines: list[tuple[str | None, str]]) -> str:
    """The dialogue text of (speaker, content) lines; the inverse of `split_lines`."""
    return "\n".join(content if name is None else f"{name}: {content}" for name, content in lines)


def format_dialogue(lines: list[tuple[str, str]]) -> str:
    """The dialogue text of spoken lines, whatever characters their speakers' names hold.

    A corpus has speakers called ``诈骗者: 李浩`` or nothing at all, and contents of several paragraphs; none of
    them may be mistaken for a line of somebody else.
    """
    safe = {name: safe_name(_without_stamp(name)) for name in {name for name, _ in lines}}
    return join_lines([(safe[name], " ".join(content.split())) for name, content in lines])


def _without_stamp(name: str) -> str:
    """The name in ``10:00:11 客服`` or ``客服 (10:00)``, as a column of speakers may have it."""
    if not MAY_BE_STAMPED.search(name):
        return name
    (found, _), *more = split_lines(normalise(f"{name}: -"))
    return found if not more and 0 < len(found or "") < len(safe_name(name)) else name


def map_speakers(text: str, names_of) -> str:
    """`text` with its speakers renamed by ``names_of(list of names in order of appearance) -> new names``."""
    lines = split_lines(text)
    names = _names(lines)
    renamed = dict(zip(names, names_of(names), strict=True))
    return join_lines([(renamed.get(name), content) for name, content in lines])


def begin_with(said: Sequence[str], text: str) -> str:
    """`text` after other words, said in turn by the two who speak in it first."""
    lines = split_lines(text)
    names = _names(lines)[:2] or [NARRATOR]
    return join_lines([*zip(itertools.cycle(names), said), *lines])


def _names(lines: Sequence[tuple[str | None, str]]) -> list[str]:
    return list(dict.fromkeys(name for name, _ in lines if name is not None))


def roles(names: list[str]) -> list[str]:
    """A, B, ..., Z, A1, B1, ... for speakers in order of appearance."""
    turns = (divmod(index, len(string.ascii_uppercase)) for index in range(len(names)))
    return [string.ascii_uppercase[letter] + (str(turn) if turn else "") for turn, letter in turns]


def swap_speakers(text: str) -> str:
    """`text` with its speakers renamed the other way round, to show what a model owes to names.

    A meeting's 发言人N get personal names, all others become 发言人1, 发言人2, ... in order of appearance.
    """
    return map_speakers(text, _other_way_round)


def _other_way_round(names: list[str]) -> list[str]:
    if any(name.startswith("发言人") for name in names):
        return [PERSONAL_NAMES[i % len(PERSONAL_NAMES)] + ("" if i < len(PERSONAL_NAMES) else str(i))
                for i in range(len(names))]
    return [f"发言人{i + 1}" for i in range(len(names))]
