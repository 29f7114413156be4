"""Rows that begin alike, computed as one sequence: their common beginning once, then the rest of every row.

Each prompt begins with the same instruction, more than a quarter of its tokens. In a causal model no token depends on
what follows it, so that beginning is the same in every row; and all of a model but attention looks at one token at a
time. So the model runs over ``prefix + rest + rest + ...``, and for attention alone the rows are put together again.
Loss, gradients and scores are those of the rows one by one, but that LoRA's dropout is drawn once for the prefix.

Sharing the attention to a prefix, too, is Juravsky et al., Hydragen, 2024; at a few hundred tokens it is not worth it.

A row may itself hold several that begin alike, as a dialogue's beginnings do: it forks, and a mask keeps what stands
between from being read, as in tree attention (Miao et al., SpecInfer, 2023).
"""

import contextlib
import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_shared_prefix"  # the name under which transformers finds `attention`
BY_TOKEN = {"full_attention", "sliding_attention"}  # of ``layer_types``; a convolution, say, mixes tokens outside
Forks = Sequence[tuple[int, int]]  # (place, tokens): from `place` to the next, a row goes on after its first `tokens`
PADDING_MULTIPLE = 8  # tensor cores work on tiles of eight


def common_prefix(head: Sequence[int], rows: Sequence[Sequence[int]], at_most: int) -> list[int]:
    """The part of `head` that all rows begin with, of so many tokens `at_most`."""
    length = min(at_most, len(head))
    return os.path.commonprefix([list(head[:length]), *(list(row[:length]) for row in rows)])


def model_inputs(model, prefix: torch.Tensor, input_ids: torch.Tensor, forks: Sequence[Forks] | None = None) -> dict:
    """What to call `model` with for the rows ``prefix + input_ids[row]``, padded on the right.

    Its hidden states after the first ``len(prefix)`` tokens are then, flattened, those of `input_ids`, flattened.
    A model that shares the prefix computes its attention by `attention` from its first call on, for good: checkpointed
    layers run a second time in the backward pass. Without a prefix that is SDPA as before; other models are untouched.

    Args:
        prefix: [tokens], may be empty.
        input_ids: [rows, tokens].
        forks: of each row, for a model that shares the prefix; see `Forks`.
    """
    rows, width = input_ids.shape
    length = len(prefix)
    if forks is None and not shares_prefix(model, length + width):
        if length:
            input_ids = torch.cat([prefix.expand(rows, -1), input_ids], 1)
        return {"input_ids": input_ids, "use_cache": False}
    _causal_lm(model).config.get_text_config()._attn_implementation = ATTENTION
    place = torch.arange(length + width, device=input_ids.device).expand(rows, -1)
    # Transformers computes no mask where it is given one; with this one, attention other than ours fails.
    mask = torch.empty((1, 1, 0, 0), dtype=torch.bool, device=input_ids.device)
    if forks is not None:
        place, mask = (array.to(input_ids.device) for array in _forked(forks, length + width))
    return {"input_ids": torch.cat([prefix, input_ids.flatten()])[None],
            "position_ids": torch.cat([place[0, :length], place[:, length:].flatten()])[None],
            "attention_mask": mask, "prefix_tokens": length, "prefix_rows": rows, "use_cache": False}


def _forked(forks: Sequence[Forks], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, tokens] the place of every token as if alone, and [rows, 1, tokens, tokens] which ones it attends to."""
    place = np.tile(np.arange(tokens), (len(forks), 1))
    seen = np.tile(np.tri(tokens, dtype=bool), (len(forks), 1, 1, 1))
    for row, of_row in enumerate(forks):
        for (start, before), (end, _) in itertools.pairwise([*of_row, (tokens, 0)]):
            place[row, start:end] += before - start
            seen[row, 0, start:end, before:start] = False
    return torch.from_numpy(place), torch.from_numpy(seen)


def shares_prefix(model, tokens: int) -> bool:
    """Whether `model` can compute rows of so many tokens as one sequence: nothing but SDPA attention mixes tokens."""
    base = _causal_lm(model)
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or BY_TOKEN)
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return (base._supports_attention_backend and not base._is_stateful
            and config._attn_implementation in ("sdpa", ATTENTION)
            and kinds <= BY_TOKEN and (window is None or tokens <= window))


def _causal_lm(model):
    """The model within DDP, FSDP and PEFT."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention(module, query, key, value, attention_mask, *args, prefix_tokens: int = 0,
              prefix_rows: int | None = None, **kwargs):
    """Transformers' SDPA attention, and for `model_inputs` the same with the rows put together.

    Args:
        query, key, value: [1, heads, prefix_tokens + prefix_rows x tokens, numbers].
    """
    if prefix_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    query, key, value = (_by_row(states, prefix_tokens, prefix_rows) for states in (query, key, value))
    mask = attention_mask if attention_mask.numel() else None  # of rows without forks causal attention needs none
    output, weights = sdpa_attention_forward(module, query, key, value, mask, *args, **kwargs)
    return torch.cat([output[:1, :prefix_tokens], output[:, prefix_tokens:].flatten(0, 1)[None]], 1), weights


def _by_row(states: torch.Tensor, prefix_tokens: int, rows: int) -> torch.Tensor:
    """[1, heads, prefix + rows x tokens, n] -> [rows, heads, prefix + tokens, n]"""
    rests = states[0, :, prefix_tokens:].unflatten(1, (rows, -1)).transpose(0, 1)
    return torch.cat([states[:, :, :prefix_tokens].expand(rows, -1, -1, -1), rests], 2)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def unwrapped(model):
    """The model that DDP or FSDP wrapped, or itself."""
    return getattr(model, "module", model)


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = PADDING_MULTIPLE,
              after: int = 0) -> torch.Tensor:
    """[rows, tokens] of ids, padded with `value` to `padded_length`."""
    padded = np.full((len(rows), padded_length(max(map(len, rows)), multiple, after)), value)
    for row, ids in zip(padded, rows):
        row[:len(ids)] = ids
    return torch.from_numpy(padded)


def padded_length(tokens: int, multiple: int, after: int = 0) -> int:
    """At least `tokens`, such that with `after` tokens before them they are a multiple of so many."""
    return math.ceil((after + tokens) / multiple) * multiple - after


@contextlib.contextmanager
def logits_only_at(model, positions: torch.Tensor, after: int = 0):
    """Within this context `model` computes logits only at `positions`: [n] token numbers, counted through the batch.

    Of each row the first `after` tokens are not counted.

    The logits of Qwen2 are 151,936 numbers a token, several copies of them in training: 16 rows of 530 tokens
    fill tens of GB, and all but the label positions are thrown away. A hook on the output layer selects its
    inputs, so the model's own forward runs unchanged, inside autocast, PEFT and DDP; ``.logits`` becomes
    [n, vocabulary].
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: (_selected(inputs[0], positions, after),))
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def label_logits_at(model, positions: torch.Tensor, token_ids: Sequence[int], after: int = 0):
    """Like `logits_only_at`, of a few words only, and in 32 bit: ``.logits`` becomes [n, token_ids].

    In bf16 a logit of 20 is rounded to an eighth, so that scores would stand on a grid, three hundredths wide at 0.5.
    """
    head, words = model.get_output_embeddings(), list(token_ids)
    if type(head) is torch.nn.Linear:
        with replaced(head, forward=lambda hidden: _word_logits(head, _selected(hidden, positions, after), words)):
            yield
        return
    hook = head.register_forward_hook(lambda module, inputs, logits: logits[:, words])  # one with an adapter, say
    try:
        with logits_only_at(model, positions, after):
            yield
    finally:
        hook.remove()


@contextlib.contextmanager
def replaced(owner, **values):
    """Within this context the attributes of an object or module are others; then they are what they were."""
    own, before = vars(owner), {}
    for name, value in values.items():
        if name in own:
            before[name] = own[name]
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)


@contextlib.contextmanager
def word_logits_besides(model, positions: torch.Tensor, token_ids: Sequence[int], after: int = 0):
    """Yields a list, to which `model` adds the logits of a few words at `positions`, [n, token_ids], in 32 bit.

    Besides what it computes anyway; to be entered before `logits_only_at`.
    """
    found = []

    def compute(head, inputs):
        found.append(_word_logits(head, _selected(inputs[0], positions, after), token_ids))

    hook = model.get_output_embeddings().register_forward_pre_hook(compute)
    try:
        yield found
    finally:
        hook.remove()


def _word_logits(head: torch.nn.Module, hidden: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """[n, words] logits in 32 bit of `hidden`, [n, numbers]."""
    if type(head) is not torch.nn.Linear:  # one with an adapter, say
        return head.forward(hidden)[:, words].float()
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else torch.stack([head.bias[word] for word in words]).float()
        weight = torch.stack([head.weight[word] for word in words])  # one by one: a list would travel to the GPU
        return torch.nn.functional.linear(hidden.float(), weight.float(), bias)


def _selected(hidden: torch.Tensor, positions: torch.Tensor, after: int) -> torch.Tensor:
    return hidden[:, after:].flatten(0, 1)[positions]
