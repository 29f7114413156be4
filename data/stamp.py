"""What a folder or a file holds is compared with what is asked of it: a lock while it is written, a stamp to stay.

    with locked(output, "name another folder with --output"):
        require_same(output, facts, "name another folder with --output")  # or write_stamp(output, facts) in a new one
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .files import DataError, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # what systems say of a lock that somebody else has
LOCK_FILE = ".lock"
STAMP_FILE = "stamp.json"
BEYOND_END = 2**40  # the byte that Windows locks: one that nobody reads or writes
LONGEST_VALUE = 24  # characters of a value in a message
MOST_FIELDS = 4  # named in a message
MISSING = object()


@contextlib.contextmanager
def locked(path: str | Path, remedy: str, *, wait: bool = False) -> Iterator[BinaryIO]:
    """Holds `path` for one process at a time: a file, made if it is not there, or an existing folder.

    The lock goes with the process, however that ends. A folder is locked by an empty file in it; a file system that
    knows no locks is written without one.

    Args:
        remedy: what to do instead, for the message of the refusal.
        wait: until nobody else holds it, instead of refusing.

    Yields:
        the locked file, open for appending.

    Raises:
        DataError: another process (or another place in this one) holds it, or it cannot be written.
    """
    path = Path(path)
    try:
        file = open(path / LOCK_FILE if path.is_dir() else path, "ab")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    with file:
        try:
            _lock(file, wait)
        except OSError as error:  # any other: a file system without locks
            if error.errno in HELD:
                raise DataError(f"{path}: another process is writing it; wait for it to end, or {remedy}") from None
        yield file


def _lock(file: BinaryIO, wait: bool) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    place = file.tell()
    file.seek(BEYOND_END)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    finally:
        file.seek(place)


def stamp_path(path: str | Path) -> Path:
    """Where the stamp of `path` lies: ``stamp.json`` in a folder, ``NAME.meta.json`` beside a file."""
    path = Path(path)
    return path / STAMP_FILE if path.is_dir() else path.with_name(path.name + ".meta.json")


def write_stamp(path: str | Path, facts: dict) -> None:
    """Says, before the first byte of work, what `path` is going to be made from; `facts` is what JSON can hold."""
    write_json(stamp_path(path), facts)


def read_stamp(path: str | Path) -> dict | None:
    """What `path` was made from; None where nothing readable says so."""
    try:
        facts = json.loads(stamp_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def require_same(path: str | Path, facts: dict, remedy: str) -> None:
    """Refuses to go on with a `path` that was begun from other facts than these, or from unknown ones.

    Raises:
        DataError: one line with the fields that differ, each with its value then and now, and the remedy.
    """
    saved = read_stamp(path)
    if saved is None:
        raise DataError(f"{path}: exists, and no {stamp_path(path).name} says what it was made from; {remedy}")
    differing = differences(saved, facts)
    if differing:
        more = f" and {len(differing) - MOST_FIELDS} more" if len(differing) > MOST_FIELDS else ""
        raise DataError(f"{path}: was begun with another {', another '.join(differing[:MOST_FIELDS])}{more}; {remedy}")


def differences(saved: dict, facts: dict) -> list[str]:
    """``name (was OLD, now NEW)`` of each field, nested ones with dots, that is not the same in both."""
    old, new = (dict(_fields(json.loads(json.dumps(values)))) for values in (saved, facts))  # a tuple is a list
    return [f"{name} ({'was {}, now {}'.format(*_shortened(old.get(name, MISSING), new.get(name, MISSING)))})"
            for name in dict.fromkeys([*new, *old]) if old.get(name, MISSING) != new.get(name, MISSING)]


def _fields(values: dict, above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{above}{name}.")
        else:
            yield above + name, value


def _shortened(*values: object) -> list[str]:
    """Texts of two values, long ones cut to the part around the first character that differs."""
    texts = ["nothing" if value is MISSING else json.dumps(value, ensure_ascii=False).strip('"') for value in values]
    start = max(0, len(os.path.commonprefix(texts)) - LONGEST_VALUE // 4)
    return [text if len(text) <= LONGEST_VALUE else
            ("…" if start else "") + text[start:start + LONGEST_VALUE // 2]
            + ("…" if start + LONGEST_VALUE // 2 < len(text) else "") for text in texts]
