"""What a figure was made from: models and data by their fingerprints, versions, commit, device."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import struct
import subprocess
from pathlib import Path

import torch

FINGERPRINT_SAMPLES = 64
FINGERPRINT_BYTES = 16384


def describe_base(folder: str | Path) -> dict:
    """Name and fingerprint of a base model's folder."""
    return {"name": Path(folder).resolve().name, "fingerprint": fingerprint(folder)}


def fingerprint(folder: str | Path) -> str | None:
    """sha256 over samples of a model's safetensors files, or None where there are none.

    Tensor names, shapes and 64 evenly spaced samples of 16 KiB a file: another model, another size or another
    fine-tuning of the same model gives another fingerprint, in milliseconds instead of the seconds that hashing
    gigabytes takes.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            header = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            start = 8 + min(header, size)
            digest.update(head + file.read(min(header, size)))
            for i in range(FINGERPRINT_SAMPLES):
                file.seek(start + max(0, size - start - FINGERPRINT_BYTES) * i // (FINGERPRINT_SAMPLES - 1))
                digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_data(path: str | Path, rows: int) -> dict:
    """Name, place, sha256 and number of rows of a data file."""
    return {"name": Path(path).name, "path": os.path.abspath(path), "sha256": file_sha256(path), "rows": rows}


def anonymous(description: dict) -> dict:
    """A data file's description without its path: where it lay on somebody's disk is nobody's business."""
    return {key: value for key, value in description.items() if key != "path"}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "scikit-learn")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_provenance() -> dict:
    """What a figure was made with, beside model and data: versions of the libraries, commit of this code, date."""
    return {"versions": versions(), "commit": source_commit(), "date": datetime.date.today().isoformat()}


def source_commit() -> str:
    """The commit of this code, ``+changes`` if the work tree differs; SOURCE_COMMIT where there is no git."""
    root = Path(__file__).parents[1]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SOURCE_COMMIT", "unknown")
    return commit + ("+changes" if changed else "")


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.strip()


def device_name(device: str | torch.device) -> str:
    """Where a figure was measured: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"
