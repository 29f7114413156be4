"""Training: the loss is exact, the recipe is the article's, and a run can be stopped, resumed and trusted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ARGUMENTS, make_records, pickled_classes, train_briefly, users_environment
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, TrainerCallback

import trainer as trainer_module
from antifraud.checkpoint import checkpoints_in, newest_complete_checkpoint
from antifraud.training.batches import LengthGroupedBatches, RightPaddingCollator
from antifraud.training.guard import TrainingDiverged
from antifraud.training.loss import label_position_loss
from data.files import DataError
from data.records import read_records, write_records
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def full_precision(base):
    """The tiny Qwen2 in fp32, with LoRA adapters that are not zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, build_loraconfig(lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def batch(base, train_file):
    """Six examples of different lengths, padded on the right, and the examples themselves."""
    _, tokenizer = load_model(base, "cpu")
    dataset, _ = load_dataset(train_file, train_file, tokenizer)
    examples = [dataset[i] for i in range(6)]
    assert len({len(example["input_ids"]) for example in examples}) > 2
    return RightPaddingCollator(tokenizer.pad_token_id)(examples), examples


@pytest.mark.parametrize("after, width", [(0, 32), (5, 27), (16, 32), (44, 20)])
def test_rows_are_padded_so_that_with_what_precedes_them_they_fill_whole_tiles(after, width):
    collate = RightPaddingCollator(9, multiple=16, after=after)
    rows = [{"input_ids": [1] * n, "labels": [-100] * (n - 1) + [1]} for n in (3, 19)]
    batch = collate(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, width) and (after + width) % 16 == 0
    assert batch["input_ids"][0].tolist() == [1] * 3 + [9] * (width - 3)
    assert batch["labels"][1].tolist() == [-100] * 18 + [1] + [-100] * (width - 19)
    assert collate.width(19) == width


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------------------------------- the loss


def test_label_position_loss_and_gradients_equal_those_of_the_full_logits(full_precision, batch):
    inputs, _ = batch
    ours = label_position_loss(full_precision, inputs["input_ids"], inputs["labels"])
    our_gradients = gradients(full_precision, ours)
    full = full_precision(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
    full_gradients = gradients(full_precision, full)
    assert ours.item() == pytest.approx(full.item(), abs=1e-5)
    assert our_gradients.keys() == full_gradients.keys() and len(our_gradients) == 2 * 2 * 7  # A and B, layers, targets
    for name, gradient in full_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-5)
    assert max(gradient.abs().max() for gradient in full_gradients.values()) > 1e-3


def test_right_padding_without_a_mask_changes_no_gradient(full_precision, batch):
    """The padded batch gives the mean over labels of the examples taken one by one, unpadded."""
    inputs, examples = batch
    padded = gradients(full_precision, label_position_loss(full_precision, inputs["input_ids"], inputs["labels"]))
    n_labels = int((inputs["labels"] != -100).sum())
    one_by_one = sum(label_position_loss(full_precision, torch.tensor([example["input_ids"]]),
                                         torch.tensor([example["labels"]]), n_labels) for example in examples)
    for name, gradient in gradients(full_precision, one_by_one).items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-4, atol=1e-5)


def test_logits_exist_at_label_positions_only(full_precision, batch):
    inputs, _ = batch
    seen = []
    head = full_precision.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    label_position_loss(full_precision, inputs["input_ids"], inputs["labels"])
    hook.remove()
    assert seen == [(int((inputs["labels"] != -100).sum()), head.out_features)]


def test_gradient_accumulation_gives_the_step_of_the_whole_batch(base, eval_file, tmp_path):
    rows = tmp_path / "eight.jsonl"
    write_records(rows, make_records(8))
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 0.0,
               "lora_dropout": 0.0, "eval_steps": 1, "save_steps": 1}
    whole = train_briefly(base, str(rows), eval_file, tmp_path / "whole", per_device_train_batch_size=8, **options)
    parts = train_briefly(base, str(rows), eval_file, tmp_path / "parts", per_device_train_batch_size=2,
                          gradient_accumulation_steps=4, **options)
    stepped, accumulated = (load_file(tmp_path / name / "checkpoint-1" / "adapter_model.safetensors")
                            for name in ("whole", "parts"))
    assert whole.state.global_step == parts.state.global_step == 1
    for name, value in stepped.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6)
    assert max(value.abs().max() for name, value in stepped.items() if "lora_B" in name) > 1e-3


# ------------------------------------------------------------------------------------------- the recipe


def test_lora_on_qwen2_1_5b_has_the_articles_parameter_counts():
    config = Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                         num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True)
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), build_loraconfig())
    assert model.get_nb_trainable_parameters() == (18_464_768, 1_562_179_072)


def test_a_base_with_other_projections_gets_adapters_on_all_of_its_own(base, train_file, tmp_path):
    _, tokenizer = load_model(base, "cpu")
    dataset, _ = load_dataset(train_file, train_file, tokenizer)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=1, n_head=2))
    args = build_train_arguments(str(tmp_path), use_cpu=True)
    trained = build_trainer(gpt2, tokenizer, args, build_loraconfig(), dataset, dataset).model
    adapted = {name.split(".lora_A")[0].split("h.0.")[1] for name, _ in trained.named_parameters() if "lora_A" in name}
    assert adapted == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


def test_train_arguments_are_the_articles(tmp_path):
    args = build_train_arguments(str(tmp_path), use_cpu=True)
    assert (args.optim, args.lr_scheduler_type, args.per_device_train_batch_size) == ("paged_adamw_32bit", "cosine", 16)
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (1e-4, 0.01, 3)
    assert args.get_warmup_steps(1000) == 50
    assert (args.eval_steps, args.save_steps, args.load_best_model_at_end) == (100, 100, True)
    assert not args.logging_nan_inf_filter and not args.bf16 and not args.fp16


def test_old_names_may_be_assigned_and_unknown_ones_are_refused(tmp_path):
    args = build_train_arguments(str(tmp_path), use_cpu=True)
    args.warmup_ratio = 0.1
    assert args.get_warmup_steps(1000) == 100
    with pytest.raises(AttributeError, match="no 'lerning_rate'"):
        args.lerning_rate = 1e-3


# ------------------------------------------------------------------------------------------ the batches


def test_batches_hold_similar_lengths_every_row_once_in_an_order_that_changes_with_the_epoch():
    lengths = [7 * i % 101 for i in range(103)]
    sampler = LengthGroupedBatches(lengths, batch_size=10, seed=0)
    first, again = list(sampler), list(sampler)
    assert sorted(first) == [*range(103), *[103] * 7] and first == again  # blank rows fill up the last batch
    assert first[-7:] == [103] * 7
    batches = [[lengths[row] for row in first[i:i + 10]] for i in range(0, 100, 10)]
    assert max(max(batch) - min(batch) for batch in batches) <= 12  # sorted tenths of 0..100
    means = [sum(batch) for batch in batches]
    assert means != sorted(means) and means != sorted(means, reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) != first


# --------------------------------------------------------------------------------- stopping and resuming


class At(TrainerCallback):
    """Calls `action` once, before the step that follows `step`."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.step = -1
            self.action(model)


def poison(model) -> None:
    first = next(p for p in model.parameters() if p.requires_grad)
    first.data[0, 0] = float("nan")


def test_a_nan_loss_stops_the_run_and_leaves_the_last_checkpoint_intact(base, train_file, eval_file, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"step 4: loss nan .*checkpoint-2 "):
        train_briefly(base, train_file, eval_file, tmp_path, max_steps=8, callbacks=[At(3, poison)])
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert newest_complete_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-2"


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_optimiser_moves(base, train_file, eval_file, tmp_path):
    before = {}

    def make_gradients_infinite(model):
        parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
        parameter.register_hook(lambda gradient: gradient + float("inf"))
        before.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        before["model"] = model

    with pytest.raises(TrainingDiverged, match="step 3: gradient norm"):
        train_briefly(base, train_file, eval_file, tmp_path, callbacks=[At(2, make_gradients_infinite)])
    model = before.pop("model")
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_resuming_after_an_interruption_gives_the_uninterrupted_run_bit_by_bit(base, train_file, eval_file, tmp_path):
    def interrupt(model):
        raise KeyboardInterrupt

    train_briefly(base, train_file, eval_file, tmp_path / "whole", max_steps=8)
    with pytest.raises(KeyboardInterrupt):
        train_briefly(base, train_file, eval_file, tmp_path / "cut", max_steps=8, callbacks=[At(5, interrupt)])
    folder, _ = newest_complete_checkpoint(tmp_path / "cut")
    assert folder.name == "checkpoint-4"
    train_briefly(base, train_file, eval_file, tmp_path / "cut", max_steps=8, resume=str(folder))
    whole, resumed = (load_file(tmp_path / name / "checkpoint-8" / "adapter_model.safetensors")
                      for name in ("whole", "cut"))
    assert ARGUMENTS in pickled_classes(tmp_path / "whole" / "checkpoint-8" / "training_args.bin")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_best_checkpoint_is_kept_when_it_is_not_the_last(base, train_file, eval_file, tmp_path):
    def spoil(model):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(-50)

    run = train_briefly(base, train_file, eval_file, tmp_path, max_steps=6, save_total_limit=2,
                        callbacks=[At(4, spoil)])
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert (tmp_path / "checkpoint-4").is_dir() and (tmp_path / "checkpoint-6").is_dir()
    best = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    kept = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    assert len(best) == len(kept)
    for name, value in best.items():
        assert torch.equal(kept[name.replace(".weight", ".default.weight")], value)


def test_training_stops_early_when_the_eval_loss_no_longer_falls(base, train_file, eval_file, tmp_path):
    run = train_briefly(base, train_file, eval_file, tmp_path, max_steps=40, eval_steps=1, save_steps=1,
                        learning_rate=0.0)
    assert run.state.global_step == 6  # the first evaluation is the best, then patience 5


# ------------------------------------------------------------------------------------- the command line


@pytest.fixture
def in_process(capsys):
    """Runs the command line in this process: (exit code, standard error's last line)."""
    def call(*args: str) -> tuple[int, str]:
        code = trainer_module.main(list(args))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        return code, lines[-1] if lines else ""
    return call


def test_the_command_trains_saves_and_resumes(base, train_file, eval_file, tmp_path, in_process, capsys):
    output = tmp_path / "run"
    args = ["--model", base, "--train", train_file, "--eval", eval_file, "--output", str(output), "--device", "cpu",
            "--max-steps", "2", "--eval-steps", "1", "--save-steps", "1", "--learning-rate", "2e-4",
            "--per-device-train-batch-size", "4"]
    done = subprocess.run([sys.executable, str(ROOT / "trainer.py"), *args], capture_output=True, text=True,
                          cwd=tmp_path, env=users_environment())
    assert done.returncode == 0, done.stderr
    assert f"best checkpoint: {output}/checkpoint-" in done.stdout
    assert (output / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name for path in (output / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "fraud_task.json", "trainer_state.json"} <= written
    saved = json.loads((output / "checkpoint-2" / "fraud_task.json").read_text())
    assert saved["quantization"] == {"type": "nf4", "double": False} and saved["train_data"]["rows"] == 48
    classes = pickled_classes(output / "checkpoint-2" / "training_args.bin")
    assert ARGUMENTS in classes and not [name for name in classes if "__main__" in name]
    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["train_batch_size"] == 4 and state["max_steps"] == 2

    code, line = in_process(*args)
    assert code == 2 and line.startswith(f"{output}: ") and "--resume" in line
    adapter = output / "checkpoint-2" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-100])
    assert trainer_module.main([*args, "--resume", "--learning-rate", "1e-3"]) == 0
    said = capsys.readouterr().err
    assert "checkpoint-2: " in said and f"{output}/checkpoint-1" in said
    assert said.count("goes on with another learning_rate") == 1


def test_bad_input_gives_one_line_and_exit_code_2_and_writes_nothing(base, train_file, tmp_path, in_process):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "甲: 好", "label": "false"}\n')
    output = tmp_path / "run"

    def attempt(**changed):
        options = {"model": base, "train": train_file, "eval": train_file, "output": str(output), "device": "cpu",
                   **changed}
        return in_process(*(part for name, value in options.items() for part in (f"--{name}", value)))

    code, line = attempt(train=str(bad))
    assert code == 2 and line.startswith(f"{bad}:1: key 'label' ") and '"false"' in line
    code, line = attempt(train=str(tmp_path / "none.jsonl"))
    assert code == 2 and line.startswith(f"{tmp_path}/none.jsonl: ")
    code, line = attempt(model=str(tmp_path))
    assert code == 2 and line.startswith(f"{tmp_path}: ") and "config.json" in line
    code, line = attempt(model=str(tmp_path / "nowhere"))
    assert code == 2 and line.startswith(f"{tmp_path}/nowhere: ")
    assert not output.exists()


# ------------------------------------------------------------------------------------------------ the data


def test_dialogues_longer_than_the_window_lose_their_end_and_are_counted(base, tmp_path, capsys):
    records = make_records(4)
    records[0]["input"] = "甲: " + "说来话长。" * 400
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    _, tokenizer = load_model(base, "cpu")
    dataset, _ = load_dataset(str(path), str(path), tokenizer)
    assert f"{path}: 1 dialogues " in capsys.readouterr().err
    completion = [id for id in dataset[0]["labels"] if id != -100]
    assert tokenizer.decode(completion) == '{"is_fraud": true}<|im_end|>'
    assert len(dataset[0]["input_ids"]) == 2048


def test_records_without_a_dialogue_are_named_and_left_out(base, tmp_path, capsys):
    path = tmp_path / "gap.jsonl"
    rows = make_records(4)
    rows[2]["input"] = ""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _, tokenizer = load_model(base, "cpu")
    dataset, _ = load_dataset(str(path), str(path), tokenizer)
    assert len(dataset) == 3 and f"1: {path}:3: 'input'" in capsys.readouterr().err
    with pytest.raises(DataError, match=":3: 'input' "):
        read_records(path)
