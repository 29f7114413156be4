"""The one prompt of the project, used by training, scoring and generating alike.

A prompt is ``head + dialogue + tail``: the head holds the chat template's opening and the instruction, the tail
opens the model's turn. Only the dialogue is ever truncated, and it is tokenised apart from the template, so that
``<|im_end|>`` inside a dialogue stays plain text and can end no turn.
"""

import argparse
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter

from jinja2 import TemplateError

from .files import DataError
from .normalise import NORMALISER, normalise_lines
from .speakers import map_speakers, roles
from .windows import CHARACTERS_A_TOKEN, WINDOW_TOKENS, Window, cut_into_windows

INSTRUCTION = "阅读下面的对话，判断其中有没有诈骗。只回答一个 JSON：{\"is_fraud\": true} 或 {\"is_fraud\": false}。\n\n"
DIALOGUE_MARK = "DIALOGUE-GOES-HERE"
ANSWER_MARK = "ANSWER-GOES-HERE"
BEGINNINGS_AT_ONCE = 32  # of a dialogue that grows, tokenised together
# Some templates (Llama 3, SmolLM 3) write today's date; a prompt must be the same on the day after training.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


@dataclass(frozen=True)
class Task:
    """The question a checkpoint was taught, all that is needed to ask it again; saved with it and rebuilt from there.

    Attributes:
        instruction: text before the dialogue, in the user's turn.
        answers: the completion that means fraud and the one that does not.
        neutral_speakers: whether speaker names become roles; off only to show why it is there.
        max_length: tokens of prompt and completion together; longer dialogues lose their end.
        normaliser: the version of `data.normalise` that texts go through; 0, none, for what was taught before it was.
    """

    instruction: str = INSTRUCTION
    answers: tuple[str, str] = ('{"is_fraud": true}', '{"is_fraud": false}')
    neutral_speakers: bool = True
    max_length: int = 2048
    normaliser: int = NORMALISER

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))  # JSON gives a list back
        if len(self.answers) != 2 or not all(isinstance(answer, str) for answer in self.answers):
            raise DataError(f"answers must be two texts, fraud's first, not {self.answers}")
        if not isinstance(self.instruction, str) or not isinstance(self.max_length, int):
            raise DataError(f"instruction must be a text and max_length a whole number, not {self.instruction!r} and "
                            f"{self.max_length!r}")
        if self.normaliser not in (0, NORMALISER):
            raise DataError(f"normaliser must be 0 (none) or {NORMALISER}, not {self.normaliser}; a checkpoint with a "
                            "later one needs a later version of this project")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what to ask the model, where no checkpoint does."""
    group = parser.add_argument_group("the question", "a checkpoint's own is in its fraud_task.json")
    group.add_argument("--instruction", help="text before the dialogue, instead of the project's own")
    group.add_argument("--answers", nargs=2, metavar=("FRAUD", "NON_FRAUD"),
                       help="label words, instead of the JSON; needs an --instruction that asks for them")
    group.add_argument("--max-length", type=int, help=f"tokens of a prompt (default: {Task.max_length})")
    group.add_argument("--keep-speaker-names", action="store_true", help="to show why names are made neutral")


def task_of(args: argparse.Namespace) -> Task | None:
    """What these options ask; None where none is given."""
    if args.answers and not args.instruction:
        raise DataError("--answers needs an --instruction that asks for them")
    given = {name: getattr(args, name) for name in ("instruction", "answers", "max_length")
             if getattr(args, name) is not None}
    if args.keep_speaker_names:
        given["neutral_speakers"] = False
    return Task(**given) if given else None


def canonical(text: str, task: Task) -> str:
    """`text` as a model of this task reads it: in normal form, and with roles instead of speakers' names."""
    return "\n".join(canonical_lines(text, task)[0])


def canonical_lines(text: str, task: Task) -> tuple[list[str], list[tuple[int, int]]]:
    """The lines of `canonical(text, task)`, and for each the (first, last) line of `text` that it was made from."""
    if task.normaliser:
        lines, origin = normalise_lines(text)
    else:
        lines = text.split("\n")
        origin = [(number, number) for number in range(len(lines))]
    return map_speakers("\n".join(lines), roles).split("\n") if task.neutral_speakers else lines, origin


def canonical_line_labels(text: str, labels: Sequence[bool], task: Task) -> list[bool]:
    """The label of each line of `canonical(text, task)`: fraud where one of the lines that it was made from is."""
    return labels_of_origin(labels, canonical_lines(text, task)[1])


def labels_of_origin(labels: Sequence[bool], origin: Sequence[tuple[int, int]]) -> list[bool]:
    """As `canonical_line_labels`, by the origin of the lines that `canonical_lines` gives."""
    return [any(labels[first:last + 1]) for first, last in origin]


class Encoded(list):
    """Prompts or examples, one a dialogue, and which of the dialogues lost their end.

    Attributes:
        truncated: [dialogues] whether the dialogue was longer than the encoder's room.
        origins: [dialogues] for each line that was read, the (first, last) line of the text that it was made from.
    """

    def __init__(self, rows: Iterable, truncated: Sequence[bool], origins: Sequence[list[tuple[int, int]]]) -> None:
        super().__init__(rows)
        self.truncated, self.origins = list(truncated), list(origins)


class PromptEncoder:
    """Turns dialogues into token ids for one tokenizer and one task.

    Attributes:
        head, tail: token ids before and after the dialogue.
        completions: label -> token ids of its answer, end token included.
        answer_prefix: the ids that both answers begin with.
        label_ids: (id that continues to "fraud", id that continues to "not fraud").
        end_id: the token that ends an answer.
        end_ids: it, and the token that ends a turn in the chat template where that is another (Gemma).
        room: how many tokens of a dialogue fit between them.
    """

    def __init__(self, tokenizer, task: Task) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.end_id = tokenizer.eos_token_id
        if self.end_id is None:
            raise DataError("the tokenizer has no end token (eos_token); set one before training")
        self.end_ids = tuple(dict.fromkeys([self.end_id, _end_of_turn(tokenizer)]))
        head, tail = _template(tokenizer, task.instruction)
        self.head, self.tail = self._ids(head), self._ids(tail)
        fraud, not_fraud = (self._ids(answer) for answer in task.answers)
        self.completions = {True: fraud + [self.end_id], False: not_fraud + [self.end_id]}
        shared = next((i for i, pair in enumerate(zip(fraud, not_fraud)) if pair[0] != pair[1]), None)
        if shared is None:
            raise DataError(f"the two answers {task.answers} do not differ in any token of this tokenizer")
        self.answer_prefix = fraud[:shared]
        self.label_ids = (fraud[shared], not_fraud[shared])
        self.control_tokens = _control_tokens(tokenizer)
        window = min(task.max_length, tokenizer.model_max_length)  # the latter bounded by the model's own
        self.room = window - len(self.head) - len(self.tail) - max(map(len, self.completions.values()))
        if self.room < 1:
            raise DataError(f"max_length {window} leaves no room for a dialogue after instruction and answer; "
                            f"it must be at least {window - self.room + 1}")
        self._breaks_of: dict[int, list[bool]] = {}  # of each line break in a token, whether the token begins with it

    def prompts(self, dialogues: Sequence[str]) -> Encoded:
        """Token ids of the prompt of each dialogue, up to where the model's answer begins; only what fits of it."""
        longest = self.room * CHARACTERS_A_TOKEN  # cut before it is tokenised: a megabyte takes seconds and 300 MB
        read = [canonical_lines(text[:longest], self.task) for text in dialogues]
        encoded = self._plain_ids(["\n".join(lines) for lines, _ in read])
        truncated = [len(text) > longest or len(ids) > self.room for text, ids in zip(dialogues, encoded, strict=True)]
        return Encoded((self.head + ids[:self.room] + self.tail for ids in encoded), truncated,
                       [origin for _, origin in read])

    def windows(self, text: str) -> list[Window]:
        """The prompts that read all of a dialogue: the one of `prompts` where it fits, overlapping ones otherwise.

        A window has whole lines, at most `WINDOW_TOKENS` of tokens, and begins with about the last quarter of the one
        before. Roles are dealt over the whole dialogue first, so a speaker keeps theirs in all windows. A line that is
        longer than a window is cut at ends of sentences. The dialogue's log-odds are meant to be the highest of its
        windows'. No more is tokenised at a time than fits; the windows of 16 MiB of text hold about six million ids.
        """
        lines, origin = canonical_lines(text, self.task)
        whole = "\n".join(lines)
        if len(whole) <= self.room * CHARACTERS_A_TOKEN and len(ids := self._plain_ids([whole])[0]) <= self.room:
            return [Window(self.head + ids + self.tail, origin[0][0], origin[-1][1])]
        return [Window(self.head + ids + self.tail, origin[first][0], origin[last][1])
                for first, last, ids in cut_into_windows(lines, min(self.room, WINDOW_TOKENS), self._plain_ids)]

    def newest_prompts(self, text: str) -> list[list[int]]:
        """[lines] for the text up to the end of each of its lines, the prompt of the last of its windows.

        At the cost of one reading, not of one a line. The text's lines must be those of `format_dialogue`, which are
        read alike whatever follows.
        """
        lines, origin = canonical_lines(text, self.task)
        ends = [bisect_right(origin, number, key=itemgetter(1)) for number in range(text.count("\n") + 1)]
        newest: list[list[int]] = []
        for start in range(0, len(ends), BEGINNINGS_AT_ONCE):
            ids = self._plain_ids(["\n".join(lines[:end]) for end in ends[start:start + BEGINNINGS_AT_ONCE]])
            newest += takewhile(lambda beginning: len(beginning) <= self.room, ids)
            if len(newest) < min(len(ends), start + BEGINNINGS_AT_ONCE):
                newest += self._newest_windows(lines, ends[len(newest):])
                break
        return [self.head + ids + self.tail for ids in newest]

    def _newest_windows(self, lines: Sequence[str], ends: Sequence[int]) -> Iterator[list[int]]:
        """Token ids of the last window of ``lines[:end]`` for each of `ends`: windows are cut from the beginning on."""
        windows = cut_into_windows(lines, min(self.room, WINDOW_TOKENS), self._plain_ids)
        by_lines = [(place, list(parts)[-1][2]) for place, parts in groupby(windows, key=itemgetter(0, 1))]
        reached = 0
        for end in ends:
            while by_lines[reached][0][1] < end - 1:
                reached += 1
            (first, last), ids = by_lines[reached]
            yield ids if last == end - 1 else self._plain_ids(["\n".join(lines[first:end])])[0]

    def examples(self, dialogues: Sequence[str], labels: Sequence[bool]) -> Encoded:
        """Training examples: ``input_ids`` and, of the same length, ``labels`` with -100 on the prompt."""
        prompts, examples = self.prompts(dialogues), []
        for prompt, label in zip(prompts, labels, strict=True):
            completion = self.completions[label]
            examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
        return Encoded(examples, prompts.truncated, prompts.origins)

    def line_ends(self, prompt: Sequence[int]) -> list[int]:
        """The places, in a prompt of this encoder, of the last token of each line of its dialogue.

        That token may hold the line break, too, where it merged with a mark before it.
        """
        for token in [token for token in prompt if token not in self._breaks_of]:
            text = self.tokenizer.decode([token])
            self._breaks_of[token] = [place == 0 for place, character in enumerate(text) if character == "\n"]
        first, end, breaks_of = len(self.head), len(prompt) - len(self.tail), self._breaks_of
        breaking = [place for place in range(first, end) if breaks_of[prompt[place]]]
        return [*(max(first, place - at_once) for place in breaking for at_once in breaks_of[prompt[place]]), end - 1]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts in which no control token is recognised."""
        if not texts:
            return []
        # Not verbose: it would warn of texts that are longer than the model reads, which become windows.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        if self.control_tokens is not None:
            for row, text in enumerate(texts):
                cuts = [match.start() + 1 for match in self.control_tokens.finditer(text)]
                if cuts:  # tokenised in segments, each cut inside a control token, so that none is whole any more
                    bounds = zip([0, *cuts], [*cuts, len(text)])
                    encoded[row] = [id for start, end in bounds for id in self._ids(text[start:end])]
        return encoded


def _template(tokenizer, instruction: str) -> tuple[str, str]:
    """(text before, text after) the dialogue: the tokenizer's chat template, or a plain one where it has none."""
    if getattr(tokenizer, "chat_template", None):
        text = _render(tokenizer, [("user", instruction + DIALOGUE_MARK)], add_generation_prompt=True)
    else:
        starts_with_bos = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        text = f"{tokenizer.bos_token if starts_with_bos else ''}{instruction}{DIALOGUE_MARK}\n\n"
    if text.count(DIALOGUE_MARK) != 1:
        raise DataError("the tokenizer's chat template drops the user's message, or repeats it")
    head, _, tail = text.partition(DIALOGUE_MARK)
    if tail.rstrip().endswith("<think>"):  # a model that always thinks: the thought is empty, the answer follows
        tail = tail.rstrip() + "\n\n</think>\n\n"
    return head, tail


def _end_of_turn(tokenizer) -> int:
    """The control token after the model's words in the chat template; the end token where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    turns = [("user", DIALOGUE_MARK), ("assistant", ANSWER_MARK)]
    rest = _render(tokenizer, turns, add_generation_prompt=False).partition(ANSWER_MARK)[2].lstrip()
    first = tokenizer(rest, add_special_tokens=False)["input_ids"][:1] if rest else []
    return first[0] if first and first[0] in tokenizer.added_tokens_decoder else tokenizer.eos_token_id


def _render(tokenizer, turns: Sequence[tuple[str, str]], **options) -> str:
    """The chat template's text for (role, content) turns, the same on every day.

    Qwen3 and its kind write an empty thought if told not to think; other templates ignore what they do not know.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_DATE + template
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                             enable_thinking=False, **options)
    except TemplateError as error:
        raise DataError(f"the tokenizer's chat template fails on a user's message: {error}") from None


def _control_tokens(tokenizer) -> re.Pattern | None:
    """Matches, at every place where one starts, any token that the tokenizer would cut out of a text whole."""
    words = {str(token) for token in tokenizer.added_tokens_decoder.values() if len(str(token).strip()) > 1}
    if not words:
        return None
    # Looking at the first character first spares Gemma's 6,000 comparisons at every other place.
    initials = "".join(sorted({re.escape(word[0]) for word in words}))
    return re.compile(f"(?=[{initials}])(?=" + "|".join(map(re.escape, sorted(words))) + ")")
