"""The recipes compute the same steps: micro-batches add up, captured or not, and nothing waits inside one."""

import contextlib
import os
from types import SimpleNamespace

import pytest
import torch
from captured import EagerMicroBatch, capture_on_cpu
from helpers import make_records, make_tokenizer, train_briefly
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

import trainer as trainer_module
from antifraud import compiling
from antifraud.compiling import compile_layers, selective_recomputation
from antifraud.training import guard, micro_batches, recipes
from antifraud.training.batches import RightPaddingCollator, RowsAfterPrefix
from antifraud.training.command import parse
from antifraud.training.cuda_graphs import CapturedMicroBatch, without_masks
from antifraud.training.guard import TrainingDiverged
from antifraud.training.loop import LabelPositionTrainer
from antifraud.training.loss import LineLoss, label_position_loss
from antifraud.training.recipes import RECIPES, choose_recipe, settings_for
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import write_records
from trainer import build_loraconfig, build_train_arguments, load_dataset, load_model

GIB = 2**30


@pytest.fixture
def captured_on_cpu(monkeypatch):
    """Lets a run with CUDA graphs take its way through the trainer on a CPU."""
    capture_on_cpu(monkeypatch.setattr)
    monkeypatch.setattr(EagerMicroBatch, "made", [])
    return EagerMicroBatch.made


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "eight.jsonl"
    write_records(path, make_records(8))
    return str(path)


def adapters(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# ---------------------------------------------------------------------------------------------- the loss


def test_more_positions_than_labels_change_neither_loss_nor_gradients(base, train_file):
    model, tokenizer = load_model(base, "cpu", quantization="none")
    dataset, _ = load_dataset(train_file, train_file, tokenizer)
    inputs = RightPaddingCollator(tokenizer.pad_token_id)([dataset[i] for i in range(4)])
    weight = model.model.layers[0].mlp.up_proj.weight

    def loss_and_gradient(n_positions):
        model.zero_grad()
        loss = label_position_loss(model, inputs["input_ids"], inputs["labels"], n_positions=n_positions)
        loss.backward()
        return loss.item(), weight.grad.clone()

    counted, given = loss_and_gradient(None), loss_and_gradient(int((inputs["labels"] != -100).sum()) + 5)
    assert given[0] == pytest.approx(counted[0], abs=1e-6)
    torch.testing.assert_close(given[1], counted[1], rtol=1e-4, atol=1e-7)


@pytest.fixture
def line_file(tmp_path) -> str:
    """Records that say of their lines, two or three, whether they are part of a fraud."""
    records = make_records(8)
    for i, record in enumerate(records):
        record["input"] += "\n乙: 好的" * (i % 2)
        record["line_labels"] = [bool((i + line) % 3) for line in range(record["input"].count("\n") + 1)]
    path = tmp_path / "lines.jsonl"
    write_records(path, records)
    return str(path)


@pytest.mark.parametrize("spare", [None, 0, 5])
def test_the_loss_of_lines_is_the_cross_entropy_between_two_words_where_they_end(base, line_file, spare):
    model, tokenizer = load_model(base, "cpu", quantization="none")
    dataset, _ = load_dataset(line_file, line_file, tokenizer)
    encoder = PromptEncoder(tokenizer, Task())
    rows = RowsAfterPrefix(dataset, encoder.head, lines=True)
    inputs = RightPaddingCollator(tokenizer.pad_token_id)([rows[i] for i in range(len(rows))])
    n_lines = sum(map(len, dataset["line_labels"]))
    assert rows.most_targets("line_targets") == max(map(len, dataset["line_labels"])) and n_lines > 12

    expected, n_answers = 0.0, 0
    for example in dataset:
        logits = model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        learned = [place for place, label in enumerate(example["labels"]) if label != -100]
        n_answers += len(learned)
        expected -= sum(logits[place - 1, example["labels"][place]] for place in learned)
        for end, is_fraud in zip(example["line_ends"], example["line_labels"], strict=True):
            of_words = logits[end, list(encoder.label_ids)].log_softmax(-1)
            expected -= 0.3 * of_words[0 if is_fraud else 1]
    found = label_position_loss(
        model, inputs["input_ids"], inputs["labels"], n_positions=None if spare is None else n_answers + spare,
        prefix=torch.tensor(encoder.head),
        line_loss=LineLoss(encoder.label_ids, 0.3, None if spare is None else n_lines + spare),
        line_targets=inputs["line_targets"])
    assert found.item() == pytest.approx(expected.item() / (n_answers + n_lines), rel=1e-5)


def test_the_line_loss_is_alike_if_captured_and_only_in_training(base, line_file, captured_on_cpu, tmp_path):
    options = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "lora_dropout": 0.0, "learning_rate": 1e-2}
    plain, without, captured = (
        train_briefly(base, line_file, line_file, tmp_path / name, **options, **more)
        for name, more in (("plain", {"line_loss_weight": 0.5}), ("without", {}),
                           ("captured", {"line_loss_weight": 0.5, "cuda_graphs": True, "compile_layers": False})))
    for name, values in adapters(tmp_path / "plain" / "checkpoint-3").items():
        torch.testing.assert_close(adapters(tmp_path / "captured" / "checkpoint-3")[name], values, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(values, adapters(tmp_path / "without" / "checkpoint-3")[name])
               for name, values in adapters(tmp_path / "plain" / "checkpoint-3").items())
    dataset = plain.get_eval_dataloader().dataset
    assert dataset.most_targets("line_targets") == 0 < plain.get_train_dataloader().dataset.most_targets("line_targets")


def test_lines_cannot_be_learned_of_records_that_do_not_label_them(base, train_file, eval_file, tmp_path):
    with pytest.raises(DataError, match="'line_labels'"):
        train_briefly(base, train_file, eval_file, tmp_path, line_loss_weight=0.5)


def test_nothing_is_compiled_while_a_micro_batch_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    compiled = []
    square = torch.compile(lambda x: x * x, backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    weight = torch.nn.Parameter(torch.ones(3))
    captured = object.__new__(CapturedMicroBatch)
    captured.loss = lambda inputs, n_labels: square(weight).sum() / n_labels
    captured._allocate_gradients([weight])
    captured._allocate_inputs(("input_ids", "labels"), 6)
    captured.graphs, captured.pool, captured.stream = {}, None, None
    captured._capture((2, 3))
    assert captured.graphs[2, 3][1].item() == 3.0 and not compiled
    square(weight)
    assert compiled  # as it would have been


def test_nothing_in_a_micro_batch_waits_for_the_device(monkeypatch):
    """On the meta device there are no values, so whatever asks for one raises; a capture would fail there."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # which is not for meta
    config = Qwen2Config(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), build_loraconfig()).train()
        input_ids, labels = torch.zeros(4, 48, dtype=torch.long), torch.full((4, 48), -100)
        with pytest.raises((RuntimeError, NotImplementedError)):
            label_position_loss(model, input_ids, labels, torch.ones(()))
        with without_masks():
            label_position_loss(model, input_ids, labels, torch.ones(()), n_positions=28,
                                line_loss=LineLoss((3, 4), 0.5, n_positions=8), line_targets=labels).backward()
    assert all(p.grad.device.type == "meta" for p in model.parameters() if p.requires_grad)


# ------------------------------------------------------------------------------------------- micro-batches


def test_micro_batches_of_few_tokens_give_the_step_of_the_whole_batch(base, rows, eval_file, tmp_path):
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 0.0,
               "lora_dropout": 0.0, "eval_steps": 1, "save_steps": 1, "per_device_train_batch_size": 8}
    whole = train_briefly(base, rows, eval_file, tmp_path / "whole", **options)
    parts = train_briefly(base, rows, eval_file, tmp_path / "parts", tokens_per_micro_batch=300, **options)
    width = max(len(ids) for ids in parts.train_dataset["input_ids"])
    assert parts.rows_a_micro_batch(8, width) < 8 == whole.rows_a_micro_batch(8, width)
    stepped, added_up = (adapters(tmp_path / name / "checkpoint-1") for name in ("whole", "parts"))
    for name, value in stepped.items():
        torch.testing.assert_close(added_up[name], value, rtol=1e-4, atol=1e-6)
    assert max(value.abs().max() for name, value in stepped.items() if "lora_B" in name) > 1e-3
    first, second = (run.state.log_history for run in (whole, parts))
    assert [row["eval_loss"] for row in second if "eval_loss" in row] == pytest.approx(
        [row["eval_loss"] for row in first if "eval_loss" in row], abs=1e-5)


@pytest.mark.parametrize("width, rows_a_micro_batch", [(64, 16), (256, 16), (257, 8), (1024, 4), (4096, 1), (5000, 1)])
def test_a_micro_batch_takes_as_many_rows_as_fit_and_divide_the_batch(tmp_path, width, rows_a_micro_batch):
    trainer = LabelPositionTrainer.__new__(LabelPositionTrainer)
    trainer.args = build_train_arguments(str(tmp_path), tokens_per_micro_batch=4106, use_cpu=True)
    trainer.prefix = torch.zeros(10)  # computed once
    assert trainer.rows_a_micro_batch(16, width) == rows_a_micro_batch


# ---------------------------------------------------------------------------------- captured micro-batches


def test_a_captured_run_takes_the_plain_runs_steps(base, train_file, eval_file, tmp_path, captured_on_cpu):
    options = {"max_steps": 8, "eval_steps": 4, "save_steps": 4, "lora_dropout": 0.0, "learning_rate": 1e-3,
               "optim": "adamw_torch"}
    plain = train_briefly(base, train_file, eval_file, tmp_path / "plain", **options)
    captured = train_briefly(base, train_file, eval_file, tmp_path / "captured", cuda_graphs=True,
                             tokens_per_micro_batch=500, **options)
    one, = captured_on_cpu
    assert plain.captured is None and captured.captured is one
    for name, value in adapters(tmp_path / "plain" / "checkpoint-8").items():
        torch.testing.assert_close(adapters(tmp_path / "captured" / "checkpoint-8")[name], value, rtol=1e-3, atol=1e-5)
    losses = [[row["eval_loss"] for row in run.state.log_history if "eval_loss" in row] for run in (plain, captured)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and losses[0][0] != losses[0][1]
    length = len(captured.prefix)
    assert all((length + width) % 16 == 0 and rows in (1, 2, 4, 8) for rows, width in one.shapes)
    assert len(one.shapes) > 8  # of 8 steps, some were cut
    assert set(one.shapes) <= set(one.expected)  # they were warmed up


@pytest.mark.parametrize("max_norm", [0.5, 5.0])
def test_gradients_in_one_buffer_are_clipped_like_those_in_many_tensors(max_norm):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,))]

    def loss(inputs, n_labels):
        return sum((p * torch.arange(p.numel()).view_as(p)).sum() for p in parameters) / 9

    one = EagerMicroBatch(loss, parameters, [(1, 1)], ("input_ids",))
    one({"input_ids": torch.zeros(1, 1)}, None)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    for copy, parameter in zip(copies, parameters):
        copy.grad = parameter.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(copies, max_norm)
    assert one.gradient_norm().item() == pytest.approx(norm.item()) and 0.5 < norm < 5
    assert one.clip_gradients(max_norm).item() == pytest.approx(norm.item())
    for copy, parameter in zip(copies, parameters):
        torch.testing.assert_close(parameter.grad, copy.grad)


def test_the_work_is_counted_as_trainer_counts_it(base, train_file, eval_file, tmp_path):
    trainer = train_briefly(base, train_file, eval_file, tmp_path, max_steps=1, eval_steps=1, save_steps=1)
    inputs = {"input_ids": torch.zeros(3, 5, dtype=torch.long)}
    assert trainer.floating_point_ops(inputs) == Trainer.floating_point_ops(trainer, inputs) > 0


def not_finite_at(step):
    class NotFinite(EagerMicroBatch):
        def __call__(self, inputs, n_labels):
            loss = super().__call__(inputs, n_labels)
            if len(self.shapes) == step:
                for parameter in self.parameters:
                    parameter.grad.fill_(float("nan"))
                return loss * float("nan")
            return loss
    return NotFinite


class Arrived:
    def synchronize(self):
        pass


@pytest.mark.parametrize("step", [2, 5])
def test_a_step_that_is_not_finite_moves_nothing_although_it_is_looked_at_later(base, train_file, eval_file, tmp_path,
                                                                               captured_on_cpu, monkeypatch, step):
    """Step 5 is the last: nothing comes after it that would look."""
    monkeypatch.setattr(micro_batches, "CapturedMicroBatch", not_finite_at(step))
    monkeypatch.setattr(guard, "on_the_way_to_the_host", lambda values: (values.clone(), Arrived()))
    with pytest.raises(TrainingDiverged, match=f"step {step}: loss nan "):
        train_briefly(base, train_file, eval_file, tmp_path, max_steps=5, eval_strategy="no", save_strategy="no",
                      load_best_model_at_end=False, cuda_graphs=True, optim="adamw_torch_fused")
    stopped, = captured_on_cpu
    assert len(stopped.shapes) == min(step + 1, 5)
    assert all(parameter.isfinite().all() for parameter in stopped.parameters)


def test_graphs_that_cannot_be_captured_are_refused_in_one_line(base, train_file, eval_file, tmp_path):
    with pytest.raises(DataError, match="^cuda_graphs [^\n]* GPU"):
        train_briefly(base, train_file, eval_file, tmp_path, cuda_graphs=True)


@pytest.mark.parametrize("cause, remedy", [
    (RuntimeError("operation not permitted when stream is capturing\nmore"), "--recipe plain"),
    (torch.OutOfMemoryError("CUDA out of memory."), "--recipe small"),
])
def test_a_micro_batch_that_cannot_be_captured_is_one_line(base, train_file, eval_file, tmp_path, captured_on_cpu,
                                                         monkeypatch, capsys, cause, remedy):
    class Fails(EagerMicroBatch):
        def __call__(self, *inputs):
            try:
                raise cause
            finally:  # as the end of a capture does
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(micro_batches, "CapturedMicroBatch", Fails)
    assert trainer_module.main(["--model", base, "--train", train_file, "--eval", eval_file, "--device", "cpu",
                                "--output", str(tmp_path / "run"), "--cuda-graphs", "true", "--max-steps", "1",
                                "--optim", "adamw_torch", "--disable-tqdm", "true"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert remedy in last and "previous error" not in last


# ------------------------------------------------------------------------------------------- what is chosen


def test_the_free_memory_decides_how_large_a_micro_batch_is():
    assert settings_for(79 * GIB) == {**RECIPES["fast"], "tokens_per_micro_batch": 4096}
    assert settings_for(17 * GIB) == RECIPES["fast"]  # 14 GiB / 3.5 MiB
    fewer = {**RECIPES["fast"], "selective_recomputation": True}
    assert settings_for(16 * GIB) == {**fewer, "tokens_per_micro_batch": 4096}
    assert settings_for(10 * GIB) == {**fewer, "tokens_per_micro_batch": 2560}  # 7 GiB / 2.5 MiB
    assert settings_for(10 * GIB, compiles=False) == {
        **fewer, "tokens_per_micro_batch": 2048, "selective_recomputation": False}  # 7 GiB / 3.5 MiB
    assert settings_for(5 * GIB) == RECIPES["small"]  # 819 tokens would be too few
    assert settings_for(1 * GIB) == RECIPES["small"]


def test_without_bf16_or_where_the_model_is_sharded_the_recipe_is_plain(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * GIB, 80 * GIB))
    assert choose_recipe("auto", torch.float16) == RECIPES["plain"]
    assert choose_recipe("auto", torch.bfloat16)["cuda_graphs"]
    assert "auto, torch.bfloat16, 79 GiB" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_recipe("auto", torch.bfloat16)["cuda_graphs"]  # each has the whole model
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert choose_recipe("auto", torch.bfloat16) == {**RECIPES["plain"], "optim": "adamw_torch"}


@pytest.mark.parametrize("typed, said", [
    ([], "activation False, optim adamw_torch_fused, tokens_per_micro_batch 4096, cuda_graphs True"),
    (["--optim", "paged_adamw_32bit", "--tokens-per-micro-batch", "1024"],
     "activation False, optim paged_adamw_32bit, tokens_per_micro_batch 1024, cuda_graphs True")])
def test_what_a_user_types_wins_over_the_recipe_and_is_what_the_line_says(tmp_path, monkeypatch, capsys, typed, said):
    _, given = parse(["--model", "m", "--train", "t", "--eval", "e", "--output", "o", "--device", "cpu", *typed])
    del given["use_cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * GIB, 80 * GIB))
    monkeypatch.setattr(trainer_module, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(trainer_module, "FraudTrainingArguments", lambda **fields: SimpleNamespace(n_gpu=1, **fields))
    args = build_train_arguments(str(tmp_path), **given)
    line = capsys.readouterr().err
    assert said.replace("activation", recipes.CHECKPOINTING) in line
    assert f"optim {args.optim}, tokens_per_micro_batch {args.tokens_per_micro_batch}," in line


def test_the_line_says_what_is_given_beside_the_recipe(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 80 * GIB))
    choose_recipe("plain", torch.bfloat16, True, cuda_graphs=True, learning_rate=1e-4)
    line = capsys.readouterr().err
    assert "tokens_per_micro_batch 4096, cuda_graphs True" in line and "learning_rate" not in line


def test_an_unknown_recipe_is_refused():
    with pytest.raises(DataError, match="auto, plain, small, fast.* 'tiny'"):
        choose_recipe("tiny", torch.bfloat16)


def test_a_recipe_recomputes_selectively_only_where_layers_can_be_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 80 * GIB))
    compiled = choose_recipe("auto", torch.bfloat16, True)
    assert compiled == RECIPES["small"] and compiled["selective_recomputation"]
    not_compiled = {name: compiled[name] for name in compiled if name != "selective_recomputation"}
    assert choose_recipe("auto", torch.bfloat16, False) == not_compiled
    assert "compiled" not in capsys.readouterr().err
    for possible, chosen in ((True, compiled), (False, not_compiled)):
        monkeypatch.setattr(recipes, "can_compile", lambda possible=possible: possible)
        assert choose_recipe("auto", torch.bfloat16) == chosen
    first, second = capsys.readouterr().err.splitlines()
    assert "compiled" not in first and second.endswith(f", {compiling.NOT_COMPILED}")
    choose_recipe("plain", torch.bfloat16)
    assert "compiled" not in capsys.readouterr().err  # nor would it be elsewhere


@pytest.mark.parametrize("compiler, triton, possible", [("gcc", True, True), ("clang", True, True), (None, True, False),
                                                        ("gcc", False, False)])
def test_compiling_takes_triton_and_a_c_compiler(monkeypatch, compiler, triton, possible):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}" if name == compiler else None)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: triton or None)
    assert compiling.can_compile() is possible
    monkeypatch.setenv("CC", "/opt/cc")
    assert compiling.can_compile() is triton


def test_layers_are_compiled_where_that_pays_or_is_asked_for(base, train_file, eval_file, tmp_path, captured_on_cpu,
                                                            monkeypatch):
    compiled = []
    monkeypatch.setattr(micro_batches, "compile_layers", compiled.append)
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
               "optim": "adamw_torch"}

    def run(**more):
        compiled.clear()
        train_briefly(base, train_file, eval_file, tmp_path, **options, **more)
        return len(compiled)

    assert run(cuda_graphs=True) == 0  # 8 rows
    assert run(cuda_graphs=True, compile_layers=True) == run(compile_layers=True) == 1
    assert run(selective_recomputation=True) == 1
    with pytest.raises(DataError, match="selective_recomputation"):
        run(selective_recomputation=True, compile_layers=False)
    monkeypatch.setattr(micro_batches, "COMPILING_PAYS_AGAIN", 8)
    kept = tmp_path / "kernels" / "fxgraph"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept.parent))
    kept.mkdir(parents=True)
    assert run(cuda_graphs=True) == 1  # an earlier run compiled
    kept.rmdir()
    assert run(cuda_graphs=True) == 0
    monkeypatch.setattr(micro_batches, "COMPILING_PAYS", 8)
    assert run(cuda_graphs=True) == 1
    assert run(cuda_graphs=True, compile_layers=False) == run() == 0


def test_shapes_are_warmed_up_by_the_first_layers_unless_they_are_compiled(base, train_file, eval_file, tmp_path,
                                                                           captured_on_cpu, monkeypatch):
    monkeypatch.setattr(micro_batches, "compile_layers", lambda model: None)
    entered = []
    monkeypatch.setattr(micro_batches, "first_layers", entered.append)
    for compiled in (False, True):
        train_briefly(base, train_file, eval_file, tmp_path, max_steps=1, eval_strategy="no", save_strategy="no",
                      load_best_model_at_end=False, optim="adamw_torch", cuda_graphs=True, compile_layers=compiled)
        captured_on_cpu[-1].warming_up()
        assert len(entered) == 1  # by the first training alone


def test_compiling_reaches_the_decoder_layers_and_nothing_else_and_keeps_kernels(monkeypatch, tmp_path):
    config = Qwen2Config(vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_layers(model)
    kept = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert os.path.isdir(kept) and kept.startswith(str(tmp_path))
    elsewhere = str(tmp_path / "elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", elsewhere)
    compile_layers(model)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == elsewhere
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == 3 and all(isinstance(module, GradientCheckpointingLayer) for module in compiled)


@contextlib.contextmanager
def keeping(counted: dict[str, int], but):
    """Within this context what autograd keeps counts, in bytes by dtype, each storage once and none of `but`."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in but}
    held = []  # so that no other tensor gets the place of one that was counted

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            counted[dtype] = counted.get(dtype, 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def test_selective_recomputation_keeps_what_dropout_drew_and_gives_the_same_gradients(monkeypatch):
    # The partition of forward and backward is the same as the usual backend's, which takes a minute to write kernels.
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", lambda layer, dynamic: torch.nn.Module.compile(
        layer, backend="aot_eager_decomp_partition", dynamic=False))
    model = AutoModelForCausalLM.from_config(Qwen2Config(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0), dtype=torch.float32)
    model = get_peft_model(model, build_loraconfig(lora_dropout=0.2)).train()
    model.enable_input_require_grads()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    rows = torch.randint(99, (5, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(16) < 9, -100, rows)

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # the same dropout
        return label_position_loss(model, rows, labels)

    def kept_and_gradients(selective: bool) -> tuple[dict[str, int], torch.Tensor]:
        """Bytes of activations by dtype, and the gradients."""
        compile_layers(model)
        torch._dynamo.reset()
        with selective_recomputation(selective):
            loss().backward()  # compiles
        model.zero_grad()
        kept = {}
        with keeping(kept, but=model.parameters()):
            found = loss()
        found.backward()
        return kept, torch.cat([parameter.grad.flatten() for parameter in parameters])

    (all_kept, expected), (fewer_kept, gradients) = kept_and_gradients(False), kept_and_gradients(True)
    assert fewer_kept["float32"] < 0.8 * all_kept["float32"]
    assert fewer_kept["bool"] == all_kept["bool"] > 0  # which inputs were dropped
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    # Along the gradient the loss changes as that says, under the same dropout.
    values = torch.nn.utils.parameters_to_vector(parameters).detach()
    ends = []
    for step in (5e-4, -5e-4):
        torch.nn.utils.vector_to_parameters(values + step / gradients.square().sum() * gradients, parameters)
        ends.append(loss().item())
    assert (ends[0] - ends[1]) / 1e-3 == pytest.approx(1, abs=0.02)
