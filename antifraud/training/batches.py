"""Examples into batches: rows of similar length, without the prefix that all share."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from data.files import DataError
from data.prompt import PromptEncoder

from ..logits import PADDING_MULTIPLE, common_prefix, pad_right, padded_length

CAPTURED_MULTIPLE = 16  # tokens: a CUDA graph for every 16th length, 2 % of padding more
GROUPED_BATCHES = 50  # rows of so many batches are sorted together: few padded tokens, yet a new mix every epoch


class RightPaddingCollator:
    """Pads a batch on the right, without an attention mask.

    In a causal model no token attends to what follows it, so padding on the right is exact without a mask and
    keeps the fastest attention kernel. (Left padding needs a mask, and with SDPA it gave NaN gradients.)
    """

    def __init__(self, pad_token_id: int, multiple: int = PADDING_MULTIPLE, after: int = 0) -> None:
        """
        Args:
            multiple: with the `after` tokens that precede every row, rows become as long as a multiple of so many.
        """
        self.pad_token_id = pad_token_id
        self.multiple = multiple
        self.after = after

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels``, both [rows, tokens]."""
        fillers = {"input_ids": self.pad_token_id, "labels": -100}
        return {name: pad_right([example[name] for example in examples], filler, self.multiple, self.after)
                for name, filler in fillers.items()}

    def width(self, tokens: int) -> int:
        """How long a row of so many tokens becomes, if it is the longest."""
        return padded_length(tokens, self.multiple, self.after)


def prefix_of(encoder: PromptEncoder, *datasets: Dataset) -> list[int]:
    """What all rows begin with: the prompt's head, or the part of it in datasets that were made by other means."""
    head = encoder.head
    for rows in datasets:
        shortest_prompt = min(labels.count(-100) for labels in rows["labels"])
        head = common_prefix(head, rows["input_ids"], shortest_prompt - 1)
    return head


BLANK_ROW = {"input_ids": [0], "labels": [-100]}
LINE_LABELS = {True: -101, False: -102}  # where a line ends: is it part of a fraud? See `label_position_loss`.


class RowsAfterPrefix(torch.utils.data.Dataset):
    """Rows without the prefix of all, and after the last one a blank row, which teaches nothing and has no loss.

    The latter fills up the last batch. Without it, processes that share the batches would get rows twice.
    """

    def __init__(self, rows: Dataset, prefix: Sequence[int], label_word: int | None = None,
                 lines: bool = False) -> None:
        """
        Args:
            prefix: token ids that all rows begin with.
            label_word: which token of the answer to learn alone; None for the whole answer.
            lines: whether to learn of each line, too, whether it is part of a fraud.
        """
        # Arrow takes 100 us to give a row: 2 ms of a step that lasts 40.
        columns = {name: list(rows[name]) for name in BLANK_ROW}
        if common_prefix(prefix, columns["input_ids"], len(prefix)) != prefix:
            raise DataError("a dataset has rows that do not begin as those of the training; make it with the same task")
        self.columns = {name: [np.array(ids[len(prefix):], dtype=np.int32) for ids in column]
                        for name, column in columns.items()}
        if label_word is not None:
            for labels in self.columns["labels"]:
                learned = (labels != -100).argmax() + label_word
                labels[:learned] = labels[learned + 1:] = -100
        if lines:
            for labels, ends, of_lines in zip(self.columns["labels"], rows["line_ends"], rows["line_labels"]):
                for end, is_fraud in zip(ends, of_lines):
                    labels[end + 1 - len(prefix)] = LINE_LABELS[is_fraud]
        self.lengths = [len(ids) for ids in self.columns["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict:
        return {name: column[row] for name, column in self.columns.items()} if row < len(self) else BLANK_ROW

    def most_labels(self) -> tuple[int, int]:
        """The most labels that a row has in its answer, and the most lines that are labelled."""
        labels = self.columns["labels"]
        return max(int((row >= 0).sum()) for row in labels), max(int((row < -100).sum()) for row in labels)


def filled_up(rows: int, batch_size: int) -> int:
    """The number of rows once blank ones have filled up the last batch."""
    return math.ceil(rows / batch_size) * batch_size


class LengthGroupedBatches(torch.utils.data.Sampler[int]):
    """Row numbers such that every `batch_size` of them are of similar length, batches in random order.

    Sorting runs each group from long to short, and length tells the classes apart: without shuffling the batches
    the optimiser would see the class mix drift. Depends on `seed` and epoch alone, so a resumed run sees the
    same batches. With `batch_size` rows an optimiser step, so does a run on more processes, or with more gradient
    accumulation. The number after the last row stands for the blank one that fills up the last step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return filled_up(len(self.lengths), self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        rows = len(self.lengths)
        order = torch.randperm(rows, generator=generator)
        whole = rows - rows % self.batch_size  # the last, smaller batch stays last
        batches = []
        for group in order[:whole].split(GROUPED_BATCHES * self.batch_size):
            batches.extend(group[self.lengths[group].argsort(stable=True)].split(self.batch_size))
        for batch in torch.randperm(len(batches), generator=generator):
            yield from batches[batch].tolist()
        yield from order[whole:].tolist() + [rows] * (len(self) - rows)
