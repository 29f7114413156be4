"""Small corpora that several tests of the data prepare."""

import random

from data.records import Dialogue, Line, read_records, write_dialogues
from data.split import SPLITS


def dialogue(*lines, case="退款/1", category="退款"):
    return Dialogue(case, category, tuple(Line(*line) for line in lines))


def write_corpus(folder, *, fraud=20, harmless=20):
    """Dialogues of random characters, so that none resembles another; every fraud has one harmless line."""
    rng = random.Random(7)

    def say():
        return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12)) + "。"

    write_dialogues(folder / "退款(20).csv", [
        dialogue(("客服", say(), True), ("张伟", say(), False), case=f"退款/{i}") for i in range(fraud)])
    write_dialogues(folder / "会议.csv", [
        dialogue(("发言人1", say(), False), ("发言人2", say(), False), case=f"会议/{i}", category="会议")
        for i in range(harmless)])


def read_splits(folder):
    return {name: read_records(folder / f"{name}.jsonl") for name in SPLITS}
