"""Dialogues (CSV), or whole calls (JSONL), to train.jsonl, eval.jsonl, test.jsonl, with a leakage report.

    python -m data.prepare --source DIR --output DIR [--augment 0.5] [--labels from-onset] [--held-out F.jsonl ...]
                           [--ordinary DIR_OR_CSV ...] [--ordinary-eval DIR_OR_CSV ...]
                           [--ordinary-judge DIR_OR_CSV ...] [--train-only DIR_OR_CSV ...]
    python -m data.prepare --source CALLS.jsonl --output DIR  (calls that are labelled as a whole: they stay whole)
    python -m data.prepare --inspect FILE [--convert OUT]  (what a file of any format is: docs/data.md)

The article cuts every dialogue three times, shuffles the segments and splits those, so almost every eval segment has
its sentences in the train set too. Here whole dialogues are dealt to the splits, train segments that repeat a segment
of another split are removed, only the train set is rebalanced (and, on request, augmented with ASR noise and dictated
verdicts), and ``leakage.json`` counts what is left. Dialogues of which other records were cut can be kept from all
three splits: ``--held-out``.

Ordinary talk from elsewhere (``--ordinary``) goes into train as non-fraud segments; a share of its dialogues is kept
for choosing the threshold (``ordinary_eval.jsonl``, with all of ``--ordinary-eval``) and for judging
(``ordinary.jsonl``, with all of ``--ordinary-judge``). Each of their records names its ``source``. Half of the other
train segments begin with lines of it, so that a harmless beginning hides less. All these files hold segments;
``eval_calls.jsonl``, ``test_calls.jsonl``, ``ordinary_eval_calls.jsonl`` and ``ordinary_calls.jsonl`` hold the same
dialogues whole. Those to choose on are without calls that those to judge on repeat.
"""

import argparse
import json
import math
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from . import inspection
from .command import command
from .convert import label_warnings
from .files import DataError, json_text, require_output, write_together
from .formats import Reading, add_reading_options, reading_of
from .leakage import Known, leakage_report
from .noise import augment
from .normalise import normalise
from .ordinary import OrdinarySettings, begin_with_ordinary, deal_ordinary, refuse_same_cases, with_source
from .records import Dialogue, Skipped, call_files, read_dialogues, read_records, records_text
from .segments import LABELS, SEGMENT_LENGTHS, cut_dialogue
from .split import SHARES, SPLITS, apart_from, cut_apart, is_fraud, leave_out, rebalance, remove_repeats, split_by_case

FEW_DIALOGUES = 30  # of a label in eval or test: with fewer, an interval is too wide to say anything
MUCH_SHARED = 0.05  # of the rows of a part; of the public corpus fewer than one in a hundred
KINDS = ("fraud", "non_fraud", "ordinary")  # of train segments
CALLS = ("eval", "test", "ordinary_eval", "ordinary")  # of which the dialogues are written whole, too


@dataclass(frozen=True)
class Settings:
    """How dialogues become splits.

    Attributes:
        lengths: of the segments, in characters; none where calls stay whole, as those that are labelled so.
        shares: of the dialogues, for train, eval and test.
        negatives_per_positive: in train; None keeps everything. See `rebalance`.
        augment: share of the train records that get a second copy with ASR noise, every fifth of these with a line that
            dictates a verdict, save copies that repeat what is judged on; see `data.noise`.
        labels: which segments of a scam are fraud, one of `LABELS`; see `cut_dialogue`.
        held_out: JSONL files of other records to be judged on: what they were cut from is in no split; see `leave_out`.
        train_only: folders of CSVs, or CSV files, of more dialogues of any label, for train alone.
        ordinary: non-fraud dialogues from elsewhere.
        reading: how the source is read, where it is not of the project's own format.
    """

    lengths: Sequence[int] = SEGMENT_LENGTHS
    shares: Sequence[float] = SHARES
    negatives_per_positive: float | None = 1.0
    augment: float = 0.0
    labels: str = "lines"
    held_out: Sequence[str | Path] = ()
    train_only: Sequence[str | Path] = ()
    ordinary: OrdinarySettings = field(default_factory=OrdinarySettings)
    reading: Reading | None = None
    seed: int = 0


def prepare(source: str | Path, output: str | Path, settings: Settings = Settings()) -> dict:
    """Reads dialogues, cuts, splits, cleans and writes them; returns the leakage report it also writes.

    Raises:
        DataError: a file is not as `data.records` wants it, or there are too few dialogues for three splits.
    """
    require_output(Path(output) / "leakage.json")
    _require_own_files(Path(output))
    settings = _of_calls(source, settings)
    calls = [file for path in (source, *settings.train_only, *settings.ordinary.paths) for file in call_files(path)]
    for path in (*settings.held_out, *calls):
        if Path(path).resolve().parent == Path(output).resolve():
            raise DataError(f"{path}: lies in the folder to write, where it could be replaced; name another --output")
    skipped = Skipped()
    held_out_records = [record for path in settings.held_out for record in read_records(path, Skipped())]
    held_out = Known(record["input"] for record in held_out_records)
    read = read_dialogues(source, skipped, settings.reading)
    dialogues = leave_out(read, held_out, settings.lengths)
    ordinary, source_of = deal_ordinary(settings.ordinary, skipped, seed=settings.seed)
    dealt = split_by_case(dialogues, shares=settings.shares, seed=settings.seed)
    more = [dialogue for path in settings.train_only for dialogue in read_dialogues(path, skipped)]
    refuse_same_cases([*read, *more], source_of)
    dealt["train"] += more
    splits = {name: cut_apart(members, settings.lengths, held_out, labels=settings.labels)
              for name, members in dealt.items()}
    for part, members in ordinary.items():
        records = with_source(cut_apart(members, settings.lengths, held_out), source_of)
        splits[part] = splits.get(part, []) + records
    cut = {name: len(records) for name, records in splits.items()}
    removed, judged_on = remove_repeats(splits)
    balance = _make_train(splits, judged_on, held_out, settings)
    _refuse_one_label(splits, source, dialogues, removed)
    leakage = leakage_report(splits, judged_on, seed=settings.seed)
    shared = [f"{leak['rows_with_half_their_runs']:.1%} of the rows of {pair} hold mostly words of the latter: the "
              "same calls may be in both with another beginning; take out one of each"
              for pair, leak in leakage["leakage"].items() if leak["rows_with_half_their_runs"] >= MUCH_SHARED]
    report = {
        "settings": _plain(asdict(settings)),
        "held_out": {"files": [Path(path).name for path in settings.held_out], "records": len(held_out_records),
                     "dialogues_left_out": len(read) - len(dialogues)},
        "skipped_lines": len(skipped),
        "skipped": [Path(place).name for place in skipped.places],
        "splits": {name: _counts(records, cut[name], removed[name])
                   for name, records in splits.items() if records or name in SPLITS},
        "balance": balance,
        **leakage,
        "warnings": [*_warnings(splits, balance, settings), *shared, *_contradictions([*read, *more]),
                     *(label_warnings(read) if settings.lengths else ())],
    }
    left = {part: {record["case"] for record in splits[part]} for part in CALLS}
    whole = {part: [record for dialogue in members if dialogue.case in left[part]
                    for record in cut_dialogue(dialogue, (math.inf,), settings.labels)]
             for part, members in {**dealt, **ordinary}.items() if part in CALLS and settings.lengths}
    remove_repeats(whole)
    uncut = {f"{part}_calls": with_source(whole.get(part, ()), source_of) for part in CALLS}
    _write(Path(output), {**splits, **uncut}, report)
    return report


def _of_calls(source: str | Path, settings: Settings) -> Settings:
    """The settings, without lengths where the source holds calls that are labelled as a whole: they are not cut."""
    if settings.reading is None and call_files(source):
        return replace(settings, lengths=(), labels="calls")
    for path in (*settings.train_only, *settings.ordinary.paths):
        if call_files(path):
            raise DataError(f"{path}: holds whole calls, and --source dialogues, which are cut; prepare whole calls by "
                            "themselves, or give them as CSV")
    return settings


def _make_train(splits: dict[str, list[dict]], judged_on: Known, held_out: Known, settings: Settings) -> dict:
    """Rebalances and augments train in place, shuffles every part; returns what there was and what was kept."""
    train = splits["train"]
    kept = rebalance(train, negatives_per_positive=settings.negatives_per_positive,
                     ordinary_share=settings.ordinary.train_share, seed=settings.seed)
    if len({record["label"] for record in kept}) < len({record["label"] for record in train}):
        raise DataError(f"--negatives-per-positive {settings.negatives_per_positive:g}: no record of one label would "
                        f"be left of the {len(train)} of train; give a ratio nearer to 1, or all")
    # Noise may make a copy nearly the same as a segment that its original only resembles.
    copies = augment(kept, settings.augment, seed=settings.seed)[len(kept):]
    copies = apart_from(held_out, apart_from(judged_on, copies))
    plain = [*kept, *copies]
    splits["train"] = begin_with_ordinary(plain, settings.ordinary.first_share, kept, seed=settings.seed)
    begun = sum(record is not one for record, one in zip(splits["train"], plain, strict=True))
    for records in splits.values():
        random.Random(settings.seed).shuffle(records)
    before, after = _by_kind(train), _by_kind(kept)
    return {**{kind: {"found": before[kind], "kept": after[kind]} for kind in before},
            "asr_noise_copies": len(copies), "begin_with_ordinary_talk": begun}


def _by_kind(records: Sequence[dict]) -> dict[str, int]:
    frauds = sum(record["label"] for record in records)
    ordinary = sum("source" in record for record in records)
    return dict(zip(KINDS, (frauds, len(records) - frauds - ordinary, ordinary), strict=True))


def _refuse_one_label(splits: dict[str, list[dict]], source: str | Path, dialogues: Sequence,
                      removed: dict[str, int]) -> None:
    for name in SPLITS:
        labels = {record["label"] for record in splits[name]}
        if len(labels) < 2:
            frauds = sum(map(is_fraud, dialogues))
            lacking = "non-fraud" if True in labels else "fraud"
            repeats = f" and {removed[name]} records that repeat another split's" if removed[name] else ""
            raise DataError(f"{source}: the {name} split would have no {lacking} record; found {frauds} dialogues "
                            f"with and {len(dialogues) - frauds} without fraud{repeats}; at least {len(SPLITS)} "
                            "different ones of each are needed")


def _counts(records: Sequence[dict], cut: int, removed: int) -> dict:
    return {
        "records": len(records),
        "fraud": sum(record["label"] for record in records),
        "cases": len({record["case"] for record in records}),
        "cut": cut,
        "removed_as_repeats": removed,
    }


def _warnings(splits: dict[str, list[dict]], balance: dict, settings: Settings) -> list[str]:
    """What makes a figure measured on these splits mean little, one line each."""
    warnings = []
    for name in ("eval", "test"):
        frauds = {record["case"] for record in splits[name] if record["label"]}
        others = {record["case"] for record in splits[name]} - frauds
        for label, cases in (("fraud", frauds), ("non-fraud", others)):
            if len(cases) < FEW_DIALOGUES:
                warnings.append(f"{name} has {len(cases)} {label} dialogues: below {FEW_DIALOGUES}, a figure measured "
                                "on them says little")
    found, kept = (sum(balance[kind][when] for kind in KINDS) for when in ("found", "kept"))
    if 2 * kept < found:
        warnings.append(f"rebalancing kept {kept} of {found} train {'segments' if settings.lengths else 'calls'}; "
                        "--negatives-per-positive all keeps everything, another number more of them")
    return warnings


def _contradictions(dialogues: Sequence[Dialogue]) -> list[str]:
    """One line where dialogues of the very same words are labelled differently: some of them teach what is wrong."""
    labelled: dict[str, dict[bool, str]] = {}
    for dialogue in dialogues:
        words = normalise("\n".join(line.content for line in dialogue.lines))
        labelled.setdefault(words, {}).setdefault(is_fraud(dialogue), dialogue.case)
    cases = [labels for labels in labelled.values() if len(labels) > 1]
    if not cases:
        return []
    return [f"{len(cases)} dialogues are there with fraud and, word for word, without, as {cases[0][True]} and "
            f"{cases[0][False]}: correct their labels"]


def _plain(settings: dict) -> dict:
    """The settings as JSON has them, files by their names: a report must not tell whose folders they were in."""
    def names(of: dict, *keys: str) -> dict:
        return {key: [Path(path).name for path in of[key]] for key in keys}

    return {**settings, "lengths": list(settings["lengths"]), "shares": list(settings["shares"]),
            **names(settings, "held_out", "train_only"),
            "ordinary": {**settings["ordinary"],
                         **names(settings["ordinary"], "sources", "judge_sources", "eval_sources")}}


def _require_own_files(output: Path) -> None:
    """Refuses a folder where somebody else's files have names that are written or removed here."""
    try:  # what an earlier run says of itself
        splits = list(json.loads((output / "leakage.json").read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    else:
        own = {"leakage.json", *(f"{part}{kind}.jsonl" for part in splits for kind in ("", "_calls"))}
    names = ["leakage.json", *(f"{part}.jsonl" for part in (*SPLITS, *CALLS)),
             *(f"{part}_calls.jsonl" for part in CALLS)]
    for name in names:
        if name not in own and (output / name).exists():
            raise DataError(f"{output / name}: already there, and no leakage.json says that data.prepare wrote it; "
                            "move it away, or name another folder with --output")


def _write(output: Path, parts: dict[str, list[dict]], report: dict) -> None:
    texts = {f"{name}.jsonl": records_text(records) for name, records in parts.items() if records}
    texts["leakage.json"] = json_text(report)
    write_together({output / name: text.encode("utf-8") for name, text in texts.items()})
    for name, records in parts.items():
        if not records:
            (output / f"{name}.jsonl").unlink(missing_ok=True)  # of an earlier run with ordinary talk


def describe(report: dict) -> str:
    """The leakage report as a short table for people."""
    lines = [f"{'split':<14} {'records':>8} {'fraud':>7} {'cases':>6} {'repeats removed':>16}"]
    for name, counts in report["splits"].items():
        lines.append(f"{name:<14} {counts['records']:>8} {counts['fraud']:>7} {counts['cases']:>6} "
                     f"{counts['removed_as_repeats']:>16}")
    balance = report["balance"]
    lines.append("train keeps " + ", ".join(
        f"{balance[kind]['kept']} of {balance[kind]['found']} {kind.replace('_', '-')} records"
        for kind in KINDS) + f"; {balance['asr_noise_copies']} copies with ASR noise, "
        f"{balance['begin_with_ordinary_talk']} records that begin with ordinary talk")
    for name, leak in report["leakage"].items():
        lines.append(f"{name}: {leak['shared_cases']} dialogues in common, {leak['near_duplicates']} near-duplicates, "
                     f"{leak['rows_sharing_a_line']:.1%} of rows share a whole line, "
                     f"{leak['rows_with_half_their_runs']:.1%} half of their runs of 20 characters")
    shuffled = report["if_segments_were_shuffled"]
    if report["settings"]["lengths"]:
        lines.append(f"had the segments been shuffled as in the article: {shuffled['rows_sharing_a_line']:.1%} of "
                     "eval rows would share a whole line")
    if report["held_out"]["records"]:
        lines.append(f"left out {report['held_out']['dialogues_left_out']} dialogues that repeat a line or a segment "
                     f"of {', '.join(report['held_out']['files'])}")
    if report["skipped_lines"]:
        lines.append(f"skipped {report['skipped_lines']} lines or files: {'; '.join(report['skipped'][:3])}; ... "
                     "(all in leakage.json)")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report["warnings"])])


def _ratio(text: str) -> float | None:
    value = None if text == "all" else float(text)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(text)
    return value or None


def _share_or_all(text: str) -> float | None:
    return None if text == "all" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n")[0],
                                     epilog="To look at a file of any format first, or to convert it: "
                                            "python -m data.prepare --inspect FILE [--convert OUT]")
    parser.add_argument("--source", required=True, help="a folder of dialogue CSVs, or one CSV file; or whole calls "
                                                           "with one label each, as JSON Lines")
    parser.add_argument("--output", required=True, help="folder for train.jsonl, eval.jsonl, test.jsonl, leakage.json")
    parser.add_argument("--lengths", type=int, nargs="+",
                        help=f"segment lengths in characters, of dialogues (default: {list(SEGMENT_LENGTHS)})")
    parser.add_argument("--shares", type=float, nargs=3, default=list(SHARES), metavar=("TRAIN", "EVAL", "TEST"),
                        help="of the dialogues (default: %(default)s)")
    parser.add_argument("--negatives-per-positive", type=_ratio, default=1.0, metavar="RATIO",
                        help="in train only; 0 or all keeps everything (default: 1)")
    parser.add_argument("--augment", type=float, default=0.0, metavar="SHARE",
                        help="of the train records, to add once more with ASR noise, every fifth of these with a line "
                             "that dictates a verdict (default: none)")
    parser.add_argument("--labels", choices=LABELS,
                        help="a segment is fraud when one of its lines is (default), or from the onset of a fraud on, "
                             "as the article's eval set is labelled")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="JSONL",
                        help="other records to be judged on; dialogues that they were cut from are left out")
    parser.add_argument("--train-only", nargs="+", default=[], metavar="DIR_OR_CSV",
                        help="more dialogues (beside whole calls also such) of any label, for train alone")
    defaults = OrdinarySettings()
    parser.add_argument("--ordinary", nargs="+", default=[], metavar="DIR_OR_CSV",
                        help="non-fraud dialogues from elsewhere, for train and, by dialogue, for judging")
    parser.add_argument("--ordinary-eval", nargs="+", default=[], metavar="DIR_OR_CSV",
                        help="others, of kinds that train lacks, for ordinary_eval.jsonl alone")
    parser.add_argument("--ordinary-judge", nargs="+", default=[], metavar="DIR_OR_CSV",
                        help="others again, for ordinary.jsonl alone")
    parser.add_argument("--ordinary-judge-share", type=float, default=defaults.judge_share, metavar="SHARE",
                        help="of the dialogues of --ordinary, for ordinary.jsonl (default: %(default)s)")
    parser.add_argument("--ordinary-eval-share", type=float, default=defaults.eval_share, metavar="SHARE",
                        help="of the dialogues of --ordinary, for ordinary_eval.jsonl (default: %(default)s)")
    parser.add_argument("--ordinary-share", type=_share_or_all, default=defaults.train_share, metavar="SHARE",
                        help="of the negatives of train that are ordinary talk (default: %(default)s); all puts the "
                             "whole of it beside the negatives of the corpus")
    parser.add_argument("--ordinary-first", type=float, default=defaults.first_share, metavar="SHARE",
                        help="of the other train records, to begin with one to three lines of ordinary talk (default: "
                             "%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    add_reading_options(parser)
    return parser


def _settings(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Settings:
    if not all(0 < value < math.inf for value in (*(args.lengths or ()), *args.shares)):
        parser.error("lengths and shares must be above zero")
    shares = (args.augment, args.ordinary_share or 0.0, args.ordinary_judge_share, args.ordinary_eval_share,
              args.ordinary_first)
    if not all(0 <= share <= 1 for share in shares):
        parser.error("--augment and the shares of ordinary talk must be from 0 to 1")
    if args.ordinary_judge_share + args.ordinary_eval_share > 1:
        parser.error("--ordinary-judge-share and --ordinary-eval-share must not exceed 1 together")
    reading = reading_of(args, "dialogues")
    if (args.lengths or args.labels) and reading is None and call_files(args.source):
        raise DataError(f"{args.source}: holds whole calls, which are not cut; leave out "
                        f"{'--lengths' if args.lengths else '--labels'}")
    return Settings(
        lengths=args.lengths or SEGMENT_LENGTHS, shares=args.shares, negatives_per_positive=args.negatives_per_positive,
        augment=args.augment, labels=args.labels or "lines", held_out=args.held_out, seed=args.seed,
        train_only=args.train_only, reading=reading,
        ordinary=OrdinarySettings(args.ordinary, args.ordinary_judge, args.ordinary_eval, args.ordinary_judge_share,
                                  args.ordinary_eval_share, args.ordinary_share, args.ordinary_first))


@command
def main(argv: Sequence[str] | None = None) -> int:
    if inspection.is_asked_for(argv):
        return inspection.main(argv)
    parser = _parser()
    args = parser.parse_args(argv)
    report = prepare(args.source, args.output, _settings(parser, args))
    print(describe(report))
    train, evaluate = (shlex.quote(str(Path(args.output) / f"{name}.jsonl")) for name in ("train", "eval"))
    print(f"written to {args.output}; next: python trainer.py --model MODEL --train {train} --eval {evaluate} "
          "--output outputs/run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
