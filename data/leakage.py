"""What two sets of dialogues have in common: cases, whole lines, runs of characters, near-duplicates."""

import collections
import functools
import itertools
import random
from collections.abc import Callable, Sequence

from .normalise import normalise
from .records import Skipped, read_records
from .speakers import split_lines

LINE_OF_SOME_LENGTH = 10  # characters; everybody says 好的，谢谢, and it gives nothing away
SHINGLE = 5  # characters
RUN = 20  # characters
KEPT = 2**17  # texts of which what is said is kept: of a preparation each is compared up to six times
REMEMBERED = 4096  # texts whose runs are kept for the next comparison


def near_duplicates(texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.8) -> list[bool]:
    """For each text, whether some other text has a Jaccard similarity of at least `threshold`.

    Similarity is over sets of character 5-grams of what is said, whoever says it; it is exact (an inverted
    index finds the candidates), not sampled as in MinHash.
    """
    texts, others = list(map(_said, texts)), list(dict.fromkeys(map(_said, others)))
    few = None if len(texts) >= len(others) else {shingle for text in texts for shingle in _runs(text, SHINGLE)}
    index: dict[str, list[int]] = collections.defaultdict(list)
    sizes = []
    for number, other in enumerate(others):
        shingles = _runs(other, SHINGLE)
        sizes.append(len(shingles))
        for shingle in shingles if few is None else shingles & few:  # all that need be indexed
            index[shingle].append(number)
    runs_of = _remembered(others, SHINGLE)
    found = {text: _has_near_duplicate(_runs(text, SHINGLE), index, sizes, runs_of, threshold) for text in set(texts)}
    return [found[text] for text in texts]


def _has_near_duplicate(shingles: set[str], index: dict, sizes: list[int], runs_of: Callable[[int], set[str]],
                        threshold: float) -> bool:
    # Two sets this alike differ in at most (1 - threshold) of the smaller one's shingles, so any larger
    # part of them has one in common: only the rarest shingles need their candidates looked up. What all calls
    # begin with is in none of these, or it is most of the text and the first candidate is a duplicate.
    # Rarest of all are those that no other has: most texts have so many of these that no candidate is left.
    shared = [shingle for shingle in shingles if shingle in index]
    to_look_up = len(shared) - int(threshold * len(shingles)) + 1
    if to_look_up < 1:
        return False
    tried = set()
    for shingle in sorted(shared, key=lambda shingle: len(index[shingle]))[:to_look_up]:
        for number in index[shingle]:
            if number in tried:
                continue
            tried.add(number)
            smaller, larger = sorted((len(shingles), sizes[number]))
            if smaller / larger >= threshold:
                common = len(shingles & runs_of(number))
                if common / (smaller + larger - common) >= threshold:
                    return True
    return False


@functools.lru_cache(KEPT)
def _contents(text: str) -> tuple[str, ...]:
    """What is said in each line."""
    return tuple(content for _, content in split_lines(normalise(text)))


def _said(text: str) -> str:
    return "".join(_contents(text))


def _runs(said: str, length: int) -> set[str]:
    return {said[i:i + length] for i in range(max(1, len(said) - length + 1))}


def _remembered(others: Sequence[str], length: int) -> Callable[[int], set[str]]:
    """The runs of the other with a number: sets of all of them would need fifty times the memory of the texts."""
    return functools.lru_cache(REMEMBERED)(lambda number: _runs(others[number], length))


def rows_with_half_their_runs(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """For each text, whether half of its runs of 20 characters or more stand in `others`, in one or in several.

    Runs are those of what is said, whoever says it; a text shorter than that is one run.
    """
    runs_of = [_runs(_said(text), RUN) for text in texts]
    wanted = set().union(*runs_of)
    shared = set().union(*(wanted & _runs(_said(other), RUN) for other in others))
    return [2 * len(runs & shared) >= len(runs) for runs in runs_of]


def rows_that_repeat_most_of(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """For each text, whether it holds half of the runs of 20 characters of some other text, or more."""
    texts, others = list(map(_said, texts)), list(dict.fromkeys(map(_said, others)))
    frequency = collections.Counter(run for other in others for run in _runs(other, RUN))
    index: dict[str, list[int]] = collections.defaultdict(list)
    sizes = []
    for number, other in enumerate(others):
        runs = _runs(other, RUN)
        sizes.append(len(runs))
        for run in sorted(runs, key=frequency.__getitem__)[:len(runs) // 2 + 1]:  # half hold one of these
            index[run].append(number)
    runs_of = _remembered(others, RUN)

    def repeats(text: str) -> bool:
        runs = _runs(text, RUN)
        candidates = {number for run in runs & index.keys() for number in index[run]}
        return any(2 * len(runs & runs_of(number)) >= sizes[number] for number in candidates)

    found = {text: repeats(text) for text in set(texts)}
    return [found[text] for text in texts]


def rows_that_repeat(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """For each text, whether it nearly repeats some other text, or holds half of its runs of 20 characters or more."""
    nearly, most = near_duplicates(texts, others), rows_that_repeat_most_of(texts, others)
    return [either or half for either, half in zip(nearly, most, strict=True)]


def rows_sharing_a_line(records: Sequence[dict], others: Sequence[dict]) -> list[bool]:
    """For each record, whether a whole line of at least 10 characters stands in some other record too."""
    seen = {line for other in others for line in whole_lines(other["input"])}
    return [not seen.isdisjoint(whole_lines(record["input"])) for record in records]


def whole_lines(text: str) -> set[str]:
    """What is said in a dialogue's lines of at least 10 characters."""
    return {content for content in _contents(text) if len(content) >= LINE_OF_SOME_LENGTH}


def overlap(records: Sequence[dict], others: Sequence[dict]) -> dict:
    """How much of `records` stands in `others` too: cases and near-duplicates (counts), lines and runs (shares)."""
    return _overlaps({"": records}, others)[""]


def overlap_with_file(records: Sequence[dict], path: str) -> dict:
    """`overlap` of `records` with those of a file."""
    return overlap(records, read_records(path, Skipped()))


def _overlaps(parts: dict[str, Sequence[dict]], others: Sequence[dict]) -> dict[str, dict]:
    """`overlap` of each of `parts`, which reads `others` once for all of them."""
    records = [record for part in parts.values() for record in part]
    texts, other_texts = ([record["input"] for record in those] for those in (records, others))
    repeats = iter(near_duplicates(texts, other_texts))
    lines = iter(rows_sharing_a_line(records, others))
    runs = iter(rows_with_half_their_runs(texts, other_texts))
    cases = {other["case"] for other in others if other.get("case")}
    return {name: {
        "shared_cases": len(cases & {record.get("case") for record in part}),
        "near_duplicates": sum(itertools.islice(repeats, len(part))),
        "rows_sharing_a_line": sum(itertools.islice(lines, len(part))) / len(part),
        "rows_with_half_their_runs": sum(itertools.islice(runs, len(part))) / len(part),
    } for name, part in parts.items()}


def leakage_report(splits: dict[str, list[dict]], *, seed: int = 0) -> dict:
    """Overlap of each part with train, of test with eval, and the overlap had shuffled segments been split.

    Args:
        splits: train, eval and test; optionally others, that are compared with train.
    """
    pool = [record for name in ("train", "eval", "test") for record in splits[name]]
    random.Random(seed).shuffle(pool)
    n_eval = len(splits["eval"])
    shuffled = rows_sharing_a_line(pool[:n_eval], pool[n_eval:])
    parts = {f"{name} against train": records for name, records in splits.items() if name != "train" and records}
    return {
        "leakage": {**_overlaps(parts, splits["train"]), "test against eval": overlap(splits["test"], splits["eval"])},
        "if_segments_were_shuffled": {"rows_sharing_a_line": sum(shuffled) / n_eval},
    }
