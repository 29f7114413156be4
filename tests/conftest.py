"""Fixtures that several tests share."""

import gc
import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# Tiny tensors: threads that wait for each other cost ten times what they gain. Commands that tests start inherit it.
# Before torch is imported, and that only where it is needed: the process that hands out the tests does without.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes depends on who else uses the machine; that is no failure.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def tokenizer():
    """A small byte-level BPE tokenizer with a ChatML template; treat it as read-only."""
    from helpers import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes what has a name in a folder of all the processes that run tests: the first that needs it, for all."""
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"

    def of_name(name: str, make) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(path)
        return str(path)
    return of_name


@pytest.fixture(scope="session")
def base(made_once) -> str:
    """The folder of a random two-layer Qwen2 with the small tokenizer."""
    from helpers import save_tiny_qwen2

    return made_once("base", save_tiny_qwen2)


@pytest.fixture(scope="session")
def train_file(made_once) -> str:
    return made_once("data/train.jsonl", lambda path: _write_records(path, 48))


@pytest.fixture(scope="session")
def bert(made_once) -> str:
    """The folder of a random two-layer BERT with the small tokenizer."""
    from helpers import save_tiny_bert

    return made_once("bert", save_tiny_bert)


@pytest.fixture(scope="session")
def trained_encoder(made_once, bert, train_file, eval_file) -> str:
    """The folder of that BERT, trained to classify."""
    from antifraud.evaluation.encoder import main

    def make(path) -> None:
        assert main(["--model", bert, "--train", train_file, "--eval", eval_file, "--output", str(path),
                     "--epochs", "10", "--learning-rate", "2e-3", "--device", "cpu"]) == 0
    return made_once("encoder", make)


@pytest.fixture(scope="session")
def eval_file(made_once) -> str:
    return made_once("data/eval.jsonl", lambda path: _write_records(path, 20, first_case=100))


def _write_records(path, n: int, **options) -> None:
    from helpers import make_records

    from data.records import write_records

    write_records(path, make_records(n, **options))


@pytest.fixture(scope="session")
def run_folder(made_once, base, train_file, eval_file) -> str:
    """A training run with checkpoint-40 and checkpoint-80, long enough to answer in JSON; treat it as read-only."""
    from helpers import train_briefly

    return made_once("run", lambda folder: train_briefly(base, train_file, eval_file, folder, max_steps=80,
                                                         eval_steps=40, save_steps=40))


@pytest.fixture(scope="module")
def loaded(base, run_folder):
    """(model, tokenizer): the run's best checkpoint, as it is judged."""
    from evaluate import load_model

    return load_model(base, run_folder, "cpu")


@pytest.fixture
def checkpoint(run_folder, tmp_path):
    """A copy of that checkpoint, to be changed."""
    return shutil.copytree(f"{run_folder}/checkpoint-80", tmp_path / "run" / "checkpoint-80")


# Files whose tests start processes share one that has imported everything: they stay together.
WITH_PROCESSES = ("test_survive.py", "test_scale_out.py", "test_several_gpus.py", "test_trust.py",
                  "test_predict_resumed.py")
LONGEST_FIRST = ("test_demo.py", *WITH_PROCESSES, "test_article_cells.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class OneServerOfProcesses(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "processes" if file.endswith(WITH_PROCESSES) else file

    return OneServerOfProcesses(config, log)


def pytest_collection_modifyitems(items):
    """The long ones first: whoever is done with them does the rest."""
    first = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_collection_finish():
    """What is imported by now stays: the collections that each training asks for need not look through it."""
    gc.freeze()
