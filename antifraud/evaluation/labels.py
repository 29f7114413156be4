"""Labels that a second opinion contradicts, and how many of a model's errors fall on them.

The second opinion is the TF-IDF baseline, fitted on other dialogues of the same set (5 folds, out of fold). It reads
the same words as the model, so the two may be wrong together: a suspect is a label to look at, not a wrong label, and
the share of errors that fall on suspects is no estimate of how many labels are wrong.

A set that was cut from a corpus whose lines are labelled can be asked more: whether the two agree.

    python -m antifraud.evaluation.labels --data eval0819.jsonl --source DIALOGS [--labels from-onset]
                          [--train train.jsonl] [--relabelled OUT.jsonl] [--output audit.json]

says how good the lines' own labels would be as answers, which is the best that a model can do that learned from them,
with --train also how far that is above TF-IDF fitted on that split, and writes the records that it found with those
labels, the dialogue they come from, and the labels of their lines. With --labels from-onset a line counts as fraud from
when a fraud begins (``data.segments.from_onset``).
"""

import argparse
import dataclasses
import sys
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from data.files import DataError, write_json
from data.leakage import whole_lines
from data.records import Dialogue, Line, Skipped, read_dialogues, read_records, write_records
from data.segments import LABELS
from data.speakers import split_lines

from ..provenance import code_provenance, describe_data
from .baselines import build_tfidf, fraud_probability
from .metrics import classification_metrics, confidence_intervals, f1_difference, figure_text

FOLDS = 5
BETWEEN_DIALOGUES = "\0\n"  # in no text
SUSPECT = 0.9
RULE = (f"a label is suspect when TF-IDF with logistic regression, fitted on the other dialogues of this set "
        f"({FOLDS} folds), gives the opposite label a probability of at least {SUSPECT}")


def audit_labels(records: Sequence[dict], answers: Sequence[bool | None] | None = None) -> dict | None:
    """The labels that the rule suspects, and the model's errors among them.

    Args:
        answers: [records] the model's, None where one was not readable; without them only the labels are judged.

    Returns:
        ``rule`` in words, ``grouped_by``, numbers of ``rows`` and ``suspects`` (of each label, too), the agreement of
        the second opinion with the labels (``accuracy_of_second_opinion``); of the model's answers the ``errors``,
        those on suspects, and the same for its right answers, for comparison. None where fewer than five dialogues
        have either label, so that nothing can be cross-validated.
    """
    y_true = np.array([record["label"] for record in records])
    groups, grouped_by = dialogue_groups(records)
    if any(len(set(groups[y_true == label])) < FOLDS for label in (True, False)):
        return None
    opinion = out_of_fold_probabilities(records, groups)
    suspect = np.where(y_true, 1 - opinion, opinion) >= SUSPECT
    found = {
        "rule": RULE,
        "grouped_by": grouped_by,
        "rows": len(records),
        "suspects": int(suspect.sum()),
        "suspects_labelled_fraud": int((suspect & y_true).sum()),
        "suspects_labelled_honest": int((suspect & ~y_true).sum()),
        "accuracy_of_second_opinion": float(((opinion >= 0.5) == y_true).mean()),
    }
    if answers is not None:
        answered = np.array([answer is not None for answer in answers])
        wrong = answered & (np.array([bool(answer) for answer in answers]) != y_true)
        found.update(_among("errors", wrong, suspect), **_among("right_answers", answered & ~wrong, suspect))
    return found


def _among(name: str, rows: np.ndarray, suspect: np.ndarray) -> dict:
    on_suspects = int((rows & suspect).sum())
    return {name: int(rows.sum()), f"{name}_on_suspects": on_suspects,
            f"share_of_{name}_on_suspects": on_suspects / int(rows.sum()) if rows.any() else None}


def out_of_fold_probabilities(records: Sequence[dict], groups: np.ndarray) -> np.ndarray:
    """[records] probability of fraud, each from a classifier that saw no piece of the same dialogue."""
    dialogues = np.array([record["input"] for record in records], dtype=object)
    y_true = np.array([record["label"] for record in records])
    probabilities = np.empty(len(records))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for rest, fold in folds.split(dialogues, y_true, groups):
        if len(set(y_true[rest])) < 2:  # the fold holds all of a label: nothing can be said of it
            probabilities[fold] = 0.5
            continue
        probabilities[fold] = fraud_probability(build_tfidf().fit(dialogues[rest], y_true[rest]), dialogues[fold])
    return probabilities


def dialogue_groups(records: Sequence[dict]) -> tuple[np.ndarray, str]:
    """[records] the number of each one's dialogue, and how that is known.

    By ``case`` where every record has one. Otherwise pieces that share a whole line of some length are taken for
    pieces of one dialogue, and so are those that are linked by way of others.
    """
    if all("case" in record for record in records):
        return np.unique([record["case"] for record in records], return_inverse=True)[1], "case"
    pairs = [(row, line) for row, record in enumerate(records) for line in whole_lines(record["input"])]
    number = {line: len(records) + i for i, line in enumerate(dict.fromkeys(line for _, line in pairs))}
    nodes = len(records) + len(number)
    rows, columns = [row for row, _ in pairs], [number[line] for _, line in pairs]
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:len(records)], "shared whole lines"


# ------------------------------------------------------------------------------- a set against the lines' labels


def trace(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> list[tuple[Dialogue, list[Line]] | None]:
    """For each record the dialogue it was cut from, and the lines that its own are, or are parts of.

    What is said is compared, not who says it. None where no dialogue says so, or several do that label it differently.
    """
    pieces, starts, lines, end = [], [], [], 0  # of every line where it starts in the corpus, and whose it is
    for dialogue in dialogues:
        for line in dialogue.lines:
            starts.append(end)
            lines.append((dialogue, line))
            pieces.append(line.content.strip() + "\n")
            end += len(pieces[-1])
        pieces.append(BETWEEN_DIALOGUES)
        end += len(BETWEEN_DIALOGUES)
    corpus = "".join(pieces)

    def place_of(record: dict) -> tuple[Dialogue, list[Line]] | None:
        text = "\n".join(words.strip() for _, words in split_lines(record["input"]))
        found, at = None, corpus.find(text) if text else -1
        while at >= 0:
            first, last = (bisect_right(starts, place) - 1 for place in (at, at + len(text) - 1))
            place = lines[first][0], [line for _, line in lines[first:last + 1]]
            found = found or place
            if [line.is_fraud for line in place[1]] != [line.is_fraud for line in found[1]]:
                return None
            at = corpus.find(text, at + 1)
        return found

    return [place_of(record) for record in records]


def relabel(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> list[dict | None]:
    """Each record as the corpus labels it: a fraud if one of its lines is; None where `trace` does not find it.

    Its ``case``, ``category`` and ``line_labels`` are the corpus's, too; the last are left out where a line of the
    corpus is several lines in the record.
    """
    return [place and _labelled_as(record, *place) for record, place in zip(records, trace(records, dialogues))]


def _labelled_as(record: dict, dialogue: Dialogue, lines: Sequence[Line]) -> dict:
    labels = [line.is_fraud for line in lines]
    found = {key: value for key, value in record.items() if key != "line_labels"}
    found |= {"label": any(labels), "case": dialogue.case, "category": dialogue.category}
    return found | ({"line_labels": labels} if len(labels) == len(split_lines(record["input"])) else {})


def audit_against_lines(records: Sequence[dict], relabelled: Sequence[dict | None]) -> dict:
    """How far labels agree with those of the lines, and how the latter would do as answers.

    Returns:
        ``rows``, ``traced``; of the traced ``fraud_without_a_fraud_line`` and ``honest_with_a_fraud_line``; and
        ``answers_of_lines``, metrics with intervals resampled by dialogue.

    Raises:
        DataError: no record was found in the dialogues.
    """
    pairs = [(record["label"], other) for record, other in zip(records, relabelled, strict=True) if other is not None]
    if not pairs:
        raise DataError("no record was cut from these dialogues, line for line; give the corpus it comes from")
    y_true, of_lines = np.array([[label, other["label"]] for label, other in pairs]).T
    groups = [other["case"] for _, other in pairs]
    return {"rows": len(records), "traced": len(pairs),
            "fraud_without_a_fraud_line": int((y_true & ~of_lines).sum()),
            "honest_with_a_fraud_line": int((~y_true & of_lines).sum()),
            "answers_of_lines": {**classification_metrics(y_true, of_lines),
                                 "intervals": confidence_intervals(y_true, of_lines, groups=groups)}}


def room_above_tfidf(records: Sequence[dict], relabelled: Sequence[dict | None], train: Sequence[dict]) -> dict:
    """How TF-IDF fitted on `train` does on the records that were found, and how much better the lines' labels do.

    Returns:
        TF-IDF's metrics at threshold 0.5, and ``answers_of_lines_f1_minus_this`` with the interval of the paired
        bootstrap, resampled by dialogue.
    """
    pairs = [(record, other) for record, other in zip(records, relabelled, strict=True) if other is not None]
    y_true, of_lines = np.array([[record["label"], other["label"]] for record, other in pairs]).T
    fitted = build_tfidf().fit([record["input"] for record in train], [record["label"] for record in train])
    scores = fraud_probability(fitted, [record["input"] for record, _ in pairs])
    groups = [other["case"] for _, other in pairs]
    return {**classification_metrics(y_true, scores >= 0.5, scores),
            "answers_of_lines_f1_minus_this": f1_difference(y_true, of_lines, scores >= 0.5, groups)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m antifraud.evaluation.labels", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSONL records to audit")
    parser.add_argument("--source", required=True, help="the dialogues they were cut from (CSV), lines labelled")
    parser.add_argument("--labels", choices=LABELS, default="lines",
                        help="count a line as fraud when it is (default), or from when a fraud begins")
    parser.add_argument("--train", metavar="JSONL", help="compare with TF-IDF fitted on these records")
    parser.add_argument("--relabelled", metavar="JSONL", help="write the records found there as their lines label them")
    parser.add_argument("--output", metavar="JSON", help="write the audit")
    args = parser.parse_args(argv)
    skipped = Skipped()
    try:
        records = read_records(args.data, skipped)
        dialogues = read_dialogues(args.source, skipped)
        found = relabel(records, [dataclasses.replace(dialogue, lines=LABELS[args.labels](dialogue.lines))
                                  for dialogue in dialogues])
        audit = audit_against_lines(records, found)
        if args.train:
            audit["tfidf"] = room_above_tfidf(records, found, read_records(args.train, skipped))
        if args.relabelled:
            write_records(args.relabelled, filter(None, found))
        if args.output:
            data = {key: value for key, value in describe_data(args.data, len(records)).items() if key != "path"}
            write_json(args.output, {"labels": args.labels, **audit, "data": data, "device": "cpu",
                                     "provenance": code_provenance()})
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    lines = audit["answers_of_lines"]
    print(f"{audit['traced']} of {audit['rows']} records found, line for line: "
          f"{audit['fraud_without_a_fraud_line']} labelled fraud have no line that is, "
          f"{audit['honest_with_a_fraud_line']} labelled honest have one")
    print(f"the labels of lines as answers: precision {figure_text(lines['precision'], '.3f')}, "
          f"recall {figure_text(lines['recall'], '.3f')}, F1 {figure_text(lines['f1'], '.3f')}")
    if args.train:
        room = audit["tfidf"]["answers_of_lines_f1_minus_this"]
        interval = " ({:+.3f} to {:+.3f})".format(*room["interval"]) if room["interval"] else ""
        print(f"TF-IDF fitted on {args.train}: F1 {audit['tfidf']['f1']:.3f}, which leaves "
              f"{room['value']:+.3f}{interval} between the two")
    return 0


if __name__ == "__main__":
    sys.exit(main())
