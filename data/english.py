"""English for readers who do not read Chinese: the names of kinds, and some dialogues of ours line by line."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .records import Dialogue, Line
from .speakers import format_dialogue

TABLES = Path(__file__).with_name("english.toml")


@dataclass(frozen=True)
class Glossed:
    """A dialogue of ours with its English, line by line."""

    dialogue: Dialogue
    english: tuple[str, ...]

    @property
    def text(self) -> str:
        return format_dialogue([(line.speaker, line.content) for line in self.dialogue.lines])

    @property
    def fraud_lines(self) -> list[int]:
        """Numbers, from 1, of the lines in which the scam is attempted."""
        return [number for number, line in enumerate(self.dialogue.lines, start=1) if line.is_fraud]

    @property
    def rows(self) -> list[tuple[str, str, bool]]:
        """(Chinese with the speaker, English, whether the scam is attempted in it) of each line."""
        return [(f"{line.speaker}: {line.content}", english, line.is_fraud)
                for line, english in zip(self.dialogue.lines, self.english, strict=True)]


@functools.cache
def _tables() -> dict:
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


def kind_in_english(kind: str) -> str:
    """The English name of a kind, without a count in brackets behind it; the Chinese where there is none."""
    name = kind.partition("(")[0]
    return _tables()["kinds"].get(name, name)


def glossed_dialogues() -> dict[str, Glossed]:
    """By their English names, dialogues of ours whose lines are given in English, too."""
    found = {}
    for table in _tables()["dialogues"]:
        lines = tuple(Line(speaker, content, is_fraud) for speaker, content, _, is_fraud in table["lines"])
        english = tuple(line[2] for line in table["lines"])
        found[table["name"]] = Glossed(Dialogue(table["name"], table["kind"], lines), english)
    return found
