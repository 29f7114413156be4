"""How a dialogue's prompt becomes a probability of fraud, or a written answer."""

import contextlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from tqdm.auto import tqdm
from transformers import GenerationConfig

from data.prompt import PromptEncoder, Task
from models import (
    PADDING_MULTIPLE,
    compute_dtype,
    compute_in_eval_as_in_training,
    label_logits_at,
    pad_right,
)

TOKENS_A_BATCH = {"cuda": 32768, "cpu": 4096}  # padded tokens; enough to fill the device, little enough to fit
GENERATE_ROWS_A_BATCH = 8  # the article's
SPARE_ANSWER_TOKENS = 8  # room for a model that puts its answer in a code fence


def score_prompts(model, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], *,
                  tokens_a_batch: int | None = None, progress: str | None = None,
                  require_finite: bool = True) -> np.ndarray:
    """[prompts] probability that the answer is "fraud", given that it is one of the two.

    One forward pass over prompt and the beginning that both answers share; a softmax over the two tokens that may
    follow. Prompts are sorted by length, padded on the right without a mask (exact in a causal model), and
    batched to `tokens_a_batch` padded tokens; equal prompts are scored once.

    Raises:
        FloatingPointError: a score is not finite, unless `require_finite` is off.
    """
    device = model.device
    unique = list(dict.fromkeys(tuple(prompt) + tuple(encoder.answer_prefix) for prompt in prompts))
    probability = {}
    with inference(model), tqdm(total=len(unique), desc=progress, unit=" rows", disable=progress is None) as bar:
        for batch in _batches_by_tokens(unique, tokens_a_batch or TOKENS_A_BATCH[device.type]):
            input_ids = pad_right(batch, encoder.tokenizer.pad_token_id).to(device)
            width = input_ids.shape[1]
            last = torch.tensor([row * width + len(ids) - 1 for row, ids in enumerate(batch)], device=device)
            with label_logits_at(model, last, encoder.label_ids):
                pairs = model(input_ids=input_ids, use_cache=False).logits.double().softmax(dim=-1)
            probability.update(zip(batch, pairs[:, 0].tolist(), strict=True))
            bar.update(len(batch))
    scores = np.array([probability[tuple(prompt) + tuple(encoder.answer_prefix)] for prompt in prompts])
    if require_finite and not np.isfinite(scores).all():
        remedy = "; a GPU with bf16, or --device cpu, has room for larger numbers than fp16"
        raise FloatingPointError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite"
                                 + (remedy if compute_dtype(str(device)) is torch.float16 else ""))
    return scores


def _batches_by_tokens(rows: Sequence[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows from short to long, as many at a time as fit `budget` padded tokens (one at least)."""
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * (len(row) + PADDING_MULTIPLE) > budget:
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
