"""Where a model fails: by kind, source, length and place of a dialogue, and its worst errors one by one."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from data.speakers import split_lines

from .metrics import metrics_by

LENGTH_BINS = 4  # of equally many rows
PLACES = ("beginning", "middle", "end")  # thirds of a dialogue
WORST = 20


def error_report(numbered: Sequence[tuple[int, dict]], answers: Sequence[bool | None], scores: np.ndarray,
                 tokens: Sequence[int], *, with_text: bool = False) -> dict:
    """The parts of a report that say where the errors are.

    Args:
        numbered: (line number in the file, record).
        answers: [records] None where an answer was not readable; such rows count nowhere here.
        scores: [records] probabilities.
        tokens: [records] length of each prompt.
        with_text: show the dialogues of the worst errors. Off, since a report may be published and a corpus not.
    """
    records = [record for _, record in numbered]
    return {
        "by_category": _by(lambda row: records[row].get("category"), records, answers),
        "by_source": _by(lambda row: source_of(records[row]), records, answers),
        "by_position": _by(lambda row: place_of(records[row]), records, answers, order=PLACES),
        "by_length": _by_length(records, answers, tokens),
        "worst_errors": worst_errors(numbered, answers, scores, with_text=with_text),
    }


def _by(key_of: Callable[[int], Hashable | None], records: Sequence[dict], answers: Sequence[bool | None],
        order: Sequence[str] | None = None) -> dict | None:
    """The metrics of the rows of each key; rows without one count nowhere, None if there are no others."""
    known = [(key, records[row]["label"], answer) for row, answer in enumerate(answers)
             if answer is not None and (key := key_of(row)) is not None]
    if not known:
        return None
    found = metrics_by(*zip(*known))
    return {key: found[key] for key in order or found if key in found}


def source_of(record: dict) -> str:
    """Where a record comes from: its ``source``, or else how its speakers are called, which tells corpora apart."""
    if "source" in record:
        return record["source"]
    names = [name for name, _ in split_lines(record["input"]) if name is not None]
    if not names:
        return "no speakers named"
    return "speakers numbered (发言人N)" if any(name.startswith("发言人") for name in names) else "speakers named"


def place_of(record: dict) -> str | None:
    """In which third of its dialogue a segment begins; None where the record does not say."""
    if "position" not in record:
        return None
    return PLACES[min(int(record["position"] * len(PLACES)), len(PLACES) - 1)]


def _by_length(records: Sequence[dict], answers: Sequence[bool | None], tokens: Sequence[int]) -> dict | None:
    ends = np.unique(np.quantile(tokens, np.linspace(0, 1, LENGTH_BINS + 1)[1:], method="higher"))
    starts = [min(tokens), *(end + 1 for end in ends[:-1])]
    names = [f"{start} to {end} tokens" for start, end in zip(starts, ends)]
    return _by(lambda row: names[int(np.searchsorted(ends, tokens[row]))], records, answers, order=names)


def worst_errors(numbered: Sequence[tuple[int, dict]], answers: Sequence[bool | None], scores: np.ndarray, *,
                 with_text: bool = False) -> list[dict]:
    """The errors that the model was surest of, at most 20: line, label, probability, and what the record tells."""
    wrong = [row for row, answer in enumerate(answers) if answer is not None and answer != numbered[row][1]["label"]]
    wrong.sort(key=lambda row: -abs(scores[row] - numbered[row][1]["label"]))
    found = []
    for row in wrong[:WORST]:
        line, record = numbered[row]
        found.append({"line": line, "label": record["label"], "probability": float(scores[row]),
                      "characters": len(record["input"]),
                      **{key: record[key] for key in ("case", "category", "position") if key in record},
                      **({"input": record["input"]} if with_text else {})})
    return found
