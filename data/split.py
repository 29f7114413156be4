"""Dialogues dealt to train, eval and test, and what their segments may have in common afterwards."""

import random
from collections.abc import Sequence
from fractions import Fraction

from .leakage import Known
from .records import Dialogue
from .segments import SEGMENT_LENGTHS, cut_dialogue

SPLITS = ("train", "eval", "test")
SHARES = (0.8, 0.1, 0.1)
# What each part must not repeat: there the part itself gives way.
DEARER = {"eval": ("test",), "ordinary_eval": ("ordinary",), "train": ("test", "ordinary", "eval", "ordinary_eval")}


def is_fraud(dialogue: Dialogue) -> bool:
    return any(line.is_fraud for line in dialogue.lines)


def split_by_case(dialogues: Sequence[Dialogue], *, shares: Sequence[float] = SHARES,
                  seed: int = 0) -> dict[str, list[Dialogue]]:
    """Deals whole dialogues to train, eval and test, so that each has every category and both labels in proportion.

    Every split gets a dialogue of each label, where there are three of it.
    """
    rng = random.Random(seed)
    splits = {name: [] for name in SPLITS}
    for label in (False, True):
        dealt = deal([dialogue for dialogue in dialogues if is_fraud(dialogue) == label], shares, rng)
        if sum(map(len, dealt)) >= len(SPLITS):
            for members in dealt:
                if not members:
                    members.append(max(dealt, key=len).pop())
        for name, members in zip(SPLITS, dealt, strict=True):
            splits[name].extend(members)
    return splits


def deal(dialogues: Sequence[Dialogue], shares: Sequence[float], rng: random.Random) -> list[list[Dialogue]]:
    """Deals `dialogues` in `shares`, category by category; what is left of one category counts with the next.

    Dealing each category apart would round small ones to nothing: three dialogues of ten kinds would all be train's.
    """
    parts = [Fraction(str(share)) for share in shares]
    wanted = [part / sum(parts) for part in parts]
    dealt = [[] for _ in shares]
    by_category: dict[str, list[Dialogue]] = {}
    for dialogue in sorted(dialogues, key=lambda dialogue: (dialogue.category, dialogue.case)):
        by_category.setdefault(dialogue.category, []).append(dialogue)
    total = 0
    for members in by_category.values():
        rng.shuffle(members)
        for dialogue in members:
            total += 1
            missing = [total * share - len(part) for share, part in zip(wanted, dealt, strict=True)]
            dealt[missing.index(max(missing))].append(dialogue)
    return dealt


def leave_out(dialogues: Sequence[Dialogue], held_out: Known, lengths: Sequence[int] = SEGMENT_LENGTHS
              ) -> list[Dialogue]:
    """The dialogues of which no segment shares a line with a held-out record or repeats one; see `remove_repeats`.

    A category that would be gone altogether (of a few long meetings, say) stays, for segments that do neither.
    """
    segments = [record for dialogue in dialogues for record in cut_dialogue(dialogue, lengths)]
    repeated = _repeats(segments, held_out)
    cases = {record["case"] for record, repeats in zip(segments, repeated, strict=True) if repeats}
    left = {dialogue.category for dialogue in dialogues if dialogue.case not in cases}
    return [dialogue for dialogue in dialogues if dialogue.case not in cases or dialogue.category not in left]


def cut_apart(dialogues: Sequence[Dialogue], lengths: Sequence[int], held_out: Known, *,
              labels: str = "lines") -> list[dict]:
    """The segments of `dialogues` that share no line with a held-out record and repeat none; see `remove_repeats`."""
    segments = [record for dialogue in dialogues for record in cut_dialogue(dialogue, lengths, labels)]
    repeated = _repeats(segments, held_out)
    return [record for record, repeats in zip(segments, repeated, strict=True) if not repeats]


def _repeats(segments: Sequence[dict], held_out: Known) -> list[bool]:
    """For each segment, whether it shares a whole line with some held-out record, or repeats one."""
    found = held_out.compare([segment["input"] for segment in segments])
    return [common.repeats or bool(common.lines) for common in found]


def apart_from(known: Known, records: Sequence[dict]) -> list[dict]:
    """The records that repeat none of `known`; see `remove_repeats`."""
    found = known.compare([record["input"] for record in records])
    return [record for record, common in zip(records, found, strict=True) if not common.repeats]


def remove_repeats(splits: dict[str, list[dict]]) -> tuple[dict[str, int], Known]:
    """Removes, in place, segments that repeat one of a dearer part (`DEARER`).

    A segment repeats another by near-duplication, and where it holds half of the other's runs of 20 characters: a call
    that was cut elsewhere.

    Returns:
        How many each part lost; and what the last of them, which is train, was compared with.
    """
    removed, known = dict.fromkeys(splits, 0), Known(())
    for name, dearer in DEARER.items():
        if name in splits:
            known = Known(record["input"] for other in dearer for record in splits.get(other, ()))
            kept = apart_from(known, splits[name])
            removed[name] = len(splits[name]) - len(kept)
            splits[name] = kept
    return removed, known


def rebalance(records: Sequence[dict], *, negatives_per_positive: float | None = 1.0,
              ordinary_share: float | None = 0.25, seed: int = 0) -> list[dict]:
    """Drops records of the more frequent label at random until the ratio holds; keeps the order of the rest.

    Of the negatives that stay, `ordinary_share` are ordinary talk (records with a ``source``); where either kind runs
    out the other takes its place. With None, all ordinary talk stays, and the ratio is that of the other negatives.
    With `negatives_per_positive` None everything stays.
    """
    if negatives_per_positive is None:
        return list(records)
    positives = [i for i, record in enumerate(records) if record["label"]]
    ordinary = [i for i, record in enumerate(records) if "source" in record and not record["label"]]
    others = [i for i, record in enumerate(records) if "source" not in record and not record["label"]]
    wanted = round(len(positives) * negatives_per_positive)
    if ordinary_share is None:
        n_ordinary, n_others = len(ordinary), min(len(others), wanted)
    else:
        n_negatives = min(len(ordinary) + len(others), wanted)
        n_ordinary = min(len(ordinary), max(round(n_negatives * ordinary_share), n_negatives - len(others)))
        n_others = n_negatives - n_ordinary
    n_positives = min(len(positives), round((n_ordinary + n_others) / negatives_per_positive))
    rng = random.Random(seed)
    kept = rng.sample(positives, n_positives)
    kept += rng.sample(ordinary, n_ordinary) + rng.sample(others, n_others)
    return [records[i] for i in sorted(kept)]


def hard_negatives(records: Sequence[dict]) -> list[int]:
    """The numbers of the non-fraud records of categories that have frauds: mostly harmless slices of scams."""
    scams = {record["category"] for record in records if record["label"] and "category" in record}
    return [i for i, record in enumerate(records) if not record["label"] and record.get("category") in scams]
