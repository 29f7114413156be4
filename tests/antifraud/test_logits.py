"""A beginning that rows share is computed once, and nothing else changes: not a logit, not a gradient."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from antifraud.compiling import compile_layers
from antifraud.evaluation.scoring import score_prompts
from antifraud.logits import (
    ATTENTION,
    common_prefix,
    label_logits_at,
    logits_only_at,
    model_inputs,
    shares_prefix,
)
from antifraud.model import load_base
from antifraud.training.batches import RowsAfterPrefix, prefix_of
from antifraud.training.loss import label_position_loss
from data.files import DataError
from data.prompt import PromptEncoder, Task
from trainer import build_loraconfig, load_dataset

SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 1}
WINDOW = {"head_dim": 8, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(head_dim=8, **SMALL),
    "llama": LlamaConfig(**SMALL),
    "phi3": Phi3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL, **WINDOW),
    "gpt2": GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
}
PREFIX = torch.arange(2, 11)


def make_model(config, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, **options).eval()


def rests(tokens: int = 8) -> torch.Tensor:
    return torch.randint(99, (5, tokens), generator=torch.Generator().manual_seed(1))


def whole(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([PREFIX.expand(len(rows), -1), rows], 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_after_the_prefix_are_those_of_the_rows_one_by_one(name):
    model, rows = make_model(CONFIGS[name]), rests()
    inputs = model_inputs(model, PREFIX, rows)
    assert inputs["input_ids"].shape == (1, 9 + 5 * 8)
    positions = torch.tensor([0, 7, 8, 39])  # of rows 0, 0, 1 and 4
    with logits_only_at(model, positions, after=9):
        logits = model(**inputs).logits
    one_by_one = torch.cat([model(input_ids=whole(rows[row:row + 1])).logits for row in range(5)])
    torch.testing.assert_close(logits, one_by_one[:, 9:].flatten(0, 1)[positions], rtol=1e-4, atol=1e-4)
    assert logits.abs().max() > 0.1 and model(**inputs).logits.shape == (1, 49, 99)  # the hooks are gone


@pytest.mark.parametrize("name", CONFIGS)
def test_where_a_row_forks_it_goes_on_as_if_what_stands_between_were_not_there(name):
    model, (trunk, other) = make_model(CONFIGS[name]), whole(rests()[:2]).tolist()
    first, second = [*trunk[:14], 5, 6, 7], [*trunk[:10], 8]  # after five and after one token of its own
    packed = torch.tensor([[*trunk, 5, 6, 7, 8], [*other, 0, 0, 0, 0]])
    inputs = model_inputs(model, PREFIX, packed[:, 9:], [[(17, 14), (20, 10)], []])
    with logits_only_at(model, torch.tensor([7, 10, 11, 19]), after=9):
        logits = model(**inputs).logits
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1] for row in (trunk, first, second, other)])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    whole_trunk = model(input_ids=torch.tensor([[*trunk, 5, 6, 7]])).logits[:, -1]
    assert (whole_trunk - logits[1]).abs().max() > 0.01  # what stands between would have been read


def test_what_mixes_tokens_by_other_means_computes_row_by_row():
    convolution = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    for model in (make_model(convolution), make_model(CONFIGS["qwen2"], attn_implementation="eager")):
        assert not shares_prefix(model, 9)
        inputs = model_inputs(model, PREFIX, rests())
        torch.testing.assert_close(inputs["input_ids"], whole(rests()))
        assert inputs.keys() == {"input_ids", "use_cache"}


def test_rows_longer_than_a_sliding_window_keep_their_mask():
    model = make_model(CONFIGS["gemma3"])
    assert shares_prefix(model, 20) and not shares_prefix(model, 21)
    assert model_inputs(model, PREFIX, rests(11))["input_ids"].shape == (1, 9 + 5 * 11)
    assert model_inputs(model, PREFIX, rests(12))["input_ids"].shape == (5, 21)


def test_only_the_model_that_shares_a_prefix_has_another_attention():
    assert AttentionInterface._global_mapping["sdpa"] is sdpa_attention_forward
    model, other = make_model(CONFIGS["qwen2"]), make_model(CONFIGS["qwen2"])
    tokens, mask = whole(rests()), torch.ones(5, 17, dtype=torch.long)
    mask[1:, :3] = 0  # padded on the left, as generation pads
    before = model(input_ids=tokens, attention_mask=mask).logits
    model(**model_inputs(model, PREFIX, rests()))
    assert (model.config._attn_implementation, other.config._attn_implementation) == (ATTENTION, "sdpa")
    assert shares_prefix(model, 17)
    assert torch.equal(model(input_ids=tokens, attention_mask=mask).logits, before)
    assert ATTENTION not in json.dumps(model.config.to_dict())


def test_a_model_that_ignores_how_rows_are_put_together_fails(monkeypatch):
    """Rather than attend from one row to another: that would be a score like any other."""
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, sdpa_attention_forward)
    model = make_model(CONFIGS["qwen2"])
    with pytest.raises(RuntimeError):
        model(**model_inputs(model, PREFIX, rests()))


@pytest.mark.parametrize("way, n_rows", [("eager", 5), ("eager", 1), ("checkpointed", 5), ("compiled", 5)])
def test_gradients_are_those_of_whole_rows(way, n_rows, monkeypatch):
    # Traced and differentiated as by the usual backend, which takes a minute to write kernels.
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", lambda layer, dynamic: torch.nn.Module.compile(
        layer, backend="aot_eager", dynamic=False))
    base = make_model(CONFIGS["qwen2" if way == "compiled" else "gemma3"])  # its layers are of one kind
    model = get_peft_model(base, build_loraconfig(lora_dropout=0.0))
    model.enable_input_require_grads()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    rows = rests()[:n_rows]
    labels = torch.where(torch.arange(8) < 5, -100, rows)

    def gradients(loss) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    expected = label_position_loss(model, whole(rows), torch.cat([torch.full((n_rows, 9), -100), labels], 1))
    wanted = gradients(expected)
    if way == "checkpointed":
        model.train()
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if way == "compiled":
        compile_layers(model)
    loss = label_position_loss(model, rows, labels, prefix=PREFIX)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients(loss), wanted, rtol=1e-3, atol=1e-5)
    assert wanted.abs().max() > 1e-3


# ----------------------------------------------------------------------------------------- what rows share


def test_the_common_prefix_is_the_part_of_the_head_that_all_rows_begin_with():
    head = [1, 2, 3, 4]
    assert common_prefix(head, [(1, 2, 3, 4, 5), (1, 2, 3, 9)], 3) == [1, 2, 3]
    assert common_prefix(head, [(1, 2, 3, 9, 9)], 9) == [1, 2, 3]
    assert common_prefix(head, [(1, 2, 3, 4, 5)], 2) == [1, 2]
    assert common_prefix(head, [(7, 1)], 1) == common_prefix(head, [], 0) == []


def test_rows_come_without_the_prefix_and_only_if_they_have_it(base, train_file):
    _, tokenizer = load_base(base, "cpu")
    dataset, _ = load_dataset(train_file, train_file, tokenizer)
    encoder = PromptEncoder(tokenizer, Task())
    prefix = prefix_of(encoder, dataset)
    assert prefix == encoder.head
    rows = RowsAfterPrefix(dataset, prefix)
    assert prefix + rows[3]["input_ids"].tolist() == dataset[3]["input_ids"]
    assert [-100] * len(prefix) + rows[3]["labels"].tolist() == dataset[3]["labels"]
    with pytest.raises(DataError):
        RowsAfterPrefix(dataset, [prefix[0] + 1])
    short = dataset.from_list([{"input_ids": [*prefix, 5], "labels": [-100] * (len(prefix) - 2) + [7, 7, 7]}])
    assert prefix_of(encoder, dataset, short) == prefix[:-3]  # what predicts the first label stays in the row


def test_scores_do_not_depend_on_what_else_is_scored(base):
    model, tokenizer = load_base(base, "cpu")
    encoder = PromptEncoder(tokenizer, Task())
    prompts = encoder.prompts(["客服: 您好", "客服: 请把验证码告诉我，我替您退款。", "甲: 明天开会。"])
    scores = score_prompts(model, encoder, prompts)
    strange = [prompts[1], [5, 6, 7]]  # with a row that does not begin so, nothing is shared
    assert score_prompts(model, encoder, strange)[0] == pytest.approx(scores[1], abs=1e-6)
    alone = [score_prompts(model, encoder, [prompt])[0] for prompt in prompts]
    assert alone == pytest.approx(scores, abs=1e-6)


# ------------------------------------------------------------------------------------------------- label logits


@pytest.fixture
def in_16_bit(base):
    """(model, input ids, positions): a base in bf16, unquantised, and the last token of two rows."""
    model = load_base(base, "cpu", quantization="none")[0].to(torch.bfloat16)
    return model, torch.randint(100, (2, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([5, 11])


def test_label_logits_are_those_of_the_words_asked_for_without_16_bit_rounding(in_16_bit):
    model, input_ids, positions = in_16_bit
    with torch.no_grad():
        all_logits = model(input_ids=input_ids).logits[:, -1]
        hidden = model.model(input_ids=input_ids).last_hidden_state[:, -1]
        with label_logits_at(model, positions, (7, 3)), torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(input_ids=input_ids).logits
    head = model.get_output_embeddings()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float() @ head.weight[[7, 3]].float().T)
    assert all_logits.dtype == torch.bfloat16 and not torch.equal(found, all_logits[:, [7, 3]].float())
    assert model(input_ids=input_ids).logits.shape == (2, 6, head.out_features)  # the head is its own again


def test_label_logits_of_a_head_with_an_adapter_pass_through_it(in_16_bit):
    model, input_ids, positions = in_16_bit
    model = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()
    with torch.no_grad():
        all_logits = model(input_ids=input_ids).logits[:, -1]
        with label_logits_at(model, positions, (7, 3)):
            found = model(input_ids=input_ids).logits
    torch.testing.assert_close(found, all_logits[:, [7, 3]])


def test_a_head_that_somebody_else_changed_is_left_as_he_changed_it(in_16_bit):
    model, input_ids, positions = in_16_bit
    head = model.get_output_embeddings()
    head.forward = theirs = lambda hidden: torch.zeros(1)
    with label_logits_at(model, positions, (7, 3)):
        assert model(input_ids=input_ids).logits.shape == (2, 2)
    assert head.forward is theirs
