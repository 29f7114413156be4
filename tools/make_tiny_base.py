"""Makes the embedded default base model: a tiny Qwen2 that can read our sample dialogues, and knows no label.

    python -m tools.make_tiny_base --output DIR [--steps N] [--dialogues N] [--seed S]

A byte-level BPE tokenizer and a `Qwen2ForCausalLM` of 0.7 M parameters (plus 0.4 M of embeddings), pretrained on
dialogues, each followed by the answer to the question what is asked of whom. So it learns to read, as an instruct
model has: to tell a request from one that is only told of or warned of. Which requests are fraud it is never told:
there are no labels in pretraining, harmless requests are answered like dangerous ones, and the dialogues' seeds are far
from those that demos and tests use.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

from antifraud.serving.gguf_writer import QWEN2_WORDS
from data.command import command
from data.files import DataError
from data.prompt import INSTRUCTION, Task
from data.sample import dialogues_and_requests
from data.speakers import format_dialogue, map_speakers, roles

QUESTION = "读下面的对话：谁被要求做什么？\n\n"
ANSWER_WEIGHT = 4.0  # of a token of the answer against one of the dialogue, which is mostly chance
CORPUS_SEED = 10_000  # the first of the seeds that pretraining reads; demos and tests use those below 10
VOCABULARY = 3072
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 2048}  # multiples of 64: whole NF4 blocks
BATCH = 16  # dialogues


def corpus(n: int, *, seed: int) -> list[tuple[str, str]]:
    """(user's turn, assistant's turn) for `n` sample dialogues with neutral speakers, as the model sees them later."""
    made = []
    for dialogue, requests in dialogues_and_requests(n, seed=seed):
        text = map_speakers(format_dialogue([(line.speaker, line.content) for line in dialogue.lines]), roles)
        made.append((f"{START}user\n{QUESTION}{text}{END}\n", f"{START}assistant\n{'；'.join(requests)}{END}"))
    return made


def build_tokenizer(turns: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in the manner of Qwen2, in which the two answers differ in one token."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, START, END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    chat = [f"user\n{INSTRUCTION}", "assistant\n", *Task().answers] * 3000  # often enough to become few, long tokens
    bpe.train_from_iterator([*(text for pair in turns for text in pair), *chat], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE,
                                   model_max_length=SHAPE["max_position_embeddings"])


def build_model(tokenizer, *, seed: int) -> Qwen2ForCausalLM:
    """The tiny Qwen2 with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(vocab_size=VOCABULARY, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
                         eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **SHAPE)
    return Qwen2ForCausalLM(config)


def encode(tokenizer, turns: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[float]]]:
    """(token ids, weight of each in the loss) of each pair of turns."""
    users, assistants = (tokenizer([pair[i] for pair in turns], add_special_tokens=False)["input_ids"] for i in (0, 1))
    return [(user + assistant, [1.0] * len(user) + [ANSWER_WEIGHT] * len(assistant))
            for user, assistant in zip(users, assistants, strict=True)]


def batches(rows: Sequence[tuple[list[int], list[float]]], pad: int,
            rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights), both ``[rows, tokens]``, of similar length; padding weighs nothing."""
    while True:
        order = rng.sample(range(len(rows)), len(rows))
        for start in range(0, len(order) - BATCH + 1, 20 * BATCH):
            group = sorted(order[start:start + 20 * BATCH], key=lambda i: len(rows[i][0]))
            parts = [group[i:i + BATCH] for i in range(0, len(group) - BATCH + 1, BATCH)]
            for part in rng.sample(parts, len(parts)):
                width = max(len(rows[i][0]) for i in part)
                yield tuple(torch.tensor([[*rows[i][which], *[fill] * (width - len(rows[i][which]))] for i in part])
                            for which, fill in ((0, pad), (1, 0.0)))


def lm_loss(model, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1).float()
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def pretrain(model, tokenizer, turns: Sequence[tuple[str, str]], *, steps: int, device: str, seed: int) -> None:
    """Trains in place to predict the next token."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    stream = batches(encode(tokenizer, turns), tokenizer.pad_token_id, random.Random(seed))
    for _, (ids, weights) in zip(progress := tqdm(range(steps), desc="pretraining"), stream):
        loss = lm_loss(model, ids.to(device), weights.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def refresh_unread(model, tokenizer, turns: Sequence[tuple[str, str]], *, seed: int) -> None:
    """Gives tokens that were never read (the fraud task's instruction and answers) embeddings like those of the others.

    Pretraining only ever pushes them down together, until they are so alike that no adapter could choose one.
    """
    weight = model.get_input_embeddings().weight
    read = torch.zeros(len(weight), dtype=torch.bool)
    read[sorted({token for ids, _ in encode(tokenizer, turns) for token in ids})] = True
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight[~read] = weight[read].mean(0) + weight[read].std(0) * noise[~read]


def make(output: str | Path, *, dialogues: int, steps: int, device: str, seed: int = 0) -> float:
    """Writes tokenizer and pretrained model into `output`; returns the loss on dialogues it has not read."""
    turns = corpus(dialogues, seed=CORPUS_SEED + seed)
    tokenizer = build_tokenizer(turns[:10_000])
    model = build_model(tokenizer, seed=seed)
    pretrain(model, tokenizer, turns, steps=steps, device=device, seed=seed)
    model = model.to("cpu")
    refresh_unread(model, tokenizer, turns, seed=seed)
    model = model.to(torch.bfloat16)
    try:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except OSError as error:
        raise DataError(f"{output}: {error.strerror}; name a folder that can be written to") from None
    return held_out_loss(model.float(), tokenizer)


@torch.no_grad()
def held_out_loss(model, tokenizer, *, n: int = 200) -> float:
    """Mean loss on `n` dialogues of a seed that no training reads."""
    stream = batches(encode(tokenizer, corpus(n, seed=CORPUS_SEED - 1)), tokenizer.pad_token_id, random.Random(0))
    losses = [lm_loss(model.eval(), *batch).item() for _, batch in zip(range(n // BATCH), stream)]
    return sum(losses) / len(losses)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_tiny_base", description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--dialogues", type=int, default=40_000, help="to read in pretraining (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2500, help=f"of {BATCH} dialogues (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    loss = make(args.output, dialogues=args.dialogues, steps=args.steps, device=args.device, seed=args.seed)
    print(f"weighted loss on unseen dialogues: {loss:.3f} a token; written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
