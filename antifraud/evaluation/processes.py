"""Work beside that of a model, in a process of its own.

Not in a thread: a model computes one small product after the other, and would wait for the interpreter's lock at each.
"""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

from data.files import DataError

ROOT = Path(__file__).parents[2]


def call(module: str, function: str, *args) -> object:
    """What a function of a module returns."""
    return getattr(importlib.import_module(module), function)(*args)


def call_in_process(module: str, function: str, *args) -> object:
    """What a function of a module returns, computed by another process, on one core.

    Raises:
        DataError: as the function did.
        RuntimeError: anything else, in one line.
    """
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import _serve; _serve()"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps((module, function, args)),
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the process ended with exit code {done.returncode}")
    error, result = pickle.loads(done.stdout)
    if error is not None:
        raise DataError(error)
    return result


def _serve() -> None:
    """The other end of `call_in_process`: both ends are this code, so a pickle between them is safe."""
    module, function, args = pickle.load(sys.stdin.buffer)
    try:
        answer = None, call(module, function, *args)
    except DataError as error:
        answer = str(error), None
    sys.stdout.buffer.write(pickle.dumps(answer))
