"""How a dialogue's prompt becomes a probability of fraud, or a generated answer."""

import contextlib
import itertools
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from scipy.special import expit, logit
from tqdm.auto import tqdm
from transformers import GenerationConfig

from data.files import DataError
from data.normalise import is_blank
from data.prompt import PromptEncoder, Task
from data.sources import load_json
from data.windows import Window

from ..checkpoint import Decision, lineage_of
from ..logits import (
    PADDING_MULTIPLE,
    Forks,
    common_prefix,
    label_logits_at,
    model_inputs,
    pad_right,
    shares_prefix,
)
from ..model import compute_dtype, compute_in_eval_as_in_training

TOKENS_A_BATCH = {"cuda": 32768, "cpu": 1024}  # padded tokens: enough to fill a GPU, few enough for a CPU's cache
SPARE_ANSWER_TOKENS = 8  # room for a model that puts its answer in a code fence
ONE_AT_A_TIME = threading.RLock()  # a web server's threads share a model, whose output layer is replaced for a call


@dataclass(frozen=True)
class Row:
    """Tokens that the model runs over, and the places after which it says how likely the one and the other word are.

    Attributes:
        ids: token ids.
        places: of the tokens after which the two words are compared: the lines' last ones if any, then the answer's.
        label_ids: (id that continues to "fraud", id that continues to "not fraud").
        head: token ids that all rows of a prompt begin with; computed once a batch.
        forks: where it holds several rows that begin alike, see `together`.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    label_ids: tuple[int, int]
    head: tuple[int, ...]
    forks: Forks = ()


def rows_of(encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *, line_aware: bool = False) -> list[Row]:
    """[prompts] what `score_rows` takes; needs no model, so that another thread may make the next ones."""
    answer, head = tuple(encoder.answer_prefix), tuple(encoder.head)
    return [Row(tuple(prompt) + answer,
                (*(encoder.line_ends(prompt) if line_aware else ()), len(prompt) + len(answer) - 1),
                encoder.label_ids, head) for prompt in prompts]


def score_rows(model, rows: Sequence[Row], *, grown: bool = False, tokens_a_batch: int | None = None,
               progress: str | None = None, require_finite: bool = True,
               odds_of: dict[Row, np.ndarray] | None = None) -> np.ndarray:
    """[rows] score: the probability of "fraud" against "not fraud", before any calibration.

    One forward pass a row, a softmax over the two tokens that may follow. Of rows with several places, the log-odds
    of the last and of the highest of the others count as the model's `Decision` says. Rows of several prompts,
    instructions and answers may be mixed. They are sorted by length, padded on the right without a mask (exact in a
    causal model), and batched to `tokens_a_batch` padded tokens; equal rows are scored once, and what those of one
    prompt begin with once a batch. With `grown`, so is what a row has in common with the one before it, as the
    beginnings of a dialogue have. Into `odds_of`, if given, go the log-odds of each row, [places].

    Raises:
        FloatingPointError: a score is not finite, unless `require_finite` is off.
    """
    odds = _log_odds(model, rows, tokens_a_batch, progress, grown)
    if odds_of is not None:
        odds_of.update(odds)
    decision = lineage_of(model).decision
    scores = np.array([score_of_log_odds(odds[row], decision) for row in rows])
    if require_finite and not np.isfinite(scores).all():
        remedy = "; a GPU with bf16, or --device cpu, has room for larger numbers than fp16"
        raise FloatingPointError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite"
                                 + (remedy if compute_dtype(str(model.device)) is torch.float16 else ""))
    return scores


def score_prompts(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], **options) -> np.ndarray:
    """[prompts] score of each prompt; see `score_rows` for `options`."""
    return score_rows(model, rows_of(encoder, prompts, line_aware=lineage_of(model).decision.line_aware), **options)


@dataclass(frozen=True)
class Reading:
    """A dialogue as the model reads it: whole, or in overlapping windows where it is longer than the context.

    Attributes:
        rows: of the windows.
        lines: (first, last) line of each window, counted from 1.
    """

    rows: tuple[Row, ...]
    lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a dialogue.

    Attributes:
        score: as of `score_rows`, of the window where it is highest.
        probability: of fraud: the score, calibrated.
        windows: in how many windows the dialogue was read.
        lines: (first, last) line, counted from 1, of the window where the score is highest.
    """

    score: float
    probability: float
    windows: int
    lines: tuple[int, int]


def windows_of(encoder: PromptEncoder, dialogues: Sequence[str]) -> list[list[Window]]:
    """[dialogues] the windows that read all of each; those that fit into one, nearly all, are tokenised together."""
    prompts = encoder.prompts(dialogues)
    return [encoder.windows(text) if longer else [Window(prompt, 0, text.count("\n"))]
            for text, prompt, longer in zip(dialogues, prompts, prompts.truncated, strict=True)]


def read_dialogues(encoder: PromptEncoder, dialogues: Sequence[str], *, line_aware: bool) -> list[Reading]:
    """[dialogues] what `predict_readings` takes; needs no model, so that another thread may make the next ones."""
    windows = windows_of(encoder, dialogues)
    rows = iter(rows_of(encoder, [window.ids for each in windows for window in each], line_aware=line_aware))
    return [Reading(tuple(itertools.islice(rows, len(each))),
                    tuple((window.first_line + 1, window.last_line + 1) for window in each)) for each in windows]


def predict_readings(model, readings: Sequence[Reading], **options) -> list[Prediction]:
    """[readings] what the model says of each; see `score_rows` for `options`."""
    scores = score_rows(model, [row for reading in readings for row in reading.rows], **options)
    of_windows = np.split(scores, np.cumsum([len(reading.rows) for reading in readings])[:-1]) if readings else []
    best = [int(np.argmax(windows)) for windows in of_windows]  # a NaN comes first
    highest = np.array([windows[place] for windows, place in zip(of_windows, best)])
    probabilities = calibrated(highest, lineage_of(model).decision) if readings else highest
    return [Prediction(float(score), float(probability), len(reading.rows), reading.lines[place])
            for score, probability, reading, place in zip(highest, probabilities, readings, best)]


def scores_by(decision: Decision, readings: Sequence[Reading], odds: Mapping[Row, np.ndarray]) -> np.ndarray:
    """[readings] the score of the highest window of each, by another decision than the model's.

    Args:
        odds: as `score_rows` gives them in ``odds_of``.
    """
    return np.array([max(score_of_log_odds(odds[row], decision) for row in reading.rows) for reading in readings])


def predict_details(model, tokenizer, dialogues: Sequence[str], *, progress: str | None = None) -> list[Prediction]:
    """[dialogues] probability of fraud, and in how many windows and where it was found; see `predict`."""
    # Each character of a text would be a dialogue, each name of a column of a table.
    if (isinstance(dialogues, (str, bytes, Mapping)) or not isinstance(dialogues, Iterable)
            or getattr(dialogues, "ndim", 1) != 1):
        raise DataError("predict takes a list of dialogues; write [dialogue] for a single one, table['column'] for "
                        "those of a table")
    dialogues = list(dialogues)
    for place, dialogue in enumerate(dialogues):
        require_text(dialogue, f"dialogues[{place}]")
        if is_blank(dialogue):  # it would get the score of the question alone
            raise DataError(f"dialogues[{place}] is empty; leave it out")
    lineage = lineage_of(model)
    readings = read_dialogues(PromptEncoder(tokenizer, lineage.task), dialogues, line_aware=lineage.decision.line_aware)
    return predict_readings(model, readings, progress=progress)


def require_text(text: object, name: str) -> None:
    """Raises DataError where `text` is none, and where the tokenizer could not read it."""
    if not isinstance(text, str):
        raise DataError(f"{name} is no text but {type(text).__name__}; leave out what is missing")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a surrogate pair, which is not text; what takes it out: "
                        "text.encode('utf-8', 'replace').decode()") from None


def predict(model, tokenizer, dialogues: Sequence[str], *, progress: str | None = None) -> np.ndarray:
    """[dialogues] probability of fraud, calibrated: what every report, ``--predict`` and the page give.

    A dialogue longer than the context is read in overlapping windows; the highest of their probabilities counts.

    Args:
        dialogues: texts as in a record's ``input``, lines of ``speaker: what is said``.

    Raises:
        DataError: `dialogues` is no list, as a text or a table, or holds what is no text or an empty one.
        FloatingPointError: a score is not finite.
    """
    return np.array([one.probability for one in predict_details(model, tokenizer, dialogues, progress=progress)])


def calibrated(scores: np.ndarray, decision: Decision) -> np.ndarray:
    """Probabilities from what `score_prompts` returns: the one place where temperature and bias are applied.

    The order of the scores stays; a temperature of 1 without a bias changes nothing, not even the last digit.
    """
    plain = decision.temperature == 1.0 and decision.bias == 0.0
    return scores if plain else expit(logit(scores) / decision.temperature + decision.bias)


def score_of_log_odds(odds: Sequence[float], decision: Decision) -> float:
    """The score of a dialogue by the log-odds of its lines, if any, and last its answer; NaN if one is not finite."""
    *of_lines, of_answer = odds
    return float(expit(decision.log_odds(of_answer, of_lines))) if np.isfinite(odds).all() else math.nan


def score_single_lines(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """For each prompt, [lines] the probability that a line is part of a fraud, by what was said up to its end.

    For a model trained with the auxiliary line loss.
    """
    rows = [Row(tuple(prompt[:len(prompt) - len(encoder.tail)]),  # the answer's turn is not needed
                tuple(encoder.line_ends(prompt)), encoder.label_ids, tuple(encoder.head)) for prompt in prompts]
    odds = _log_odds(model, rows)
    return [expit(odds[row]) for row in rows]


def together(rows: Sequence[Row]) -> Row:
    """One row for several that begin alike, which is computed once. Its places are those of all, one after the other.

    It is the longest of them, and after it what the others have of their own, a fork each.
    """
    trunk = max(rows, key=lambda row: len(row.ids))
    ids, places, forks = list(trunk.ids), [], []
    for row in rows:
        alike, start = len(os.path.commonprefix([trunk.ids, row.ids])), len(ids)
        if alike < len(row.ids):
            forks.append((start, alike))
            ids += row.ids[alike:]
        places += [place if place < alike else place - alike + start for place in row.places]
    return Row(tuple(ids), tuple(places), trunk.label_ids, trunk.head, tuple(forks))


def _grown(model, rows: Sequence[Row]) -> dict[Row, list[Row]]:
    """Rows of `together`, each with those that it holds: such that follow each other and begin more than half alike."""
    groups: list[list[Row]] = []
    for row in rows:
        before = groups[-1][-1] if groups else row
        own = len(row.ids) - len(os.path.commonprefix([before.ids, row.ids]))
        if groups and row.label_ids == before.label_ids and own < (len(row.ids) - len(row.head)) / 2:
            groups[-1].append(row)
        else:
            groups.append([row])
    members: dict[Row, list[Row]] = {}
    for group in groups:
        one = together(group)
        fits = shares_prefix(model, len(one.ids) + PADDING_MULTIPLE)
        members.update({one: group} if fits else {row: [row] for row in group})
    return members


def _log_odds(model, rows: Sequence[Row], budget: int | None = None, progress: str | None = None, grown: bool = False
              ) -> dict[Row, np.ndarray]:
    """By row, [places] the log-odds of "fraud" against "not fraud" as what follows the tokens at its places."""
    found, rows = {}, list(dict.fromkeys(rows))
    members = _grown(model, rows) if grown else {row: [row] for row in rows}
    with inference(model), tqdm(total=len(rows), desc=progress, unit=" rows", disable=progress is None) as bar:
        for batch, inputs, last, head in _batches(model, list(members), budget):
            starts = [end - len(row.ids) + 1 for end, row in zip(last, batch)]
            asked = torch.tensor([start + place for start, row in zip(starts, batch) for place in row.places])
            words = sorted({word for row in batch for word in row.label_ids})
            with label_logits_at(model, asked.to(model.device), words, after=head):
                logits = model(**inputs).logits.double().cpu().numpy()
            counts = [len(row.places) for row in batch]
            columns = np.repeat([[words.index(word) for word in row.label_ids] for row in batch], counts, axis=0)
            fraud, other = np.take_along_axis(logits, columns, 1).T
            held = [member for row in batch for member in members[row]]
            ends = np.cumsum([len(member.places) for member in held])
            found.update(zip(held, np.split(fraud - other, ends[:-1]), strict=True))
            bar.update(len(held))
    return found


def _batches(model, rows: Sequence[Row], budget: int | None) -> Iterator[tuple[list[Row], dict, list[int], int]]:
    """(rows, inputs, last, head), those of one prompt from short to long, as many at a time as fit `budget` tokens.

    `inputs` are what the model is called with; `last` are the numbers of the rows' last tokens, counted without the
    `head` tokens that all of them begin with; see `logits.model_inputs`.
    """
    device = model.device
    by_head: dict[tuple[tuple[int, ...], bool], list[Row]] = {}
    for row in sorted(rows, key=lambda row: len(row.ids)):
        by_head.setdefault((row.head, bool(row.forks)), []).append(row)
    for (of_prompt, forked), alike in by_head.items():
        shared = common_prefix(of_prompt, [row.ids for row in alike], len(alike[0].ids) - 1)
        prefix, head = torch.tensor(shared, dtype=torch.long, device=device), len(shared)
        for batch in _batches_by_tokens(alike, head, budget or TOKENS_A_BATCH[device.type]):
            input_ids = pad_right([row.ids[head:] for row in batch], 0, after=head).to(device)  # no token reads a pad
            width = input_ids.shape[1]
            last = [row * width + len(one.ids) - head - 1 for row, one in enumerate(batch)]
            forks = [row.forks for row in batch] if forked else None
            yield batch, model_inputs(model, prefix, input_ids, forks), last, head


def _batches_by_tokens(rows: Sequence[Row], head: int, budget: int) -> Iterator[list[Row]]:
    """As many rows at a time as fit `budget` padded tokens (one at least), their first `head` ones counted once."""
    batch: list[Row] = []
    for row in rows:
        if batch and head + (len(batch) + 1) * (len(row.ids) - head + PADDING_MULTIPLE) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def generate_answers(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *,
                     tokens_a_batch: int | None = None, progress: str | None = None) -> list[str]:
    """The text that the model writes, greedily, after each prompt; up to the end token or a few spare tokens.

    Prompts are sorted by length and batched to `tokens_a_batch` padded tokens, one prompt at least, as in `score_rows`.
    """
    tokenizer, budget = encoder.tokenizer, tokens_a_batch or TOKENS_A_BATCH[model.device.type]
    longest = max(map(len, encoder.completions.values())) + SPARE_ANSWER_TOKENS
    config = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=list(encoder.end_ids),
                              pad_token_id=tokenizer.pad_token_id)
    rows = [Row(tuple(prompt), (), encoder.label_ids, ()) for prompt in prompts]
    distinct = sorted(dict.fromkeys(rows), key=lambda row: len(row.ids))
    answers: dict[Row, str] = {}
    with inference(model), tqdm(total=len(distinct), desc=progress, unit=" rows", disable=progress is None) as bar:
        for batch in _batches_by_tokens(distinct, 0, budget):
            # Generation appends on the right, so it is padded on the left and needs the mask.
            width = len(batch[-1].ids)
            lengths = torch.tensor([len(row.ids) for row in batch])
            input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row.ids)) + list(row.ids)
                                      for row in batch])
            mask = (torch.arange(width) >= width - lengths[:, None]).long()
            written = model.generate(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device),
                                     generation_config=config)[:, width:]
            answers.update(zip(batch, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True))
            bar.update(len(batch))
    return [answers[row] for row in rows]


def parse_answer(text: str, task: Task) -> bool | None:
    """The label that a generated answer means, or None where it is neither of the two answers.

    An answer may be spaced differently as JSON and may stand in a code fence; nothing else is guessed at.
    """
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    for label, answer in zip((True, False), task.answers, strict=True):
        if text == answer.strip():
            return label
        with contextlib.suppress(ValueError):
            read = load_json(text)
            if isinstance(read, dict) and _same_json(read, json.loads(answer)):
                return label
    return None


def _same_json(one: dict, other: object) -> bool:
    """Whether both are written alike but for blanks and order; to Python 1 and true are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@contextlib.contextmanager
def inference(model):
    """Eval mode, no gradients, and the autocast that training ran under; the model's mode is put back.

    One thread at a time is in it.
    """
    with ONE_AT_A_TIME:
        was_training = model.training
        dtype = compute_dtype(str(model.device))
        compute_in_eval_as_in_training(model)  # a notebook may have loaded it by itself
        model.eval()
        try:
            autocast = dtype is not torch.float32
            # PEFT would make the inputs of its 32-bit adapters 32-bit, which autocast undoes at once.
            with (torch.inference_mode(), torch.autocast(model.device.type, dtype=dtype, enabled=autocast),
                  disable_input_dtype_casting(model, active=autocast)):
                yield
        finally:
            model.train(was_training)
