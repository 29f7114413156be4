"""Scores a JSONL file of any size, in constant memory, with any number of processes, and goes on after a kill.

    python evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl [--restart]
    torchrun --nproc-per-node 8 evaluate.py --model MODEL --checkpoint DIR --predict IN.jsonl --output OUT.jsonl

Line N of OUT belongs to line N of IN, whatever that holds: ``{"line": N, ..., "probability": 0.97, "is_fraud":
true}``, or ``{"line": N, "error": "..."}`` for a row that cannot be scored. IN is always cut into the same chunks
and OUT grows by whole chunks, so that OUT has the same bytes whether one process wrote it, or eight, or a run was
killed and started again. ``OUT.meta.json`` holds what OUT was made from; with anything else it is not continued.
"""

import codecs
import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist
from tqdm.auto import tqdm

from data.files import DataError, require_paths, write_json
from data.prompt import PromptEncoder
from data.records import parse_object

from ..checkpoint import Lineage, lineage_of
from ..evaluation.calibration import calibrated
from ..evaluation.scoring import score_prompts
from ..provenance import file_sha256, versions

BATCH_ROWS = 4096  # enough to sort by length with little padding; half a minute's work of one GPU
CHUNK_BYTES = 16 * 2**20  # a chunk ends here even if it has fewer rows: what bounds the memory
LONGEST_LINE = 16 * 2**20  # bytes; a longer line is an error, and is never held in memory whole
ENCODED_CHARACTERS = 2**18  # tokenised at a time: the tokenizer keeps hundreds of bytes a token until it is done
OWN_KEYS = ("line", "error", "probability", "is_fraud")
LEFT_OUT = ("input", "instruction", "label")  # all other keys of a row are carried over
DIGITS = 6
SHOWN_ERRORS = 5
PATIENCE = datetime.timedelta(days=1)  # with a process that has a chunk of long dialogues on a slow device


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive lines of the input, the first of them numbered `first`, up to the byte offset `end`.

    A line is None where it is longer than `LONGEST_LINE`.
    """

    first: int
    lines: list[bytes | None]
    end: int


@dataclasses.dataclass
class Tally:
    """What an output holds: rows, those of them that are errors, and those called fraud."""

    rows: int = 0
    errors: int = 0
    fraud: int = 0

    def add(self, rows: list[dict]) -> None:
        self.rows += len(rows)
        self.errors += sum("error" in row for row in rows)
        self.fraud += sum(row.get("is_fraud") is True for row in rows)


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
        ``rows``, ``errors`` and ``fraud`` of the whole output, ``rows_per_second`` of this run (None if there was
        nothing left to do) and ``resumed_at``, the number of rows that an earlier run had done.

    Raises:
        DataError: no such input, or an output that cannot be written or belongs to another job. A bad row of the
            input raises nothing: it is named on standard error and counted.
    """
    lineage = lineage_of(model)
    threshold = lineage.decision.threshold if threshold is None else threshold
    require_paths(input_path, output_path)
    if batch_rows < 1 or not math.isfinite(threshold):
        raise DataError(f"batch_rows must be at least 1 and threshold a number, not {batch_rows} and {threshold}")
    encoder = PromptEncoder(tokenizer, lineage.task)
    output = Output(Path(output_path))
    with Processes() as processes, output:
        resumed = processes.agree(lambda: output.begin(
            _describe_job(model, lineage, input_path, threshold, batch_rows), read_chunks(input_path, batch_rows),
            restart=restart))
        report = Report(input_path, output, disable=not progress or processes.rank > 0)
        chunks = (chunk for chunk in read_chunks(input_path, batch_rows) if chunk.first > resumed)
        with report:
            while share := list(itertools.islice(chunks, processes.count)):
                mine = share[processes.rank:processes.rank + 1]
                rows = [row for chunk in mine
                        for row in _score_chunk(model, encoder, chunk, lineage.decision.temperature, threshold)]
                written = processes.gather(rows)
                if processes.rank == 0:
                    output.append(written)
                    report.add(written, share[-1].end)
        # The last to be said before the others learn that all is done: one that ends early may end them all.
        return processes.agree(report.summary)


def _describe_job(model, lineage: Lineage, input_path: str | Path, threshold: float, batch_rows: int) -> dict:
    """All that the bytes of an output depend on."""
    try:
        sha256 = file_sha256(input_path)
    except OSError as error:
        raise DataError(f"{input_path}: {error.strerror}") from None
    job = {
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
    return json.loads(json.dumps(job))  # as it is read back: a tuple is a list


# --------------------------------------------------------------------------------------------------- the input


def read_chunks(path: str | Path, batch_rows: int) -> Iterator[Chunk]:
    """The lines of a file, `batch_rows` or about `CHUNK_BYTES` at a time, always cut in the same places."""
    try:
        with open(path, "rb") as file:
            first, start, lines = 1, 0, []
            while (line := file.readline(LONGEST_LINE)):
                lines.append(None if _passes_longest(file, line) else line)
                if len(lines) == batch_rows or file.tell() - start >= CHUNK_BYTES:
                    yield Chunk(first, lines, file.tell())
                    first, start, lines = first + len(lines), file.tell(), []
            if lines:
                yield Chunk(first, lines, file.tell())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _passes_longest(file, line: bytes) -> bool:
    """Whether a line is longer than `LONGEST_LINE`; reads on to its end, and keeps nothing of that."""
    rest, longer = line, False
    while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
        rest = file.readline(LONGEST_LINE)
        longer = longer or bool(rest.strip(b"\r\n"))
    return longer


def parse_row(line: bytes | None, number: int) -> dict:
    """The row that a line of the input holds.

    Raises:
        DataError: it holds none that can be scored and written.
    """
    if line is None:
        raise DataError(f"longer than {LONGEST_LINE // 2**20} MiB")
    try:
        text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataError("blank line")
    row = parse_object(text, required={"input": str})
    if not row["input"].strip():
        raise DataError("'input' is empty")
    taken = [key for key in OWN_KEYS if key in row]
    if taken:
        raise DataError(f"key '{taken[0]}' is one that the output needs; rename it")
    return row


# --------------------------------------------------------------------------------------------------- the scores


def _score_chunk(model, encoder: PromptEncoder, chunk: Chunk, temperature: float, threshold: float) -> list[dict]:
    """One row of the output for each line of a chunk."""
    rows, scored, dialogues = [], [], []
    for number, line in enumerate(chunk.lines, start=chunk.first):
        try:
            row = parse_row(line, number)
        except DataError as error:
            rows.append({"line": number, "error": str(error)})
            continue
        rows.append({"line": number, **{key: value for key, value in row.items() if key not in LEFT_OUT}})
        scored.append(rows[-1])
        dialogues.append(row["input"])
    prompts = [prompt for group in _groups(dialogues) for prompt in encoder.prompts(group)]
    scores = calibrated(score_prompts(model, encoder, prompts, require_finite=False), temperature)
    for row, score in zip(scored, scores, strict=True):
        row.update(_verdict(float(score), threshold))
    return rows


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


def _verdict(score: float, threshold: float) -> dict:
    if not math.isfinite(score):
        return {"error": "the model's score is not finite"}
    probability = round(score, DIGITS)
    # Judged as it is written, so that nobody finds 0.5 called honest at a threshold of 0.5.
    return {"probability": probability, "is_fraud": probability >= threshold}


# --------------------------------------------------------------------------------------------------- the output


class Output:
    """The growing output file, what is in it, and the sidecar that says what it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".meta.json")
        self.tally = Tally()
        self.input_offset = 0  # bytes of the input that the output covered when it was opened
        self.file = None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_) -> None:
        if self.file is not None:
            self.file.close()

    def begin(self, job: dict, chunks: Iterator[Chunk], *, restart: bool) -> int:
        """Opens the output and cuts off what is not a whole chunk; returns the number of rows it holds.

        Raises:
            DataError: it belongs to another job, another process is at it, or it cannot be written.
        """
        try:
            if restart:
                self.path.unlink(missing_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                self._require_same_job(job)
            else:  # the sidecar comes first: there is never a row that nothing is known about
                write_json(self.sidecar, job)
            self.file = open(self.path, "ab")  # closed by __exit__
            self._lock()
            self._cut_to(self._read(chunks))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        return self.tally.rows

    def append(self, rows: list[dict]) -> None:
        """Writes rows to the disk before it returns."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self.file.write(text.encode("utf-8"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); what is there can be continued"
                            ) from None
        self.tally.add(rows)

    def _require_same_job(self, job: dict) -> None:
        try:
            saved = json.loads(self.sidecar.read_text(encoding="utf-8"))
            changed = [key for key in job if saved.get(key) != job[key]]
        except (OSError, ValueError, AttributeError):
            raise DataError(f"{self.path}: exists, and no {self.sidecar.name} says what it was made from; "
                            "add --restart to start over") from None
        if changed:
            raise DataError(f"{self.path}: was begun with another {' and another '.join(changed)}; "
                            "add --restart to start over")

    def _lock(self) -> None:
        """Two jobs on one output would write rows twice; the lock goes with the process, however that ends."""
        with contextlib.suppress(ImportError):  # Windows has no fcntl
            import fcntl
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{self.path}: another process is writing it") from None

    def _cut_to(self, end: int) -> None:
        if self.path.stat().st_size > end:
            self.file.truncate(end)

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
        raise DataError(f"{self.path}:{number}: not what was written there; add --restart to start over")


class Report:
    """What a person sees of a run: a bar over the bytes of the input, the first errors, one line at the end."""

    def __init__(self, input_path: str | Path, output: Output, *, disable: bool) -> None:
        self.input_path, self.output, self.resumed = input_path, output, output.tally.rows
        self.shown_errors = 0
        self.bar = tqdm(total=os.path.getsize(input_path), initial=output.input_offset, unit="B", unit_scale=True,
                        desc="predicting", disable=disable,
                        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")
        self.started = time.perf_counter()
        self.seconds = 0.0

    def __enter__(self) -> "Report":
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
        print(f"{self.output.path}: {again}{tally.rows} rows, {tally.fraud} of them fraud")
        if tally.errors:
            print(f"{self.output.path}: {tally.errors} of {tally.rows} rows could not be scored; their lines say why",
                  file=sys.stderr)
        return {**dataclasses.asdict(tally), "rows_per_second": self.rows_per_second(), "resumed_at": self.resumed}


# ----------------------------------------------------------------------------------------------- the processes


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
