"""Dialogues cut into segments: the records that a model is trained and judged on.

Which segments of a scam are fraud is a choice, `LABELS`: those with a fraudulent line, or also every segment after the
fraud has begun (``from-onset``), as the article labels them.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from .records import NOT_OF_CALLS, Dialogue, Line
from .speakers import format_dialogue

SEGMENT_LENGTHS = (100, 300, 500)  # characters


def cut_dialogue(dialogue: Dialogue, lengths: Sequence[int] = SEGMENT_LENGTHS, labels: str = "lines") -> list[dict]:
    """Records of one dialogue, cut once for every length (in characters) into segments no longer than that.

    Cuts fall between lines; only a line that is longer by itself is cut, at the end of a sentence where it has
    one. A segment is fraud when one of its lines is; with `labels` "from-onset" that is, when a fraud is under way, see
    `from_onset`. A segment that two lengths cut alike appears once. Without `lengths` the whole dialogue is the one
    record, without what is of lines; a call that is labelled as a whole has nothing else.
    """
    if not lengths:
        call = dialogue.call or cut_dialogue(dialogue, (math.inf,))[0]
        return [{key: value for key, value in call.items() if key not in NOT_OF_CALLS}]
    lines = LABELS[labels](dialogue.lines)
    whole = max(1, sum(len(line.content) for line in lines))
    starts: dict[tuple[Line, ...], int] = {}
    for length in lengths:
        start = 0
        for segment in cut_lines(lines, length):
            starts.setdefault(segment, start)
            start += sum(len(line.content) for line in segment)
    return [_record(dialogue, segment, round(start / whole, 3)) for segment, start in starts.items()]


def from_onset(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines of a dialogue, fraud from the one before the first fraudulent line on.

    So the article's eval set is labelled: all but one of its segments that `label_audit` finds in the corpus. It seems
    that a loop cut it which noted a fraud for good, and before it saw that the line no longer fitted into the segment.
    """
    first = next((i for i, line in enumerate(lines) if line.is_fraud), math.inf)
    return tuple(dataclasses.replace(line, is_fraud=i >= first - 1) for i, line in enumerate(lines))


LABELS = {"lines": tuple, "from-onset": from_onset}  # by its name, what a rule makes of a dialogue's lines


def cut_lines(lines: Sequence[Line], length: int) -> Iterable[tuple[Line, ...]]:
    """Consecutive segments of a dialogue of no more than `length` characters each; see `cut_dialogue`."""
    segment, size = [], 0
    for part in (part for line in lines for part in _parts(line, length)):
        if segment and size + len(part.content) > length:
            yield tuple(segment)
            segment, size = [], 0
        segment.append(part)
        size += len(part.content)
    if segment:
        yield tuple(segment)


def _parts(line: Line, length: int) -> Iterable[Line]:
    """The line, or its parts if it is longer than `length`."""
    rest = line.content
    while len(rest) > length:
        sentences = list(re.finditer(r"[。！？；!?;]", rest[:length]))
        end = sentences[-1].end() if sentences else length
        yield Line(line.speaker, rest[:end], line.is_fraud)
        rest = rest[end:]
    yield Line(line.speaker, rest, line.is_fraud)


def _record(dialogue: Dialogue, segment: Sequence[Line], position: float) -> dict:
    swindlers = {line.speaker for line in dialogue.lines if line.is_fraud}
    return {
        "input": format_dialogue([(line.speaker, line.content) for line in segment]),
        "label": any(line.is_fraud for line in segment),
        "line_labels": [line.is_fraud for line in segment],
        "fraud_speaker": next((line.speaker for line in segment if line.is_fraud and line.speaker in swindlers), ""),
        "case": dialogue.case,
        "category": dialogue.category,
        "position": position,  # share of the dialogue's characters before the segment
    }
