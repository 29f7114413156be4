"""What every notebook starts with: the model, the dialogues and the device that are here.

    import sys; sys.path.insert(0, "..")
    from workspace import find_workspace
    here = find_workspace()

On a GPU that is Qwen2-1.5B-Instruct, on a CPU the tiny Qwen2 of this repository, trained in minutes; the public
dialogues where ``data.fetch`` has brought them, else our sample corpus. Environment variables choose otherwise:
FRAUD_MODEL (folder or hub id), FRAUD_DIALOGS (folder of CSV dialogues), FRAUD_TRAINING (JSON, training arguments).
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from filelock import FileLock
from transformers import PrinterCallback, TrainerCallback

from antifraud import demo
from antifraud.checkpoint import checkpoints_in
from antifraud.figures import loss_curve
from data.prepare import Settings, prepare
from data.records import Skipped, read_dialogues
from data.sample import write_sample
from data.split import SPLITS
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

PUBLIC_DIALOGS = ROOT / "data" / "public" / "dialogs"
REAL_MODEL = "Qwen/Qwen2-1.5B-Instruct"
STAND_IN = """\
This run did not have Qwen2-1.5B-Instruct's own weights: {name} stands in for it. What is said of Qwen2-1.5B's
memory and speed was measured on its real architecture, with random weights."""
SAMPLE_DIALOGUES = 4000
TRAINING = {"line_loss_weight": 0.3}  # beside the article's arguments


@dataclass(frozen=True)
class Workspace:
    """Where things are, and how they are trained.

    Attributes:
        model: folder or hub id of the base model; device: ``cuda`` or ``cpu``.
        dialogs: folder of whole dialogues (CSV); train, eval, test: their pieces (JSONL), split by dialogue.
        run: where the notebooks' checkpoints lie.
        training: what `build_train_arguments` is told; lora: what `build_loraconfig` is.
        ours: whether the dialogues are our sample corpus, whose text may be shown.
    """

    model: str
    device: str
    dialogs: Path
    data: Path
    run: Path
    ours: bool
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
        name = Path(self.model).name
        line = f"{name} on {gpu}; {corpus}, split by dialogue: {counts}"
        return line if name == Path(REAL_MODEL).name else f"{line}\n{STAND_IN.format(name=name)}"


def find_workspace(output: Path = ROOT / "outputs" / "notebooks") -> Workspace:
    """The best that is here; prepares the dialogues the first time, and prints what it is."""
    on_gpu = torch.cuda.is_available()
    model = os.environ.get("FRAUD_MODEL") or (REAL_MODEL if on_gpu else str(demo.BASE))
    given = os.environ.get("FRAUD_DIALOGS") or (str(PUBLIC_DIALOGS) if on_gpu and PUBLIC_DIALOGS.is_dir() else "")
    folder = output / f"{Path(model).name}-{'given' if given else 'sample'}"
    dialogs = Path(given) if given else folder / "dialogs"
    with only_one(folder / "data"):
        if not (folder / "data" / "test.jsonl").is_file():
            if not given:
                write_sample(dialogs, SAMPLE_DIALOGUES)
            lengths = {} if given else {"lengths": demo.PIECE_LENGTHS, "shares": demo.SHARES}
            prepare(dialogs, folder / "data", Settings(augment=demo.NOISY_COPIES, **lengths))
    tiny = model == str(demo.BASE)
    training = demo.TRAINING if tiny else TRAINING
    here = Workspace(model, "cuda" if on_gpu else "cpu", dialogs, folder / "data", folder / "run", ours=not given,
                     training={**training, **json.loads(os.environ.get("FRAUD_TRAINING", "{}"))},
                     lora={"lora_dropout": demo.LORA_DROPOUT} if tiny else {})
    print(here)
    return here


def only_one(folder: Path) -> FileLock:
    """Lets one notebook at a time make `folder`; those that run beside it wait, and find it made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_suffix(".lock"))


def whole_dialogues(here: Workspace) -> list:
    """The dialogues that the splits are cut from."""
    return read_dialogues(here.dialogs, Skipped())


def trained_checkpoint(here: Workspace) -> str:
    """The folder of a finished training run, which ``evaluate.load_model`` takes; trains the first time."""
    with only_one(here.run):
        if not checkpoints_in(here.run):
            _train(here)
    return str(here.run)


def _train(here: Workspace) -> None:
    model, tokenizer = load_model(here.model, here.device)
    train_dataset, eval_dataset = load_dataset(here.train, here.eval, tokenizer)
    arguments = build_train_arguments(str(here.run), disable_tqdm=True, **here.training)
    trainer = build_trainer(model, tokenizer, arguments, build_loraconfig(**here.lora), train_dataset, eval_dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


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
