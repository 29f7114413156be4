"""The shipped tiny Qwen2: loads like any model, answers in one token, has read Chinese and no demo dialogue."""

import collections
import functools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.prompt import PromptEncoder, Task
from data.sample import dialogues_and_requests
from tools import make_tiny_base as tiny_base

FOLDER = Path(tiny_base.__file__).parents[1] / "data" / "tiny-qwen2"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def test_it_is_a_small_qwen2_with_tied_embeddings(model):
    embedding = model.get_input_embeddings().weight
    assert model.config.model_type == "qwen2"
    assert model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) - embedding.numel() < 2e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6


def test_projections_are_whole_nf4_blocks(model):
    sizes = {size for layer in model.modules() if isinstance(layer, torch.nn.Linear) for size in layer.weight.shape}
    assert all(size % 64 == 0 for size in sizes)


def test_the_two_answers_differ_in_one_token(tokenizer):
    encoder = PromptEncoder(tokenizer, Task())
    fraud, other = encoder.completions[True], encoder.completions[False]
    assert len(fraud) == len(other)
    assert sum(a != b for a, b in zip(fraud, other, strict=True)) == 1
    assert tokenizer.decode(encoder.label_ids[0]) == " true" and tokenizer.decode(encoder.label_ids[1]) == " false"


def test_special_tokens_are_those_of_qwen2(tokenizer):
    assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.eos_token == "<|im_end|>"
    message = [{"role": "user", "content": "你好"}]
    assert tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n")


def test_any_text_comes_back_from_its_tokens(tokenizer):
    for text in ("A: 您好，😀 龘\nB: {\"is_fraud\": true}", "don't  stop 2024", "验证码：123456"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_predicts_unseen_dialogues_far_better_than_word_frequencies(model, tokenizer):
    rows = tiny_base.encode(tokenizer, tiny_base.corpus(300, seed=0))
    counts = collections.Counter(token for ids, _ in rows[100:] for token in ids)
    total = sum(counts.values()) + len(tokenizer)
    tokens = [token for ids, _ in rows[:100] for token in ids]
    unigram = -sum(math.log((counts[token] + 1) / total) for token in tokens) / len(tokens)
    stream = tiny_base.batches(rows[:100], tokenizer.pad_token_id, random.Random(0))
    with torch.no_grad():
        losses = [tiny_base.lm_loss(model, ids, (weights > 0).float()).item()
                  for _, (ids, weights) in zip(range(5), stream)]
    assert sum(losses) / len(losses) < 0.5 * unigram


def test_answers_weigh_more_and_padding_nothing(tokenizer):
    rows = tiny_base.encode(tokenizer, [("问", "答案"), ("问题很长", "答")])
    for (ids, weights), (user, assistant) in zip(rows, [("问", "答案"), ("问题很长", "答")]):
        n_user = len(tokenizer(user)["input_ids"])
        assert weights == [1.0] * n_user + [tiny_base.ANSWER_WEIGHT] * len(tokenizer(assistant)["input_ids"])
        assert tokenizer.decode(ids) == user + assistant
    many = rows * tiny_base.BATCH
    ids, weights = next(tiny_base.batches(many, tokenizer.pad_token_id, random.Random(0)))
    assert ids.shape == weights.shape and ((ids == tokenizer.pad_token_id) == (weights == 0)).all()


def test_pretraining_reads_no_dialogue_that_is_judged_no_label_and_answers_every_request_alike():
    read = tiny_base.corpus(400, seed=tiny_base.CORPUS_SEED)
    judged = {user for seed in range(3) for user, _ in tiny_base.corpus(400, seed=seed)}
    assert not judged & {user for user, _ in read}
    assert not any(word in text for pair in read for text in pair for word in ("is_fraud", "true", "false"))
    for (dialogue, requests), (_, answer) in zip(dialogues_and_requests(400, seed=tiny_base.CORPUS_SEED), read):
        said = "".join(line.content for line in dialogue.lines)
        assert answer == f"<|im_start|>assistant\n{'；'.join(requests)}<|im_end|>"
        assert requests and all(request in said for request in requests)


def test_making_it_twice_gives_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_base, "BATCH", 8)
    monkeypatch.setattr(tiny_base, "held_out_loss", functools.partial(tiny_base.held_out_loss, n=16))
    for name in ("one", "two"):
        tiny_base.make(tmp_path / name, dialogues=64, steps=2, device="cpu")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert json.loads((tmp_path / "one" / "tokenizer.json").read_text()) == json.loads(
        (tmp_path / "two" / "tokenizer.json").read_text())


def test_an_output_that_is_a_file_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["--output", str(tmp_path / "file" / "folder"), "--dialogues", "64", "--steps", "1", "--device", "cpu"]
    assert tiny_base.main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(str(tmp_path))
