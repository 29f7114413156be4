"""What every command of this project does around its work: output in any encoding, errors in one line, exit codes."""

import builtins
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from .files import DataError, one_line

Main = Callable[[Sequence[str] | None], int]


def command(main: Main) -> Main:
    """`main`, so that it ends in an exit code and one line: 2 for what the user can mend, 130 after Ctrl-C.

    A character that the terminal cannot show is written as an escape: printing never costs a result. Where nobody reads
    the output any more, as behind ``| head``, the command ends with 1 and says nothing.
    """
    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not so in a notebook, which takes every character
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except (DataError, FloatingPointError) as error:
            print(error, file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's
                raise
            print(f"out of memory ({one_line(error)}); what to do: docs/operations.md", file=sys.stderr)
            return 2
        except UnicodeEncodeError as error:  # of a path: texts are written in UTF-8
            print(f"{error.object}: this locale ({error.encoding}) has no such file names; set PYTHONUTF8=1",
                  file=sys.stderr)
            return 2
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its end
            return 1
        except KeyboardInterrupt as stop:
            return _stopped(stop)
    return run


def is_command(name: str) -> bool:
    """Whether the module of this ``__name__`` was started as a command; %run calls a notebook's script so as well."""
    return name == "__main__" and not hasattr(builtins, "__IPYTHON__")


@contextlib.contextmanager
def heavy_imports(*, by_command: bool) -> Iterator[None]:
    """Around imports that take seconds: Ctrl-C ends a command there, too, with a line and 130.

    Args:
        by_command: whether they are those of a command; a notebook or a program is told of Ctrl-C as usual.
    """
    gc.disable()  # looking for garbage among what imports bring takes seconds, and there is none
    try:
        yield
    except KeyboardInterrupt as stop:
        if not by_command:
            raise
        sys.exit(_stopped(stop))
    finally:
        gc.enable()


def _stopped(stop: KeyboardInterrupt) -> int:
    print(stop.args[0] if stop.args else "stopped", file=sys.stderr)
    return 130
