"""Fixtures that several tests share."""

import os

import pytest
import torch
from helpers import make_records, make_tokenizer, save_tiny_qwen2, train_briefly
from hypothesis import HealthCheck, settings

from data.records import write_records

# Tiny tensors: threads that wait for each other cost ten times what they gain. Commands that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# How long an example takes depends on who else uses the machine; that is no failure.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def tokenizer():
    """A small byte-level BPE tokenizer with a ChatML template; treat it as read-only."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """The folder of a random two-layer Qwen2 with the small tokenizer."""
    return save_tiny_qwen2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def train_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_records(path, make_records(48))
    return str(path)


@pytest.fixture(scope="session")
def eval_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "eval.jsonl"
    write_records(path, make_records(20, first_case=100))
    return str(path)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, base, train_file, eval_file) -> str:
    """A training run with checkpoint-40 and checkpoint-80, long enough to answer in JSON; treat it as read-only."""
    folder = tmp_path_factory.mktemp("run")
    train_briefly(base, train_file, eval_file, folder, max_steps=80, eval_steps=40, save_steps=40)
    return str(folder)


def pytest_collection_modifyitems(items):
    """The one long test first, so that the other process does all the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
