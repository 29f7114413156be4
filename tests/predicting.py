"""Predicting files without a model: thousands of rows a second."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from antifraud.checkpoint import Lineage
from antifraud.evaluation.scoring import Prediction
from antifraud.serving import predict
from antifraud.serving.predict import predict_file


def stub_predictions(model, dialogues, **options):
    """Probabilities that the texts alone decide; a hundredth a character."""
    return [Prediction(0.0, len(text) % 100 / 100, 1, (1, 1)) for text in dialogues]


@contextlib.contextmanager
def stubbed():
    """Within this context the model it gives scores with `stub_predictions`, thousands of rows a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "PromptEncoder", lambda tokenizer, task: None)
        patch.setattr(predict, "read_dialogues", lambda encoder, dialogues, line_aware: dialogues)
        patch.setattr(predict, "predict_readings", stub_predictions)
        patch.setattr(predict, "versions", lambda: {"stub": "1"})
        yield SimpleNamespace(lineage=Lineage(base={"fingerprint": "stub"}), device=torch.device("cpu"))


def write_lines(path, lines) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
                              for line in lines))
    return path


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().removesuffix("\n").split("\n")]


def run(model, source, target, **options):
    return predict_file(model, None, source, target, progress=False, **options)
