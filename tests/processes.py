"""Real processes that run the front doors as a user does, without the seconds that their imports take."""

import gc
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.getenv("PYTHONPATH")]))
SERVER = multiprocessing.get_context("forkserver")  # imports once, then forks: it has no threads
SERVER.set_forkserver_preload(["trainer", "evaluate", "bitsandbytes", "matplotlib.pyplot", "peft.tuners.lora.bnb",
                               "transformers.models.qwen2.modeling_qwen2"])


def start(args: list[str], log: Path, *, script: str = "trainer.py", before=None, env: dict | None = None):
    """Starts ``python SCRIPT ARGS``, both outputs to `log`; `before`, a (function, arguments), runs first in it."""
    process = SERVER.Process(target=_run, args=(script, args, str(log), before, env or {}))
    process.start()
    return process


def run(args: list[str], log: Path, **options) -> int:
    """The exit code of `start`; minus the signal's number if one ended it."""
    process = start(args, log, **options)
    process.join(120)
    return process.exitcode


def run_together(args: list[str], log: Path, n: int, **options) -> list[int]:
    """The exit codes of `n` processes that work together, as ``accelerate launch`` starts them; logs LOG.0, LOG.1.

    Where one fails the others get SIGTERM, as from a launcher.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"MASTER_PORT": str(port), **options.pop("env", {})}
    processes = [start(args, Path(f"{log}.{rank}"), env={**launched(rank, n), **common}, **options)
                 for rank in range(n)]
    for _ in range(1200):
        for process in processes:
            process.join(0.05)
        if any(process.exitcode for process in processes):
            for process in processes:
                process.join(20)
                process.terminate()
        if all(process.exitcode is not None for process in processes):
            break
    return [process.exitcode for process in processes]


def launched(rank: int, n: int) -> dict[str, str]:
    """What ``accelerate launch`` tells process `rank` of `n` on a CPU, beside a port."""
    return {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}


def _run(script, args, log, before, env) -> None:
    gc.freeze()  # what was imported before is not looked through again
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    os.environ.update(env)
    if before:
        before[0](*before[1:])
    sys.argv = [script, *args]
    runpy.run_path(str(ROOT / script), run_name="__main__")


# ------------------------------------------------------------------------------------- what may go wrong in them


def limit_file_size(n_bytes: int) -> None:
    """A full disk, for files of more than `n_bytes`: the write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def at_each_write(output: str, action) -> None:
    """Calls `action` before each change in the folder `output`, and with weights written by half."""
    import peft.peft_model
    import torch

    def audit(event, args):
        if not args or not str(args[0]).startswith(output):
            return
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or event == "open" and args[2] & os.O_CREAT:
            action()

    def by_half(save):
        def save_by_half(what, path, *args, **kwargs):
            action()
            save(what, path, *args, **kwargs)
            whole = Path(path).read_bytes()
            os.truncate(path, len(whole) // 2)
            action()
            Path(path).write_bytes(whole)
        return save_by_half

    torch.save = by_half(torch.save)
    peft.peft_model.safe_save_file = by_half(peft.peft_model.safe_save_file)
    sys.addaudithook(audit)


def kill_at_write(output: str, number: int) -> None:
    """SIGKILL before this process's change number `number` in the folder `output`."""
    left = iter(range(number - 1))
    at_each_write(output, lambda: None if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL))


def snapshot_each_write(output: str, snapshots: str) -> None:
    """Copies the folder `output` to SNAPSHOTS/0, 1, ... before each change: what a kill there would leave."""
    import shutil

    inside, number = [], iter(range(10**6))

    def snapshot():
        if not inside:
            inside.append(True)
            shutil.copytree(output, f"{snapshots}/{next(number):03d}")
            inside.clear()

    at_each_write(output, snapshot)
