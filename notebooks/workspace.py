"""What every notebook starts with: the model, the dialogues and the device that are here.

    from workspace import find_workspace
    here = find_workspace()

On a GPU that is Qwen2-1.5B-Instruct, trained by README's recipe, on a CPU the tiny Qwen2 of this repository, trained in
minutes; the public dialogues where ``data.fetch`` has brought them, else our sample corpus; and ordinary talk beside
them. Environment variables choose otherwise: FRAUD_MODEL (folder or hub id), FRAUD_DIALOGS (folder of CSV dialogues),
FRAUD_TRAINING (JSON, training arguments). Other dialogues, another model or other arguments have a work folder of their
own.
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
from antifraud.checkpoint import find_checkpoint, newest_complete_checkpoint, read_checkpoint
from antifraud.evaluation.calibration import calibrate_checkpoint
from antifraud.figures import loss_curve
from antifraud.provenance import file_sha256, fingerprint
from data.files import DataError
from data.ordinary import OrdinarySettings
from data.prepare import Settings, prepare
from data.records import Skipped, read_dialogues
from data.sample import write_sample, write_sets
from data.split import SPLITS
from data.stamp import locked, require_same, write_stamp
from trainer import build_loraconfig, build_train_arguments, build_trainer, load_dataset, load_model

PUBLIC = ROOT / "data" / "public"
REAL_MODEL = "Qwen/Qwen2-1.5B-Instruct"
AUGMENT = 0.5  # ASR-noise copies, of the train records; of our sample dialogues as many as in the demo
PER_KIND = 40  # dialogues of ours, of each kind of ordinary talk and of scam, beside given ones
TRAINING = {"max_steps": 1400, "learning_rate": 2e-4, "line_loss_weight": 0.3, "eval_steps": 350, "save_steps": 350}
FALSE_ALARMS = 5  # in a hundred of the ordinary calls that are kept for choosing the threshold
SAMPLE_DIALOGUES, SAMPLE_PER_KIND = 2600, 10
SAMPLE_SHARES = (0.88, 0.05, 0.07)


@dataclass(frozen=True)
class Workspace:
    """Where things are, and how they are trained.

    Attributes:
        model: folder or hub id of the base model; device: ``cuda`` or ``cpu``.
        dialogs: folder of whole dialogues (CSV); train, eval, test: their segments (JSONL), split by dialogue.
        run: where the notebooks' checkpoints lie.
        training: what `build_train_arguments` is told; lora: what `build_loraconfig` is.
        ordinary_eval, ordinary: ordinary talk to choose the threshold on, and to be judged on.
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
    def ordinary_eval(self) -> str:
        return str(self.data / "ordinary_eval.jsonl")

    @property
    def ordinary(self) -> str:
        return str(self.data / "ordinary.jsonl")

    @property
    def name(self) -> str:
        """Of the model."""
        return Path(self.model).name

    def __str__(self) -> str:
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        public = self.dialogs.resolve() == (PUBLIC / "dialogs").resolve()
        corpus = "our sample corpus" if self.ours else f"dialogues of {'the public corpus' if public else self.dialogs}"
        counts = ", ".join(f"{sum(1 for _ in open(self.data / f'{name}.jsonl', 'rb')):,} {name}" for name in SPLITS)
        return f"{self.name} on {gpu}; {corpus}, split by dialogue: {counts}; train has ordinary talk in it, too"


def find_workspace(output: Path = ROOT / "outputs" / "notebooks") -> Workspace:
    """The best that is here; prepares the dialogues the first time, and prints what it is."""
    on_gpu = torch.cuda.is_available()
    model = os.environ.get("FRAUD_MODEL") or (REAL_MODEL if on_gpu else str(demo.BASE))
    given = os.environ.get("FRAUD_DIALOGS") or (
        str(PUBLIC / "dialogs") if on_gpu and (PUBLIC / "dialogs").is_dir() else "")
    tiny = model == str(demo.BASE)
    training = {**(demo.TRAINING | {"use_cpu": True} if tiny else TRAINING),
                **_training_given()}
    lora = {"lora_dropout": demo.LORA_DROPOUT} if tiny else {}
    settings = Settings(augment=AUGMENT) if given else Settings(
        augment=demo.AUGMENT, lengths=demo.SEGMENT_LENGTHS, shares=SAMPLE_SHARES)
    everyday = sorted((PUBLIC / "everyday").glob("*.csv")) if given else []
    facts = {"dialogs": _content(Path(given)) if given else f"sample of {SAMPLE_DIALOGUES}",
             "everyday": {path.name: file_sha256(path) for path in everyday},
             "per_kind": PER_KIND if given else SAMPLE_PER_KIND, "lengths": settings.lengths,
             "shares": settings.shares, "augment": settings.augment,
             "model": fingerprint(model) if Path(model).is_dir() else model, "training": training, "lora": lora}
    known_by = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    folder = output / f"{Path(model).name}-{'given' if given else 'sample'}-{known_by}"
    here = Workspace(model, "cuda" if on_gpu else "cpu", Path(given) if given else folder / "dialogs", folder / "data",
                     folder / "run", not given, training, lora)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); name a folder that can: "
                        "find_workspace(Path(...))") from None
    with locked(folder, "", wait=True):  # notebooks that run side by side wait, and find it made
        if (folder / "data" / "test.jsonl").is_file():
            require_same(folder, facts, "remove it")
        else:
            write_stamp(folder, facts)
            _prepare(here, settings, everyday, facts["per_kind"])
    print(here)
    return here


def _training_given() -> dict:
    """FRAUD_TRAINING."""
    said = os.environ.get("FRAUD_TRAINING") or "{}"
    try:
        given = json.loads(said)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise DataError(f"FRAUD_TRAINING={said}: not a JSON object; an example is "
                        '{"max_steps": 200, "learning_rate": 0.0005}')
    return given


def _prepare(here: Workspace, settings: Settings, everyday: list[Path], per_kind: int) -> None:
    """As README does it; kinds that the dialogues are of are not in the sets that stand beside them."""
    sets = here.data.parent / "sets"
    write_sets(sets, per_kind)
    if here.ours:
        write_sample(here.dialogs, SAMPLE_DIALOGUES)
    for path in [*sets.glob("*/*.csv")]:
        if (here.dialogs / path.name).exists():
            path.unlink()
    judged = [path for path in everyday if path.stem == "kdconv"]
    ordinary = OrdinarySettings([path for path in everyday if path not in judged] + [sets / "sample_ordinary_train"],
                                [*judged, sets / "sample_ordinary_judge"], [sets / "sample_ordinary_choose"],
                                train_share=None)
    prepare(here.dialogs, here.data, replace(settings, ordinary=ordinary, train_only=[] if here.ours else [
        sets / "sample_scams_train"]))


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
    """The folder of a finished and calibrated training run, which ``evaluate.load_model`` takes.

    Trains and calibrates the first time. A training that was stopped before its end goes on.
    """
    with locked(here.run.parent, "", wait=True):
        if not _is_finished(here.run):
            _train(here)
        if not read_checkpoint(find_checkpoint(here.run)).calibration:
            calibrate(here)
    return str(here.run)


def calibrate(here: Workspace) -> dict:
    """Finds the decision of the best F1 on eval with few alarms in ordinary calls; keeps it with the checkpoint."""
    return calibrate_checkpoint(here.model, str(here.run), here.eval, here.device, ordinary=[here.ordinary_eval],
                                false_alarms=FALSE_ALARMS, best_f1=True, progress=False)


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
    trainer.add_callback(SaidSteps(here.run))
    trainer.train(resume_from_checkpoint=True)  # where there is something to go on from


class SaidSteps(TrainerCallback):
    """Says on stderr, which no notebook keeps, that a training runs and how far it is."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        done = f" from step {state.global_step:,} on" if state.global_step else ""
        print(f"no finished training in {self.run}: it trains now{done}, {state.max_steps:,} steps in all",
              file=sys.stderr)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        print(f"step {state.global_step:,} of {state.max_steps:,}: eval loss {metrics['eval_loss']:.4f}",
              file=sys.stderr)


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
