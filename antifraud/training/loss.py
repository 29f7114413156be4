"""Cross-entropy at label positions only, equal to the loss over all logits."""

import contextlib
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, pad

from ..logits import logits_only_at, model_inputs, unwrapped, word_logits_besides
from .batches import LINE_LABELS


@dataclass(frozen=True)
class LineLoss:
    """That the model is to say "fraud" or "not fraud" after each line, too.

    Attributes:
        words: token ids of the two.
        weight: of a line, where that of a token of the answer is 1.
        n_positions: as for `label_position_loss`.
    """

    words: tuple[int, int]
    weight: float
    n_positions: int | None = None


def label_position_loss(model, input_ids: torch.Tensor, labels: torch.Tensor, n_labels=None,
                        n_positions: int | None = None, prefix: torch.Tensor | None = None,
                        line_loss: LineLoss | None = None) -> torch.Tensor:
    """Cross-entropy of the labels that are not -100, equal to the model's own loss over all logits.

    Args:
        model: a causal LM, wrapped or not.
        input_ids, labels: [rows, tokens], padded on the right, labels -100 where there is nothing to learn.
        n_labels: what to divide the sum by; the labels of this batch unless gradients are accumulated.
        n_positions: at how many tokens to compute logits, at least the number of labels. Without it they are
            counted, for which the CPU waits for the GPU; a CUDA graph cannot.
        prefix: [tokens] that precede every row, and are computed once.
        line_loss: what to make of labels below -100, which say of the line that ends before them whether it is part of
            a fraud (`LINE_LABELS`): of these, the cross-entropy between two words only.

    Returns:
        A scalar in fp32.
    """
    targets = pad(labels[:, 1:], (0, 1), value=-100).flatten()  # the logits at a token predict the next one
    n_labels = (targets != -100).sum() if n_labels is None else n_labels
    positions = _places_of(targets >= 0, n_positions)
    prefix = input_ids[0, :0] if prefix is None else prefix
    with contextlib.ExitStack() as selecting:
        if line_loss is not None:
            line_ends = _places_of(targets < -100, line_loss.n_positions)
            line_logits = selecting.enter_context(
                word_logits_besides(unwrapped(model), line_ends, line_loss.words, after=len(prefix)))
        selecting.enter_context(logits_only_at(unwrapped(model), positions, after=len(prefix)))
        logits = model(**model_inputs(model, prefix, input_ids)).logits
    loss = cross_entropy(logits.float(), targets[positions].clamp(min=-100), reduction="sum")
    if line_loss is not None:
        words = LINE_LABELS[True] - targets[line_ends]  # -101 and -102 are words 0 and 1; others are not below -100
        words = words.masked_fill(targets[line_ends] >= -100, -100)
        loss = loss + line_loss.weight * cross_entropy(line_logits.pop(), words, reduction="sum")
    return loss / n_labels


def _places_of(wanted: torch.Tensor, number: int | None) -> torch.Tensor:
    """[number] the places at which `wanted`, [n] bool, holds, and others if there are fewer; None: counted."""
    if number is None:
        return wanted.nonzero().squeeze(1)
    return wanted.to(torch.uint8).argsort(descending=True, stable=True)[:number]
