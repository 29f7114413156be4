"""Several processes that share one job: what one of them does for all, and what all tell the first."""

import datetime
import itertools
import os
from collections.abc import Callable

import torch.distributed as dist

from data.files import DataError

PATIENCE = datetime.timedelta(days=1)  # with a process that has a chunk of long dialogues on a slow device


class Processes:
    """The processes that share one job: how many there are, which is this one, and what they tell each other."""

    def __init__(self) -> None:
        started = dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if started else int(os.environ.get("WORLD_SIZE", 1))
        self.rank = dist.get_rank() if started else int(os.environ.get("RANK", 0))
        self.to_end = self.count > 1 and not started
        self.group = None

    def __enter__(self) -> "Processes":
        if self.to_end:
            dist.init_process_group("gloo", timeout=PATIENCE)
        if self.count > 1:  # gloo, whatever the model uses: what is exchanged is text
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self

    def __exit__(self, *_) -> None:
        if self.to_end:
            dist.destroy_process_group()

    def agree(self, work: Callable[[], object]) -> object:
        """What `work` returns, done by the first process only; its `DataError` is raised in all."""
        outcome = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except DataError as error:
                outcome[1] = str(error)
        if self.count > 1:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise DataError(outcome[1])
        return outcome[0]

    def gather(self, rows: list[dict]) -> list[dict]:
        """The rows of all processes in their order, for the first process; of no use to the others."""
        if self.count == 1:
            return rows
        shares = [None] * self.count if self.rank == 0 else None
        dist.gather_object(rows, shares, dst=0, group=self.group)
        return list(itertools.chain.from_iterable(shares or []))
