"""Ordinary Chinese talk of two public corpora, brought into the columns of our dialogue CSVs; no line is a fraud.

CrossWOZ: a tourist asks a service for restaurants, hotels and taxis. KdConv: two people talk about films, music and
travel. Both are by thu-coai, licence Apache-2.0.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .files import DataError
from .records import Dialogue, Line, write_dialogues

CROSSWOZ_SPEAKERS = {"usr": "用户", "sys": "客服"}
KDCONV_SPEAKERS = ("甲", "乙")
KDCONV_DOMAINS = ("film", "music", "travel")


def convert(originals: Path, output: Path) -> list[Path]:
    """Writes ``crosswoz.csv`` and ``kdconv.csv`` below `output` from what is there of the two in `originals`.

    Raises:
        DataError: a file is not what its corpus promises.
    """
    written = []
    for name, dialogues_in in (("crosswoz", _crosswoz), ("kdconv", _kdconv)):
        if (originals / name).is_dir():
            try:
                dialogues = list(dialogues_in(originals / name))
            except (KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{originals / name}: not as {name} has it ({type(error).__name__}: {error}); remove "
                                "the folder and fetch it again") from None
            write_dialogues(output / f"{name}.csv", dialogues)
            written.append(output / f"{name}.csv")
    return written


def _crosswoz(folder: Path) -> Iterator[Dialogue]:
    with zipfile.ZipFile(folder / "val.json.zip") as archive:
        found = json.loads(archive.read("val.json"))
    for number, dialogue in found.items():
        yield Dialogue(f"crosswoz-{number}", "crosswoz", tuple(
            Line(CROSSWOZ_SPEAKERS[message["role"]], message["content"], False) for message in dialogue["messages"]))


def _kdconv(folder: Path) -> Iterator[Dialogue]:
    for domain in KDCONV_DOMAINS:
        for number, dialogue in enumerate(json.loads((folder / domain / "dev.json").read_text(encoding="utf-8"))):
            yield Dialogue(f"kdconv-{domain}dev-{number}", "kdconv", tuple(
                Line(KDCONV_SPEAKERS[i % 2], message["message"], False)
                for i, message in enumerate(dialogue["messages"])))
