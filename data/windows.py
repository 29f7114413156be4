"""A dialogue that is longer than a prompt's room, in overlapping windows of whole lines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .transcripts import SPEAKER

WINDOW_TOKENS = 300  # of dialogue: about what models are trained on (up to 500 characters); in more, a few lines drown
OVERLAP = 4  # a window begins with the last quarter of the one before
CHARACTERS_A_TOKEN = 16  # at most; a Chinese dialogue has about two. Longer texts are not even tokenised
SENTENCE_ENDS = "。！？!?；;，,"


@dataclass(frozen=True)
class Window:
    """A part of a dialogue as a prompt.

    Attributes:
        ids: token ids of the whole prompt, as `PromptEncoder.prompts` gives.
        first_line, last_line: the lines of the text as given that it reads, counted from 0.
    """

    ids: list[int]
    first_line: int
    last_line: int


def cut_into_windows(lines: Sequence[str], room: int, encode: Callable[[Sequence[str]], list[list[int]]]
                     ) -> Iterator[tuple[int, int, list[int]]]:
    """(first line, last line, token ids) of windows of at most `room` tokens.

    Every line is read whole by some window, but for lines longer than one: they are cut at ends of sentences, their
    speaker stands before each part. No more text is tokenised at a time than a window may hold.
    """
    sizes = list(_sizes(lines, room, encode))
    first = 0
    while first < len(lines):
        last, total = first, sizes[first]
        while last + 1 < len(lines) and total + sizes[last + 1] <= room:
            last += 1
            total += sizes[last]
        while (ids := _fitting("\n".join(lines[first:last + 1]), room, encode)) is None and last > first:
            last -= 1
        if ids is None:
            yield from ((first, first, part) for part in _parts(lines[first], room, encode))
        else:
            yield first, last, ids
        if last + 1 == len(lines):
            return
        following, shared = last + 1, sizes[last + 1]
        while following - 1 > first and shared + sizes[following - 1] <= min(room, sizes[last + 1] + room // OVERLAP):
            following -= 1
            shared += sizes[following]
        first = following


def _sizes(lines: Sequence[str], room: int, encode) -> Iterator[int]:
    """The tokens of each line and its end; `room` + 1 for one that is too long to be counted."""
    batch, characters = [], 0
    for line in lines:
        counted = line + "\n" if len(line) < room * CHARACTERS_A_TOKEN else None
        batch.append(counted)
        characters += len(counted or "")
        if characters >= room * CHARACTERS_A_TOKEN:
            yield from _sizes_of_batch(batch, room, encode)
            batch, characters = [], 0
    yield from _sizes_of_batch(batch, room, encode)


def _sizes_of_batch(batch: Sequence[str | None], room: int, encode) -> list[int]:
    ids = iter(encode([line for line in batch if line is not None]))
    return [room + 1 if line is None else len(next(ids)) for line in batch]


def _fitting(text: str, room: int, encode) -> list[int] | None:
    """Token ids of a text; None where they are more than `room`."""
    if len(text) > room * CHARACTERS_A_TOKEN:
        return None
    ids, = encode([text])
    return ids if len(ids) <= room else None


def _parts(line: str, room: int, encode) -> Iterator[list[int]]:
    """Token ids of overlapping parts of a line."""
    match = SPEAKER.match(line)
    speaker = match[0] if match and len(match[0]) < room // OVERLAP else ""
    said, start, length = line[len(speaker):], 0, room * 2
    while start < len(said):
        ids = None
        while ids is None:
            end = _end_of_sentence(said, start, start + length)
            ids = _fitting(speaker + said[start:end], room, encode)
            if ids is None and length == 1:
                ids = encode([speaker + said[start:end]])[0][:room]
            elif ids is None:
                length = max(1, length * 3 // 4)
        yield ids
        if end == len(said):
            return
        # So many characters nearly fill the next part: what is tokenised only to be found too long costs most here.
        length = max(1, min(room * CHARACTERS_A_TOKEN, (end - start) * room * 15 // (16 * len(ids))))
        start = max(start + 1, end - (end - start) // OVERLAP)


def _end_of_sentence(said: str, start: int, end: int) -> int:
    """The last end of a sentence in the second half of ``said[start:end]``; `end` itself where there is none."""
    if end >= len(said):
        return len(said)
    return max(said.rfind(mark, (start + end) // 2, end) for mark in SENTENCE_ENDS) + 1 or end
