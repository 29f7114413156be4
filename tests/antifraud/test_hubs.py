"""Models are fetched from hubs as far as needed, and kept for the day without a network."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import save_tiny_qwen2

from antifraud import model as models
from antifraud.model import load_base, locate_model
from data.files import DataError

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
    assert found == LOADED and notices.startswith("someone/tiny-qwen2: ")


def test_ids_that_cannot_be_fetched_are_one_line_each(hub, load):
    unknown = load("someone/unknown")[0]
    assert unknown.startswith("someone/unknown: ") and "RepositoryNotFoundError: " in unknown
    assert "HFValidationError" in load("no such id at all!")[0]
    offline = load("someone/unknown", offline=True)[0]
    assert "LocalEntryNotFoundError: " in offline
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
    assert "(ConnectionError: [E1020]" in capsys.readouterr().err


def test_an_unknown_modelscope_id_is_one_line(modelscope):
    with pytest.raises(DataError, match=r"^modelscope:nobody/none: .*ConnectionError: .* give a folder, or model"):
        locate_model("modelscope:nobody/none")


def test_without_the_modelscope_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(DataError, match=r"^modelscope:Qwen/Qwen2: .*pip install modelscope$"):
        locate_model("modelscope:Qwen/Qwen2")
