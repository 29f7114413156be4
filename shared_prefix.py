"""Rows that begin alike, computed as one sequence: their common beginning once, then the rest of every row.

Each prompt begins with the same instruction, more than a quarter of its tokens. In a causal model no token depends on
what follows it, so that beginning is the same in every row; and all of a model but attention looks at one token at a
time. So the model runs over ``prefix + rest + rest + ...``, and for attention alone the rows are put together again.
Loss, gradients and scores are those of the rows one by one, but that LoRA's dropout is drawn once for the prefix.

Sharing the attention to a prefix, too, is Juravsky et al., Hydragen, 2024; at a few hundred tokens it is not worth it.
"""

import os
from collections.abc import Sequence

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from models import unwrapped

BY_TOKEN = {"full_attention", "sliding_attention"}  # of ``layer_types``; a convolution, say, mixes tokens outside


def common_prefix(head: Sequence[int], rows: Sequence[Sequence[int]], at_most: int) -> list[int]:
    """The part of `head` that all rows begin with, of so many tokens `at_most`."""
    length = min(at_most, len(head))
    return os.path.commonprefix([list(head[:length]), *(list(row[:length]) for row in rows)])


def model_inputs(model, prefix: torch.Tensor, input_ids: torch.Tensor) -> dict:
    """What to call `model` with for the rows ``prefix + input_ids[row]``, padded on the right.

    Its hidden states after the first ``len(prefix)`` tokens are then, flattened, those of `input_ids`, flattened.

    Args:
        prefix: [tokens], may be empty.
        input_ids: [rows, tokens].
    """
    rows, width = input_ids.shape
    length = len(prefix)
    if not shares_prefix(model, length + width):
        if length:
            input_ids = torch.cat([prefix.expand(rows, -1), input_ids], 1)
        return {"input_ids": input_ids, "use_cache": False}
    place = torch.arange(length + width, device=input_ids.device)
    return {"input_ids": torch.cat([prefix, input_ids.flatten()])[None],
            "position_ids": torch.cat([place[:length], place[length:].repeat(rows)])[None],
            # Transformers computes no mask where it is given one; with this one, attention other than ours fails.
            "attention_mask": torch.empty((1, 1, 0, 0), dtype=torch.bool, device=input_ids.device),
            "prefix_tokens": length, "prefix_rows": rows, "use_cache": False}


def shares_prefix(model, tokens: int) -> bool:
    """Whether `model` can compute rows of so many tokens as one sequence: nothing but SDPA attention mixes tokens."""
    model = unwrapped(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or BY_TOKEN)
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return (base._supports_attention_backend and not base._is_stateful and config._attn_implementation == "sdpa"
            and kinds <= BY_TOKEN and (window is None or tokens <= window))


def attention(module, query, key, value, attention_mask, *args, prefix_tokens: int = 0,
              prefix_rows: int | None = None, **kwargs):
    """Transformers' SDPA attention, and for `model_inputs` the same with the rows put together.

    Args:
        query, key, value: [1, heads, prefix_tokens + prefix_rows x tokens, numbers].
    """
    if prefix_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    query, key, value = (_by_row(states, prefix_tokens, prefix_rows) for states in (query, key, value))
    output, weights = sdpa_attention_forward(module, query, key, value, None, *args, **kwargs)
    return torch.cat([output[:1, :prefix_tokens], output[:, prefix_tokens:].flatten(0, 1)[None]], 1), weights


def _by_row(states: torch.Tensor, prefix_tokens: int, rows: int) -> torch.Tensor:
    """[1, heads, prefix + rows x tokens, n] -> [rows, heads, prefix + tokens, n]"""
    rests = states[0, :, prefix_tokens:].unflatten(1, (rows, -1)).transpose(0, 1)
    return torch.cat([states[:, :, :prefix_tokens].expand(rows, -1, -1, -1), rests], 2)


AttentionInterface.register("sdpa", attention)
