"""The encoder peer: trained by Trainer on our records, its predictions joined to a file's lines."""

import json

import pytest
from helpers import make_records, make_tokenizer
from scipy.special import expit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, set_seed

from antifraud.evaluation.encoder import MAX_LENGTH, _as_read, _dataset, _windows, fine_tune, main, probabilities
from data.records import write_records
from data.windows import WINDOW_TOKENS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A random two-layer BERT."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = make_tokenizer()
    set_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                         intermediate_size=128, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_it_learns_the_task_and_answers_line_by_line(encoder, train_file, eval_file, tmp_path):
    judged = tmp_path / "judged.jsonl"
    records = make_records(10, first_case=200)
    write_records(judged, records[:5] + [{"input": " ", "label": False}] + records[5:])
    code = main(["--model", encoder, "--train", train_file, "--eval", eval_file, "--predict", eval_file, str(judged),
                 "--output", str(tmp_path / "out"), "--epochs", "10", "--learning-rate", "2e-3", "--device", "cpu"])
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]  # line 6 has no dialogue
    frauds = [row["probability"] for row, record in zip(rows, records) if record["label"]]
    others = [row["probability"] for row, record in zip(rows, records) if not record["label"]]
    assert min(frauds) > max(others)
    about = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert about["train_data"]["rows"] == 48 and len(about["log"]) == 10 and "path" not in about["train_data"]


def test_a_dialogue_longer_than_the_encoder_reads_is_as_suspicious_as_its_worst_window(encoder, train_file, eval_file):
    trainer, tokenizer = fine_tune(encoder, train_file, eval_file, device="cpu", epochs=1)
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


def test_what_is_not_there_or_would_be_overwritten_is_refused_before_training(encoder, train_file, eval_file, tmp_path):
    options = ["--model", encoder, "--train", train_file, "--eval", eval_file, "--output", str(tmp_path / "new")]
    assert main([*options, "--predict", str(tmp_path / "none.jsonl")]) == 2
    assert main([*options, "--predict", eval_file, eval_file]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    assert main([*options[:-1], str(tmp_path / "full"), "--predict", eval_file]) == 2
    assert main(["--model", str(tmp_path), *options[2:], "--predict", eval_file, "--device", "cpu"]) == 2
