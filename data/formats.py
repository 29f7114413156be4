"""Files as people have them, read as asked for: JSON arrays, Alpaca, messages, tables in any encoding, Excel.

Nothing here guesses. A `Reading` says how a file is laid out, and without one only the project's own two formats are
read. ``python -m data.prepare --inspect FILE`` finds the options that a file needs and shows what they give.
"""

import argparse
import codecs
import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from .files import DataError
from .sources import as_object, load_json, short, shown
from .speakers import format_dialogue
from .transcripts import NARRATOR

DIALOGUE_COLUMNS = ("case", "speaker", "content", "is_fraud")
# For each layout, the keys or columns that it reads: what they mean here, and what they are called in the file.
LAYOUTS = {
    "records": {"input": "input", "label": "label"},
    "alpaca": {"input": "input", "label": "output"},
    "messages": {"messages": "messages"},
    "turns": {"messages": "messages", "label": "label"},
    "texts": {"input": "input"},
    "dialogues": {name: name for name in DIALOGUE_COLUMNS},
    "lines": {name: name for name in DIALOGUE_COLUMNS[:-1]},
}
LINES = ("dialogues", "lines")  # one spoken line a row
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
# A table has no booleans, only words for them. JSON has some: there, "true" in quotes is a string.
TABLE_LABELS = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}
IDS = ("case", "category", "source")  # texts here, numbers to many
ASKING, ANSWERING = ("user", "human"), ("assistant", "gpt")
SPEAKING = ("name", "role", "from", "speaker", "spk")


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, as asked for; the defaults are those of the project's own formats.

    Args:
        layout: one of `LAYOUTS`.
        columns: for a key of the layout, or for ``case``, the name of the key or column in the file.
        label_values: for a label as the file writes it, whether it means fraud.
        encoding: of text files; ``utf-8`` also reads a byte-order mark.
        delimiter: between the columns of a CSV file, one character.
        sheet: of an Excel workbook; needed where several hold something.
    """

    layout: str = "records"
    columns: Mapping[str, str] = field(default_factory=dict)
    label_values: Mapping[str, bool] = field(default_factory=dict)
    encoding: str = "utf-8"
    delimiter: str = ","
    sheet: str = ""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise DataError(f"--layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        names = dict.fromkeys((*LAYOUTS[self.layout], "case"))
        for key in self.columns:
            if key not in names:
                raise DataError(f"--columns: the layout {self.layout} reads {', '.join(names)}, not {key!r}")
        try:
            codecs.lookup(self.encoding)
            "".encode(self.encoding)
        except LookupError:
            raise DataError(f"--encoding: {self.encoding!r} is unknown; write utf-8, gb18030, big5hkscs or "
                            "utf-16") from None
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise DataError("--delimiter must be comma, semicolon, tab, bar or one character, not "
                            f"{shown(self.delimiter)}")

    @property
    def names(self) -> dict[str, str]:
        """For each key of the layout, the name of the key or column in the file."""
        return {**LAYOUTS[self.layout], **self.columns}

    @property
    def has_labels(self) -> bool:
        return self.layout not in ("texts", "lines")

    def options(self) -> list[str]:
        """The command-line options that ask for this reading."""
        words = ["--layout", self.layout]
        if self.columns:
            words += ["--columns", *(f"{key}={name}" for key, name in self.columns.items())]
        if self.label_values:
            words += ["--label-values", *_label_words(self.label_values)]
        if self.encoding != "utf-8":
            words += ["--encoding", self.encoding]
        if self.delimiter != ",":
            names = {delimiter: name for name, delimiter in DELIMITERS.items()}
            words += ["--delimiter", names.get(self.delimiter, self.delimiter)]
        return words + (["--sheet", self.sheet] if self.sheet else [])


def _label_words(meanings: Mapping[str, bool]) -> list[str]:
    return [f"{value}={str(fraud).lower()}" for value, fraud in meanings.items()]


# ------------------------------------------------------------------------------------------------------ options


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ask for another reading than that of the project's own formats."""
    group = parser.add_argument_group(
        "other formats", "how data files that are not of the project's own format are read; python -m data.prepare "
                         "--inspect FILE finds these options and shows what they give")
    group.add_argument("--layout", choices=LAYOUTS, help="what a row is: see docs/data.md")
    group.add_argument("--columns", nargs="+", metavar="KEY=NAME", type=_column_pair,
                       help="what keys or columns are called, as in input=text label=标签")
    group.add_argument("--label-values", nargs="+", metavar="VALUE=true|false", type=_label_pair,
                       help="what labels mean, as in 诈骗=true 正常=false")
    group.add_argument("--encoding", help="of text files: utf-8, gb18030, big5hkscs, utf-16 (default: utf-8)")
    group.add_argument("--delimiter", help="of CSV files: comma, semicolon, tab, bar or a character (default: comma)")
    group.add_argument("--sheet", help="of an Excel workbook")


def _column_pair(text: str) -> tuple[str, str]:
    key, _, name = text.partition("=")
    if not (key.strip() and name.strip()):
        raise argparse.ArgumentTypeError(f"expected KEY=NAME, found {text!r}")
    return key.strip(), name.strip()


def _label_pair(text: str) -> tuple[str, bool]:
    value, _, meaning = text.rpartition("=")  # a label may hold an equals sign itself
    if not value.strip() or meaning not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected VALUE=true or VALUE=false, found {text!r}")
    return value.strip(), meaning == "true"


def asked(args: argparse.Namespace) -> dict:
    """The fields of a `Reading` that the command line named."""
    given = {field.name: getattr(args, field.name) for field in fields(Reading)
             if getattr(args, field.name) is not None}
    for name in ("columns", "label_values"):
        if name in given:
            pairs = given[name]
            given[name] = dict(pairs)
            if len(given[name]) < len(pairs):
                option = f"--{name.replace('_', '-')}"
                raise DataError(f"{option}: a name is given twice: {', '.join(key for key, _ in pairs)}")
    if "delimiter" in given:
        given["delimiter"] = DELIMITERS.get(given["delimiter"], given["delimiter"])
    return given


def reading_of(args: argparse.Namespace, layout: str = "records") -> Reading | None:
    """The reading that the command line asks for, of `layout` where it names none; None where it asks for nothing."""
    given = asked(args)
    return Reading(**{"layout": layout, **given}) if given else None


# ------------------------------------------------------------------------------------------- rows as asked for


def named_row(row: dict, reading: Reading) -> dict:
    """`row` with the keys of its layout; other keys stay, but for one whose name is taken."""
    names = reading.names
    if reading.layout == "turns" and row.get(names["label"]) in (None, ""):  # to be predicted
        unlabelled = names.pop("label")
        row = {key: value for key, value in row.items() if key != unlabelled}
    missing = next((key for key, name in names.items() if name not in row), None)
    if missing:
        raise DataError(f"column '{names[missing]}' is missing; found: {short(', '.join(row)) or 'none'}; "
                        f"{_remedy(missing, row)}")
    rest = {key: value for key, value in row.items() if key not in names and key not in names.values()}
    return {**{key: row[name] for key, name in names.items()}, **rest}


def _remedy(missing: str, row: dict) -> str:
    for name, delimiter in DELIMITERS.items():
        if len(row) == 1 and delimiter in next(iter(row)):
            return f"if a {name} separates the columns: --delimiter {name}"
    listed = next((key for key, value in row.items() if isinstance(value, list) and value
                   and all(isinstance(item, dict) for item in value)), None)
    if listed and missing != "messages":
        return f"if the rows are the list under {listed!r}: save that list alone, it is a JSON array"
    if missing in DIALOGUE_COLUMNS and {"input", "label"} <= row.keys():
        return "if each row is a whole call: these are read from a .jsonl in UTF-8, without such options"
    other = next((name for name in SYNONYMS.get(missing, ()) if name in row), None)
    if other:
        return f"if another column holds it: --columns {missing}={other}"
    return f"if another column holds it: --columns {missing}=NAME; in a table, the first row names the columns"


def record_of(row: dict, reading: Reading, is_table: bool) -> dict:
    """The record that a row of any layout of records is; to be checked still."""
    record = named_row(row, reading)
    if is_table:
        record = {key: _cell_value(key, value) for key, value in record.items()
                  if key in reading.names or value.strip()}
    if reading.layout == "messages":
        record |= _asked_and_answered(_turns(record.pop("messages")))
    elif reading.layout == "turns":
        record["input"] = format_dialogue(_turns(record.pop("messages")))
    if "label" in record and reading.layout != "texts":
        record["label"] = label_of(record["label"], reading, is_table, reading.names.get("label", "assistant"))
    for key in IDS:
        if type(record.get(key)) is int:
            record[key] = str(record[key])
    first = {key: record.pop(key) for key in ("input", "label") if key in record}
    return {**first, **record}


def _cell_value(key: str, cell: str) -> object:
    """A table's text, but for the two keys that are none."""
    if key not in ("position", "line_labels"):
        return cell
    try:
        return load_json(cell)
    except DataError as error:
        raise DataError(f"column '{key}': {error}") from None


def listed(value: object) -> object:
    """The messages that a cell of a table holds as JSON; any other value as it is."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        with contextlib.suppress(DataError):
            return load_json(value)
    return value


def _turns(messages: object) -> list[tuple[str, str]]:
    """(who, what) of each message, in any of the spellings.

    A recogniser names nobody where it could not tell who spoke, or was not asked to: there the narrator speaks.
    """
    messages = listed(messages)
    if not isinstance(messages, list) or not messages:
        raise DataError(f"expected a list of messages, found {shown(messages)}")
    messages = [message if isinstance(message, dict) else {} for message in messages]
    recognised = any(map(_speaker, messages)) or all("start" in message for message in messages)
    turns, unnamed = [], NARRATOR if recognised else None
    for message in messages:
        who = _speaker(message) or unnamed
        what = next((message[key] for key in ("content", "value", "text") if key in message), None)
        if not isinstance(who, str) or not isinstance(what, str):
            raise DataError("a message must have 'role' and 'content', 'from' and 'value', or 'speaker' and 'text', "
                            f"all strings; found: {short(', '.join(message)) or 'none of them'}")
        turns.append((who, what))
    return turns


def _speaker(message: dict) -> object:
    who = next((message[key] for key in SPEAKING if message.get(key) not in (None, "")), None)
    return f"{who:g}" if type(who) in (int, float) else who  # FunASR counts, and pandas makes 1.0 of it


def _asked_and_answered(turns: Sequence[tuple[str, str]]) -> dict:
    system = {"instruction": turns[0][1]} if turns[0][0] == "system" else {}
    turns = turns[len(system):]
    if len(turns) != 2 or turns[0][0] not in ASKING or turns[1][0] not in ANSWERING:
        raise DataError("expected one message of the user, the dialogue, and one of the assistant, the label; found: "
                        f"{short(', '.join(who for who, _ in turns))} (where the messages are the dialogue: "
                        "--layout turns)")
    return {"input": turns[0][1], "label": turns[1][1], **system}


def label_of(value: object, reading: Reading, is_table: bool, column: str) -> bool:
    """What a label means: true or false, a word that the reading explains, or an object of one boolean.

    The last is the answer that models are trained to give, as in ``{"is_fraud": true}``.
    """
    if isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else str(value) if type(value) in (int, float) else None
    if text in reading.label_values:
        return reading.label_values[text]
    if is_table and value in TABLE_LABELS:
        return TABLE_LABELS[value]
    if text and text.startswith("{"):
        try:
            answers = list(as_object(load_json(text)).values())
        except DataError:
            answers = []
        if len(answers) == 1 and isinstance(answers[0], bool):
            return answers[0]
    if isinstance(value, (list, dict)):
        raise DataError(f"column '{column}' must be true or false, found {shown(value)}; if it is all of a table's "
                        "column, write rows: DataFrame.to_json(FILE, orient='records', lines=True)")
    if value is None or text in ("", "nan"):
        raise DataError(f"column '{column}' is empty; label the row, or remove it (--layout texts scores rows without "
                        "labels)")
    raise DataError(f"column '{column}' must be {'True or False' if is_table else 'true or false'}, found "
                    f"{shown(value)}; say what it means, as in --label-values "
                    f"{meaning_of(text, reading.label_values, column)}")


# These two only suggest options: what is read follows the options alone.
_TEXTS = ("text", "content", "dialogue", "conversation", "transcript", "文本", "对话", "内容", "对话内容",
          "通话内容", "转写文本", "通话文本", "对话文本", "聊天记录", "通话记录")
COUNTING = ("id", "编号", "編號")  # may count the rows beside a column that names the call
_SYNONYMS = {
    "input": _TEXTS,
    "label": ("is_fraud", "labels", "fraud", "is_scam", "output", "target", "class", "y", "标签", "类别",
              "是否诈骗", "是否欺诈", "是否涉诈", "标注", "质检结果"),
    "messages": ("conversations", "conversation", "dialogue", "segments", "sentence_info", "turns", "utterances",
                 *_TEXTS),  # as JSON in a cell
    "case": ("case_id", "dialogue_id", "dialog_id", "session_id", "session", "call_id", "conversation_id", "会话",
             "会话编号", "会话ID", "案例", "案例编号", "对话编号", "对话ID", "通话编号", "通话ID", "通话流水号",
             "流水号", "录音编号", "录音ID", "录音文件", *COUNTING),
    "speaker": ("role", "name", "from", "说话人", "说话者", "发言人", "讲话人", "角色", "角色类型", "说话角色", "姓名",
                "channel", "channel_id", "声道", "通道"),
    "content": ("text", "utterance", "内容", "文本", "发言", "话语", "发言内容", "说话内容", "转写文本", "转写内容",
                "识别文本", "识别结果", "对话内容", "通话内容"),
    "is_fraud": ("label", "fraud", "is_scam", "标签", "是否诈骗", "是否欺诈", "是否涉诈", "标注", "质检结果"),
}
_PAIRS = (("诈骗", "正常"), ("是", "否"), ("1", "0"), ("true", "false"), ("True", "False"), ("有", "无"),
          ("yes", "no"), ("fraud", "normal"), ("诈骗", "非诈骗"), ("欺诈", "正常"), ("有风险", "无风险"), ("Y", "N"),
          ("涉诈", "不涉诈"), ("spam", "ham"), ("scam", "ham"), ("真", "假"), ("1.0", "0.0"), ("对", "错"),
          ("Yes", "No"))
# Under such a name a yes may mean that all is well, so that only words that speak of fraud are understood.
GOOD_NAMES = re.compile("正常|合规|合格|通过|安全|质检|質檢|normal|legit|valid|benign|safe|pass|_ok$", re.IGNORECASE)
FRAUD_WORDS = re.compile("诈|詐|风险|風險|fraud|scam|spam")
_IN_TRADITIONAL = str.maketrans("说话语讲发声记录转写识别结对内标注签类编号会质检诈骗风险无错",
                                "說話語講發聲記錄轉寫識別結對內標註籤類編號會質檢詐騙風險無錯")


def _traditional(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.translate(_IN_TRADITIONAL) for word in words)


SYNONYMS = {key: tuple(dict.fromkeys((*names, *_traditional(names)))) for key, names in _SYNONYMS.items()}
PAIRS = tuple(dict.fromkeys((*_PAIRS, *map(_traditional, _PAIRS))))


def meaning_of(value: str | None, known: Mapping[str, bool], column: str) -> str:
    """Options that might say what a label of a column means, after those that are known, to be pasted."""
    fraud, normal = next((pair for pair in PAIRS if value in pair), PAIRS[0])
    if GOOD_NAMES.search(column) and not FRAUD_WORDS.search(fraud):
        fraud, normal = normal, fraud
    unusual = value and len(value) <= 20 and value not in (fraud, normal)
    meanings = {value: True} if unusual else {fraud: True, normal: False}
    words = shlex.join(_label_words({**known, **meanings, **known}))
    return f"{words} or {shlex.quote(value + '=false')}" if unusual else words
