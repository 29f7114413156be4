"""Cross-entropy at label positions only, equal to the loss over all logits."""

import contextlib
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, pad

from ..logits import logits_only_at, model_inputs, unwrapped, word_logits_besides
from .batches import IGNORED


@dataclass(frozen=True)
class LineLoss:
    """The auxiliary line loss: after each line the model is to say "fraud" or "not fraud", too.

    Attributes:
        words: token ids of the two.
        weight: of a line, where that of a token of the answer is 1.
        n_positions: at how many tokens to compute it; see `label_position_loss`.
    """

    words: tuple[int, int]
    weight: float
    n_positions: int | None = None


def label_position_loss(model, input_ids: torch.Tensor, labels: torch.Tensor, n_labels=None,
                        n_positions: int | None = None, prefix: torch.Tensor | None = None,
                        line_loss: LineLoss | None = None, line_targets: torch.Tensor | None = None,
                        label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of the labels that are not -100, equal to the model's own loss over all logits.

    Args:
        model: a causal LM, wrapped or not.
        input_ids, labels: [rows, tokens], padded on the right, labels -100 where there is nothing to learn.
        n_labels: what to divide the sum by; the targets of this batch unless gradients are accumulated.
        n_positions: at how many tokens to compute logits, at least the number of labels. Without it they are
            counted, for which the CPU waits for the GPU; a CUDA graph cannot.
        prefix: [tokens] that precede every row, and are computed once.
        line_loss, line_targets: what to learn of lines, and [rows, tokens] of 0 (fraud), 1 (not) and -100: at the last
            token of a line, the cross-entropy between two words only.
        label_smoothing: of the answer's tokens; Szegedy et al., 2016.

    Returns:
        A scalar in fp32.
    """
    targets = pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()  # the logits at a token predict the next one
    positions = _places_of(targets != IGNORED, n_positions)
    prefix = input_ids[0, :0] if prefix is None else prefix
    n_targets = (targets != IGNORED).sum()
    with contextlib.ExitStack() as selecting:
        if line_loss is not None:
            of_lines = line_targets.flatten()
            line_ends = _places_of(of_lines != IGNORED, line_loss.n_positions)
            n_targets = n_targets + (of_lines != IGNORED).sum()
            line_logits = selecting.enter_context(
                word_logits_besides(unwrapped(model), line_ends, line_loss.words, after=len(prefix)))
        selecting.enter_context(logits_only_at(unwrapped(model), positions, after=len(prefix)))
        logits = model(**model_inputs(model, prefix, input_ids)).logits
    loss = cross_entropy(logits.float(), targets[positions], reduction="sum", label_smoothing=label_smoothing)
    if line_loss is not None:
        loss = loss + line_loss.weight * cross_entropy(line_logits.pop(), of_lines[line_ends], reduction="sum")
    return loss / (n_targets if n_labels is None else n_labels)


def _places_of(wanted: torch.Tensor, number: int | None) -> torch.Tensor:
    """[number] the places at which `wanted`, [n] bool, holds, and others if there are fewer; None: counted."""
    if number is None:
        return wanted.nonzero().squeeze(1)
    return wanted.to(torch.uint8).argsort(descending=True, stable=True)[:number]
