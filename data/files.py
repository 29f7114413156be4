"""Files read and written whole: atomic, UTF-8, and what is wrong with them in one line."""

import codecs
import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

SHOWN_RANGES = 10  # of lines with the same problem


class DataError(ValueError):
    """Something the user can mend, said in one line; commands print it and exit with code 2."""


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def grouped(path: str, places: Sequence[str]) -> list[str]:
    """Problems with their places, each once, with all the lines that have it."""
    numbers_of = {}
    for place in places:
        match = re.fullmatch(rf"{re.escape(path)}:(\d+): (.*)", place, re.S)
        numbers = numbers_of.setdefault(match[2] if match else place, [])
        if match and int(match[1]) not in numbers[-1:]:  # a line of JSON may hold several rows
            numbers.append(int(match[1]))
    return [what if not numbers else f"{path}:{numbers[0]}: {what}" if len(numbers) == 1 else
            f"{path}: lines {_ranges(numbers)}: {what}" for what, numbers in numbers_of.items()]


def _ranges(numbers: Sequence[int]) -> str:
    runs = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    rest = f" and {len(runs) - SHOWN_RANGES} more places" if len(runs) > SHOWN_RANGES else ""
    return ", ".join(" to ".join(map(str, run)) for run in runs[:SHOWN_RANGES]) + rest


def refuse_lfs_pointer(path: str | Path) -> None:
    """Refuses a file of three lines that git-lfs left in the place of the one that is wanted."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs.github.com/spec"):
            folder = shlex.quote(str(Path(path).parent))
            raise DataError(f"{path}: is a git-lfs pointer, not the file itself; fetch it: git -C {folder} lfs pull")


def how_to_read(path: str | Path) -> str:
    """The command that says what a file is, to be pasted."""
    return f"python -m data.prepare --inspect {shlex.quote(str(path))}"


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank, read lazily."""
    require_input(path)
    try:
        # Read as bytes: only LF ends a line, and a bad byte is found in its own line, not in a buffer's worth.
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                text = _decode(line.removeprefix(codecs.BOM_UTF8), path, number)  # joined files have several marks
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _decode(line: bytes, path: str | Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}); to read or convert it: {how_to_read(path)}"
                        ) from None


def require_paths(input_path: str | Path, output_path: str | Path) -> None:
    """Refuses, before a model is loaded, an input that is not there and an output that is the input."""
    require_input(input_path)
    _refuse_folder_or_input(output_path, [input_path])


def require_input(path: str | Path) -> None:
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder; name a file")
    if not os.path.isfile(path):
        raise DataError(f"{path}: " + ("is no file but a pipe or device, and it is read more than once; save it to a "
                                       "file first" if os.path.exists(path) else "no such file"))


def require_output(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuses, before the work is done, a file that cannot be written, or must not be since it is one of `inputs`."""
    _refuse_folder_or_input(path, inputs)
    _require_writable_folder(Path(path))


def _refuse_folder_or_input(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    if os.path.isdir(output) or str(output).endswith(("/", os.sep)):  # of a folder that is not there
        raise DataError(f"{output}: is a folder; name a file")
    if os.path.exists(output) and not os.path.isfile(output):  # root would replace /dev/null
        raise DataError(f"{output}: is a pipe or device; name a file")
    if any(path and os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output)
           for path in inputs):
        raise DataError(f"{output}: is the input; name another file for the output")


def _require_writable_folder(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"{path}: {folder} is {'read-only' if folder.is_dir() else 'no folder'}; name another place")


def write_json(path: str | Path, value: object) -> None:
    """Write one JSON document, atomically, refusing NaN and infinities (they are not JSON)."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 with LF line ends; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically: complete or not there, also where several processes write the same.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    write_together({path: content})


def write_together(contents: Mapping[str | Path, bytes]) -> None:
    """Write files of which none is replaced before all are on the disk: a full one leaves those that were there.

    Raises:
        DataError: a folder cannot be made or written to.
    """
    written: dict[str, Path] = {}
    try:
        for path, content in contents.items():
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            written[name] = path
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes a private file; data is as readable as its neighbours
        for name, path in written.items():
            os.replace(name, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        for name in written:
            with contextlib.suppress(OSError):  # those that became what they were for
                os.unlink(name)


def refuse_existing(output: str | Path) -> None:
    """Refuses an output that is there already, unless it is an empty folder, and one that cannot be made."""
    output = Path(output)
    if output.is_dir() and output.samefile("."):  # empty, too: a finished folder takes its place
        raise DataError(f"{output}: is the folder you are in, and cannot be replaced; name one in it with --output")
    if output.is_symlink() or output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"{output}: already there; name a new or an empty folder with --output")
    _require_writable_folder(output)


@contextlib.contextmanager
def complete_or_absent(output: str | Path) -> Iterator[Path]:
    """A folder beside `output` to write into; becomes `output` when all went well and vanishes otherwise.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    output = Path(output)
    unfinished = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        yield unfinished
        for path in [unfinished, *unfinished.iterdir()]:  # mkdtemp and safetensors make them private
            path.chmod(0o755 if path.is_dir() else 0o644)
        with contextlib.suppress(OSError):
            output.rmdir()  # an empty folder, onto which Windows would not rename; anything else stays: an error
        os.rename(unfinished, output)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{output}: cannot be written ({one_line(error)})") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


