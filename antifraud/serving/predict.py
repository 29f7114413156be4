"""Scores a JSONL file of any size, in constant memory, with any number of processes, and goes on after a kill.

    python evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl [--restart]
    torchrun --nproc-per-node 8 evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl

Line N of OUT belongs to line N of IN, whatever that holds: ``{"line": N, ..., "probability": 0.97, "is_fraud": true}``,
or ``{"line": N, "error": "..."}`` for a row that cannot be scored. The command refuses a file without rows, and one of
another format in each of its first hundred. A dialogue longer than the model reads at once is read in overlapping
windows; its score is that of the highest, and its row says how many ``windows`` there were and the ``window_lines``
[first, last] of that one, counted from 1. IN is always cut into the same chunks and OUT grows by whole chunks, so that
OUT has the same bytes whether one process wrote it, or eight, or a run was killed and started again. ``OUT.meta.json``
holds what OUT was made from; with anything else it is not continued.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from data.files import DataError, require_paths
from data.prompt import PromptEncoder
from data.sources import TABLE_SUFFIXES
from data.stamp import locked, read_stamp, require_same, stamp_path, write_stamp

from ..checkpoint import Decision, Lineage, lineage_of
from ..evaluation.scoring import Reading, predict_readings, read_dialogues
from ..provenance import file_sha256, versions
from .chunks import Chunk, other_keys, parse_row, read_chunks
from .processes import Processes

BATCH_ROWS = 4096  # enough to sort by length with little padding; half a minute's work of one GPU
ENCODED_CHARACTERS = 2**18  # tokenised at a time: the tokenizer keeps hundreds of bytes a token until it is done
LEFT_OUT = ("input", "instruction", "label")  # all other keys of a row are carried over
DIGITS = 6
SHOWN_ERRORS = 5
RESTART = "add --restart to start over"
AHEAD = 2  # chunks that are read and tokenised while one is scored


@dataclasses.dataclass
class Tally:
    """What an output holds: rows, and those of them that are errors, called fraud, and read in several windows."""

    rows: int = 0
    errors: int = 0
    fraud: int = 0
    in_windows: int = 0

    def add(self, rows: list[dict]) -> None:
        self.rows += len(rows)
        self.errors += sum("error" in row for row in rows)
        self.fraud += sum(row.get("is_fraud") is True for row in rows)
        self.in_windows += sum("windows" in row for row in rows)


def predict_file(model, tokenizer, input_path: str | Path, output_path: str | Path, *, threshold: float | None = None,
                 batch_rows: int = BATCH_ROWS, restart: bool = False, progress: bool = True) -> dict:
    """Scores every row of a JSONL file; goes on where an earlier run of the same job stopped.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with its own copy of the model.

    Args:
        input_path: rows with ``input``; ``label`` is not needed, other keys are carried over to the output.
        output_path: gets one line for each line of the input, in its order; ``.meta.json`` is written beside it.
        threshold: probability from which on a dialogue is fraud; default: the checkpoint's.
        batch_rows: rows a process reads, sorts by length and scores at a time; a kill loses no more than these.
        restart: throw away what an earlier run wrote.

    Returns:
        ``rows``, ``errors``, ``fraud`` and ``in_windows`` of the whole output, ``rows_per_second`` of this run (None
        if there was nothing left to do) and ``resumed_at``, the number of rows that an earlier run had done.

    Raises:
        DataError: no such input, or an output that cannot be written or belongs to another job. A bad row of the
            input raises nothing: it is named on standard error and counted.
    """
    lineage = lineage_of(model)
    threshold = lineage.decision.threshold if threshold is None else threshold
    require_request(input_path, output_path, threshold=threshold, batch_rows=batch_rows)
    encoder = PromptEncoder(tokenizer, lineage.task)
    output = Output(Path(output_path))
    with Processes() as processes, output:
        resumed = processes.agree(lambda: output.begin(
            _describe_job(model, lineage, input_path, threshold, batch_rows), read_chunks(input_path, batch_rows),
            restart=restart))
        chunks = (chunk for chunk in read_chunks(input_path, batch_rows) if chunk.first > resumed)
        with Progress(input_path, output, disable=not progress or processes.rank > 0) as bar:
            for work, end in ahead(_prepared(encoder, lineage.decision.line_aware, chunks, processes), AHEAD):
                written = processes.gather(_score(model, work, threshold))
                if processes.rank == 0:
                    output.append(written)
                    bar.add(written, end)
            processes.agree(output.finish)
        # The last to be said before the others learn that all is done: one that ends early may end them all.
        return processes.agree(bar.summary)


def require_request(input_path: str | Path, output_path: str | Path, *, threshold: float | None = None,
                    batch_rows: int = BATCH_ROWS) -> None:
    """Refuses, before a model is loaded, what `predict_file` cannot do.

    Raises:
        DataError: no such input, an output that is a folder, a table or the input, or a number that makes no sense.
    """
    require_paths(input_path, output_path)
    require_paths(input_path, stamp_path(output_path))  # which is written, too
    if Path(output_path).suffix.lower() in TABLE_SUFFIXES:
        raise DataError(f"{output_path}: predictions are JSON Lines; name a file that ends in .jsonl (for Excel, "
                        "afterwards: docs/operations.md)")
    if batch_rows < 1:
        raise DataError(f"--batch-rows {batch_rows}: must be at least 1")
    if threshold is not None and not 0 <= threshold <= 1:  # also false of NaN
        raise DataError(f"--threshold {threshold:g}: must be a probability from 0 to 1"
                        + (f"; {threshold:g} % is {threshold / 100:g}" if 1 < threshold <= 100 else ""))


def _describe_job(model, lineage: Lineage, input_path: str | Path, threshold: float, batch_rows: int) -> dict:
    """All that the bytes of an output depend on."""
    try:
        sha256 = file_sha256(input_path)
    except OSError as error:
        raise DataError(f"{input_path}: {error.strerror}") from None
    return {
        "input": sha256,
        "model": lineage.base.get("fingerprint"),
        "adapter": lineage.adapter_sha256 or None,
        "quantization": lineage.quantization,
        "task": dataclasses.asdict(lineage.task),
        "decision": dataclasses.asdict(lineage.decision),
        "threshold": threshold,
        "batch_rows": batch_rows,
        "device": model.device.type,
        "versions": versions(),
    }


# --------------------------------------------------------------------------------------------------- the scores


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The rows of the output for the lines of a chunk: all of them, and those that wait for a score, as read."""

    rows: list[dict]
    waiting: list[dict]
    readings: list[Reading]


def _prepared(encoder: PromptEncoder, line_aware: bool, chunks: Iterable[Chunk], processes: Processes
              ) -> Iterator[tuple[Prepared, int]]:
    """What this process scores of every `processes.count` chunks, and the byte of the input where these end."""
    chunks = iter(chunks)
    while share := list(itertools.islice(chunks, processes.count)):
        mine = share[processes.rank] if processes.rank < len(share) else Chunk(0, [], 0)
        yield _prepare(encoder, line_aware, mine), share[-1].end


def _prepare(encoder: PromptEncoder, line_aware: bool, chunk: Chunk) -> Prepared:
    rows, waiting, dialogues = [], [], []
    for number, line in enumerate(chunk.lines, start=chunk.first):
        try:
            row = parse_row(line)
        except DataError as error:
            rows.append({"line": number, **_carried(other_keys(line)), "error": str(error)})
            continue
        rows.append({"line": number, **_carried(row)})
        waiting.append(rows[-1])
        dialogues.append(row["input"])
    return Prepared(rows, waiting, [reading for group in _groups(dialogues)
                                    for reading in read_dialogues(encoder, group, line_aware=line_aware)])


def _carried(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in LEFT_OUT}


def _score(model, work: Prepared, threshold: float) -> list[dict]:
    """One row of the output for each line of a chunk."""
    for row, found in zip(work.waiting, predict_readings(model, work.readings, require_finite=False), strict=True):
        row.update(_verdict(found.probability, threshold))
        if found.windows > 1:
            row |= {"windows": found.windows, "window_lines": list(found.lines)}
    return work.rows


def ahead(items: Iterator, count: int) -> Iterator:
    """The same items, each made in another thread up to `count` ahead of who takes them; an error comes in its turn."""
    end = object()
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _groups(dialogues: list[str]) -> Iterator[list[str]]:
    """Consecutive dialogues of no more than `ENCODED_CHARACTERS` together (one at least)."""
    group, characters = [], 0
    for dialogue in dialogues:
        if group and characters + len(dialogue) > ENCODED_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(dialogue)
        characters += len(dialogue)
    if group:
        yield group


def _verdict(probability: float, threshold: float) -> dict:
    if not math.isfinite(probability):
        return {"error": "the model's score is not finite"}
    probability = round(probability, DIGITS)
    # Judged as it is written, so that nobody finds 0.5 called non-fraud at a threshold of 0.5.
    return {"probability": probability, "is_fraud": probability >= threshold}


# --------------------------------------------------------------------------------------------------- the output


def _require_same_job(path: Path, job: dict) -> None:
    """As `require_same`, which would name each of our fields that a calibration sets, and not what was done."""
    saved = {**job, **(read_stamp(path) or {})}
    # A stamp of before a decision had a field was made with the field's default.
    calibrated_anew = {**dataclasses.asdict(Decision()), **saved["decision"]} != job["decision"]
    changed = ("decision", "threshold") if calibrated_anew else ("decision",)
    require_same(path, {**job, **{name: saved[name] for name in changed}}, RESTART)
    if calibrated_anew:
        raise DataError(f"{path}: the checkpoint was calibrated anew since this was begun; {RESTART}")


class Output:
    """The growing output file, what is in it, and the stamp beside it that says what it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tally = Tally()
        self.input_offset = 0  # bytes of the input that the output covered when it was opened
        self.file = None
        self.writing: Future | None = None
        self.held = contextlib.ExitStack()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take; that has been said
            self.held.close()

    def begin(self, job: dict, chunks: Iterator[Chunk], *, restart: bool) -> int:
        """Opens the output and cuts off what is not a whole chunk; returns the number of rows it holds.

        Raises:
            DataError: it belongs to another job, another process is at it, or it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.held.enter_context(locked(self.path, "name another file with --output"))
            self.thread = self.held.enter_context(ThreadPoolExecutor(1))
            if restart:
                self.file.truncate(0)
            if self.path.stat().st_size:
                _require_same_job(self.path, job)
            else:  # the stamp comes first: there is never a row that nothing is known about
                write_stamp(self.path, job)
            whole = self._read(chunks)
            if self.path.stat().st_size > whole:
                self.file.truncate(whole)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        return self.tally.rows

    def append(self, rows: list[dict]) -> None:
        """Writes rows in a thread of its own, once those before them are on the disk."""
        self.finish()
        self.writing = self.thread.submit(self._write, rows)
        self.tally.add(rows)

    def finish(self) -> None:
        """Waits until all rows are on the disk.

        Raises:
            DataError: they could not be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, rows: list[dict]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self.file.write(text.encode("utf-8"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); what is there can be continued"
                            ) from None

    def _read(self, chunks: Iterator[Chunk]) -> int:
        """Tallies the output's whole chunks; returns the byte offset where they end."""
        end = 0
        with open(self.path, "rb") as file:
            for chunk in chunks:
                numbers = range(chunk.first, chunk.first + len(chunk.lines))
                rows = [self._own_row(file.readline(), number) for number in numbers]
                if None in rows:
                    break
                self.tally.add(rows)
                self.input_offset, end = chunk.end, file.tell()
        return end

    def _own_row(self, line: bytes, number: int) -> dict | None:
        """The row in a line of the output; None for one that a kill cut short."""
        if not line.endswith(b"\n"):
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["line"] == number:
                return row
        raise DataError(f"{self.path}:{number}: not what was written there; {RESTART}")


class Progress:
    """What a person sees of a run: a bar over the bytes of the input, the first errors, one line at the end."""

    def __init__(self, input_path: str | Path, output: Output, *, disable: bool) -> None:
        self.input_path, self.output, self.resumed = input_path, output, output.tally.rows
        self.shown_errors = 0
        self.bar = tqdm(total=os.path.getsize(input_path), initial=output.input_offset, unit="B", unit_scale=True,
                        desc="predicting", disable=disable,
                        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")
        self.started = time.perf_counter()
        self.seconds = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, rows: list[dict], input_offset: int) -> None:
        """Takes note of rows just written, which bring the output up to `input_offset` bytes of the input."""
        self.seconds = time.perf_counter() - self.started
        for row in rows:
            if "error" in row and self.shown_errors < SHOWN_ERRORS:
                self.shown_errors += 1
                tqdm.write(f"{self.input_path}:{row['line']}: {row['error']}", file=sys.stderr)
        self.bar.set_postfix_str(f"{self.output.tally.rows} rows, {self.rows_per_second():.1f} rows/s", refresh=False)
        self.bar.update(input_offset - self.bar.n)

    def rows_per_second(self) -> float | None:
        return (self.output.tally.rows - self.resumed) / self.seconds if self.seconds else None

    def summary(self) -> dict:
        """What `predict_file` returns; printed too."""
        tally = self.output.tally
        again = "already complete, " if tally.rows == self.resumed > 0 else ""
        rate = f", {self.rows_per_second():.1f} rows/s" if self.seconds else ""
        print(f"{self.output.path}: {again}{tally.rows} rows, {tally.fraud} of them fraud{rate}")
        if tally.in_windows:
            print(f"{self.output.path}: {tally.in_windows} dialogues are longer than the model reads at once; each was "
                  "read whole, in overlapping windows")
        if tally.errors:
            print(f"{self.output.path}: {tally.errors} of {tally.rows} rows could not be scored; their lines say why",
                  file=sys.stderr)
        return {**dataclasses.asdict(tally), "rows_per_second": self.rows_per_second(), "resumed_at": self.resumed}
