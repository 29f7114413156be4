"""Models: loaded as asked for, or refused in one line with the file that is wrong."""

import json
import re
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from antifraud import model as models
from antifraud.compiling import compiling_put_off
from antifraud.evaluation.scoring import inference, predict
from antifraud.model import compute_dtype, load_base, load_tuned, locate_model, pick_device
from antifraud.serving.export import merge
from data.files import DataError
from data.prompt import Task


def refusal(folder, **options) -> str:
    """The line with which loading `folder` is refused."""
    with pytest.raises(DataError) as error:
        load_base(str(folder), "cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copy(base, tmp_path) -> Path:
    """A whole model, to be spoilt."""
    return Path(shutil.copytree(base, tmp_path / "model"))


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3087467144\n"


@pytest.mark.parametrize("name, text", [
    ("config.json", "{"),
    ("config.json", "[]"),
    ("config.json", '{"model_type": "no-such-model"}'),
    ("config.json", '{"model_type": "t5"}'),
    ("config.json", '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", LFS_POINTER),
    ("model.safetensors", "too short"),
    ("model.safetensors", LFS_POINTER),
])
def test_a_folder_with_a_bad_file_is_one_line(copy, name, text):
    (copy / name).write_text(text)
    assert refusal(copy).startswith(str(copy))


def test_weights_of_torch_alone_are_refused_with_what_makes_safetensors_of_them(copy):
    (copy / "model.safetensors").unlink()
    torch.save(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(copy)).state_dict(),
               copy / "pytorch_model.bin")
    eval(refusal(copy).partition("of them: ")[2], {"AutoModelForCausalLM": AutoModelForCausalLM})
    load_base(str(copy), "cpu")


def test_a_part_of_the_weights_that_is_missing_is_named(copy):
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in refusal(copy) and "model-1.safetensors" not in refusal(copy)


def test_files_that_are_refused_are_refused_before_anything_is_loaded(copy, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert str(weights) in refusal(copy)
    weights.write_text(LFS_POINTER)
    assert f"git -C {copy} lfs pull" in refusal(copy)
    weights.write_bytes(content)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(copy)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("change, name", [
    (lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name],
     "model.layers.1.input_layernorm.weight"),
    (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"), "model.layers.0.mlp.up_proj.weight"),
    (lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)}),
     "model.layers.2.mlp.up_proj.weight"),
    (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(127, 64)}),
     "model.layers.0.mlp.up_proj.weight"),
])
def test_weights_that_are_not_those_of_the_config_are_named(copy, change, name, quantization, capfd):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert name in refusal(copy, quantization=quantization)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_is_another_models(copy):
    config = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(config["model"]["vocab"].values())
    config["model"]["vocab"] |= {"one": last + 1, "more": last + 2}
    (copy / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")
    assert str(last + 3) in refusal(copy)


def test_a_checkpoint_or_a_runs_folder_is_no_model(run_folder):
    assert "--checkpoint" in refusal(run_folder) and "--checkpoint" in refusal(Path(run_folder) / "checkpoint-40")


@pytest.mark.parametrize("path", ["./nothing", "/nothing/there", "~/nothing"])
def test_a_path_without_a_folder_is_never_looked_up_on_a_hub(path, monkeypatch):
    monkeypatch.setattr(models, "_downloader", lambda model_path: pytest.fail("asked a hub"))
    with pytest.raises(DataError, match=f"^{path}: no such folder$"):
        locate_model(path)


def test_prompts_are_cut_to_the_models_window(base):
    assert load_base(base, "cpu")[1].model_max_length == 2048


# ---------------------------------------------------------------------------------------------- quantisation


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_every_layers_weights_are_quantised_as_asked(base, quantization, double):
    model, _ = load_base(base, "cpu", quantization=quantization, double_quantization=double)
    layers = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == 2 * 7 and all(isinstance(layer, Linear4bit) for layer in layers)
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested) == (quantization, double)
        assert layer.weight.dtype is torch.uint8
        assert layer.weight.numel() == layer.in_features * layer.out_features / 2  # two weights a byte
    assert model.lineage.quantization == {"type": quantization, "double": double}


def test_quantised_weights_are_near_the_saved_ones_and_not_equal(base):
    from bitsandbytes.functional import dequantize_4bit

    exact = load_base(base, "cpu", quantization="none")[0].model.layers[0].mlp.up_proj.weight
    for quantization in ("nf4", "fp4"):
        packed = load_base(base, "cpu", quantization=quantization)[0].model.layers[0].mlp.up_proj.weight
        error = (dequantize_4bit(packed.data, packed.quant_state) - exact).abs().mean() / exact.abs().mean()
        assert 0.02 < error < 0.2


def test_on_a_cpu_a_quantised_model_computes_in_eval_mode_what_it_computes_in_training(base):
    model, tokenizer = load_base(base, "cpu")
    assert not any(layer.support_avx512bf16_for_cpu for layer in model.modules() if isinstance(layer, Linear4bit))
    input_ids = tokenizer("您好", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=input_ids).logits, model.train()(input_ids=input_ids).logits)


def test_a_model_that_somebody_loaded_by_himself_computes_so_too_once_it_is_scored(base):
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32)
    quantised = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    quantised[0].support_avx512bf16_for_cpu = True  # as it is on such a CPU
    with inference(model):
        assert not any(layer.support_avx512bf16_for_cpu for layer in quantised)


def test_without_quantisation_the_weights_stay_as_they_are(base):
    model, _ = load_base(base, "cpu", quantization="none")
    assert not any(isinstance(module, Linear4bit) for module in model.modules())
    assert model.lineage.quantization == {"type": "none", "double": False}
    assert "int4" in refusal(base, quantization="int4")


def test_a_base_that_is_quantised_already_is_taken_as_it_is_and_not_without_quantisation(base, tmp_path):
    model, tokenizer = load_base(base, "cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*quantization_config")  # it is not the user who gives one twice
        assert load_base(str(tmp_path), "cpu")[0].lineage.quantization == {"type": "nf4", "double": False}
    said = refusal(str(tmp_path), quantization="none")
    assert "quantised already" in said and "leave --quantization none out" in said


# ---------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("capability, dtype", [
    ((7, 0), torch.float16),  # V100
    ((7, 5), torch.float16),  # T4
    ((8, 0), torch.bfloat16),  # A100
    ((9, 0), torch.bfloat16),  # H100
])
def test_a_gpu_computes_in_bf16_only_where_its_hardware_does(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda device: types.SimpleNamespace(major=capability[0], minor=capability[1]))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # older ones emulate it
    assert compute_dtype("cuda") is compute_dtype("cuda:0") is dtype
    assert compute_dtype("cpu") is torch.float32


def test_a_device_gets_the_index_of_its_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [pick_device(device) for device in ("cuda", "cuda:3", "cpu")] == ["cuda:0", "cuda:3", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device("cuda") == "cuda:2"
    with pytest.raises(DataError, match="cuda:7"):
        pick_device("cuda:7")


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:", "cuda:a", "cuda:-1", "gpu", "", "CPU"])
def test_a_device_of_another_kind_is_refused_before_the_model_is_looked_for(device):
    with pytest.raises(DataError, match=repr(device)):
        load_base("/no/such/model", device)


def test_cuda_without_a_gpu_means_the_cpu_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cuda") == "cpu"
    assert re.fullmatch("[^\n]*CUDA.* CPU\n", capsys.readouterr().err)


def test_a_gpu_of_a_number_is_refused_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="cuda:0"):
        pick_device("cuda:0")


# ------------------------------------------------------------------------------------------------ tuned models


@pytest.fixture
def adapter_only(run_folder, tmp_path) -> Path:
    """A checkpoint of which only PEFT's own files were copied."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in (Path(run_folder) / "checkpoint-40").glob("adapter_*"):
        shutil.copy(path, folder)
    return folder


def test_an_adapter_without_its_task_is_asked_the_one_given_or_says_what_it_assumes(base, adapter_only, capsys):
    model, _ = load_tuned(base, str(adapter_only), "cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if "fraud_task.json" in line]
    assert len(said) == 1 and said[0].startswith(str(adapter_only)) and '{"is_fraud": true}' in said[0]
    assert model.lineage.task == Task()
    task = Task(instruction="是不是诈骗？", answers=("是", "否"))
    model, _ = load_tuned(base, str(adapter_only), "cpu", task=task)
    assert model.lineage.task == task and "fraud_task.json" not in capsys.readouterr().err


def test_a_task_is_refused_where_the_checkpoint_has_its_own(base, run_folder):
    with pytest.raises(DataError, match="fraud_task.json"):
        load_tuned(base, run_folder, "cpu", task=Task())
    assert load_tuned(base, "", "cpu", task=Task(instruction="?"))[0].lineage.task.instruction == "?"


def test_an_adapter_that_lacks_layers_is_refused(base, adapter_only):
    path = adapter_only / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if ".layers.1." not in name}, path)
    with pytest.raises(DataError, match="layers.1"):
        load_tuned(base, str(adapter_only), "cpu")


@pytest.mark.parametrize("changed", [{"target_modules": ["q_proj"]}, {"layers_to_transform": [0]}])
def test_an_adapter_of_which_the_settings_have_a_place_for_a_part_alone_is_refused(base, adapter_only, changed):
    path = adapter_only / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    for load in (lambda: load_tuned(base, str(adapter_only), "cpu"), lambda: merge(base, adapter_only)):
        with pytest.raises(DataError, match=r"^\S+/adapter_model.safetensors: .* and \d+ more;") as caught:
            load()
        assert "\n" not in str(caught.value)


def test_an_adapter_of_another_size_is_refused_with_the_sizes(base, adapter_only):
    path = adapter_only / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 8}))
    with pytest.raises(DataError, match=r"^\S+adapter_model.safetensors: .*lora_A.*\[16, 64\].*\[8, 64\]") as caught:
        load_tuned(base, str(adapter_only), "cpu")
    assert "\n" not in str(caught.value)


def test_4_bit_weights_of_a_small_model_are_dequantised_for_scoring_to_the_same_scores(base, run_folder, monkeypatch):
    def four_bit_layers(model):
        return [layer for layer in model.modules() if isinstance(layer, Linear4bit)]

    small, tokenizer = load_tuned(base, run_folder, "cpu")
    monkeypatch.setattr(models, "SMALL", 1024)
    large, _ = load_tuned(base, run_folder, "cpu")
    assert four_bit_layers(large) and not four_bit_layers(small) and four_bit_layers(load_base(base, "cpu")[0])
    assert small.lineage.quantization == large.lineage.quantization and small.lineage.quantization["type"] == "nf4"
    np.testing.assert_array_equal(*(predict(model, tokenizer, ["A: 您好", "B: 请把验证码告诉我"])
                                    for model in (small, large)))


def test_what_is_given_to_the_compiler_while_that_is_put_off_is_compiled_once_when_it_is_first_called(monkeypatch):
    given = []

    def compile_now(function, **options):
        given.append((function.__name__, options))
        return lambda *args: ("compiled", function(*args))

    monkeypatch.setattr(torch, "compile", compile_now)
    with compiling_put_off():
        @torch.compile(dynamic=True)
        def doubled(number):
            return 2 * number

        tripled = torch.compile(lambda number: 3 * number)
    assert torch.compile is compile_now and given == [] and doubled.__name__ == "doubled"
    assert doubled(2) == doubled(2) == ("compiled", 4) and tripled(2) == ("compiled", 6)
    assert given == [("doubled", {"dynamic": True}), ("<lambda>", {})]


def test_libraries_say_nothing_that_a_user_can_do_nothing_about(base):
    code = f"""import antifraud.serving.app, evaluate, peft
base = evaluate.load_model({base!r}, device='cpu')[0]
peft.PeftModel(base, peft.LoraConfig(target_modules=['q_proj']))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(models.__file__).parents[1], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr and "kernels" not in done.stderr, done.stderr


def test_importing_what_judges_does_not_import_the_compiler():
    code = "import sys, evaluate; print('torch._inductor.compile_fx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(models.__file__).parents[1], capture_output=True,
                          text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_attention_does_not_plan_anew_for_every_shape(base):
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_base(base, "cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
