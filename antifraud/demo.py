"""The whole job with the commands that a user types: sample corpus, tiny Qwen2, NF4 + LoRA, training, evaluation.

    python -m antifraud.demo --output outputs/demo

On a CPU, in minutes, without a network. Whole kinds of scam and of ordinary talk are kept out of training, so that two
reports come out: on dialogues of kinds that were trained on, and on kinds never seen. The sample dialogues were written
for this project; how well a tiny model learns them says nothing about real calls.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.command import command
from data.files import DataError

from .evaluation.metrics import figure_text, interval_text

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data" / "tiny-qwen2"
DIALOGUES = 2400
UNSEEN_KINDS = ("快递理赔", "虚拟货币", "养老保健品", "租房诈骗", "快递派送", "公司业务会议", "医院随访", "房东租房")
SEGMENT_LENGTHS = (500,)  # characters; the sample dialogues are short and judged whole
SHARES = (0.9, 0.04, 0.06)
UNSEEN_SHARES = (0.5, 0.35, 0.15)  # only the last of them is used
AUGMENT = 0.25  # copies with ASR noise, of the train records; without them noise costs the tiny model more recall
# A tiny model needs more and larger steps than Qwen2-1.5B, and has nothing to gain from dropout.
TRAINING = {"num_train_epochs": 1, "learning_rate": 3e-3, "line_loss_weight": 0.3, "eval_steps": 200, "save_steps": 200,
            "per_device_train_batch_size": 8, "per_device_eval_batch_size": 64}
LORA_DROPOUT = 0.0


def run(output: str | Path, *, dialogues: int = DIALOGUES, seed: int = 0) -> dict[str, dict]:
    """Runs the commands; returns the report on known kinds and the one on kinds that were never seen.

    Raises:
        DataError: a command failed; it has said why.
    """
    output = Path(output)
    names = "dialogs", "dialogs_unseen", "data", "data_unseen", "run"
    for name in names:
        shutil.rmtree(output / name, ignore_errors=True)  # only ever what an earlier demo left there
    known, unseen, data, data_unseen, trained = (output / name for name in names)
    _run("-m", "data.sample", "--output", known, "--dialogues", dialogues, "--seed", seed)
    _move_unseen_kinds(known, unseen)
    for source, target, options in ((known, data, ("--shares", *SHARES, "--augment", AUGMENT)),
                                    (unseen, data_unseen, ("--shares", *UNSEEN_SHARES))):
        _run("-m", "data.prepare", "--source", source, "--output", target, "--lengths", *SEGMENT_LENGTHS, *options,
             "--seed", seed)
    _run("trainer.py", "--model", BASE, "--train", data / "train.jsonl", "--eval", data / "eval.jsonl",
         "--output", trained, "--device", "cpu", "--lora-dropout", LORA_DROPOUT, "--seed", seed,
         *(word for name, value in TRAINING.items() for word in (f"--{name.replace('_', '-')}", value)))
    reports = {"known kinds": output / "report.json", "kinds never seen": output / "report_unseen_kinds.json"}
    with ThreadPoolExecutor() as side_by_side:  # with a thread each, they take two thirds of the time
        list(side_by_side.map(lambda path, tested: _run(
            "evaluate.py", "--model", BASE, "--checkpoint", trained, "--data", tested / "test.jsonl",
            "--device", "cpu", "--full", "--output", path, threads=1), reports.values(), (data, data_unseen)))
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items()}


def _move_unseen_kinds(known: Path, unseen: Path) -> None:
    source, target = (shlex.quote(_word(folder)) for folder in (known, unseen))
    print(f"\n$ mkdir {target} && mv {source}/{{{','.join(UNSEEN_KINDS)}}}.csv {target}", flush=True)
    unseen.mkdir()
    for kind in UNSEEN_KINDS:
        shutil.move(known / f"{kind}.csv", unseen)


def _run(*words: object, threads: int | None = None) -> None:
    """Prints and runs a command of this project; what it says is shown only if it fails."""
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    words = [_word(word) for word in words]
    print(f"\n$ {' '.join([*(f'{name}={value}' for name, value in limit.items()), 'python'])} {shlex.join(words)}",
          flush=True)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, text=True, encoding="utf-8", errors="replace",
                          env={**os.environ, **limit}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise DataError(f"{words[words[0] == '-m']} ended with exit code {done.returncode}")


def _word(word: object) -> str:
    """As it is typed in the project's folder, where the commands run."""
    return str(word.relative_to(ROOT) if isinstance(word, Path) and word.is_relative_to(ROOT) else word)


def summary(reports: Mapping[str, dict]) -> list[str]:
    """One screen: precision, recall and F1 with intervals on each set of dialogues, TF-IDF beside."""
    lines = []
    for name, report in reports.items():
        beside = (report["baselines"] or {}).get("tfidf") or {}
        beside = beside.get("at_threshold") or beside
        frauds = report["tp"] + report["fn"]
        lines.append(f"\n{name}: {report['n']} dialogues, {frauds} of them fraud; {report['fn']} missed, "
                     f"{report['fp']} false alarms")
        lines.append(f"  {'':<11}{'this model':<12}{'95 % interval':<20}TF-IDF")
        lines += [f"  {figure:<11}{figure_text(report[figure]):<12}{interval_text(report['intervals'][figure]):<20}"
                  f"{figure_text(beside.get(figure))}" for figure in ("precision", "recall", "f1")]
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m antifraud.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/demo", help="default: %(default)s")
    parser.add_argument("--dialogues", type=int, default=DIALOGUES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the training (default: %(default)s)")
    args = parser.parse_args(argv)
    output = Path(args.output).resolve()
    reports = run(output, dialogues=args.dialogues, seed=args.seed)
    print(*summary(reports), sep="\n")
    print(f"\nwritten to {shlex.quote(args.output)}: report.json, report_unseen_kinds.json, their pictures, "
          "run/loss_curve.png, run/checkpoint-N")
    return 0


if __name__ == "__main__":
    sys.exit(main())
