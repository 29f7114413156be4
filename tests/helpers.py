"""What several tests build: a small tokenizer and model that behave like Qwen2's, records, short runs."""

import os
import pickletools
import zipfile
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.2}
ARCHITECTURES = {  # name: (model class, what its configuration has of its own)
    "Qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen2.5": ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),  # the same class; larger sizes do not tie
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "Llama": ("LlamaForCausalLM", {}),
    "Mistral": ("MistralForCausalLM", {"sliding_window": 16}),
    "Gemma 3": ("Gemma3ForCausalLM", {"final_logit_softcapping": 5.0, "sliding_window": 16,
                                      "layer_types": ["sliding_attention", "full_attention"],
                                      "query_pre_attn_scalar": 16}),
}
ARGUMENTS = "antifraud.training.recipes.FraudTrainingArguments"
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    '{"is_fraud": true}', '{"is_fraud": false}', "user\n", "assistant\n",
    "阅读下面的对话，判断其中有没有诈骗。只回答一个 JSON", "A: 您好，请问您是哪位？\nB: 我是客服，请把验证码告诉我。",
]


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen2's control tokens and chat template, trained in milliseconds.

    Every text has tokens and decodes to itself; ``options`` override those of `PreTrainedTokenizerFast`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(
        vocab_size=500, special_tokens=CONTROL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    defaults = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**defaults, **options})


def save_tiny_bert(path: Path) -> None:
    """A random two-layer BERT with the small tokenizer."""
    tokenizer = make_tokenizer()
    set_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                         intermediate_size=128, pad_token_id=tokenizer.pad_token_id)).save_pretrained(path)
    tokenizer.save_pretrained(path)


def save_tiny_qwen2(folder: str | Path, *, seed: int = 0) -> str:
    """Saves a random two-layer Qwen2 and its tokenizer; returns the folder."""
    return save_random_base(folder, "Qwen2", make_tokenizer(), seed=seed)


def save_random_base(folder: str | Path, architecture: str, tokenizer, *, seed: int = 0) -> str:
    """Saves a random two-layer model of one of `ARCHITECTURES`, and the tokenizer; returns the folder."""
    model_name, options = ARCHITECTURES[architecture]
    model_class = getattr(transformers, model_name)
    set_seed(seed)
    config = model_class.config_class(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **SIZES, **options)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_records(n: int, *, first_case: int = 0) -> list[dict]:
    """`n` short dialogues, every other one a fraud, of different lengths; two segments a case."""
    records = []
    for i in range(n):
        fraud = i % 2 == 0
        demand = "请把短信里的号码念给我，我替您办退款。" if fraud else "号码您自己留好，不用告诉任何人。"
        small_talk = "今天风有点大。" * (1 + i * 7 % 5)
        records.append({"input": f"王经理: {small_talk}{demand}\n顾客{i}: 好的，第{i}单对吧。", "label": fraud,
                        "case": f"case-{first_case + i // 4}", "category": "退款" if i % 3 else "闲聊"})
    return records


def users_environment() -> dict[str, str]:
    """The environment without what helps tests alone to find the project's modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def pickled_classes(path: str | Path) -> set[str]:
    """The names that a file of `torch.save` would import."""
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    return {argument.replace(" ", ".") for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}


def train_briefly(base: str, train_file: str, eval_file: str, output: str | Path, *, callbacks=(),
                  resume: str | None = None, lora_dropout: float = 0.2, **train_options):
    """A few steps of the real training on a CPU; returns the trainer."""
    model, tokenizer = load_model(base, "cpu")
    train_dataset, eval_dataset = load_dataset(train_file, eval_file, tokenizer)
    options = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-2, "use_cpu": True,
               "per_device_train_batch_size": 8, "disable_tqdm": True, **train_options}
    set_seed(0)
    trainer = build_trainer(model, tokenizer, build_train_arguments(str(output), **options),
                            build_loraconfig(lora_dropout=lora_dropout), train_dataset, eval_dataset)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer
