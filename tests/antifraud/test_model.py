"""Models: fetched from hubs as far as needed, kept for the day without a network, loaded as asked for."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from helpers import save_tiny_qwen2
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from antifraud import model as models
from antifraud.evaluation.scoring import inference
from antifraud.logits import label_logits_at
from antifraud.model import compute_dtype, load_base, load_tuned, locate_model, pick_device
from data.files import DataError
from data.prompt import Task

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = ("pytorch_model.bin", "modeling_tiny.py", "README.md", "consolidated.safetensors", "onnx/model.safetensors")


# ---------------------------------------------------------------------------------------------- Hugging Face


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as fetching one model takes."""

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, repo = self.path.split("?")[0], "someone/tiny-qwen2"
        folder = self.server.folder
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        if path == f"/api/models/{repo}/revision/main":
            self._send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}), with_body)
        elif path == f"/api/models/{repo}/tree/{COMMIT}":
            listing = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                       for name, file in files.items()]
            self._send(200, json.dumps(listing), with_body)
        elif path.startswith(f"/{repo}/resolve/{COMMIT}/"):
            name = path.split(COMMIT + "/")[1]
            if with_body:
                self.server.fetched.append(name)
            self._send(200, files[name].read_bytes(), with_body, ETag=f'"{_etag(files[name])}"',
                       **{"X-Repo-Commit": COMMIT})
        else:
            self._send(401, "", with_body, **{"X-Error-Code": "RepoNotFound"})

    def _send(self, code: int, body: str | bytes, with_body: bool, **headers) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class HangsUp(http.server.BaseHTTPRequestHandler):
    """A box on the way that takes connections and drops them."""

    def handle(self):
        self.connection.recv(1024)


class LocalHub:
    """The hub on a port of this machine: `up`, `down` (refuses connections) or `broken` (drops them)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched, self.port, self.server = folder, [], 0, None

    def up(self, handler=Hub) -> None:
        self.down()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.folder, self.server.fetched, self.port = self.folder, self.fetched, self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def broken(self) -> None:
        self.up(HangsUp)

    def down(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


LOADS_WHAT_IT_IS_TOLD = """
import contextlib, io, json, sys
import huggingface_hub.constants
from data.files import DataError
from antifraud.model import load_base

for line in sys.stdin:
    model_id, huggingface_hub.constants.HF_HUB_OFFLINE = json.loads(line)
    notices = io.StringIO()
    with contextlib.redirect_stderr(notices):
        try:
            model, tokenizer = load_base(model_id, "cpu")
            found = [type(model).__name__, tokenizer.eos_token, model.lineage.base["name"]]
        except DataError as error:
            found = str(error)
    print(json.dumps([found, notices.getvalue()]), flush=True)
"""
LOADED = ["Qwen2ForCausalLM", "<|im_end|>", "tiny-qwen2"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    save_tiny_qwen2(folder)
    for name in UNWANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('not to be run')")
    hub = LocalHub(folder)
    hub.up()
    yield hub
    hub.down()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def load(hub, cache):
    """Loads an id with the real code in a process whose hub is ours; returns (what was loaded or the error, notices).

    The model is fetched once before any test.
    """
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS_WHAT_IT_IS_TOLD], cwd=ROOT, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**clean, "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_HOME": str(cache),
             "HF_HUB_DISABLE_PROGRESS_BARS": "1"})

    def ask(model_id: str, offline: bool = False):
        process.stdin.write(json.dumps([model_id, offline]) + "\n")
        return json.loads(process.stdout.readline())

    assert ask("someone/tiny-qwen2")[0] == LOADED
    yield ask
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_a_hub_id_fetches_config_tokenizer_and_safetensors_and_nothing_else(hub, load, cache):
    expected = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
                "tokenizer.json", "tokenizer_config.json"]
    assert sorted(hub.fetched) == expected
    snapshot = cache / "hub" / "models--someone--tiny-qwen2" / "snapshots" / COMMIT
    assert sorted(path.name for path in snapshot.iterdir()) == expected


def test_a_model_fetched_once_is_not_fetched_again_and_loads_without_a_network(hub, load):
    fetched = len(hub.fetched)
    assert load("someone/tiny-qwen2")[0] == LOADED
    assert load("someone/tiny-qwen2", offline=True)[0] == LOADED
    hub.down()
    assert load("someone/tiny-qwen2")[0] == LOADED
    hub.up()
    assert len(hub.fetched) == fetched


def test_a_broken_connection_is_named_and_the_copy_on_this_machine_taken(hub, load):
    hub.broken()
    found, notices = load("someone/tiny-qwen2")
    hub.up()
    assert found == LOADED and "someone/tiny-qwen2: using the copy on this machine (" in notices


def test_ids_that_cannot_be_fetched_are_one_line_each(hub, load):
    unknown = load("someone/unknown")[0]
    assert unknown.startswith("someone/unknown: no such folder, and no such model to fetch: RepositoryNotFoundError: ")
    assert "HFValidationError" in load("no such id at all!")[0]
    offline = load("someone/unknown", offline=True)[0]
    assert "LocalEntryNotFoundError: Cannot find an appropriate cached snapshot" in offline
    hub.down()
    unreachable = load("someone/unknown")[0]
    hub.up()
    assert "Connection refused" in unreachable
    assert not any("\n" in message for message in (unknown, offline, unreachable))


def test_python_files_come_only_with_trust_remote_code(hub, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download",
                        lambda model_id, **options: asked.append(options["allow_patterns"]) or str(hub.folder))
    load_base("someone/tiny-qwen2", "cpu", trust_remote_code=True)
    load_base("someone/tiny-qwen2", "cpu")
    assert "*.py" in asked[0] and "*.py" not in asked[1] and models.MODEL_FILES == asked[1]


# ---------------------------------------------------------------------------------------------- ModelScope


@pytest.fixture
def modelscope(base, tmp_path, monkeypatch):
    """A stub of the ModelScope package; ``calls`` holds (id, options), ``reachable`` says whether there is a network.

    Its signature is that of modelscope 1.40.2, which unlike Hugging Face's raises without a network even when the
    model is on this machine.
    """
    folder = tmp_path / "models" / "Qwen--Qwen2-1.5B-Instruct" / "snapshots" / "master"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(base, target_is_directory=True)
    (tmp_path / "modelscope.py").write_text(f"""
calls, reachable = [], True

def snapshot_download(model_id=None, revision=None, cache_dir=None, user_agent=None, local_files_only=False,
                      cookies=None, ignore_file_pattern=None, allow_file_pattern=None, local_dir=None,
                      allow_patterns=None, ignore_patterns=None, max_workers=None, repo_id=None, repo_type=None,
                      progress_callbacks=None, token=None, endpoint=None):
    calls.append((model_id, allow_patterns, ignore_patterns, local_files_only))
    if not model_id.startswith("Qwen/") or not (reachable or local_files_only):
        raise ConnectionError("[E1020] Connection failed")
    return {str(folder)!r}
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    yield __import__("modelscope")
    sys.modules.pop("modelscope", None)


def test_a_modelscope_id_fetches_the_same_files(modelscope, base):
    model, _ = load_base("modelscope:Qwen/Qwen2-1.5B-Instruct", "cpu")
    assert modelscope.calls == [("Qwen/Qwen2-1.5B-Instruct", models.MODEL_FILES, models.OTHER_FORMATS, False)]
    assert model.lineage.base["fingerprint"] == load_base(base, "cpu")[0].lineage.base["fingerprint"]


def test_a_modelscope_model_fetched_once_loads_without_a_network(modelscope, capsys):
    modelscope.reachable = False
    assert Path(locate_model("modelscope:Qwen/Qwen2-1.5B-Instruct"), "config.json").is_file()
    assert "using the copy on this machine (ConnectionError: [E1020]" in capsys.readouterr().err


def test_an_unknown_modelscope_id_is_one_line(modelscope):
    with pytest.raises(DataError, match="^modelscope:nobody/none: .* no such model to fetch: ConnectionError: .*$"):
        locate_model("modelscope:nobody/none")


def test_without_the_modelscope_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(DataError, match=r"^modelscope:Qwen/Qwen2: .*pip install modelscope$"):
        locate_model("modelscope:Qwen/Qwen2")


# ---------------------------------------------------------------------------------------------- folders


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


def test_weights_that_are_not_safetensors_are_not_loaded(tmp_path):
    save_tiny_qwen2(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="model.safetensors"):
        load_base(str(tmp_path), "cpu")


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


def test_a_configuration_of_ones_own_is_taken_as_it_is(base):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)
    model, _ = load_base(base, "cpu", quantization=config)
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "fp4"
    assert model.lineage.quantization == {"type": "fp4", "double": True}
    assert load_base(base, "cpu", quantization=None)[0].lineage.quantization["type"] == "none"
    assert "int4" in refusal(base, quantization="int4")


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
    assert pick_device("cuda") == pick_device("cuda:1") == "cpu"
    assert capsys.readouterr().err == "no CUDA device here: using the CPU\n" * 2


# ------------------------------------------------------------------------------------------------- label logits


@pytest.fixture
def in_16_bit(tmp_path):
    """(model, input ids, positions): a base in bf16, unquantised, and the last token of two rows."""
    save_tiny_qwen2(tmp_path / "base")
    model = load_base(str(tmp_path / "base"), "cpu", quantization="none")[0].to(torch.bfloat16)
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
