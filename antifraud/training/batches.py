"""Examples into batches: rows of similar length, without the prefix that all share."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset

from data.files import DataError
from data.prompt import PromptEncoder

from ..logits import PADDING_MULTIPLE, common_prefix, pad_right, padded_length

CAPTURED_MULTIPLE = 16  # tokens: a CUDA graph for every 16th length, 2 % of padding more
IGNORED = -100  # a place at which there is nothing to learn
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
        """``input_ids``, ``labels`` and, where the examples have them, ``line_targets``, each [rows, tokens]."""
        fillers = {**dict.fromkeys(BLANK_ROW, IGNORED), "input_ids": self.pad_token_id}
        return {name: pad_right([example[name] for example in examples], filler, self.multiple, self.after)
                for name, filler in fillers.items() if name in examples[0]}

    def width(self, tokens: int) -> int:
        """How long a row of so many tokens becomes, if it is the longest."""
        return padded_length(tokens, self.multiple, self.after)


def token_arrays(rows: Dataset, name: str) -> list[np.ndarray]:
    """[rows] the lists of a column; all at once, where reading a row from Arrow takes 100 us."""
    column = rows.with_format("arrow")[:][name].combine_chunks()
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(column.flatten().to_numpy(zero_copy_only=False), ends[:-1]) if len(ends) else []


def prefix_of(encoder: PromptEncoder, *datasets: Dataset) -> list[int]:
    """What all rows begin with: the prompt's head, or the part of it in datasets that were made by other means."""
    head = encoder.head
    for rows in datasets:
        shortest_prompt = min(int((labels == IGNORED).sum()) for labels in token_arrays(rows, "labels"))
        head = common_prefix(head, token_arrays(rows, "input_ids"), shortest_prompt - 1)
    return head


BLANK_ROW = {"input_ids": [0], "labels": [IGNORED], "line_targets": [IGNORED]}


class RowsAfterPrefix(torch.utils.data.Dataset):
    """Rows without the prefix of all, and after the last one a blank row, which teaches nothing and has no loss.

    The latter fills up the last batch. Without it, processes that share the batches would get rows twice.
    """

    def __init__(self, rows: Dataset, prefix: Sequence[int], lines: bool = False) -> None:
        """
        Args:
            prefix: token ids that all rows begin with.
            lines: whether each row has ``line_targets``, too: at the last token of each line 0 where the line is part
                of a fraud and 1 where it is not, the places of the two label words.
        """
        columns = {name: token_arrays(rows, name) for name in ("input_ids", "labels")}
        if common_prefix(prefix, columns["input_ids"], len(prefix)) != prefix:
            raise DataError("a dataset has rows that do not begin as those of the training; make it with the same task")
        self.columns = {name: [ids[len(prefix):].astype(np.int32) for ids in column]
                        for name, column in columns.items()}
        if lines:
            self.columns["line_targets"] = [np.full(len(ids), IGNORED) for ids in self.columns["input_ids"]]
            of_lines = token_arrays(rows, "line_ends"), token_arrays(rows, "line_labels")
            for targets, ends, labels in zip(self.columns["line_targets"], *of_lines):
                targets[ends.astype(int) - len(prefix)] = ~labels.astype(bool)
        self.lengths = [len(ids) for ids in self.columns["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict:
        columns = self.columns
        return {name: columns[name][row] if row < len(self) else BLANK_ROW[name] for name in columns}

    def most_targets(self, name: str) -> int:
        """The most targets that a row has among its ``labels`` or ``line_targets``."""
        return max(int((row != IGNORED).sum()) for row in self.columns[name]) if name in self.columns else 0


def batches_by_tokens(lengths: Sequence[int], width: Callable[[int], int], *, tokens: int, most_rows: int,
                      processes: int = 1) -> list[list[int]]:
    """Row numbers from short to long, in as many batches for each process: equal work for models that are sharded.

    Args:
        lengths: tokens of each row.
        width: how long the longest row of a batch becomes.
        tokens: of a batch, at most, padding included; a single row may have more.
        most_rows: of a batch.

    Returns:
        batches, of which every `processes`-th is for the same process. The number after the last row is the blank one.
    """
    most_rows = min(most_rows, max(1, math.ceil(len(lengths) / processes)))
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        rows = len(batches[-1]) + 1 if batches else math.inf
        if rows > most_rows or rows * width(lengths[row]) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches + [[len(lengths)]] * (-len(batches) % processes)


class LengthGroupedBatches(torch.utils.data.Sampler[int]):
    """Row numbers such that every `batch_size` of them are of similar length, batches in random order.

    Sorting runs each group from long to short, and length tells the classes apart: without shuffling the batches
    the optimiser would see the class mix drift. Depends on `seed` and epoch alone, under every Python and numpy, so a
    resumed run sees the same batches. With `batch_size` rows an optimiser step, so does a run on more processes, or
    with more gradient accumulation. The number after the last row stands for the blank one that fills up the last step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size) * self.batch_size

    def __iter__(self):
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) % 2**63)
        rows = len(self.lengths)
        order = torch.randperm(rows, generator=generator)
        whole = rows - rows % self.batch_size  # the last, smaller batch stays last
        batches = []
        for group in order[:whole].split(GROUPED_BATCHES * self.batch_size):
            batches.extend(group[self.lengths[group].argsort(stable=True)].split(self.batch_size))
        for batch in torch.randperm(len(batches), generator=generator):
            yield from batches[batch].tolist()
        yield from order[whole:].tolist() + [rows] * (len(self) - rows)
