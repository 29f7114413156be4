"""The encoder peer: trained by Trainer on our records, kept, and asked of any dialogues."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import make_records, make_tokenizer
from scipy.special import expit
from tokenizers.processors import TemplateProcessing

from antifraud.evaluation.encoder import (
    MAX_LENGTH,
    _as_read,
    _dataset,
    _windows,
    encoder_answers,
    fine_tune,
    main,
    probabilities,
)
from data.windows import WINDOW_TOKENS


def test_it_learns_the_task_and_answers_for_every_set_once_kept(trained_encoder):
    records = make_records(10, first_case=200)
    texts = [record["input"] for record in records]
    found = encoder_answers(trained_encoder, {"data": texts, "again": [texts[3], texts[0], texts[3]]}, "cpu")
    labels = np.array([record["label"] for record in records])
    assert found["data"][labels].min() > found["data"][~labels].max()
    assert found["again"].tolist() == found["data"][[3, 0, 3]].tolist()
    about = json.loads(Path(trained_encoder, "encoder.json").read_text())
    assert about["train_data"]["rows"] == 48 and len(about["log"]) == 10 and "path" not in about["train_data"]


def test_a_dialogue_longer_than_the_encoder_reads_is_as_suspicious_as_its_worst_window(bert, train_file, eval_file):
    trainer, tokenizer = fine_tune(bert, train_file, eval_file, device="cpu", epochs=1)
    lines = [f"甲: 今天天气真好，第{number}句闲话。" for number in range(120)]
    text = "\n".join([*lines, "乙: 快把验证码发给我，转账到安全账户。"])
    windows = _windows(*_as_read([text]), tokenizer)
    assert len(windows) > 1 and max(map(len, windows)) <= MAX_LENGTH
    of_windows = trainer.predict(_dataset(windows, [0] * len(windows))).predictions
    highest = expit((of_windows[:, 1] - of_windows[:, 0]).max())
    short = probabilities(trainer, tokenizer, ["甲: 你好。"])
    assert probabilities(trainer, tokenizer, ["甲: 你好。", text]) == pytest.approx([short[0], highest], abs=1e-5)


def test_windows_have_what_the_encoder_has_round_every_text(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[(name, tokenizer.convert_tokens_to_ids(name))
                                                             for name in ("<|im_start|>", "<|im_end|>")])
    for ids in _windows("\n".join(f"甲: 第{number}句闲话说的是天气。" for number in range(200)), tokenizer):
        assert (ids[0], ids[-1]) == tuple(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
        assert len(ids) <= WINDOW_TOKENS + 2


def test_what_is_not_there_or_would_be_overwritten_is_refused_before_training(bert, train_file, eval_file, tmp_path):
    options = ["--model", bert, "--train", train_file, "--eval", eval_file, "--output", str(tmp_path / "new")]
    assert main([*options, "--train", str(tmp_path / "none.jsonl")]) == 2
    assert main([*options, "--eval", train_file]) == 2
    for senseless in (["--epochs", "0"], ["--learning-rate", "-1"], ["--learning-rate", "nan"]):
        with pytest.raises(SystemExit):
            main([*options, *senseless])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    assert main([*options[:-1], str(tmp_path / "full")]) == 2
    assert main(["--model", str(tmp_path), *options[2:], "--device", "cpu"]) == 2
