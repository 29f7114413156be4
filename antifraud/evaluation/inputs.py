"""What a report is about: values and files, checked and read before any model is loaded."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.files import DataError, numbered_lines, one_line, require_input
from data.records import Skipped, parse_object, read_numbered_records

from ..provenance import anonymous, describe_data
from .calls import cases_apart, require_ordinary

METHODS = ("score", "generate")
ENCODER_FILE = "encoder.json"  # of a folder that antifraud.evaluation.encoder wrote


@dataclass(frozen=True)
class KeptEncoder:
    """An encoder that antifraud.evaluation.encoder trained: its folder, and how it was trained."""

    folder: str
    about: dict


@dataclass(frozen=True)
class Inputs:
    """What a report is about, read and checked before any model is loaded; see `read_inputs`."""

    path: str
    numbered: list[tuple[int, dict]]
    skipped: int
    full: bool
    method: str
    batch: bool
    threshold: float | None
    train_path: str | None
    eval_split: list[dict]
    ordinary: list[dict]
    ordinary_files: list[dict]
    ordinary_eval: list[dict]
    peers: dict[str, dict[str, np.ndarray]]
    encoders: dict[str, KeptEncoder]
    with_text: bool
    progress: bool

    @cached_property
    def records(self) -> list[dict]:
        return _records(self.numbered)

    @property
    def texts(self) -> dict[str, list[str]]:
        """The dialogues of each set: ``data``, ``eval``, ``ordinary`` and ``ordinary_eval``."""
        sets = {"data": self.records, "eval": self.eval_split, "ordinary": self.ordinary,
                "ordinary_eval": self.ordinary_eval}
        return {name: [record["input"] for record in records] for name, records in sets.items() if records}


def read_inputs(path: str, *, full: bool = False, method: str = "score", batch: bool = False,
                threshold: float | None = None, train_path: str | None = None, eval_path: str | None = None,
                ordinary: str | Sequence[str] = (), ordinary_eval: str | None = None, peers: Sequence[str] = (),
                with_text: bool = False, progress: bool = True) -> Inputs:
    """Reads and checks what a report is about.

    Args:
        path: records with ``input`` and ``label``; those with an empty ``input`` are skipped and counted.
        full: make probes, baselines, label audit, overlap with train and the untuned model, too.
        method: ``score`` (a probability from one forward pass) or ``generate`` (the answer written out).
        batch: generate for as many rows at a time as fill the device instead of one; scoring is always batched.
        threshold: probability from which on a dialogue is fraud; default: the checkpoint's.
        train_path: the train file, for baselines and overlap; default: the one that the checkpoint names, if it is
            there.
        eval_path: the eval split, on which the baselines' thresholds are chosen as the model's was.
        ordinary: files of records of ordinary dialogues from elsewhere, none of them fraud.
        ordinary_eval: ordinary dialogues kept for choosing, where the baselines' thresholds keep the bound on false
            alarms that the model's was chosen with.
        peers: other classifiers, each as ``NAME=FILE.jsonl[,EVAL.jsonl[,ORDINARY.jsonl[,ORDINARY_EVAL.jsonl]]]``:
            lines of ``line`` and ``probability``, as ``--predict`` writes them, for `path`, `eval_path`, the one
            `ordinary` file and `ordinary_eval`; or as ``NAME=FOLDER`` of an encoder, which is asked itself.
        with_text: show the dialogues of the worst errors in the report; without it, it holds none.

    Raises:
        DataError: a value or a file is not fit for it.
    """
    if method not in METHODS:
        raise DataError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise DataError(f"threshold must be a probability from 0 to 1, not {threshold}; write 0.6 for 60 %")
    ordinary = [ordinary] if isinstance(ordinary, str) else list(ordinary)
    encoders, of_files = split_peers(peers)
    if of_files and len(ordinary) > 1:
        raise DataError("a peer's files go with one file of ordinary dialogues; join the files, and predict the result")
    for file in (path, *ordinary, *filter(None, (train_path, eval_path, ordinary_eval))):
        require_input(file)
    skipped = Skipped()
    numbered = read_numbered_records(path, skipped)
    skipped_rows = len(skipped.places)
    eval_split = read_numbered_records(eval_path, skipped) if eval_path else []
    ordinary_rows = {}
    for file in ordinary:
        ordinary_rows[file] = read_numbered_records(file, skipped)
        require_ordinary(ordinary_rows[file], file)
    kept_for_choosing = read_numbered_records(ordinary_eval, skipped) if ordinary_eval else []
    require_ordinary(kept_for_choosing, ordinary_eval)
    if skipped:
        print(skipped.summary(), file=sys.stderr)
    sets = {"data": (path, numbered), "eval": (eval_path, eval_split),
            "ordinary": ((ordinary or [None])[0], [row for rows in ordinary_rows.values() for row in rows]),
            "ordinary_eval": (ordinary_eval, kept_for_choosing)}
    return Inputs(
        path=path, numbered=numbered, skipped=skipped_rows, full=full, method=method, batch=batch, threshold=threshold,
        train_path=train_path, eval_split=_records(eval_split),
        ordinary=[record for file, rows in ordinary_rows.items() for record in cases_apart(_records(rows), file)],
        ordinary_files=[anonymous(describe_data(file, len(rows))) for file, rows in ordinary_rows.items()],
        ordinary_eval=_records(kept_for_choosing), with_text=with_text, progress=progress, encoders=encoders,
        peers={name: _read_peer(f"{name}={place}", place, sets) for name, place in of_files.items()})


def _records(numbered: Sequence[tuple[int, dict]]) -> list[dict]:
    return [record for _, record in numbered]


def input_files(args: argparse.Namespace) -> list[str | Path | None]:
    """The files that the options of ``evaluate.py`` have it read."""
    own = [args.data, args.train, args.eval, args.ordinary_eval, *args.ordinary]
    of_peers = []
    for place in (peer.partition("=")[2] for peer in args.peer):
        of_peers += Path(place).iterdir() if place and Path(place).is_dir() else place.split(",")
    return own + of_peers


def split_peers(peers: Sequence[str]) -> tuple[dict[str, KeptEncoder], dict[str, str]]:
    """Encoders, and the files of other classifiers, by name.

    Raises:
        DataError: a peer has no name, two have one, or a folder holds no trained encoder.
    """
    encoders, of_files = {}, {}
    for peer in peers:
        name, _, place = peer.partition("=")
        if not name or not place:
            raise DataError(f"peer {peer!r}: expected NAME=FOLDER or "
                            "NAME=FILE.jsonl[,EVAL.jsonl[,ORDINARY.jsonl[,ORDINARY_EVAL.jsonl]]]")
        if name in {**encoders, **of_files}:
            raise DataError(f"two peers are called {name!r}; give each a name of its own")
        if Path(place).is_dir():
            encoders[name] = _kept_encoder(place)
        else:
            of_files[name] = place
    return encoders, of_files


def _kept_encoder(folder: str) -> KeptEncoder:
    path = Path(folder) / ENCODER_FILE
    if not path.is_file():
        raise DataError(f"{folder}: no trained encoder; python -m antifraud.evaluation.encoder makes one")
    try:
        about = parse_object(path.read_text(encoding="utf-8"), required={"train_data": dict})
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{path}: {one_line(error)}; train the encoder anew") from None
    return KeptEncoder(folder, {key: value for key, value in about.items() if key != "log"})


def _read_peer(peer: str, place: str, sets: Mapping[str, tuple[str | None, Sequence[tuple[int, dict]]]]
               ) -> dict[str, np.ndarray]:
    """By set, [records] the probabilities of another classifier."""
    named = place.split(",")
    if len(named) > len(sets):
        raise DataError(f"peer {peer!r}: {len(named)} files, at most {len(sets)} are read")
    return {of_set: read_probabilities(file, of_set, sets[of_set][1]) for of_set, file in zip(sets, named)}


def read_probabilities(file: str | Path, of_set: str, numbered: Sequence[tuple[int, dict]]) -> np.ndarray:
    """[records] what a file of ``line`` and ``probability`` says of the records of these lines."""
    if not numbered:
        raise DataError(f"{file}: probabilities for the {of_set} file, which is not given; "
                        f"add --{of_set.replace('_', '-')}")
    rows = (parse_object(line, required={"line": int}) for _, line in numbered_lines(file))
    probability_of = {row["line"]: row.get("probability") for row in rows}
    missing = [number for number, _ in numbered if not _is_probability(probability_of.get(number))]
    if missing:
        raise DataError(f"{file}: no 'probability' from 0 to 1 for {len(missing)} of {len(numbered)} rows of the "
                        f"{of_set} file, the first on its line {missing[0]}; predict that very file")
    return np.array([probability_of[number] for number, _ in numbered], dtype=float)


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
