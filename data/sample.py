"""Our own sample corpus: Chinese dialogues of 52 kinds of scam and 135 kinds of ordinary talk, made from a seed.

    python -m data.sample --output DIR [--dialogues N] [--seed S]
    python -m data.sample --output DIR --sets 40 [--seed S]

The first command writes 17 kinds of either, the second 49 kinds of scam and all ordinary talk, in folders by use.

Scams and as many kinds of ordinary talk are built from the same sentences (``sample_phrases.toml``). A swindler's
demand stands in non-fraud talk too, told of, warned of or denied, and a rightful party's advice stands in scams, where
the swindler talks people out of it. What decides is who asks whom for what: a dialogue is fraud when somebody in it is
asked to take a dangerous step or hears a yes to the question whether to take it. Counting words does not settle that.
"""

import argparse
import collections
import functools
import math
import random
import re
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .command import command
from .files import DataError
from .records import Dialogue, Line, write_dialogues, write_records
from .segments import SEGMENT_LENGTHS, cut_dialogue

PHRASES = Path(__file__).with_name("sample_phrases.toml")
ORDINARY = Path(__file__).with_name("sample_ordinary.toml")
SCENES = ("call", "chat", "meeting")
NAME_STYLES = ("personal", "roles", "numbered")
FIXED_SLOTS = ("shop", "item", "bank", "city", "app")  # one a dialogue: nobody changes banks between two sentences

# Beside one or two demands that decide, a dialogue holds one or two side moves: (how it is said, which step), weight.
SIDE_MOVES = {
    True: {("warned_of", "safe"): 3, ("denied", "safe"): 3, ("told_of", "safe"): 3,
           ("warned_of", "danger"): 1, ("denied", "danger"): 1, ("told_of", "danger"): 1},
    False: {("warned_of", "danger"): 3, ("denied", "danger"): 3, ("told_of", "danger"): 3,
            ("denied", "safe"): 1, ("told_of", "safe"): 2},
}

PLAIN_SHARE = 0.5  # dialogues whose side moves are of the same kind as what is asked for
SCAM_SHARE = 0.5  # dialogues of a scam for training, of those of its rightful twin: more, and ordinary calls alarm
LEAD_SHARE = 0.4  # longer sentences that begin with 嗯, 对了, ...: people do not repeat each other word for word

# Who of host, guest, third; what; whether the scam is attempted in it; the step that is asked for in it, if any.
Spoken = tuple[str, str, bool, str]


@functools.cache
def phrases() -> dict:
    """The tables of ``sample_phrases.toml``."""
    return tomllib.loads(PHRASES.read_text(encoding="utf-8"))


@functools.cache
def ordinary() -> dict:
    """The tables of ``sample_ordinary.toml``: kinds of ordinary talk, and which kinds serve training or judging."""
    return tomllib.loads(ORDINARY.read_text(encoding="utf-8"))


def sample_dialogues(n: int = 2400, *, seed: int = 0) -> list[Dialogue]:
    """`n` dialogues, half of them fraud, categories in turn; the same for the same seed on every machine.

    Raises:
        DataError: `n` is below 1.
    """
    return [dialogue for dialogue, _ in dialogues_and_requests(n, seed=seed)]


def dialogues_and_requests(n: int, *, seed: int) -> list[tuple[Dialogue, list[str]]]:
    """Each dialogue with the steps that somebody in it is asked to take, dangerous or not, in order."""
    if n < 1:
        raise DataError(f"--dialogues must be at least 1, found {n}")
    rng = random.Random(seed)
    topics = phrases()["topics"]
    numbers = collections.Counter()
    made = []
    for i in range(n):
        topic, fraud = topics[i // 2 % len(topics)], i % 2 == 0
        category = topic["scam" if fraud else "non_fraud"]
        numbers[category] += 1
        lines, requests = _Writer(rng, topic, fraud).dialogue()
        made.append((Dialogue(f"{category}/{numbers[category]}", category, lines), requests))
    return made


class _Words:
    """Fills the sentences of one dialogue, and names who is in it."""

    def __init__(self, rng: random.Random, topic: dict) -> None:
        self.rng = rng
        self.topic = topic
        self.scene = rng.choice(SCENES) if "turns" not in topic else "call"
        self.you = "大家" if self.scene == "meeting" else topic.get("you", "您")
        self.fixed = {name: rng.choice(phrases()["slots"][name]) for name in FIXED_SLOTS}

    def _maybe(self, probability: float, who: str, table: str) -> list[Spoken]:
        return [self._line(who, phrases()["talk"][table])] if self.rng.random() < probability else []

    def _line(self, who: str, table: Sequence[str], step: str = "", *, attempt: bool = False,
              request: str = "") -> Spoken:
        text = self._fill(self.rng.choice(table), step)
        if len(text) >= 10 and self.rng.random() < LEAD_SHARE:
            text = self.rng.choice(phrases()["talk"]["lead"]) + text
        return who, text, attempt, request

    def _fill(self, text: str, step: str = "") -> str:
        """`text` with every slot filled, those of the fillings too."""
        while "{" in text:
            text = re.sub(r"\{(\w+)\}", lambda match: self._slot(match.group(1), step), text)
        return text

    def _slot(self, name: str, step: str) -> str:
        rng = self.rng
        match name:
            case "x":
                return step
            case "you":
                return self.you
            case "adv":
                return "" if step.startswith(("先", "赶")) else rng.choice(phrases()["talk"]["adv"])
            case "open" | "who":
                return rng.choice(phrases()["talk"][name])
            case "amt":
                return rng.choice((str(rng.randrange(2, 100) * 100), str(rng.randrange(60, 999)),
                                   f"{rng.randrange(1, 9)}万"))
            case "few":
                return str(rng.randrange(30, 600))
            case "rent":
                return str(rng.randrange(7, 60) * 100 + rng.choice((0, 0, 50, 80)))
            case "num":
                return str(rng.randrange(1000, 9999))
            case "dd" | "mm":
                return str(rng.randrange(1, 29 if name == "dd" else 13))
            case "subject":
                return self.topic["subject"]
            case "tale":
                return rng.choice(self.topic["tales"]).rstrip("。")
            case "name":
                return self._personal_name()
        return self.fixed.get(name) or rng.choice(phrases()["slots"][name])

    def _personal_name(self) -> str:
        return self.rng.choice(phrases()["slots"]["surname"]) + self.rng.choice(phrases()["slots"]["given"])

    def _names(self) -> dict[str, str]:
        """A name for each person, in a style that has nothing to do with the label."""
        style = self.rng.choice(NAME_STYLES)
        if style == "numbered":
            names = [f"发言人{i + 1}" for i in self.rng.sample(range(5), 3)]
        elif style == "roles":
            hosts, guests = self.topic["roles"][:2], self.topic["roles"][2:]
            names = [self.rng.choice(hosts), self.rng.choice(guests), self._personal_name()]
        else:
            names = [self._personal_name() for _ in range(3)]
        return dict(zip(("host", "guest", "third"), names, strict=True))


class _Writer(_Words):
    """Writes one dialogue between a host (who offers or asks), a guest and, in meetings, a third person."""

    def __init__(self, rng: random.Random, topic: dict, fraud: bool) -> None:
        super().__init__(rng, topic)
        self.fraud = fraud
        self.steps = {kind: rng.sample(topic.get(kind, ()), 4 if kind in topic else 0) for kind in ("danger", "safe")}

    def dialogue(self) -> tuple[tuple[Line, ...], list[str]]:
        """The lines, and the steps asked for in them."""
        names = self._names()
        spoken = [*getattr(self, f"_open_{self.scene}")(), *self._body(), *self._close()]
        lines = tuple(Line(names[who], text, fraud) for who, text, fraud, _ in spoken)
        return lines, [request for *_, request in spoken if request]

    def _open_call(self) -> list[Spoken]:
        return [self._line("host", self.topic["intros"]), *self._maybe(0.5, "guest", "filler"),
                *self._maybe(0.3, "guest", "small"), self._line("host", self.topic["matters"]),
                *self._maybe(0.6, "guest", "filler")]

    def _open_chat(self) -> list[Spoken]:
        return [*self._maybe(0.5, "host", "small"), *self._maybe(0.4, "guest", "small"),
                self._line("guest", self.topic["tales"]), self._line("host", phrases()["talk"]["helper"]),
                *self._maybe(0.3, "host", "comfort")]

    def _open_meeting(self) -> list[Spoken]:
        return [self._line("host", phrases()["talk"]["agenda"]), *self._maybe(0.6, "third", "business"),
                *self._maybe(0.4, "guest", "business"), self._line("host", phrases()["talk"]["example"]),
                *self._maybe(0.4, "third", "filler")]

    def ordinary_dialogue(self) -> tuple[Line, ...]:
        """A dialogue of a kind of ``sample_ordinary.toml``: exchanges in random order, with small talk between."""
        names = self._names()
        spoken = [self._line("host", self.topic["intros"]), *self._maybe(0.4, "guest", "small")]
        turns = self.rng.sample(self.topic["turns"], self.rng.choice((2, 3, 3, 4, 5)))
        for says, answers in turns:
            spoken += [self._line("host", [says]), self._line("guest", [answers]), *self._maybe(0.2, "guest", "filler"),
                       *self._maybe(0.15, "host", "small")]
        return tuple(Line(names[who], text, False) for who, text, *_ in [*spoken, *self._maybe(0.6, "host", "bye")])

    def _body(self) -> list[Spoken]:
        """The demands that decide and the side moves, in random order, with everyday lines between."""
        asked = "danger" if self.fraud else "safe"
        plain = self.rng.random() < PLAIN_SHARE
        weights = {move: weight for move, weight in SIDE_MOVES[self.fraud].items() if not plain or asked in move}
        sides = self.rng.choices(list(weights), weights=list(weights.values()), k=self.rng.choice((1, 2)))
        moves = [self._move(self.rng.choice(("asked_for", "asked_for", "confirmed")), asked) + self._reaction()
                 for _ in range(self.rng.choice((1, 2)))]
        moves += [self._move(said, step) for said, step in sides]
        if self.rng.random() < 0.5:
            moves.append(self._haste())
        self.rng.shuffle(moves)
        return [line for move in moves for line in (*move, *self._between())]

    def _move(self, said: str, step: str) -> list[Spoken]:
        """Lines in which a step is asked for, told of, warned of, confirmed or denied."""
        text = self._fill(self.steps[step].pop())
        if said in ("confirmed", "denied"):
            wrapped = phrases()["said"]
            answer = wrapped["yes" if said == "confirmed" else "no"]
            request = text if said == "confirmed" else ""
            return [self._line("guest", wrapped["question"], text),
                    self._line("host", answer, attempt=bool(request) and step == "danger", request=request)]
        who = self.rng.choice(("host", "guest")) if said == "told_of" else "host"
        request = text if said == "asked_for" else ""
        return [self._line(who, phrases()["said"][said], text, attempt=bool(request) and step == "danger",
                           request=request)]

    def _reaction(self) -> list[Spoken]:
        """The guest is more often uneasy about a dangerous step than about a safe one."""
        fitting, other = ("uneasy", "at_ease") if self.fraud else ("at_ease", "uneasy")
        return self._maybe(0.6, "guest", fitting if self.rng.random() < 0.75 else other)

    def _haste(self) -> list[Spoken]:
        """Haste and secrecy are a swindler's own words or what somebody tells of him; calm the other way round."""
        direct = self.rng.random() < 0.5
        hurry = direct == self.fraud
        text = self._fill(self.rng.choice(phrases()["talk"]["hurry" if hurry else "calm"]))
        said = "asked_for" if direct else self.rng.choice(("told_of", "warned_of"))
        return [self._line("host", phrases()["said"][said], text, attempt=direct and self.fraud,
                           request=text if direct else "")]

    def _between(self) -> list[Spoken]:
        return [*self._maybe(0.2, "guest", "filler"), *self._maybe(0.08, "guest", "doubt"),
                *self._maybe(0.1, "host", "comfort"),
                *(self._maybe(0.15, "third", "business") if self.scene == "meeting" else ())]

    def _close(self) -> list[Spoken]:
        return [*self._maybe(0.6, "guest", self.rng.choice(("agree", "agree", "refuse"))),
                *self._maybe(0.4, "host", "bye")]


def write_sample(output: str | Path, n: int = 2400, *, seed: int = 0) -> list[Path]:
    """Writes one CSV a category into the folder `output`; returns their paths."""
    return _write_by_category(Path(output), sample_dialogues(n, seed=seed))


def _write_by_category(output: Path, dialogues: Sequence[Dialogue]) -> list[Path]:
    by_category = collections.defaultdict(list)
    for dialogue in dialogues:
        by_category[dialogue.category].append(dialogue)
    for category, members in by_category.items():
        write_dialogues(output / f"{category}.csv", members)
    return [output / f"{category}.csv" for category in by_category]


def sets_of_kinds(per_kind: int = 40, *, seed: int = 0) -> dict[str, list[Dialogue]]:
    """`per_kind` dialogues of each kind, by what they serve: see ``[use]`` in ``sample_ordinary.toml``.

    Of scams for training there are half as many, and at least one of each kind. All are others than those of
    `sample_dialogues` with the same seed.
    """
    of_both = phrases()["topics"] + phrases()["more_topics"]
    topics = {topic[name]: (topic, name == "scam") for topic in of_both for name in ("scam", "non_fraud")}
    topics |= {kind["name"]: (kind, False) for kind in ordinary()["kinds"]}
    sets = {}
    for use, kinds in ordinary()["use"].items():
        sets[use] = []
        number_of_each = max(1, round(per_kind * SCAM_SHARE)) if use == "scams_train" else per_kind
        for kind in kinds:
            topic, fraud = topics[kind]
            rng = random.Random(f"{seed} {kind}")
            writers = [_Writer(rng, topic, fraud) for _ in range(number_of_each)]
            sets[use] += [Dialogue(f"{kind}/{number}", kind, writer.ordinary_dialogue() if "turns" in topic
                                   else writer.dialogue()[0]) for number, writer in enumerate(writers, start=1)]
    return sets


def write_sets(output: str | Path, per_kind: int = 40, *, seed: int = 0) -> dict[str, int]:
    """Writes each of `sets_of_kinds` into a folder of its own, and the unseen scams as records, too.

    Returns:
        how many dialogues each folder below `output` holds.
    """
    sets = {f"sample_{use}": dialogues for use, dialogues in sets_of_kinds(per_kind, seed=seed).items()}
    for name, dialogues in sets.items():
        _write_by_category(Path(output) / name, dialogues)
    unseen = sets["sample_scams_unseen"]
    for name, lengths in (("scams_unseen", SEGMENT_LENGTHS), ("scams_unseen_calls", (math.inf,))):
        write_records(Path(output) / f"{name}.jsonl",
                      [record for dialogue in unseen for record in cut_dialogue(dialogue, lengths)])
    return {name: len(dialogues) for name, dialogues in sets.items()}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, help="folder for one CSV a category")
    parser.add_argument("--dialogues", type=int, default=2400, help="how many in all (default: %(default)s)")
    parser.add_argument("--sets", type=int, metavar="PER_KIND",
                        help="instead, so many dialogues of each kind in folders by use: ordinary talk and scams for "
                             "training, ordinary talk of other kinds for choosing the threshold, and ordinary talk and "
                             "scams of yet other kinds for judging")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other dialogues (default: %(default)s)")
    args = parser.parse_args(argv)
    output = shlex.quote(args.output)
    if args.sets is not None:
        if args.sets < 1:
            parser.error(f"--sets must be at least 1, found {args.sets}")
        counts = write_sets(args.output, args.sets, seed=args.seed)
        print(f"written to {args.output}: " + ", ".join(f"{n} dialogues in {name}" for name, n in counts.items()))
        print("next: python -m data.prepare --source DIALOGUES --output outputs/data "
              f"--ordinary {output}/sample_ordinary_train --ordinary-eval {output}/sample_ordinary_choose "
              f"--ordinary-judge {output}/sample_ordinary_judge --train-only {output}/sample_scams_train")
        return 0
    paths = write_sample(args.output, args.dialogues, seed=args.seed)
    others = sorted({path.name for path in Path(args.output).glob("*.csv")} - {path.name for path in paths})
    if others:
        print(f"{args.output}: {len(others)} other CSV files are there, {others[0]} for one, which --source reads, "
              "too; remove them, or name an empty folder", file=sys.stderr)
    print(f"{args.dialogues} dialogues of {len(paths)} kinds written to {args.output}; "
          f"next: python -m data.prepare --source {output} --output outputs/data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
