"""What every notebook starts with: the model, the dialogues and the device that are here.

    from workspace import find_workspace
    here = find_workspace()

On a GPU that is Qwen2-1.5B-Instruct, on a CPU the tiny Qwen2 of this repository, trained in minutes; the public
dialogues where ``data.fetch`` has brought them, else our sample corpus. Environment variables choose otherwise:
FRAUD_MODEL (folder or hub id), FRAUD_DIALOGS (folder of CSV dialogues), FRAUD_TRAINING (JSON, training arguments).
Other dialogues, another model or other arguments have a work folder of their own.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from transformers import PrinterCallback, TrainerCallback

from antifraud import demo
from antifraud.checkpoint import newest_complete_checkpoint
from antifraud.figures import loss_curve
from antifraud.provenance import file_sha256, fingerprint
from data.files import DataError
from data.prepare import Settings, prepare
from data.records import Skipped, read_dialogues
from data.sample import write_sample
from data.split import SPLITS
from data.stamp import locked, require_same, write_stamp
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

PUBLIC_DIALOGS = ROOT / "data" / "public" / "dialogs"
REAL_MODEL = "Qwen/Qwen2-1.5B-Instruct"
SAMPLE_DIALOGUES = 2600
SAMPLE_SHARES = (0.88, 0.05, 0.07)
AUGMENT = 0.5  # ASR-noise copies, of the train records; of our sample dialogues as many as in the demo
SAMPLE_IN_TRAIN = 600  # dialogues of ours beside given ones: those that notebooks show are of a kind that was learnt
# Beside the article's arguments; README's recipe has another learning rate, and ordinary talk.
TRAINING = {"num_train_epochs": 0.5, "line_loss_weight": 0.3, "eval_steps": 350, "save_steps": 350}


@dataclass(frozen=True)
class Workspace:
    """Where things are, and how they are trained.

    Attributes:
        model: folder or hub id of the base model; device: ``cuda`` or ``cpu``.
        dialogs: folder of whole dialogues (CSV); train, eval, test: their segments (JSONL), split by dialogue.
        run: where the notebooks' checkpoints lie.
        training: what `build_train_arguments` is told; lora: what `build_loraconfig` is.
        ours: whether the dialogues are our sample corpus, whose text may be shown.
        sample_in_train: how many of our sample dialogues are in train beside given ones.
    """

    model: str
    device: str
    dialogs: Path
    data: Path
    run: Path
    ours: bool
    sample_in_train: int = 0
    training: dict = field(default_factory=dict)
    lora: dict = field(default_factory=dict)

    @property
    def train(self) -> str:
        return str(self.data / "train.jsonl")

    @property
    def eval(self) -> str:
        return str(self.data / "eval.jsonl")

    @property
    def test(self) -> str:
        return str(self.data / "test.jsonl")

    @property
    def name(self) -> str:
        """Of the model."""
        return Path(self.model).name

    def __str__(self) -> str:
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        corpus = "our sample corpus" if self.ours else "dialogues of the public corpus"
        counts = ", ".join(f"{sum(1 for _ in open(self.data / f'{name}.jsonl', 'rb')):,} {name}" for name in SPLITS)
        mixed = f"; train has {self.sample_in_train:,} dialogues of our sample corpus, too" if not self.ours else ""
        return f"{self.name} on {gpu}; {corpus}, split by dialogue: {counts}{mixed}"


def find_workspace(output: Path = ROOT / "outputs" / "notebooks") -> Workspace:
    """The best that is here; prepares the dialogues the first time, and prints what it is."""
    on_gpu = torch.cuda.is_available()
    model = os.environ.get("FRAUD_MODEL") or (REAL_MODEL if on_gpu else str(demo.BASE))
    given = os.environ.get("FRAUD_DIALOGS") or (str(PUBLIC_DIALOGS) if on_gpu and PUBLIC_DIALOGS.is_dir() else "")
    tiny = model == str(demo.BASE)
    training = {**(demo.TRAINING | {"use_cpu": True} if tiny else TRAINING),
                **json.loads(os.environ.get("FRAUD_TRAINING", "{}"))}
    lora = {"lora_dropout": demo.LORA_DROPOUT} if tiny else {}
    settings = Settings(augment=AUGMENT) if given else Settings(
        augment=demo.AUGMENT, lengths=demo.SEGMENT_LENGTHS, shares=SAMPLE_SHARES)
    facts = {"dialogs": _content(Path(given)) if given else f"sample of {SAMPLE_DIALOGUES}",
             "sample_in_train": SAMPLE_IN_TRAIN if given else 0, "lengths": settings.lengths,
             "shares": settings.shares, "augment": settings.augment,
             "model": fingerprint(model) if Path(model).is_dir() else model, "training": training, "lora": lora}
    known_by = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    folder = output / f"{Path(model).name}-{'given' if given else 'sample'}-{known_by}"
    here = Workspace(model, "cuda" if on_gpu else "cpu", Path(given) if given else folder / "dialogs", folder / "data",
                     folder / "run", not given, facts["sample_in_train"], training, lora)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "", wait=True):  # notebooks that run side by side wait, and find it made
        if (folder / "data" / "test.jsonl").is_file():
            require_same(folder, facts, "remove it")
        else:
            write_stamp(folder, facts)
            _prepare(here, settings)
    print(here)
    return here


def _prepare(here: Workspace, settings: Settings) -> None:
    if here.ours:
        write_sample(here.dialogs, SAMPLE_DIALOGUES)
    else:
        write_sample(here.data.parent / "sample", here.sample_in_train)
        settings = replace(settings, train_only=[here.data.parent / "sample"])
    prepare(here.dialogs, here.data, settings)


def _content(dialogs: Path) -> str:
    """One hash of the names and bytes of all CSV files."""
    files = sorted(dialogs.rglob("*.csv")) if dialogs.is_dir() else [dialogs]
    try:
        said = [[path.relative_to(dialogs).as_posix(), file_sha256(path)] for path in files]
    except OSError as error:
        raise DataError(f"FRAUD_DIALOGS={dialogs}: {error.strerror}") from None
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def whole_dialogues(here: Workspace) -> list:
    """The dialogues that the splits are cut from."""
    return read_dialogues(here.dialogs, Skipped())


def trained_checkpoint(here: Workspace) -> str:
    """The folder of a finished training run, which ``evaluate.load_model`` takes; trains the first time.

    A training that was stopped before its end goes on.
    """
    with locked(here.run.parent, "", wait=True):
        if not _is_finished(here.run):
            _train(here)
    return str(here.run)


def _is_finished(run: Path) -> bool:
    newest, _ = newest_complete_checkpoint(run)
    if newest is None:
        return False
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]


def _train(here: Workspace) -> None:
    model, tokenizer = load_model(here.model, here.device)
    train_dataset, eval_dataset = load_dataset(here.train, here.eval, tokenizer)
    arguments = build_train_arguments(str(here.run), disable_tqdm=True, **here.training)
    trainer = build_trainer(model, tokenizer, arguments, build_loraconfig(**here.lora), train_dataset, eval_dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=True)  # where there is something to go on from


class LiveCurve(TrainerCallback):
    """Draws the loss curve in a notebook while training runs, and leaves the last one."""

    def __init__(self) -> None:
        self.display = None

    def on_log(self, args, state, control, **kwargs):
        from IPython.display import display

        picture = loss_curve(state.log_history)
        if self.display is None:
            self.display = display(picture, display_id=True)
        else:
            self.display.update(picture)
