"""What two sets of dialogues have in common: cases, whole lines, near-duplicates."""

import random
from collections.abc import Sequence

from .speakers import split_lines

LINE_OF_SOME_LENGTH = 10  # characters; everybody says 好的，谢谢, and it gives nothing away
SHINGLE = 5  # characters


def near_duplicates(texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.8) -> list[bool]:
    """For each text, whether some other text has a Jaccard similarity of at least `threshold`.

    Similarity is over sets of character 5-grams of what is said, whoever says it; it is exact (an inverted
    index finds the candidates), not sampled as in MinHash.
    """
    index: dict[str, list[int]] = {}
    sizes = []
    for number, other in enumerate(others):
        shingles = _shingles(other)
        sizes.append(len(shingles))
        for shingle in shingles:
            index.setdefault(shingle, []).append(number)
    return [_has_near_duplicate(_shingles(text), index, sizes, threshold) for text in texts]


def _has_near_duplicate(shingles: set[str], index: dict, sizes: list[int], threshold: float) -> bool:
    # Two sets this alike differ in at most (1 - threshold) of the smaller one's shingles, so any larger
    # part of them has one in common: only the rarest shingles need their candidates looked up.
    rarest = sorted(shingles, key=lambda shingle: (len(index.get(shingle, ())), shingle))
    prefix = rarest[:len(rarest) - int(threshold * len(rarest)) + 1]
    common: dict[int, int] = {number: 0 for shingle in prefix for number in index.get(shingle, ())}
    if not common:
        return False
    for shingle in shingles:
        for number in index.get(shingle, ()):
            if number in common:
                common[number] += 1
    return any(shared / (len(shingles) + sizes[number] - shared) >= threshold for number, shared in common.items())


def _shingles(text: str) -> set[str]:
    said = "".join(content for _, content in split_lines(text))
    return {said[i:i + SHINGLE] for i in range(max(1, len(said) - SHINGLE + 1))}


def rows_sharing_a_line(records: Sequence[dict], others: Sequence[dict]) -> list[bool]:
    """For each record, whether a whole line of at least 10 characters stands in some other record too."""
    seen = set().union(*(whole_lines(other["input"]) for other in others)) if others else set()
    return [not seen.isdisjoint(whole_lines(record["input"])) for record in records]


def whole_lines(text: str) -> set[str]:
    """What is said in a dialogue's lines of at least 10 characters."""
    return {content for _, content in split_lines(text) if len(content) >= LINE_OF_SOME_LENGTH}


def overlap(records: Sequence[dict], others: Sequence[dict]) -> dict:
    """How much of `records` stands in `others` too: cases (a count), near-duplicates, shared lines (a share)."""
    shared = {record["case"] for record in records if "case" in record}
    shared &= {other["case"] for other in others if "case" in other}
    repeats = near_duplicates([record["input"] for record in records], [other["input"] for other in others])
    return {
        "shared_cases": len(shared),
        "near_duplicates": sum(repeats),
        "rows_sharing_a_line": sum(rows_sharing_a_line(records, others)) / len(records),
    }


def leakage_report(splits: dict[str, list[dict]], *, seed: int = 0) -> dict:
    """Overlap of eval and test with train, and the overlap had the same pieces been shuffled and then split."""
    pool = [record for records in splits.values() for record in records]
    random.Random(seed).shuffle(pool)
    n_eval = len(splits["eval"])
    shuffled = rows_sharing_a_line(pool[:n_eval], pool[n_eval:])
    return {
        "leakage": {f"{name} against {other}": overlap(splits[name], splits[other])
                    for name, other in (("eval", "train"), ("test", "train"), ("test", "eval"))},
        "if_pieces_were_shuffled": {"rows_sharing_a_line": sum(shuffled) / n_eval},
    }
