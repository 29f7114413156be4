"""How early a dialogue is found to be a fraud: scored as it grows, line by line, as a call would be.

    python -m antifraud.evaluation.early_warning --model MODEL --checkpoint DIR --source CSV_DIR \
        --eval eval.jsonl --test test.jsonl

The threshold is the lowest with which no more than so many of a hundred honest dialogues of the eval split raise an
alarm at any of their lines; it is then applied to the whole dialogues of the test split. For a call that is still
going on, `GrowingDialogue` takes lines one at a time and computes only what is new.
"""

import argparse
import builtins
import copy
import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from scipy.special import expit
from transformers import DynamicCache

from data.files import DataError, require_input, write_json
from data.prompt import PromptEncoder
from data.records import Dialogue, Skipped, read_dialogues, read_records
from data.segments import cut_lines
from data.speakers import format_dialogue

from ..checkpoint import lineage_of, provenance_of
from ..logits import label_logits_at
from ..model import default_device, load_tuned
from ..provenance import file_sha256
from .calibration import calibrated
from .metrics import confidence_intervals
from .scoring import inference, score_of_log_odds, score_prompts

FALSE_ALARMS = (1.0, 5.0)  # per hundred honest dialogues
HONEST_CHARACTERS = 500  # about a scam's length; a meeting of 15,000 is as many calls as pieces it gives
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


# ---------------------------------------------------------------------------------------------- line by line


class GrowingDialogue:
    """The probability of fraud after each line of a dialogue that is still going on.

    Keys and values of the prompt's head and of the dialogue so far stay in a cache. A line costs one forward pass over
    its own tokens and one over the prompt's short tail, instead of one over the whole prompt. What comes out is what
    `score_prompts` gives for the dialogue up to that line, within rounding.

    Attributes:
        encoder: of the model's task.
        cut: whether the dialogue has become longer than the model reads; what comes after is not seen.
        forwarded: tokens that the model was run over so far.
        of_lines: probability of each line so far that it is part of a fraud; empty where the model did not learn that.
    """

    def __init__(self, model, tokenizer) -> None:
        self.model = model
        self.encoder = PromptEncoder(tokenizer, lineage_of(model).task)
        self.decision = lineage_of(model).decision
        self.cut = False
        self.forwarded = 0
        self.of_lines: list[float] = []
        self._text: str | None = None
        self._prompt: list[int] = []
        self._probability = math.nan
        self._cached: list[int] = []  # the token ids that the cache holds
        self._log_odds: dict[int, float] = {}  # of the lines that end there, by their places
        self._cache = self._new_cache()

    def add(self, line: str) -> float:
        """The probability of fraud after one more line (``speaker: what is said``).

        Raises:
            FloatingPointError: it is not finite.
        """
        self._text = line if self._text is None else f"{self._text}\n{line}"
        # Tokenised from the start: a line break may merge with the mark before it, and a role comes from what precedes.
        prompt, = prompts = self.encoder.prompts([self._text])
        self.cut, = prompts.truncated
        if prompt != self._prompt:
            self._probability = self._score(prompt)
            self._prompt = prompt
        return self._probability

    def _score(self, prompt: list[int]) -> float:
        # The last token of the dialogue goes with the tail: it is the one that the next line may merge with.
        end = max(0, len(prompt) - len(self.encoder.tail) - 1)
        rest = prompt[end:] + self.encoder.answer_prefix
        line_ends = self.encoder.line_ends(prompt) if self.decision.line_aware else []
        with inference(self.model):
            self._remember(prompt[:end], [place for place in line_ends if place < end])
            # A copy, since a sliding window forgets for the tail's sake what the next line still needs.
            last = self._forward(rest, copy.deepcopy(self._cache), [0] * bool(line_ends) + [len(rest) - 1])
        of_lines = [self._log_odds[place] if place < end else last[0] for place in line_ends]
        self.of_lines = expit(of_lines).tolist()
        score = score_of_log_odds([*of_lines, last[-1]])
        if not math.isfinite(score):
            raise FloatingPointError("the score is not finite")
        return float(calibrated(np.array([score]), self.decision.temperature)[0])

    def _remember(self, ids: list[int], line_ends: list[int]) -> None:
        """Brings the cache to hold `ids`, from the longest beginning that it shares with them.

        Of the lines that end in what is new the log-odds are kept, too.
        """
        pairs = zip(self._cached, ids)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._cached), len(ids)))
        if common == 0 or not self._crop(common):
            self._cache, common = self._new_cache(), 0
        new, self._cached = ids[common:], []  # nothing is known of the cache while it is written
        if new:
            ends = [place for place in line_ends if place >= common]
            odds = self._forward(new, self._cache, [place - common for place in ends] or [0])
            self._log_odds.update(zip(ends, odds))
        self._cached = ids

    def _crop(self, length: int) -> bool:
        """Cuts the cache back to its first tokens; False where it cannot be, as past the end of a sliding window."""
        if length == len(self._cached):
            return True
        try:
            self._cache.crop(length - len(self._cached))
        except (RuntimeError, ValueError):
            return False
        return True

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def _forward(self, ids: list[int], cache: DynamicCache, places: list[int]) -> list[float]:
        """[places] the log-odds of "fraud" against "not fraud" as what follows; adds `ids` to `cache`."""
        self.forwarded += len(ids)
        input_ids = torch.tensor([ids], device=self.model.device)
        with label_logits_at(self.model, torch.tensor(places, device=self.model.device), self.encoder.label_ids):
            logits = self.model(input_ids=input_ids, use_cache=True, **{_cache_argument(self.model): cache}).logits
        fraud, honest = logits.double().T
        return (fraud - honest).tolist()


def _cache_argument(model) -> str:
    """What the model calls its cache: ``cache`` in newer transformers, ``past_key_values`` in older ones."""
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    return "cache" if "cache" in inspect.signature(causal_lm.forward).parameters else "past_key_values"


# ---------------------------------------------------------------------------------------------- many dialogues


def score_growing(model, tokenizer, dialogues: Sequence[Dialogue], *, progress: str | None = None) -> list[np.ndarray]:
    """For each dialogue, [lines] the probability of fraud after each of its lines.

    What `GrowingDialogue` gives, all beginnings of all dialogues batched together: for many dialogues at once that is
    the faster way.
    """
    encoder = PromptEncoder(tokenizer, lineage_of(model).task)
    beginnings = [format_dialogue([(line.speaker, line.content) for line in dialogue.lines[:end]])
                  for dialogue in dialogues for end in range(1, len(dialogue.lines) + 1)]
    scores = calibrated(score_prompts(model, encoder, encoder.prompts(beginnings), progress=progress),
                        lineage_of(model).decision.temperature)
    return np.split(scores, np.cumsum([len(dialogue.lines) for dialogue in dialogues])[:-1])


def calls_of(dialogues: Sequence[Dialogue], *, honest_characters: int = HONEST_CHARACTERS) -> list[Dialogue]:
    """Dialogues as calls of comparable length: a scam stays whole, an honest one is cut into pieces.

    The pieces, of so many characters, keep their dialogue's `case`, so that intervals know that they belong together.
    """
    calls = []
    for dialogue in dialogues:
        pieces = [dialogue.lines] if is_fraud(dialogue) else cut_lines(dialogue.lines, honest_characters)
        calls.extend(Dialogue(dialogue.case, dialogue.category, tuple(piece)) for piece in pieces)
    return calls


def is_fraud(dialogue: Dialogue) -> bool:
    return any(line.is_fraud for line in dialogue.lines)


def threshold_for(honest: Sequence[np.ndarray], false_alarms: float) -> float:
    """The lowest threshold at which at most `false_alarms` of a hundred honest dialogues raise an alarm at any line.

    Args:
        honest: for each honest dialogue, [lines] its probabilities.

    Raises:
        DataError: no honest dialogues.
    """
    if not honest:
        raise DataError("no honest dialogues to find a threshold on")
    highest = sorted((float(probabilities.max()) for probabilities in honest), reverse=True)
    allowed = math.floor(false_alarms * len(honest) / 100)
    return 0.0 if allowed >= len(honest) else math.nextafter(highest[allowed], math.inf)


def alarm_line(probabilities: np.ndarray, threshold: float) -> int | None:
    """The number (from 1) of the line at which the alarm goes off; None where it never does."""
    over = np.flatnonzero(probabilities >= threshold)
    return int(over[0]) + 1 if len(over) else None


def alarm_report(dialogues: Sequence[Dialogue], probabilities: Sequence[np.ndarray], threshold: float) -> dict:
    """How often and how early the alarm goes off at a threshold.

    Returns:
        ``honest`` and ``fraud`` (numbers of dialogues), those ``..._alarmed``, ``false_alarms_per_hundred`` and
        ``recall`` with 95 % intervals resampled by dialogue; of the frauds found, quartiles of the ``lines`` spoken
        when the alarm goes off (that line included), of their ``share_of_dialogue`` and ``share_of_fraud_lines``;
        ``alarmed_before_any_fraud_line``; and ``alarmed_by``: the share of all frauds found by the time that so large
        a share of the lines is spoken.
    """
    y_true = np.array([is_fraud(dialogue) for dialogue in dialogues], dtype=bool)
    alarms = [alarm_line(scores, threshold) for scores in probabilities]
    alarmed = np.array([alarm is not None for alarm in alarms], dtype=bool)
    cases = [dialogue.case for dialogue in dialogues]
    false_alarms = confidence_intervals(~y_true, alarmed, groups=cases)["recall"]  # the share of the honest ones
    found = [(dialogue, alarm) for dialogue, alarm, fraud in zip(dialogues, alarms, y_true) if fraud and alarm]
    shares = np.array([alarm / len(dialogue.lines) for dialogue, alarm in found])
    return {
        "honest": int((~y_true).sum()),
        "honest_alarmed": int((alarmed & ~y_true).sum()),
        "false_alarms_per_hundred": float(100 * alarmed[~y_true].mean()) if not y_true.all() else None,
        "false_alarms_per_hundred_interval": false_alarms and [100 * end for end in false_alarms],
        "fraud": int(y_true.sum()),
        "fraud_alarmed": len(found),
        "recall": float(alarmed[y_true].mean()) if y_true.any() else None,
        "recall_interval": confidence_intervals(y_true, alarmed, groups=cases)["recall"],
        "lines": _quartiles([alarm for _, alarm in found]),
        "share_of_dialogue": _quartiles(shares),
        "share_of_fraud_lines": _quartiles([_fraud_lines(dialogue, alarm) / _fraud_lines(dialogue, None)
                                            for dialogue, alarm in found]),
        "alarmed_before_any_fraud_line": sum(_fraud_lines(dialogue, alarm) == 0 for dialogue, alarm in found),
        "alarmed_by": {str(share): float((shares <= share).sum() / y_true.sum()) if y_true.any() else None
                       for share in SHARES},
    }


def _fraud_lines(dialogue: Dialogue, end: int | None) -> int:
    return sum(line.is_fraud for line in dialogue.lines[:end])


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))] if len(values) else None


def early_warning(model, tokenizer, source: str, eval_path: str, test_path: str, *,
                  false_alarms: Sequence[float] = FALSE_ALARMS, progress: bool = True) -> dict:
    """The report: for each wanted rate of false alarms, the threshold found on eval and what it does there and on test.

    Args:
        source: the dialogues (CSV) that eval and test were cut from, to have them whole and line by line.
        eval_path, test_path: the splits of ``data.prepare``; their ``case`` says which dialogues they hold.
        false_alarms: per hundred honest dialogues.
    """
    dialogues = {dialogue.case: dialogue for dialogue in read_dialogues(source, Skipped())}
    calls = {name: calls_of(dialogues_of(path, dialogues, source))
             for name, path in (("eval", eval_path), ("test", test_path))}
    both = {call.case for call in calls["eval"]} & {call.case for call in calls["test"]}
    if both:
        raise DataError(f"{test_path}: shares {len(both)} dialogues with {eval_path}, {min(both)!r} for one; "
                        "make them with python -m data.prepare")
    scores = {name: score_growing(model, tokenizer, found, progress=name if progress else None)
              for name, found in calls.items()}
    honest = [scores for call, scores in zip(calls["eval"], scores["eval"]) if not is_fraud(call)]
    rows = []
    for wanted in false_alarms:
        threshold = threshold_for(honest, wanted)
        rows.append({"wanted_false_alarms_per_hundred": wanted, "threshold": threshold,
                     **{name: alarm_report(calls[name], scores[name], threshold) for name in calls}})
    return {"at": rows, "honest_characters": HONEST_CHARACTERS,
            "temperature": lineage_of(model).decision.temperature,
            "provenance": {**provenance_of(model, test_path, len(calls["test"])),
                           "eval_data": {"name": Path(eval_path).name, "sha256": file_sha256(eval_path),
                                         "rows": len(calls["eval"])}}}


def dialogues_of(path: str, dialogues: dict[str, Dialogue], source: str) -> list[Dialogue]:
    """The whole dialogues that the records of a split are pieces of.

    Raises:
        DataError: a record without ``case``, or one whose dialogue is not in `source`.
    """
    cases = list(dict.fromkeys(record.get("case") for record in read_records(path, Skipped())))
    missing = [case for case in cases if case not in dialogues]
    if None in cases:
        raise DataError(f"{path}: a record has no 'case', so its dialogue cannot be found; use python -m data.prepare")
    if missing:
        raise DataError(f"{path}: case {missing[0]!r} is not in {source}; name the dialogues it was prepared from")
    return [dialogues[case] for case in cases]


def print_summary(report: dict) -> None:
    for row in report["at"]:
        test = row["test"]
        print(f"{row['wanted_false_alarms_per_hundred']:g} false alarms per hundred honest dialogues wanted: "
              f"threshold {row['threshold']:.6f}")
        print(f"  on test: {test['honest_alarmed']} of {test['honest']} honest dialogues alarmed, "
              f"{test['fraud_alarmed']} of {test['fraud']} frauds found")
        if test["lines"]:
            print(f"  half of those found within {test['lines'][1]:g} lines, "
                  f"{test['share_of_dialogue'][1]:.0%} of the dialogue")


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m antifraud.evaluation.early_warning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder for its best one")
    parser.add_argument("--source", required=True, help="folder of the dialogue CSVs that eval and test were cut from")
    parser.add_argument("--eval", required=True, help="eval.jsonl of data.prepare: where the threshold is found")
    parser.add_argument("--test", required=True, help="test.jsonl of data.prepare: where it is judged")
    parser.add_argument("--false-alarms", type=float, nargs="+", default=list(FALSE_ALARMS),
                        help="per hundred honest dialogues (default: %(default)s)")
    parser.add_argument("--output", default="early_warning.json", help="where to write the report")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not all(0 <= rate <= 100 for rate in args.false_alarms):
        parser.error("--false-alarms must be from 0 to 100")
    try:
        for path in (args.eval, args.test):
            require_input(path)  # before gigabytes are loaded
        if not Path(args.source).exists():
            raise DataError(f"{args.source}: no such file or folder")
        report = early_warning(*load_tuned(args.model, args.checkpoint, args.device), args.source, args.eval, args.test,
                               false_alarms=args.false_alarms)
        write_json(args.output, report)
    except (DataError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print_summary(report)
    print(f"report: {args.output}")
    return 0


if __name__ == "__main__" and not hasattr(builtins, "__IPYTHON__"):
    sys.exit(main())
