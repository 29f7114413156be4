"""How a dialogue's prompt becomes a probability of fraud, or a written answer."""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from scipy.special import expit
from tqdm.auto import tqdm
from transformers import GenerationConfig

from data.prompt import PromptEncoder, Task

from ..checkpoint import lineage_of
from ..logits import PADDING_MULTIPLE, common_prefix, hidden_states_at, label_logits_at, model_inputs, pad_right
from ..model import compute_dtype, compute_in_eval_as_in_training
from .calibration import calibrated

TOKENS_A_BATCH = {"cuda": 32768, "cpu": 4096}  # padded tokens; enough to fill the device, little enough to fit
GENERATE_ROWS_A_BATCH = 8  # the article's
SPARE_ANSWER_TOKENS = 8  # room for a model that puts its answer in a code fence


def score_prompts(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *,
                  tokens_a_batch: int | None = None, progress: str | None = None, line_aware: bool | None = None,
                  require_finite: bool = True) -> np.ndarray:
    """[prompts] probability that the answer is "fraud", given that it is one of the two.

    One forward pass over prompt and the beginning that both answers share; a softmax over the two tokens that may
    follow. With `line_aware` (default: as the model's checkpoint says) the mean of the log-odds of the answer and of
    the most suspicious line, out of the same pass: a dialogue is a fraud if one of its lines is. Prompts are sorted by
    length, padded on the right without a mask (exact in a causal model), and batched to `tokens_a_batch` padded tokens;
    equal prompts are scored once, and what all begin with once a batch.

    Raises:
        FloatingPointError: a score is not finite, unless `require_finite` is off.
    """
    rows = [tuple(prompt) + tuple(encoder.answer_prefix) for prompt in prompts]
    line_aware = lineage_of(model).decision.line_aware if line_aware is None else line_aware
    places = {row: [*(encoder.line_ends(prompt) if line_aware else ()), len(row) - 1]
              for row, prompt in zip(rows, prompts)}
    odds = _log_odds_at(model, encoder, places, tokens_a_batch, progress)
    scores = np.array([score_of_log_odds(odds[row]) for row in rows])
    if require_finite and not np.isfinite(scores).all():
        remedy = "; a GPU with bf16, or --device cpu, has room for larger numbers than fp16"
        raise FloatingPointError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite"
                                 + (remedy if compute_dtype(str(model.device)) is torch.float16 else ""))
    return scores


def predict(model, tokenizer, dialogues: Sequence[str], *, progress: str | None = None) -> np.ndarray:
    """[dialogues] probability of fraud, calibrated: what every report, ``--predict`` and the page give.

    Args:
        dialogues: texts as in a record's ``input``, lines of ``speaker: what is said``.

    Raises:
        FloatingPointError: a score is not finite.
    """
    lineage = lineage_of(model)
    encoder = PromptEncoder(tokenizer, lineage.task)
    scores = score_prompts(model, encoder, encoder.prompts(dialogues), progress=progress)
    return calibrated(scores, lineage.decision.temperature)


def score_of_log_odds(odds: Sequence[float]) -> float:
    """The score of a dialogue by the log-odds of its lines, if any, and last of its answer; NaN if one is not finite.
    """
    *of_lines, of_answer = odds
    if not np.isfinite(odds).all():
        return math.nan
    return float(expit((of_answer + max(of_lines)) / 2 if of_lines else of_answer))


def score_single_lines(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *,
                       progress: str | None = None) -> list[np.ndarray]:
    """For each prompt, [lines] the probability that a line is part of a fraud, by what was said up to its end.

    For a model trained with the auxiliary line loss.
    """
    rows = [tuple(prompt[:len(prompt) - len(encoder.tail)]) for prompt in prompts]  # the answer's turn is not needed
    places = {row: encoder.line_ends(prompt) for row, prompt in zip(rows, prompts)}
    odds = _log_odds_at(model, encoder, places, None, progress)
    return [expit(odds[row]) for row in rows]


def _log_odds_at(model, encoder: PromptEncoder, places: Mapping[tuple[int, ...], Sequence[int]], budget: int | None,
                 progress: str | None) -> dict[tuple[int, ...], np.ndarray]:
    """By row, [places] the log-odds of "fraud" against "not fraud" as what follows the tokens at its places."""
    found = {}
    with inference(model), tqdm(total=len(places), desc=progress, unit=" rows", disable=progress is None) as bar:
        for batch, inputs, last, head in _batches(model, encoder, places, budget):
            starts = [end - len(row) + 1 for end, row in zip(last, batch)]
            asked = torch.tensor([start + place for start, row in zip(starts, batch) for place in places[row]])
            with label_logits_at(model, asked.to(model.device), encoder.label_ids, after=head):
                fraud, honest = model(**inputs).logits.double().T.cpu().numpy()
            ends = np.cumsum([len(places[row]) for row in batch])
            found.update(zip(batch, np.split(fraud - honest, ends[:-1]), strict=True))
            bar.update(len(batch))
    return found


def last_hidden_states(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """[prompts, numbers] what the output layer reads to say "fraud" or not, in 32 bit."""
    rows = [tuple(prompt) + tuple(encoder.answer_prefix) for prompt in prompts]
    found = {}
    with inference(model):
        for batch, inputs, last, head in _batches(model, encoder, rows):
            with hidden_states_at(model, torch.tensor(last, device=model.device), after=head) as selected:
                model(**inputs)
            found.update(zip(batch, selected.pop().float().cpu().numpy(), strict=True))
    return np.stack([found[row] for row in rows])


def _batches(model, encoder: PromptEncoder, rows: Collection[tuple[int, ...]], budget: int | None = None) -> Iterator:
    """(rows, inputs, last, head) with each row once, from short to long, as many at a time as fit `budget` tokens.

    `inputs` are what the model is called with; `last` are the numbers of the rows' last tokens, counted without the
    `head` tokens that all rows begin with; see `shared_prefix.model_inputs`.
    """
    device = model.device
    rows = sorted(set(rows), key=len)
    shared = common_prefix(encoder.head, rows, len(rows[0]) - 1 if rows else 0)
    prefix, head = torch.tensor(shared, dtype=torch.long, device=device), len(shared)
    for batch in _batches_by_tokens(rows, head, budget or TOKENS_A_BATCH[device.type]):
        input_ids = pad_right([row[head:] for row in batch], encoder.tokenizer.pad_token_id, after=head).to(device)
        width = input_ids.shape[1]
        last = [row * width + len(ids) - head - 1 for row, ids in enumerate(batch)]
        yield batch, model_inputs(model, prefix, input_ids), last, head


def _batches_by_tokens(rows: Sequence[tuple[int, ...]], head: int, budget: int) -> Iterator[list[tuple[int, ...]]]:
    """As many rows at a time as fit `budget` padded tokens (one at least), their first `head` ones counted once."""
    batch: list[tuple[int, ...]] = []
    for row in rows:
        if batch and head + (len(batch) + 1) * (len(row) - head + PADDING_MULTIPLE) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def generate_answers(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *,
                     rows_a_batch: int = GENERATE_ROWS_A_BATCH, progress: str | None = None) -> list[str]:
    """The text that the model writes, greedily, after each prompt; up to the end token or a few spare tokens."""
    longest = max(map(len, encoder.completions.values())) + SPARE_ANSWER_TOKENS
    pad = encoder.tokenizer.pad_token_id
    config = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=list(encoder.end_ids),
                              pad_token_id=pad)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    with inference(model), tqdm(total=len(prompts), desc=progress, unit=" rows", disable=progress is None) as bar:
        for start in range(0, len(order), rows_a_batch):
            rows = order[start:start + rows_a_batch]
            width = max(len(prompts[row]) for row in rows)
            lengths = torch.tensor([len(prompts[row]) for row in rows])
            # Generation appends on the right, so it is padded on the left and needs the mask.
            input_ids = torch.tensor([[pad] * (width - len(prompts[row])) + list(prompts[row]) for row in rows])
            mask = (torch.arange(width) >= width - lengths[:, None]).long()
            written = model.generate(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device),
                                     generation_config=config)[:, width:]
            for row, text in zip(rows, encoder.tokenizer.batch_decode(written, skip_special_tokens=True)):
                answers[row] = text
            bar.update(len(rows))
    return answers


def parse_answer(text: str, task: Task) -> bool | None:
    """The label that a written answer means, or None where it is neither of the two answers.

    An answer may be spaced differently as JSON and may stand in a code fence; nothing else is guessed at.
    """
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    for label, answer in ((True, task.answers[0]), (False, task.answers[1])):
        if text == answer.strip():
            return label
        with contextlib.suppress(ValueError):
            if json.loads(text) == json.loads(answer) and isinstance(json.loads(text), dict):
                return label
    return None


@contextlib.contextmanager
def inference(model):
    """Eval mode, no gradients, and the autocast that training ran under; the model's mode is put back."""
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
