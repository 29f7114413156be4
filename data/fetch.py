"""Download the public corpora: the article's dialogues and eval set, and ordinary talk of CrossWOZ and KdConv.

    python -m data.fetch --output data/public [--only fraud crosswoz kdconv]
    python -m data.prepare --source data/public/dialogs --output data/public/prepared \\
        --ordinary data/public/everyday/crosswoz.csv --ordinary-judge data/public/everyday/kdconv.csv

Each is fetched at one pinned commit and checked; a download that breaks off goes on where it stopped when the command
is run again. The fraud corpus is golfxiao/anti_fraud_sft, licence GPL-3.0; the other two are by thu-coai, Apache-2.0.
"""

import argparse
import hashlib
import http.client
import os
import shlex
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .command import command
from .everyday import KDCONV_DOMAINS, convert
from .files import DataError

RAW = "https://raw.githubusercontent.com"
ATTEMPTS = 3
CHUNK = 1 << 16  # bytes
# What a second try may mend. OSError as such is not among them: a full disk stays full.
TRANSIENT = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError)


@dataclass(frozen=True)
class PublicFile:
    """One file of the corpus and how to tell that it is the right one.

    Attributes:
        source: path below the source URL.
        target: path below the output folder.
        sha256: of the copy that this project's figures were measured on.
        characters: length of the file at the pinned commit where that copy is an extract of it; None where it is
            the whole file.
    """

    source: str
    target: str
    sha256: str
    characters: int | None = None

    @property
    def name(self) -> str:
        return self.target.rpartition("/")[2]


# The figures were measured on an extract of the CSV files, 88 % of their text. The whole files' sha256 is not known
# here, only their length; what vouches for them besides is HTTPS and the pinned commit.
FILES = tuple(
    PublicFile(f"dataset/csv_dialogs/{name}", f"dialogs/{name}", sha256, characters)
    for name, sha256, characters in (
        ("meeting_label_false.csv",
         "3ba38ac3e3a865580b5bd81b123bf2e99fec40d5750da0b03927e2f3ed53bdf6", 797_832),
        ("“杀猪盘” 诈骗(200).csv",
         "a01654732c935e2052b761a7fd76bfab759f3947a135fabdbfc50dce34538ea9", 178_027),
        ("二手交易诈骗(200).csv",
         "f51ee2a1a8f658eeca0fd4d360bc749d7699bff19b30eeab22693c3f551f3253", 129_650),
        ("传销诈骗(140).csv",
         "2cc44fd463125f6c8d26ea5ac1779028576388edbf2421d4f3ffa561a5ef508c", 76_784),
        ("兼职刷单诈骗(140).csv",
         "7e0b735dc1e6dec720ef4dc60c695258303e7628695b0021751155eee6a390a8", 113_013),
        ("冒充客服诈骗(200).csv",
         "83b3a94e03c3287145915c8e2a065e1c4c082b25fee4abd746098b9563258241", 148_757),
        ("微商代理诈骗(200).csv",
         "609773afb38e74225404f69122fecb728798e4a28bb56492d4ef6efddfbf6082", 157_508),
        ("投资诈骗(200).csv",
         "9473dab1dc09a64e0c58e90c42bd67d0e7536551c7e01e83b4abea04f24642a0", 149_330),
        ("短信诈骗(200).csv",
         "f4898b2b58d2287d23c816fb1b2e77d0c4e51cc15ec1a79e47a64bf0e3d1a4e5", 114_525),
        ("网络贷款诈骗(162).csv",
         "27ddece871bf07063fb0e9fbd1a777f297f5ed298e868e274ad380821b3e6c72", 122_322),
        ("网络赌博诈骗(200).csv",
         "f31f15cd82200b3db694d874e6cfeefa9dd75a9a6c11a8d6e0bfb1867b55a681", 135_496),
        ("虚假购物诈骗(200).csv",
         "6b6d936ae85c2f42485292bbfb980f2c57eba0b098ccb0d9face9ba1083f7dd1", 179_394),
        ("虚拟货币诈骗(200).csv",
         "555efd8156e03331ded6b0fd5e4ab08a23b5872f6eaa790ab0b775cf743bcf33", 144_958),
    )
) + (
    PublicFile("dataset/train_test/eval0819.jsonl", "eval0819.jsonl",
               "176c49ba82865b1258ec99294f1bf9d81c1d37fa159621f26ecfa2b7fcbc78b8"),
)


@dataclass(frozen=True)
class Corpus:
    """A public repository at a pinned commit, its licence, and which of its files are fetched."""

    repository: str
    commit: str
    licence: str
    files: Sequence[PublicFile]

    @property
    def source(self) -> str:
        return f"{RAW}/{self.repository}/{self.commit}"


KDCONV_SHA256 = {
    "film": "2f156d8d34bdd3eac31c196772156d36e017f8cb2255a2c312bd98e367ed363e",
    "music": "ee34a4af167195db43fdcc910f8d125956222517f0572d248a069057493d557f",
    "travel": "8d1f31295888cf61eff398bab8aa042f7fccd04a088bd63c939f0b79625a9093",
}
# sha256 of CrossWOZ and KdConv are those of the files in their repositories.
CORPORA = {
    "fraud": Corpus("golfxiao/anti_fraud_sft", "3cfd1fec5570d8f926fd373d2fe075a9f245eac6", "GPL-3.0", FILES),
    "crosswoz": Corpus("thu-coai/CrossWOZ", "df82c9fdff91b9b130f2d6b89110d3870ba6260e", "Apache-2.0", (
        PublicFile("data/crosswoz/val.json.zip", "originals/crosswoz/val.json.zip",
                   "b2b717990f6f0a1c98daaf5dc465e61d42f7de69c0d31e88e674275b1f34c94c"),)),
    "kdconv": Corpus("thu-coai/KdConv", "653db76432de09a004ba708a68f8bbd5500e6bec", "Apache-2.0", tuple(
        PublicFile(f"data/{domain}/dev.json", f"originals/kdconv/{domain}/dev.json", KDCONV_SHA256[domain])
        for domain in KDCONV_DOMAINS)),
}


def fetch(output: str | Path, *, source: str, files: Sequence[PublicFile],
          timeout: float = 30.0, pause: float = 1.0) -> list[PublicFile]:
    """Brings every file to `output`, leaving good ones alone; returns those that are not the copy measured on.

    Args:
        timeout: seconds without a byte until an attempt counts as failed.
        pause: seconds before the second attempt; doubled before the third.

    Raises:
        DataError: a file is not there, cannot be had in three attempts, is not the right one, or cannot be written.
    """
    if not source.startswith(("http://", "https://")):
        raise DataError(f"{source}: the source must begin with https:// or http://")
    try:
        for file in files:
            target = Path(output) / file.target
            if not (target.is_file() and _is_right(target, file)):
                _fetch_file(f"{source.rstrip('/')}/{urllib.parse.quote(file.source)}", target, file, timeout, pause)
        return [file for file in files if _sha256(Path(output) / file.target) != file.sha256]
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}") from error


def _fetch_file(url: str, target: Path, file: PublicFile, timeout: float, pause: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _download_with_retries(url, part, timeout, pause)
    if not _is_right(part, file):
        found = _sha256(part)
        part.unlink()  # resuming a wrong file can only give a wrong file
        raise DataError(f"{file.name}: checksum mismatch, got sha256 {found[:12]}, expected {file.sha256[:12]}; "
                        "the download is deleted, run the command again, and if that does not help the source "
                        "holds another version: give one of the pinned commit with --source")
    os.replace(part, target)


def _download_with_retries(url: str, part: Path, timeout: float, pause: float) -> None:
    name = part.name.removesuffix(".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download(url, part, timeout)
        except TRANSIENT as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                raise DataError(f"{name}: the source answers {error.code} {error.reason} for {url}") from None
            if attempt == ATTEMPTS:
                reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
                raise DataError(f"{name}: {reason} ({ATTEMPTS} attempts); run the command again later, it goes on "
                                "where it stopped") from None
        time.sleep(pause * 2 ** (attempt - 1))


def _download(url: str, part: Path, timeout: float) -> None:
    """Fetches what `part` lacks, or everything where the server cannot continue; raises one of TRANSIENT."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # it is as long as the file or longer and yet not the right one
        response = urllib.request.urlopen(url, timeout=timeout)
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise ConnectionError("the server continued at another place than asked")
        _save(response, part, have if continued else 0)


def _save(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    total = None if response.length is None else start + response.length
    with open(part, "ab" if start else "wb") as file, \
            tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if total is not None and size < total:  # http.client ends such a body without a word
        raise ConnectionError(f"connection closed after {size} of {total} bytes")


def _is_right(path: Path, file: PublicFile) -> bool:
    return _sha256(path) == file.sha256 or (file.characters is not None and _characters(path) == file.characters)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _characters(path: Path) -> int | None:
    """Length of a UTF-8 file in characters; None where it is not UTF-8."""
    try:
        return len(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        return None


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.fetch", description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True,
                        help="folder for dialogs/*.csv, eval0819.jsonl, everyday/*.csv and the originals of the latter")
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=list(CORPORA), help="default: all")
    parser.add_argument("--source", help="a copy of the one repository that --only names (default: its public address)")
    args = parser.parse_args(argv)
    if args.source and len(args.only) > 1:
        parser.error("--source needs --only with one corpus: a copy holds one repository")
    for name in args.only:
        corpus = CORPORA[name]
        different = fetch(args.output, source=args.source or corpus.source, files=corpus.files)
        print(f"{args.output}: {len(corpus.files)} files of {corpus.repository} (licence {corpus.licence})")
        if different:
            print(f"{len(different)} of them are the whole files; this project's figures were measured on an extract "
                  "with 88 % of their text, so expect larger counts and somewhat different figures")
    output = Path(args.output)
    written = {path.stem: path for path in convert(output / "originals", output / "everyday")}
    command_line = ["python", "-m", "data.prepare", "--source", str(output / "dialogs"), "--output",
                    str(output / "prepared")]
    for name, option in (("crosswoz", "--ordinary"), ("kdconv", "--ordinary-judge")):
        command_line += [option, str(written[name])] if name in written else []
    print("next: " + shlex.join(command_line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
