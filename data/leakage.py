"""What two sets of dialogues have in common: cases, whole lines, runs of characters, near-duplicates."""

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple

from .normalise import normalise
from .records import Skipped, read_records
from .speakers import split_lines

LINE_OF_SOME_LENGTH = 10  # characters; everybody says 好的，谢谢, and it gives nothing away
SHINGLE = 5  # characters
RUN = 20  # characters
KEPT = 2**17  # texts of which what is said is kept: of a preparation each is compared up to six times
REMEMBERED = 4096  # texts whose runs are kept for the next comparison


class Common(NamedTuple):
    """What a text has in common with `Known` ones.

    Attributes:
        is_near: whether it is a near-duplicate of one.
        holds_half: whether it holds half of the runs of 20 characters of one, or more.
        runs: its runs of 20 characters that stand in any.
        lines: its `whole_lines` that stand in any.
    """

    is_near: bool = False
    holds_half: bool = False
    runs: Set[str] = frozenset()
    lines: Set[str] = frozenset()

    @property
    def repeats(self) -> bool:
        return self.is_near or self.holds_half


class Known:
    """Texts that others are compared with. Each of these is read once, and each of the others compared once.

    What is said counts, whoever says it. Near-duplicates have a Jaccard similarity of at least `threshold`, over sets
    of character 5-grams; it is exact (an inverted index finds the candidates), not sampled as in MinHash.
    """

    def __init__(self, texts: Iterable[str], *, threshold: float = 0.8) -> None:
        texts = list(dict.fromkeys(texts))
        said = list(dict.fromkeys(map(_said, texts)))
        self._shingles, self._runs = _Index(said, SHINGLE), _Index(said, RUN)
        self._lines = set().union(*map(whole_lines, texts))
        self._threshold = threshold
        self._found: dict[str, Common] = {}

    def compare(self, texts: Sequence[str]) -> list[Common]:
        """What each of `texts` has in common with these."""
        if not self._runs.said:  # nothing is held out
            return [Common()] * len(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._found]
        shingles = {text: shared for text in new if (shared := self._telling_shingles(text)[0])}
        runs = {text: _runs(_said(text), RUN) & self._runs.known for text in new}
        self._shingles.locate(shingles.values())
        self._runs.locate(runs.values())
        for text in new:
            near = self.near(text) if text in shingles else iter(())
            held = self._runs.alike(runs[text], lambda common, size: 2 * common >= size)
            self._found[text] = Common(_is_any(near), _is_any(held), runs[text], whole_lines(text) & self._lines)
        return [self._found[text] for text in texts]

    def near(self, text: str, besides: Set[str] = frozenset()) -> Iterator[str]:
        """What is said in those that `text`, one of those compared, nearly repeats, apart from `besides`."""
        shared, size_of_text = self._telling_shingles(text)
        return self._shingles.alike(shared, lambda common, size: (
            common / (size_of_text + size - common) >= self._threshold), besides)

    def _telling_shingles(self, text: str) -> tuple[Set[str], int]:
        """The 5-grams of `text` that stand in any of these, or none if too few do to be near one; how many it has."""
        shingles = _runs(_said(text), SHINGLE)
        shared = shingles & self._shingles.known
        return shared if len(shared) / len(shingles) >= self._threshold else frozenset(), len(shingles)


class _Index:
    """Which of some texts hold which runs of `length` characters."""

    def __init__(self, said: Sequence[str], length: int) -> None:
        self.said, self.length = said, length
        self.known: set[str] = set()
        self.sizes = []
        for text in said:
            runs = _runs(text, length)
            self.known |= runs
            self.sizes.append(len(runs))
        self.places: dict[str, list[int]] = {}
        # Sets of all of them would need fifty times the memory of the texts.
        self.runs_at = functools.lru_cache(REMEMBERED)(lambda place: _runs(said[place], length))

    def locate(self, wanted: Iterable[Set[str]]) -> None:
        """Notes which texts hold the runs wanted, small texts first; of all runs that would take much memory."""
        new = set().union(*wanted) - self.places.keys()
        self.places.update((run, []) for run in new)
        for place in sorted(range(len(self.said)), key=self.sizes.__getitem__) if new else ():
            for run in new & _runs(self.said[place], self.length):
                self.places[run].append(place)

    def alike(self, shared: Set[str], enough: Callable[[int, int], bool], besides: Set[str] = frozenset()
              ) -> Iterator[str]:
        """The texts, apart from `besides`, that have enough in common with another.

        Args:
            shared: the other's runs that stand in any of these; `locate` was given them.
            enough: whether so many runs in common are enough for a text of so many.
        """
        # A text without the first runs has no more than those that are left in common. The rarest come first: what all
        # calls begin with comes last, when so little is left that only short texts are looked at.
        tried = set()
        rarest_first = sorted(shared, key=lambda run: len(self.places[run]))
        for left, run in zip(range(len(shared), 0, -1), rarest_first):
            if not enough(left, left):  # even for a text that has no others
                return
            for place in self.places[run]:
                size = self.sizes[place]
                if not enough(left, size):  # nor for the rest, which are larger
                    break
                if place not in tried and enough(size, size) and self.said[place] not in besides:
                    tried.add(place)
                    if enough(len(shared & self.runs_at(place)), size):
                        yield self.said[place]


def _is_any(found: Iterator[str]) -> bool:
    return next(found, None) is not None


@functools.lru_cache(KEPT)
def _contents(text: str) -> tuple[str, ...]:
    """What is said in each line."""
    return tuple(content for _, content in split_lines(normalise(text)))


def _said(text: str) -> str:
    return "".join(_contents(text))


def _runs(said: str, length: int) -> set[str]:
    """The runs of so many characters; a text shorter than that is one run."""
    return {said[i:i + length] for i in range(max(1, len(said) - length + 1))}


def rows_sharing_a_line(records: Sequence[dict], others: Sequence[dict]) -> list[bool]:
    """For each record, whether a whole line of at least 10 characters stands in some other record too."""
    seen = {line for other in others for line in whole_lines(other["input"])}
    return [not seen.isdisjoint(whole_lines(record["input"])) for record in records]


def whole_lines(text: str) -> set[str]:
    """What is said in a dialogue's lines of at least 10 characters."""
    return {content for content in _contents(text) if len(content) >= LINE_OF_SOME_LENGTH}


def overlap(records: Sequence[dict], others: Sequence[dict], known: Known | None = None) -> dict:
    """How much of `records` stands in `others` too: cases and near-duplicates (counts), lines and runs (shares).

    A record counts for runs if half of its runs of 20 characters or more stand in `others`, in one or in several.

    Args:
        known: the texts of `records`, if there is one already; it may know more.
    """
    known = known or Known(record["input"] for record in records)
    near, runs, lines = set(), set(), set()
    other_texts = [other["input"] for other in others]
    for text, common in zip(other_texts, known.compare(other_texts), strict=True):
        runs |= common.runs
        lines |= common.lines
        if common.is_near:
            near.update(known.near(text, besides=near))
    cases = {other["case"] for other in others if other.get("case")}
    texts = [record["input"] for record in records]
    runs_of = [_runs(_said(text), RUN) for text in texts]
    return {
        "shared_cases": len(cases & {record.get("case") for record in records}),
        "near_duplicates": sum(_said(text) in near for text in texts),
        "rows_sharing_a_line": sum(not lines.isdisjoint(whole_lines(text)) for text in texts) / len(texts),
        "rows_with_half_their_runs": sum(2 * len(own & runs) >= len(own) for own in runs_of) / len(texts),
    }


def overlap_with_file(records: Sequence[dict], path: str) -> dict:
    """`overlap` of `records` with those of a file."""
    return overlap(records, read_records(path, Skipped()))


def leakage_report(splits: dict[str, list[dict]], known: Known | None = None, *, seed: int = 0) -> dict:
    """Overlap of each part with train, of test with eval, and the overlap had shuffled segments been split.

    Args:
        splits: train, eval and test; optionally others, that are compared with train.
        known: the texts of all parts but train, if there is one already.
    """
    pool = [record for name in ("train", "eval", "test") for record in splits[name]]
    random.Random(seed).shuffle(pool)
    n_eval = len(splits["eval"])
    shuffled = rows_sharing_a_line(pool[:n_eval], pool[n_eval:])
    leakage = {f"{name} against train": overlap(records, splits["train"], known)
               for name, records in splits.items() if name != "train" and records}
    return {
        "leakage": {**leakage, "test against eval": overlap(splits["test"], splits["eval"])},
        "if_segments_were_shuffled": {"rows_sharing_a_line": sum(shuffled) / n_eval},
    }
