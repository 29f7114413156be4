"""What a start costs: seconds from the start of the process to the first training step, and to the first scored row.

    python -m benchmarks.startup --model MODEL [--checkpoint DIR] --train F --data F --output results/startup.json

New processes go through what ``trainer.py`` and ``evaluate.py`` do, part by part, and read the clock after each. Every
process is started twice: the first time fills the disk cache, the second is reported. A first step that captures CUDA
graphs is measured as it is; compiling, which only long runs do, is not in it. Python notes the time of each import,
which makes the imports a few per cent longer. MODEL may be config and tokenizer alone, as for `benchmarks.training`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from antifraud.model import default_device, locate_model
from antifraud.provenance import code_provenance, device_name
from benchmarks import refusing_in_a_line
from benchmarks.training import folder_with_weights
from data.files import DataError, write_json

ROOT = Path(__file__).parents[1]
INTERPRETER = "Python itself"
# The parts of a start, each with its code; the variables in capitals are given.
TRAINING = {
    "imports": "import trainer",
    "model": "model, tokenizer = trainer.load_model(MODEL, DEVICE)",
    "data": "train, held_out = trainer.load_dataset(TRAIN, DATA, tokenizer)",
    "trainer": """
args = trainer.build_train_arguments(
    OUTPUT, max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, disable_tqdm=True,
    use_cpu=DEVICE == "cpu")
built = trainer.build_trainer(model, tokenizer, args, trainer.build_loraconfig(), train, held_out)
""",
    "first step": "built.train()",
}
SCORING = {
    "imports": "import evaluate",
    "model": "model, tokenizer = evaluate.load_model(MODEL, CHECKPOINT, DEVICE)",
    "data": """
from checkpoints import lineage_of
from data.prompt import PromptEncoder
from data.records import Skipped, read_records
encoder = PromptEncoder(tokenizer, lineage_of(model).task)
prompts = encoder.prompts([record["input"] for record in read_records(DATA, Skipped())[:1]])
""",
    "first row": """
from scoring import score_prompts
score_prompts(model, encoder, prompts)
""",
}
# What a new process runs: only the standard library's fastest modules, so that it finds nothing imported already.
CHILD = """
import json, sys, time
clock = [time.time()]
parts, names = json.loads(sys.argv[1])
for code in parts:
    exec(code, names)
    clock.append(time.time())
print(json.dumps(clock))
"""
IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([^\s.]+)")  # of ``python -X importtime``
PACKAGES_SHOWN = 10


def start(parts: Mapping[str, str], names: Mapping[str, str] | None = None) -> dict:
    """Runs the code of `parts` in a new process, in which `names` are defined.

    Returns:
        ``seconds`` from the start of the process to the end of the last part; ``parts``, the same by part, the
        interpreter's own start before them; ``imports``, the packages that took longest, with the seconds that their
        own modules took, whichever part imported them.

    Raises:
        DataError: the process failed; says what it wrote last.
    """
    task = json.dumps([list(parts.values()), names or {}])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.time()
    child = subprocess.run([sys.executable, "-X", "importtime", "-c", CHILD, task], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": path})
    if child.returncode:
        said = [line for line in child.stderr.splitlines() if line.strip() and not IMPORT_TIME.match(line)]
        raise DataError(f"a start failed: {said[-1] if said else f'exit code {child.returncode}'}")
    clock = [began, *json.loads(child.stdout.splitlines()[-1])]
    spent = {name: after - before for name, before, after in zip([INTERPRETER, *parts], clock, clock[1:])}
    return {"seconds": clock[-1] - began, "parts": spent, "imports": seconds_by_package(child.stderr)}


def seconds_by_package(log: str) -> dict[str, float]:
    """The packages that took longest to import, by what ``-X importtime`` wrote; the longest first."""
    microseconds = Counter()
    for own, package in IMPORT_TIME.findall(log):
        microseconds[package] += int(own)
    return {package: total / 1e6 for package, total in microseconds.most_common(PACKAGES_SHOWN)}


def measure(parts: Mapping[str, str], names: Mapping[str, str]) -> dict:
    """The second of two starts, with the seconds of the first, cold one."""
    cold = start(parts, names)
    return {**start(parts, names), "seconds_of_a_first_start": cold["seconds"]}


def run(model: str, train: str, data: str, *, checkpoint: str = "", device: str) -> dict:
    """Both starts, for the files of a project and `device` (``cuda``, ``cuda:N`` or ``cpu``)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(locate_model(model), f"{scratch}/model", device)
        names = {"MODEL": folder, "CHECKPOINT": checkpoint, "TRAIN": train, "DATA": data, "DEVICE": device,
                 "OUTPUT": f"{scratch}/run"}
        torch.cuda.empty_cache()  # the processes that follow shall have the GPU's memory
        found = {"training": measure(TRAINING, names), "scoring": measure(SCORING, names)}
    return {
        **found,
        "device": device_name(device),
        "provenance": {"model": Path(model).resolve().name, "train": Path(train).name, "data": Path(data).name,
                       "checkpoint": Path(checkpoint).name or None, **code_provenance()},
    }


def table(report: dict) -> str:
    """Seconds of both starts by part, as a Markdown table, and below it what the imports were spent on."""
    lines = ["| seconds spent on | to the first training step | to the first scored row |", "|---|---|---|"]
    parts = [report[name]["parts"] for name in ("training", "scoring")]
    for part in dict.fromkeys(name for found in parts for name in found):
        cells = [f"{found[part]:.2f}" if part in found else "-" for found in parts]
        lines.append(f"| {part} | {cells[0]} | {cells[1]} |")
    lines.append(f"| **all** | **{report['training']['seconds']:.2f}** | **{report['scoring']['seconds']:.2f}** |")
    for name in ("training", "scoring"):
        imports = ", ".join(f"{package} {seconds:.2f}" for package, seconds in report[name]["imports"].items())
        lines.append(f"\nImported for {name}, seconds in each package's own modules: {imports}.")
    return "\n".join(lines)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or one with config and tokenizer alone")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder; default: the untuned model")
    parser.add_argument("--train", required=True, help="JSONL records to train on")
    parser.add_argument("--data", required=True, help="JSONL records to evaluate; the first one is scored")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/startup.json")
    args = parser.parse_args(argv)
    report = run(args.model, args.train, args.data, checkpoint=args.checkpoint, device=args.device)
    write_json(args.output, report)
    print(table(report))
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
