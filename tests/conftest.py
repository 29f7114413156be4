"""Fixtures that several tests share."""

import os

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
def base(tmp_path_factory) -> str:
    """The folder of a random two-layer Qwen2 with the small tokenizer."""
    from helpers import save_tiny_qwen2

    return save_tiny_qwen2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def train_file(tmp_path_factory) -> str:
    return _records(tmp_path_factory, "train.jsonl", 48)


@pytest.fixture(scope="session")
def eval_file(tmp_path_factory) -> str:
    return _records(tmp_path_factory, "eval.jsonl", 20, first_case=100)


def _records(tmp_path_factory, name: str, n: int, **options) -> str:
    from helpers import make_records

    from data.records import write_records

    path = tmp_path_factory.mktemp("data") / name
    write_records(path, make_records(n, **options))
    return str(path)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, base, train_file, eval_file) -> str:
    """A training run with checkpoint-40 and checkpoint-80, long enough to answer in JSON; treat it as read-only."""
    from helpers import train_briefly

    folder = tmp_path_factory.mktemp("run")
    train_briefly(base, train_file, eval_file, folder, max_steps=80, eval_steps=40, save_steps=40)
    return str(folder)


# Files whose tests start processes share one that has imported everything: they stay together.
WITH_PROCESSES = ("test_survive.py", "test_scale_out.py", "test_several_gpus.py", "test_predict.py")
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
