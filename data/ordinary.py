"""Ordinary talk from elsewhere: non-fraud dialogues for training, for choosing the threshold, and for judging.

In train some of it stands before other segments, too. A model that saw scams alone, or ordinary talk alone, lets
harmless words at the beginning of a call hide what follows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import DataError
from .records import Dialogue, Skipped, read_dialogues
from .speakers import begin_with, split_lines
from .split import deal, is_fraud

PARTS = ("train", "ordinary_eval", "ordinary")
MOST_FIRST = 3  # lines of ordinary talk before another segment
OTHER_CASE = "rename one of the files (in a .jsonl, the case)"


@dataclass(frozen=True)
class OrdinarySettings:
    """Where ordinary talk comes from and what becomes of it.

    Attributes:
        sources: folders of CSVs, or CSV files, of which `eval_share` and `judge_share` of the dialogues are kept from
            train, for ``ordinary_eval.jsonl`` and ``ordinary.jsonl``.
        judge_sources: others, that go into ``ordinary.jsonl`` alone.
        eval_sources: others again, that go into ``ordinary_eval.jsonl`` alone.
        train_share: of the negatives of train, as far as they go; None puts all of it beside them. See `rebalance`.
        first_share: of the other records of train, that begin with some of it. See `begin_with_ordinary`.
    """

    sources: Sequence[str | Path] = ()
    judge_sources: Sequence[str | Path] = ()
    eval_sources: Sequence[str | Path] = ()
    judge_share: float = 0.2
    eval_share: float = 0.1
    train_share: float | None = 0.25
    first_share: float = 0.5

    @property
    def paths(self) -> tuple[str | Path, ...]:
        return (*self.sources, *self.eval_sources, *self.judge_sources)


def deal_ordinary(settings: OrdinarySettings, skipped: Skipped, *, seed: int = 0
                  ) -> tuple[dict[str, list[Dialogue]], dict[str, str]]:
    """The dialogues of each of `PARTS`, and the source of each case: the name of the file or folder that was given.

    Raises:
        DataError: a line is labelled fraud, or two sources hold the same case.
    """
    dealt = {part: [] for part in PARTS}
    source_of: dict[str, str] = {}
    rng = random.Random(seed)
    shares = (1 - settings.judge_share - settings.eval_share, settings.eval_share, settings.judge_share)
    for path in settings.sources:
        for part, members in zip(PARTS, deal(_read(Path(path), source_of, skipped), shares, rng), strict=True):
            dealt[part] += members
    for part, paths in (("ordinary", settings.judge_sources), ("ordinary_eval", settings.eval_sources)):
        for path in paths:
            dealt[part] += _read(Path(path), source_of, skipped)
    return dealt, source_of


def _read(path: Path, source_of: dict[str, str], skipped: Skipped) -> list[Dialogue]:
    dialogues = read_dialogues(path, skipped)
    source = path.name if path.is_dir() else path.stem
    for dialogue in dialogues:
        if is_fraud(dialogue):
            number, line = next((i, line) for i, line in enumerate(dialogue.lines, start=1) if line.is_fraud)
            raise DataError(f"{path}: case {dialogue.case!r}, line {number}: labelled fraud ({line.content[:30]!r}); "
                            "ordinary talk has no fraud: correct the label or give the file to --source")
        if dialogue.case in source_of:
            raise DataError(f"{path}: the case {dialogue.case!r} is in {source_of[dialogue.case]!r} too; give each "
                            f"file once, or {OTHER_CASE}")
        source_of[dialogue.case] = source
    return dialogues


def begin_with_ordinary(records: Sequence[dict], share: float, talk: Sequence[dict], *, seed: int = 0) -> list[dict]:
    """`records`, a share of which, drawn among those that are no ordinary talk, begins with one to `MOST_FIRST` lines
    of such.

    These are the first lines of a record of `talk` that has a ``source`` and begins its call. Labels of lines get one
    for each; that of the record stays. Without any ordinary talk nothing changes.
    """
    rng = random.Random(seed)
    beginnings = [[said for _, said in split_lines(record["input"])][:MOST_FIRST]
                  for record in talk if "source" in record and not record.get("position")]
    others = [place for place, record in enumerate(records) if "source" not in record]
    drawn = set(rng.sample(others, round(share * len(others)))) if beginnings else ()
    return [_after(rng.choice(beginnings)[:rng.randint(1, MOST_FIRST)], record) if place in drawn else record
            for place, record in enumerate(records)]


def _after(said: Sequence[str], record: dict) -> dict:
    labels = record.get("line_labels")
    return {**record, "input": begin_with(said, record["input"]),
            **({"line_labels": [False] * len(said) + labels} if labels else {})}


def refuse_same_cases(dialogues: Sequence[Dialogue], source_of: dict[str, str]) -> None:
    """Refuses a case of the corpus that is there twice or is ordinary talk as well: it would be in several splits."""
    found = set()
    for dialogue in dialogues:
        if dialogue.case in found:
            raise DataError(f"the case {dialogue.case!r} of --train-only is in --source or another folder of it, too; "
                            f"give it once, or {OTHER_CASE}")
        found.add(dialogue.case)
        if dialogue.case in source_of:
            raise DataError(f"the case {dialogue.case!r} is in the corpus and in the ordinary talk of "
                            f"{source_of[dialogue.case]!r}; give it once, or {OTHER_CASE}")


def with_source(records: Sequence[dict], source_of: dict[str, str]) -> list[dict]:
    """Records of ordinary talk name their source; others stay as they are."""
    return [record if record["case"] not in source_of else {**record, "source": source_of[record["case"]]}
            for record in records]
