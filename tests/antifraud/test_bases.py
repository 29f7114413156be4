"""Other models, other label words: every architecture and template trains, saves, and scores what it computes."""

import datetime
import json

import numpy as np
import pytest
import torch
from helpers import make_records, make_tokenizer, save_random_base
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from antifraud.evaluation.scoring import score_prompts
from antifraud.training.loss import label_position_loss
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import write_records
from evaluate import evaluate_with_model
from evaluate import load_model as load_tuned_model
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

BOS = "<|endoftext|>"  # as good a token as any
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}" + OPENING
WITH_SYSTEM = ("{% if messages[0]['role'] != 'system' %}<|im_start|>system\n你是助手。<|im_end|>\n{% endif %}" + PLAIN)
WITH_BOS = "{{ bos_token }}" + PLAIN
# As Qwen3's: it thinks unless told not to, and then opens the answer behind an empty thought.
SWITCHABLE_THOUGHT = ("{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}"
                      "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
                      "<think>\n\n</think>\n\n{% endif %}{% endif %}")
# As Qwen3-Thinking-2507's and DeepSeek-R1's: no switch, the thought is always opened.
FORCED_THOUGHT = PLAIN.replace("assistant\n", "assistant\n<think>\n")
BASES = {  # name: (architecture, chat template)
    "qwen2": ("Qwen2", WITH_SYSTEM),
    "qwen2.5": ("Qwen2.5", PLAIN),
    "qwen3": ("Qwen3", SWITCHABLE_THOUGHT),
    "llama": ("Llama", WITH_BOS),
    "mistral": ("Mistral", None),
    "gemma3": ("Gemma 3", WITH_BOS),
    "gemma3_plain": ("Gemma 3", None),
}


def make_bos_tokenizer(template: str | None):
    """A tokenizer that, as Llama's and Gemma's do, begins every text with BOS of its own accord."""
    tokenizer = make_tokenizer(chat_template=template, bos_token=BOS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)])
    return tokenizer


def save_base(folder, name: str) -> str:
    """Saves a random two-layer model of the architecture, and its tokenizer."""
    architecture, template = BASES[name]
    tokenizer = make_tokenizer(chat_template=template) if name.startswith("qwen") else make_bos_tokenizer(template)
    return save_random_base(folder, architecture, tokenizer)


def prompt_text(tokenizer, task: Task = Task()) -> str:
    return tokenizer.decode(PromptEncoder(tokenizer, task).prompts(["客服: 您好"])[0])


# ---------------------------------------------------------------------------------------------- architectures

TASK = Task(instruction="这段对话是诈骗吗？\n", answers=("是", "否"))


@pytest.fixture(scope="module", params=BASES)
def run(request, tmp_path_factory):
    """(base folder, finished trainer, eval file) of a short training with label words of one's own."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    base = save_base(folder / "base", name)
    train_file, eval_file = str(folder / "train.jsonl"), str(folder / "eval.jsonl")
    write_records(train_file, make_records(32))
    write_records(eval_file, make_records(9, first_case=100))
    model, tokenizer = load_model(base, "cpu")
    train_dataset, eval_dataset = load_dataset(train_file, eval_file, tokenizer, task=TASK)
    train_args = build_train_arguments(folder / "run", max_steps=16, eval_steps=8, save_steps=8, logging_steps=1,
                                       learning_rate=1e-2, per_device_train_batch_size=8, use_cpu=True,
                                       disable_tqdm=True)
    set_seed(0)
    trainer = build_trainer(model, tokenizer, train_args, build_loraconfig(lora_dropout=0.0), train_dataset,
                            eval_dataset)
    trainer.train()
    (folder / "train.jsonl").unlink()  # without it, evaluation fits no baselines: they are tested elsewhere
    return base, trainer, eval_file


def test_adapters_on_all_seven_projections_are_what_trains_and_the_loss_falls(run):
    _, trainer, _ = run
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_the_loss_at_label_positions_is_the_models_own(run):
    _, trainer, _ = run
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(rows)
    trainer.model.eval()
    with torch.no_grad():
        ours = label_position_loss(trainer.model, batch["input_ids"], batch["labels"])
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        own = trainer.model(**batch, attention_mask=mask).loss
    assert ours.item() == pytest.approx(own.item(), rel=1e-5)


def test_a_saved_checkpoint_scores_as_the_plain_forward_of_the_tuned_model_does(run):
    base, trainer, eval_file = run
    model, tokenizer = load_tuned_model(base, trainer.args.output_dir, "cpu")
    assert isinstance(model, PeftModel) and model.lineage.task == TASK
    encoder = PromptEncoder(tokenizer, TASK)
    dialogues = [json.loads(line)["input"] for line in open(eval_file, encoding="utf-8")]
    prompts = encoder.prompts(dialogues)
    scores = score_prompts(model, encoder, prompts)
    for prompt, score in zip(prompts, scores):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + encoder.answer_prefix])).logits[0, -1].double()
        fraud, other = (logits[id].exp().item() for id in encoder.label_ids)
        assert score == pytest.approx(fraud / (fraud + other), abs=1e-5)
    np.testing.assert_allclose(score_prompts(trainer.model, encoder, prompts), scores, atol=1e-5)
    assert len(set(scores.round(6))) > 1  # they do depend on the dialogue

    report = evaluate_with_model(model, tokenizer, eval_file, "cpu", batch=True, method="generate", progress=False)
    assert report["n"] == 9 == sum(report[key] for key in ("tn", "fp", "fn", "tp", "unparsed"))
    assert report["provenance"]["model"]["name"] == "base"


def test_gemmas_logits_are_capped_in_the_scores_too(tmp_path):
    base = save_base(tmp_path, "gemma3")
    model, tokenizer = load_model(base, "cpu", quantization="none")
    encoder = PromptEncoder(tokenizer, Task())
    prompts = encoder.prompts([record["input"] for record in make_records(6)])
    capped = score_prompts(model, encoder, prompts)
    model.config.final_logit_softcapping = None
    assert np.abs(score_prompts(model, encoder, prompts) - capped).max() > 0.01


# ---------------------------------------------------------------------------------------------- BOS


@pytest.mark.parametrize("template", [WITH_BOS, None])
def test_a_prompt_begins_with_one_bos_whoever_adds_it(template):
    tokenizer = make_bos_tokenizer(template)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    encoder = PromptEncoder(tokenizer, Task())
    example, = encoder.examples(["A: 好"], [True])
    assert example["input_ids"][0] == tokenizer.bos_token_id
    assert example["input_ids"].count(tokenizer.bos_token_id) == 1


def test_a_chat_template_without_bos_stays_without():
    tokenizer = make_bos_tokenizer(PLAIN)
    assert tokenizer.bos_token_id not in PromptEncoder(tokenizer, Task()).prompts(["A: 好"])[0]


def test_a_templates_own_system_message_stands_before_the_instruction():
    text = prompt_text(make_tokenizer(chat_template=WITH_SYSTEM), Task(instruction="骗人吗？"))
    assert text == ("<|im_start|>system\n你是助手。<|im_end|>\n<|im_start|>user\n骗人吗？A: 您好<|im_end|>\n"
                    "<|im_start|>assistant\n")


# ---------------------------------------------------------------------------------------------- thoughts and dates


@pytest.mark.parametrize("template", [SWITCHABLE_THOUGHT, FORCED_THOUGHT])
def test_a_thinking_models_answer_follows_an_empty_thought(template):
    tokenizer = make_tokenizer(chat_template=template)
    tokenizer.add_tokens(["<think>", "</think>"])
    assert prompt_text(tokenizer).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    encoder = PromptEncoder(tokenizer, Task())
    example, = encoder.examples(["A: 好"], [True])
    thought = [tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "</think>")]
    assert [id for id in example["input_ids"] if id in thought] == thought
    assert [id for id in example["labels"] if id != -100] == encoder.completions[True]


def test_a_template_without_thoughts_gets_none():
    assert "think" not in prompt_text(make_tokenizer(chat_template=PLAIN))


def test_a_prompt_is_the_same_on_every_day(monkeypatch):
    tokenizer = make_tokenizer(chat_template="今天是{{ strftime_now('%d %b %Y') }}。" + PLAIN)
    import transformers.utils.chat_template_utils as chat_templates

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    today = prompt_text(tokenizer)
    monkeypatch.setattr(chat_templates, "datetime", Tomorrow)
    message = [{"role": "user", "content": "x"}]
    assert "2031" in tokenizer.apply_chat_template(message, tokenize=False)  # the template alone does change
    assert prompt_text(tokenizer) == today and today.startswith("今天是26 Jul 2024。<|im_start|>user")


def test_the_end_of_a_turn_is_known_where_it_is_not_the_end_token():
    gemma = make_tokenizer(chat_template=PLAIN, eos_token="<|endoftext|>")
    encoder = PromptEncoder(gemma, Task())
    assert encoder.end_ids == (gemma.eos_token_id, gemma.convert_tokens_to_ids("<|im_end|>"))
    for template in (PLAIN, None, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"):
        tokenizer = make_tokenizer(chat_template=template)
        assert PromptEncoder(tokenizer, Task()).end_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("template, why", [
    ("{{ raise_exception('roles must alternate') }}", "fails on a user's message: roles must alternate"),
    ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "or repeats it"),
])
def test_a_template_that_cannot_hold_one_dialogue_is_refused(template, why):
    with pytest.raises(DataError, match=why):
        PromptEncoder(make_tokenizer(chat_template=template), Task())


# ---------------------------------------------------------------------------------------------- label words


@pytest.mark.parametrize("answers", [("是",), ("是", "否", "不知道"), (True, False), "是"])
def test_answers_must_be_two_texts(answers):
    with pytest.raises(DataError, match="answers "):
        Task(answers=answers)


def test_a_records_own_instruction_gives_way_to_the_tasks(tmp_path):
    records = make_records(2)
    write_records(tmp_path / "bare.jsonl", records)
    write_records(tmp_path / "own.jsonl", [{**record, "instruction": "写一首诗。"} for record in records])
    bare, own = load_dataset(tmp_path / "bare.jsonl", tmp_path / "own.jsonl", make_tokenizer(), task=TASK)
    assert bare[:] == own[:]


def test_what_a_notebook_loads_itself_scores_alike(tmp_path):
    base = save_base(tmp_path, "qwen3")
    own = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ours, our_tokenizer = load_model(base, "cpu", quantization="none")
    dialogues = [record["input"] for record in make_records(4)]
    encoders = [PromptEncoder(t, TASK) for t in (tokenizer, our_tokenizer)]
    scores = [score_prompts(model, encoder, encoder.prompts(dialogues))
              for model, encoder in zip((own, ours), encoders)]
    np.testing.assert_allclose(*scores, atol=1e-6)
