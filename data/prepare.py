"""Dialogues (CSV) to train.jsonl, eval.jsonl, test.jsonl, split by dialogue, with a leakage report.

    python -m data.prepare --source DIR --output DIR [--augment 0.5] [--labels so-far] [--held-out F.jsonl ...]

The article cuts every dialogue three times, shuffles the pieces and splits those, so almost every eval piece
has its sentences in the train set too. Here whole dialogues are dealt to the splits, pieces that nearly repeat a
piece of another split are removed, only the train set is rebalanced (and, on request, augmented with noise), and
``leakage.json`` counts what is left. What is to be judged on other records, cut from the same dialogues, can be kept
from all three splits: ``--held-out``.

Which pieces of a scam are fraud is a choice, `LABELS`: those with a line that is, or also those after such a line, when
the fraud is under way (``so-far``), as the article labels them.
"""

import argparse
import collections
import dataclasses
import math
import random
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import DataError, write_json
from .leakage import leakage_report, near_duplicates, rows_sharing_a_line
from .noise import add_asr_noise
from .records import Dialogue, Line, Skipped, read_dialogues, read_records, write_records
from .speakers import format_dialogue

PIECE_LENGTHS = (100, 300, 500)
SPLITS = ("train", "eval", "test")
SHARES = (0.8, 0.1, 0.1)
NEAR_DUPLICATE = 0.8


def cut_dialogue(dialogue: Dialogue, lengths: Sequence[int] = PIECE_LENGTHS, labels: str = "lines") -> list[dict]:
    """Records of one dialogue, cut once for every length (in characters) into pieces no longer than that.

    Cuts fall between lines; only a line that is longer by itself is cut, at the end of a sentence where it has
    one. A piece is fraud when one of its lines is; with `labels` "so-far" that is, when a fraud is under way, see
    `fraud_so_far`. A piece that two lengths cut alike appears once.
    """
    lines = LABELS[labels](dialogue.lines)
    whole = max(1, sum(len(line.content) for line in lines))
    starts: dict[tuple[Line, ...], int] = {}
    for length in lengths:
        start = 0
        for piece in cut_lines(lines, length):
            starts.setdefault(piece, start)
            start += sum(len(line.content) for line in piece)
    return [_record(dialogue, piece, round(start / whole, 3)) for piece, start in starts.items()]


def fraud_so_far(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines of a dialogue, fraud from the one before the first fraudulent line on.

    So the article's eval set is labelled: all but one of its pieces that `label_audit` finds in the corpus. It seems
    that a loop cut it which noted a fraud for good, and before it saw that the line no longer fitted into the piece.
    """
    first = next((i for i, line in enumerate(lines) if line.is_fraud), math.inf)
    return tuple(dataclasses.replace(line, is_fraud=i >= first - 1) for i, line in enumerate(lines))


LABELS = {"lines": tuple, "so-far": fraud_so_far}  # by its name, what a rule makes of a dialogue's lines


def cut_lines(lines: Sequence[Line], length: int) -> Iterable[tuple[Line, ...]]:
    """Consecutive pieces of a dialogue of no more than `length` characters each; see `cut_dialogue`."""
    piece, size = [], 0
    for part in (part for line in lines for part in _parts(line, length)):
        if piece and size + len(part.content) > length:
            yield tuple(piece)
            piece, size = [], 0
        piece.append(part)
        size += len(part.content)
    if piece:
        yield tuple(piece)


def _parts(line: Line, length: int) -> Iterable[Line]:
    """The line, or its parts if it is longer than `length`."""
    rest = line.content
    while len(rest) > length:
        sentences = list(re.finditer(r"[。！？；!?;]", rest[:length]))
        end = sentences[-1].end() if sentences else length
        yield Line(line.speaker, rest[:end], line.is_fraud)
        rest = rest[end:]
    yield Line(line.speaker, rest, line.is_fraud)


def _record(dialogue: Dialogue, piece: Sequence[Line], position: float) -> dict:
    swindlers = {line.speaker for line in dialogue.lines if line.is_fraud}
    return {
        "input": format_dialogue([(line.speaker, line.content) for line in piece]),
        "label": any(line.is_fraud for line in piece),
        "line_labels": [line.is_fraud for line in piece],
        "fraud_speaker": next((line.speaker for line in piece if line.is_fraud and line.speaker in swindlers), ""),
        "case": dialogue.case,
        "category": dialogue.category,
        "position": position,  # share of the dialogue's characters before the piece
    }


def split_by_case(dialogues: Sequence[Dialogue], *, shares: Sequence[float] = SHARES,
                  seed: int = 0) -> dict[str, list[Dialogue]]:
    """Deals whole dialogues to train, eval and test, category by category, so that each split has every kind."""
    by_category = collections.defaultdict(list)
    for dialogue in dialogues:
        by_category[dialogue.category].append(dialogue)
    rng = random.Random(seed)
    splits = {name: [] for name in SPLITS}
    for category in sorted(by_category):
        members = sorted(by_category[category], key=lambda dialogue: dialogue.case)
        rng.shuffle(members)
        for name, part in zip(SPLITS, _deal(members, shares), strict=True):
            splits[name].extend(part)
    return splits


def _deal(members: list, shares: Sequence[float]) -> list[list]:
    ends = [round(len(members) * sum(shares[:i + 1]) / sum(shares)) for i in range(len(shares))]
    return [members[start:end] for start, end in zip([0, *ends], ends)]


def leave_out(dialogues: Sequence[Dialogue], held_out: Sequence[dict], lengths: Sequence[int] = PIECE_LENGTHS, *,
              threshold: float = NEAR_DUPLICATE) -> list[Dialogue]:
    """The dialogues that no held-out record was cut from: no piece of theirs shares a line with one, or repeats it.

    A kind of dialogue that would be gone altogether (of a few long meetings, say) stays, for pieces that do neither.
    """
    pieces = [record for dialogue in dialogues for record in cut_dialogue(dialogue, lengths)]
    cases = {record["case"] for record, found in zip(pieces, _found_in(held_out, pieces, threshold)) if found}
    left = {dialogue.category for dialogue in dialogues if dialogue.case not in cases}
    return [dialogue for dialogue in dialogues if dialogue.case not in cases or dialogue.category not in left]


def cut_apart(dialogues: Sequence[Dialogue], lengths: Sequence[int], held_out: Sequence[dict], *,
              labels: str = "lines", threshold: float = NEAR_DUPLICATE) -> list[dict]:
    """The pieces of `dialogues` that share no line with a held-out record and repeat none."""
    pieces = [record for dialogue in dialogues for record in cut_dialogue(dialogue, lengths, labels)]
    return [record for record, found in zip(pieces, _found_in(held_out, pieces, threshold)) if not found]


def _found_in(held_out: Sequence[dict], pieces: Sequence[dict], threshold: float) -> list[bool]:
    """For each piece, whether it shares a whole line with some held-out record, or nearly repeats it."""
    if not held_out:
        return [False] * len(pieces)
    nearly = near_duplicates([piece["input"] for piece in pieces], [record["input"] for record in held_out],
                             threshold=threshold)
    return [either or line for either, line in zip(nearly, rows_sharing_a_line(pieces, held_out), strict=True)]


def remove_near_duplicates(splits: dict[str, list[dict]], *, threshold: float = NEAR_DUPLICATE) -> dict[str, int]:
    """Removes, in place, train pieces that nearly repeat an eval or test piece, and eval ones a test piece.

    Returns how many pieces each split lost. The rarer split keeps its pieces: a test set is dearer than a train
    set.
    """
    removed = {"test": 0, "eval": 0, "train": 0}
    if threshold > 1:
        return removed
    for name, others in (("eval", ["test"]), ("train", ["eval", "test"])):
        held_out = [record["input"] for other in others for record in splits[other]]
        repeats = near_duplicates([record["input"] for record in splits[name]], held_out, threshold=threshold)
        splits[name] = [record for record, repeated in zip(splits[name], repeats, strict=True) if not repeated]
        removed[name] = int(sum(repeats))
    return removed


def rebalance(records: Sequence[dict], *, negatives_per_positive: float = 1.0, balance_sources: bool = False,
              seed: int = 0) -> list[dict]:
    """Drops records of the more frequent label at random until the ratio holds; keeps the order of the rest.

    With `balance_sources`, as many negatives stay that are harmless slices of scams as ones that are not, as far as
    they go: otherwise a meeting of an hour gives dozens and a scam's harmless opening gives one.
    """
    positives = [i for i, record in enumerate(records) if record["label"]]
    negatives = [i for i, record in enumerate(records) if not record["label"]]
    rng = random.Random(seed)
    n_negatives = min(len(negatives), round(len(positives) * negatives_per_positive))
    n_positives = min(len(positives), round(n_negatives / negatives_per_positive))
    hard = set(hard_negatives(records))
    sources = [[i for i in negatives if i in hard], [i for i in negatives if i not in hard]]
    kept = rng.sample(positives, n_positives)
    kept += _draw_evenly(sources if balance_sources else [negatives], n_negatives, rng)
    return [records[i] for i in sorted(kept)]


def hard_negatives(records: Sequence[dict]) -> list[int]:
    """The numbers of the harmless records of categories that have frauds: mostly harmless slices of scams."""
    scams = {record["category"] for record in records if record["label"] and "category" in record}
    return [i for i, record in enumerate(records) if not record["label"] and record.get("category") in scams]


def _draw_evenly(groups: Sequence[list[int]], n: int, rng: random.Random) -> list[int]:
    """`n` members in all, from each group as many as from the others as far as it goes."""
    drawn = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len)):
        drawn += rng.sample(group, min(len(group), (n - len(drawn)) // left))
    return drawn


def add_noisy_copies(records: Sequence[dict], share: float, *, seed: int = 0) -> list[dict]:
    """`records` and, of a share of them drawn at random, a second copy as a speech recogniser might have written it."""
    drawn = random.Random(seed).sample(list(records), round(share * len(records)))
    return [*records, *({**record, "input": add_asr_noise(record["input"], seed=seed)} for record in drawn)]


def prepare(source: str | Path, output: str | Path, *, lengths: Sequence[int] = PIECE_LENGTHS,
            train_lengths: Sequence[int] | None = None, shares: Sequence[float] = SHARES,
            negatives_per_positive: float = 1.0, balance_sources: bool = False, keep_hard_negatives: bool = True,
            near_duplicate: float = NEAR_DUPLICATE, augment: float = 0.0, labels: str = "lines",
            held_out: Sequence[str | Path] = (), seed: int = 0) -> dict:
    """Reads dialogues, cuts, splits, cleans and writes them; returns the leakage report it also writes.

    Args:
        lengths: of the pieces, in characters.
        train_lengths: of those of train, where they are others; eval and test stay what they are.
        shares: of the dialogues, for train, eval and test.
        negatives_per_positive, balance_sources: see `rebalance`; of train only.
        keep_hard_negatives: False takes harmless slices of scams out of train, to show what they are good for.
        near_duplicate: similarity from which on a piece repeats a held-out one; above 1, none does.
        augment: share of the train records that get a noisy copy; see `data.noise`.
        labels: which pieces of a scam are fraud, one of `LABELS`; see `cut_dialogue`.
        held_out: JSONL files of other records to be judged on: what they were cut from is in no split; see `leave_out`.
    """
    skipped = Skipped()
    others = [record for path in held_out for record in read_records(path, Skipped())]
    read = read_dialogues(source, skipped)
    dialogues = leave_out(read, others, lengths, threshold=near_duplicate)
    cases = split_by_case(dialogues, shares=shares, seed=seed)
    lengths_of = {**dict.fromkeys(SPLITS, lengths), "train": train_lengths or lengths}
    splits = {name: cut_apart(cases[name], lengths_of[name], others, labels=labels, threshold=near_duplicate)
              for name in SPLITS}
    cut = {name: len(records) for name, records in splits.items()}
    removed = remove_near_duplicates(splits, threshold=near_duplicate)
    if not keep_hard_negatives:
        hard = set(hard_negatives(splits["train"]))
        splits["train"] = [record for i, record in enumerate(splits["train"]) if i not in hard]
    splits["train"] = rebalance(splits["train"], negatives_per_positive=negatives_per_positive,
                                balance_sources=balance_sources, seed=seed)
    kept = {name: len(records) for name, records in splits.items()}
    splits["train"] = add_noisy_copies(splits["train"], augment, seed=seed)
    for name in SPLITS:
        if len({record["label"] for record in splits[name]}) < 2:
            raise DataError(f"{source}: the {name} split would have one label only; it needs more dialogues "
                            "of both kinds")
        random.Random(seed).shuffle(splits[name])
    report = {
        "settings": {"lengths": list(lengths), "train_lengths": list(lengths_of["train"]), "shares": list(shares),
                     "seed": seed, "negatives_per_positive": negatives_per_positive, "balance_sources": balance_sources,
                     "keep_hard_negatives": keep_hard_negatives, "near_duplicate": near_duplicate, "augment": augment,
                     "labels": labels},
        "held_out": {"files": [Path(path).name for path in held_out], "records": len(others),
                     "dialogues_left_out": len(read) - len(dialogues)},
        "skipped_lines": len(skipped),
        "skipped": [Path(place).name for place in skipped.places],
        "splits": {name: _counts(splits[name], cut[name], removed[name], kept[name]) for name in SPLITS},
        **leakage_report(splits, seed=seed),
    }
    for name in SPLITS:
        write_records(Path(output) / f"{name}.jsonl", splits[name])
    write_json(Path(output) / "leakage.json", report)
    return report


def _counts(records: Sequence[dict], cut: int, removed: int, kept: int) -> dict:
    return {
        "records": len(records),
        "fraud": sum(record["label"] for record in records),
        "cases": len({record["case"] for record in records}),
        "cut": cut,
        "removed_as_near_duplicates": removed,
        "removed_by_rebalancing": cut - removed - kept,
        "noisy_copies": len(records) - kept,
    }


def describe(report: dict) -> str:
    """The leakage report as a short table for people."""
    lines = [f"{'split':<6} {'records':>8} {'fraud':>7} {'cases':>6} {'near-dup removed':>17} {'rebalanced away':>16}"]
    for name, counts in report["splits"].items():
        lines.append(f"{name:<6} {counts['records']:>8} {counts['fraud']:>7} {counts['cases']:>6} "
                     f"{counts['removed_as_near_duplicates']:>17} {counts['removed_by_rebalancing']:>16}")
    for name, leak in report["leakage"].items():
        lines.append(f"{name}: {leak['shared_cases']} dialogues in common, "
                     f"{leak['near_duplicates']} near-duplicates, "
                     f"{leak['rows_sharing_a_line']:.1%} of rows share a whole line")
    shuffled = report["if_pieces_were_shuffled"]
    lines.append(f"had the pieces been shuffled as in the article: {shuffled['rows_sharing_a_line']:.1%} of rows")
    if report["held_out"]["records"]:
        lines.append(f"left out {report['held_out']['dialogues_left_out']} dialogues that repeat a line or a piece of "
                     f"{', '.join(report['held_out']['files'])}")
    if report["skipped_lines"]:
        lines.append(f"skipped {report['skipped_lines']} lines: {'; '.join(report['skipped'][:3])}; ... "
                     "(all in leakage.json)")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("--source", required=True, help="a folder of dialogue CSVs, or one CSV file")
    parser.add_argument("--output", required=True, help="folder for train.jsonl, eval.jsonl, test.jsonl, leakage.json")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(PIECE_LENGTHS),
                        help="piece lengths in characters (default: %(default)s)")
    parser.add_argument("--train-lengths", type=int, nargs="+", help="of the train pieces (default: as --lengths)")
    parser.add_argument("--shares", type=float, nargs=3, default=list(SHARES), metavar=("TRAIN", "EVAL", "TEST"))
    parser.add_argument("--negatives-per-positive", type=float, default=1.0, help="in train only (default: 1)")
    parser.add_argument("--balance-sources", action="store_true",
                        help="in train, as many harmless slices of scams as other negatives, as far as they go")
    parser.add_argument("--augment", type=float, default=0.0, metavar="SHARE",
                        help="of the train records, to add once more with a speech recogniser's noise (default: none)")
    parser.add_argument("--labels", choices=LABELS, default="lines",
                        help="a piece is fraud when one of its lines is (default), or from when a fraud begins, as the "
                             "article's eval set labels them")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="JSONL",
                        help="other records to be judged on; dialogues that they were cut from are left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not all(0 < value < math.inf for value in (
            *args.lengths, *(args.train_lengths or ()), *args.shares, args.negatives_per_positive)):
        parser.error("lengths, shares and --negatives-per-positive must be above zero")
    if not 0 <= args.augment <= 1:
        parser.error("--augment must be from 0 to 1")
    try:
        report = prepare(args.source, args.output, lengths=args.lengths, train_lengths=args.train_lengths,
                         shares=args.shares, negatives_per_positive=args.negatives_per_positive,
                         balance_sources=args.balance_sources, augment=args.augment, labels=args.labels,
                         held_out=args.held_out, seed=args.seed)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(report))
    print(f"written to {args.output}; next: python trainer.py --model MODEL --train {args.output}/train.jsonl "
          f"--eval {args.output}/eval.jsonl --output outputs/run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
