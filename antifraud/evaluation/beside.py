"""What a full report needs no model for, done beside the model's work: baselines, label audit, overlap with train."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from data.files import DataError
from data.prompt import PromptEncoder

from ..checkpoint import Lineage
from ..provenance import file_sha256
from .inputs import Inputs
from .probes import probed_texts
from .processes import call, call_in_process


def start_cpu_work(encoder: PromptEncoder, inputs: Inputs, lineage: Lineage, device: str) -> dict[str, Future]:
    """Starts what needs no model: ``opinion``, ``overlap``, ``probed`` texts and ``answers`` of the baselines to them.

    At once beside a GPU; beside a model on a CPU in one process, on one of its cores; with one core, it is done first.
    """
    if not inputs.full:
        return {}
    alone = device == "cpu" and torch.get_num_threads() == 1
    run = call if alone else call_in_process
    pool = ThreadPoolExecutor(1 if device == "cpu" else 4)
    submit = _done_first if alone else pool.submit
    if alone and inputs.progress:
        print("first, on the one core, baselines, label audit and overlap with train: that may take minutes",
              file=sys.stderr)

    def overlap() -> dict:
        return run("data.leakage", "overlap_with_file", inputs.records, train_path.result())

    def answers() -> dict:
        probes = {f"probe {name}": rows for name, rows in probed.result().items()}
        return run("antifraud.evaluation.baselines", "answers", train_path.result(), inputs.texts, "data", probes)

    train_path = submit(_train_path, inputs.train_path, lineage)
    probed = submit(probed_texts, encoder, inputs.texts["data"])
    beside = {"probed": probed, "answers": submit(answers), "overlap": submit(overlap),
              "opinion": submit(run, "antifraud.evaluation.labels", "second_opinion", inputs.records)}
    pool.shutdown(wait=False)
    return beside


def _done_first(function: Callable, *args) -> Future:
    done: Future = Future()
    try:
        done.set_result(function(*args))
    except Exception as error:  # said where the result is asked for
        done.set_exception(error)
    return done


@contextlib.contextmanager
def on_free_cores(model, beside: Mapping[str, Future]) -> Iterator[None]:
    """Within this context a model on a CPU leaves one core to the work beside it, for as long as that takes.

    Threads of one product wait for each other: one of them on a core that is taken makes a product ten times as slow.
    """
    cores = torch.get_num_threads()

    def choose_cores(*_) -> None:
        if model.device.type == "cpu":
            torch.set_num_threads(max(1, cores - any(not work.done() for work in beside.values())))

    hook = model.register_forward_pre_hook(choose_cores)
    try:
        yield
    finally:
        hook.remove()
        torch.set_num_threads(cores)


def _train_path(train_path: str | None, lineage: Lineage) -> str:
    """The train file: the one named, or the one that the checkpoint names if it lies there unchanged."""
    path = train_path or lineage.train_data.get("path")
    if not path or not Path(path).is_file():
        raise DataError("the train file is not known, or not there; name it with --train")
    if train_path is None and file_sha256(path) != lineage.train_data.get("sha256"):
        raise DataError("the train file was changed since the training; name it with --train")
    return path
