"""One form for texts that mean the same: line ends, blanks, widths, time stamps, chat exports, subtitles.

People paste dialogues from chats, transcripts and web pages. What does not change the meaning must not change the
tokens, so every text takes the same form before it becomes a prompt. Three steps: characters (one form for each blank,
line end and width), lines (headers and subtitle marks merge with what they announce), and marks (Chinese text has the
full-width ones, numbers and Latin text the half-width ones, as is usual in both).
"""

import html
import re
import unicodedata
from collections import Counter
from itertools import zip_longest

# The version; a checkpoint says with which one it was trained, 0 being none. It stays while the texts that models were
# trained on keep their form: chats and subtitles are read better than in the first release, the public corpus the same.
NORMALISER = 1

MOST_STEPS = 8
# A speaker is what stands before the first colon of a line, unless it reads like a sentence, a time (12:30, 今晚8:30见)
# or the beginning of an address (https://). A speaker may well be called 1, though, and say 10点 or 20块 at once.
SPEAKER = re.compile(r"^(?!\d+[:：]\d)([^:：，。！？；,!?;\n]{1,40})[:：](?!//)"
                     r"(?!(?<=\d[:：])[0-5]\d(?![\d点号块元月日年个万千百分岁天次人楼度%多几]))[^\S\n]*")
NARRATOR = "旁白"

# ------------------------------------------------------------------------------------------------- characters
MARKS, FULL_MARKS = ",!?;:()", "，！？；：（）"  # of these the context decides the width
TO_FULL, TO_HALF = str.maketrans(MARKS, FULL_MARKS), str.maketrans(FULL_MARKS, MARKS)
_BREAKS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_INVISIBLE = [*range(0x09), *range(0x0e, 0x1c), 0x1f, *range(0x7f, 0x85), *range(0x86, 0xa0), 0xad, 0x34f, 0x61c,
              0x115f, 0x1160, 0x17b4, 0x17b5, *range(0x180b, 0x180f), *range(0x200b, 0x2010), *range(0x202a, 0x202f),
              *range(0x2060, 0x2070), 0x3164, *range(0xfe00, 0xfe10), 0xfeff, 0xffa0, *range(0xfff9, 0xfffc),
              *range(0xe0000, 0xe0080), *range(0xe0100, 0xe01f0)]
_COMPATIBLE = [*range(0xfe10, 0xfe1a), *range(0xfe30, 0xfe70), *range(0xff01, 0xfff0)]  # half, full, small, upright
_FORMS = {code: form for code in _COMPATIBLE if len(form := unicodedata.normalize("NFKC", chr(code))) == 1}
_FORMS |= {ord(mark): mark for mark in FULL_MARKS}
_FORMS |= dict.fromkeys(map(ord, "\t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
                            "\u205f\u3000\u2800"), " ")
_FORMS |= dict.fromkeys(map(ord, _BREAKS), "\n") | dict.fromkeys(_INVISIBLE)
_ODD = {*map(chr, _FORMS), "\\", "<", "&"} - set(FULL_MARKS)  # a set is asked faster than a pattern with a wide class
_ENTITY = re.compile(r"&(?:nbsp|lt|gt|quot|#\d{1,6}|#x[0-9A-Fa-f]{1,5});")
# Typed or pasted line ends; C:\new is a path.
_TYPED_BREAK = re.compile(r"</?(?:br|p|div)\s*/?>|(?<![A-Za-z]:)(?:\\r\\n|\\n|\\r(?![A-Za-z]))", re.IGNORECASE)
_BREAK = re.compile(rf"({_TYPED_BREAK.pattern}|[\n{_BREAKS}])", re.IGNORECASE)

# ------------------------------------------------------------------------------------------------------ stamps
_DATE = r"(?:\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2}日?|(?:\d{4}年)?\d{1,2}月\d{1,2}日)"  # can stand without a time
_SHORT_DATE = r"(?:\d{1,2}[-/.]\d{1,2}(?:[-/.]\d{2,4})?|昨天|前天|今天)"  # cannot
_DAY = r"(?:星期|周)[一二三四五六日天]"
_TIME = (r"(?:(?:凌晨|清晨|早上|上午|中午|下午|傍晚|晚上) ?)?"
         r"\d{1,3}[:：]\d{2}(?:[:：]\d{2})?(?:[.,，]\d{1,6})?(?!\d|%)"
         r"(?: ?[AaPp]\.?[Mm]\b\.?)?(?:Z|[+-]\d{2}[:：]?\d{2})?")
_STAMP = rf"(?:(?:{_DATE}|{_SHORT_DATE})(?:[T,， ]{{0,2}}{_DAY})?[T,， ]{{0,2}}{_TIME}|{_DATE}(?: ?{_DAY})?|{_TIME})"
_RANGE = rf"{_STAMP}(?: ?(?:-->|->|→|-|–|—|~|至) ?{_STAMP})?"
_SECONDS = r"\d+(?:\.\d+)?s(?: ?(?:-->|->|-|~) ?\d+(?:\.\d+)?s)?"  # as Whisper's programs write them
_SPAN = r"(?:\d+:)?\d+:\d+\.\d+,(?:\d+:)?\d+:\d+\.\d+"  # from and to, as Tencent's recogniser writes them
_EPOCH = r"1[4-9]\d{8}(?:\d{3}|\.\d{1,6})?(?!\d)"  # seconds or milliseconds since 1970
_OPEN, _CLOSE = r"[\[(（【<〔]", r"[\])）】>〕]"
_FRONT = re.compile(rf"(?:(?>{_OPEN} ?(?:{_RANGE}|{_SECONDS}|{_EPOCH}|{_SPAN}) ?{_CLOSE}|{_EPOCH}(?=[ ,，])|"
                    rf"{_RANGE}(?![\d:：年月日点分万元块%])) ?[-–—|,，]? ?)+")
_EXPLICIT = re.compile(rf"{_OPEN}|.*\d[:：]\d\d[:：]\d\d|.*-->")  # a stamp, whatever follows it
_NAME = r"(?P<name>[^:：，。！？；,!?;\n]{1,40}?)"
_BEHIND = re.compile(rf"{_NAME}(?> ?{_OPEN} ?{_RANGE} ?{_CLOSE}| {_RANGE})+ ?[:：](?!\d\d) ?")
_SPAN_OF = re.compile(rf"\[{_SPAN},(\d{{1,3}})\] ?")  # and the speaker's number
_NAME_AND_TIME = re.compile(r"[\[【] ?([^\[\]()（）【】<>〔〕:：，。！？；,!?;]{1,40}?)[ ,，]{1,2}(?=[^\]】]*\d[:：]\d)"
                            rf"{_RANGE} ?[\]】] ?[:：]? ?")
_TO_ALL = re.compile("(?:From|来自|从|自) ([^:：]{1,40}?) (?:to|至|到|发送至|发送给) "  # Zoom's chat
                     r"(?:(?:Everyone|所有人|每个人|大家|me|我)(?:[ (（][^:：]{0,30})?|"
                     r"[^:：]{1,40}[(（](?:Direct Message|Privately|私聊|私信)[)）]) ?[:：]", re.IGNORECASE)
_TIMING = re.compile(rf"{_TIME} ?--> ?{_TIME}.*")
_NAME_FIRST = re.compile(r"(?:[\[【](?=[^\]】]*[\]】]$))?" + _NAME + rf"(?:[,，]? ?{_OPEN} ?| |"
                         rf"[:：] (?={_SHORT_DATE} {_TIME}$)(?=.*[:：]\d\d[:：])){_RANGE} ?{_CLOSE}?")
_STAMP_FIRST = re.compile(rf"{_OPEN}?(?:{_DATE}|{_SHORT_DATE})[T,， ]{{0,2}}(?:{_DAY} )?{_TIME}{_CLOSE}? {_NAME}"
                          r"(?: ?[(（<][^()（）<>]{4,40}[)）>])?")
_EXACT = re.compile(r".*(?:\d[:：]\d\d[:：]\d\d|\d{4}[-/.年]\d)")  # seconds or a year: no person writes them often
# What a name hardly holds and words do: 我们下午三点见, 周三开会, See you at.
_WORDS = re.compile("[我你您他她咱们这哪是在到了吗呢吧啊呀请把给去没不要见转点等改]|[今明昨后前每]天|[上中下]午|"
                    "[早晚]上|(?:周|星期)[一二三四五六日天末]| [a-z]")
_LONG_NAME = 24  # bytes, eight Chinese characters
# A line or a beginning without marks that can be a name, what is short and none, and what is hardly anything else.
_LONE = re.compile(r"[^\W\d_][\w ·.*()（）-]{0,19}")
_REPLY = re.compile("[好嗯哦噢喔啊对行喂诶哎唉啥可没有不是真多怎什为谁那然因所但如收]|谢谢|知道|明白|同意|哈哈|再见|早|"
                    r"(?:ok|okay|yes|no|hi|hello|hey|thanks|well|right)\b", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:说话人|发言人|讲话人|角色|Speaker|spk)[ _]?(?:\d{1,3}|[A-Z])", re.IGNORECASE)
_PERSON = re.compile(
    "[王李张刘陈杨赵黄周吴徐孙朱郭罗宋郑韩唐冯董萧曹袁邓傅沈彭吕苏卢蒋蔡贾丁魏薛叶阎潘杜戴夏钟汪姜姚谭廖邹熊陆郝崔邱秦侯邵孟汤尹黎贺赖龚]"
    "[\u4e00-\u9fff]{1,2}|.{1,4}(?:先生|女士|小姐|经理|老师|警官|医生|主任)|客服|坐席|客户|用户|顾客|主持人|嘉宾|骗子|受害者")
_CLOCK = re.compile(rf"{_OPEN}?0?0[:：]|.*\d[:：]\d\d[:：]\d\d")  # that of a recording, or one with seconds
MAY_BE_STAMPED = re.compile(r"\d(?:[:：]\d|\d{9}|\d{3}[-/.年]\d|月\d|s ?[-~\])）】>〕])")  # what any of the above holds
_VOICE = re.compile(r"<v(?:\.[\w.]+)? ([^<>:：]{1,40})>(.*?)(?:</v>)?")
_NOT_CUE = re.compile(r"WEBVTT\b|NOTE(?: |$)")
_CUE_NAME = re.compile(r"\d+|[0-9a-f-]{36}/[\d-]+")  # counted, or as Teams writes it
_MARKUP = re.compile(r"</?(?:[biuc]|font|ruby|rt|lang)(?:[. ][^<>]*)?>|</v>|<[\d:.]+>|\{\\[^{}]*\}", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,4})(?:[.)）] |[.)）](?![\d ])|、) ?(?=\S)")
_COLUMN = re.compile(r"\s*([^\t|｜:：，。！？；,!?;]{1,40}?) ?[\t|｜]\s*(?=[^\s|｜])")  # a speaker, then a tab or a bar
_DASHED = re.compile(r"([^—–|｜:：，。！？；,!?;]{1,40}?)(?: ?—{1,2} ?| [-–] )(?=[^\s—–-])")
_BRACKETED = re.compile(r"[\[(（【「『〈《<〔]"
                        r"(?P<name>[^\[\]()（）【】「」『』〈〉《》<>〔〕]{1,38})[\])）】」』〉》>〕]")
_BRACKETED_TURN = re.compile(_BRACKETED.pattern + r" ?(?=[^ :：])")

# ------------------------------------------------------------------------------------------------------- marks
_CHINESE, _LATIN = re.compile("[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"), re.compile("[A-Za-z]")
_ASCII = re.compile(r"[\x00-\x7f]")  # without any, all marks of Chinese text are as usual
_BLANK_AT_MARK = re.compile(rf" ?([{FULL_MARKS}]) ?")
_MARK_BEFORE_LATIN = re.compile("[，：！？；](?=[0-9A-Za-z/\\\\])")
_INSIDE_LATIN = re.compile("[0-9][，：][0-9]|.：[/\\\\]|[0-9A-Za-z/=][！？；].")  # 3,000, 12:30, https:/, page?id


def safe_name(name: str) -> str:
    """A speaker's name that `SPEAKER` reads back."""
    name = " ".join(re.sub(r"[:：，。！？；,!?;\s]+", " ", name).split())[:40].strip()
    return name or NARRATOR


def is_blank(text: str) -> bool:
    """Whether nothing of a text is to be seen: blanks, line ends and zero-width marks are no dialogue."""
    return not any(_plain_line(line).strip() for line in text.split("\n"))


def normalise(text: str) -> str:
    """`text` in the one form of all texts that mean the same; its own normal form stays as it is."""
    return "\n".join(normalise_lines(text)[0])


def normalise_lines(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The lines of the normal form, and for each the (first, last) line of `text` that it was made from.

    Lines of `text` are counted as in ``line_labels``, by its line feeds. There is at least one line, if an empty one.
    """
    lines, origin = _normalise_once(text)
    for _ in range(MOST_STEPS):  # what one step uncovers another may take for a stamp, too
        if (before := "\n".join(lines)) == text:
            break
        text = before
        lines, places = _normalise_once(text)
        origin = [(origin[first][0], origin[last][1]) for first, last in places]
    return lines, origin


def _normalise_once(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    lines, origin = [], []
    for number, line in enumerate(_plain_characters(_without_columns(text))):
        for part in line.split("\n"):
            if part := part.strip():
                lines.append(part)
                origin.append((number, number))
    lines = _without_dashes(_unnumbered(lines))
    if MAY_BE_STAMPED.search(text) or "WEBVTT" in text or "<v " in text or _lone_names(lines):
        turns, origin = _merge_headers(lines, origin)
    else:
        turns = [_spoken(line) for line in lines]
    turns, origin = _filled(_bracketed_turns(turns), origin)
    return [_joined(name, said) for name, said in turns] or [""], origin or [(0, max(0, text.count("\n")))]


def _without_columns(text: str) -> str:
    """`text` with a colon behind its speakers, where each line has a tab or a bar there."""
    if "\t" not in text and "|" not in text and "｜" not in text:
        return text
    parts = _BREAK.split(text)  # lines, and between them what ends them
    columns = [_COLUMN.match(line) if line.strip() else line for line in parts[::2]]
    if None in columns or sum(isinstance(column, re.Match) for column in columns) < 2:
        return text
    parts[::2] = [column if isinstance(column, str) else f"{column[1]}: {column.string[column.end():]}"
                  for column in columns]
    return "".join(parts)


def _plain_characters(text: str) -> list[str]:
    """The lines of `text`, one form for each character; other kinds of line end have become line feeds in them."""
    if "  " not in text and unicodedata.is_normalized("NFC", text) and _ODD.isdisjoint(text):
        return text.split("\n")
    return [_plain_line(line) for line in text.split("\n")]


def _plain_line(line: str) -> str:
    line = _ENTITY.sub(lambda entity: html.unescape(entity[0]), line)
    line = unicodedata.normalize("NFC", unicodedata.normalize("NFC", line).translate(_FORMS))
    line = _TYPED_BREAK.sub("\n", line)
    return re.sub(" *\n *", "\n", re.sub("  +", " ", line))


def _unnumbered(lines: list[str]) -> list[str]:
    """Lines without the numbers that count them; a single ``1.`` is said."""
    if len(lines) < 2 or not (first := _NUMBER.match(lines[0])):
        return lines
    numbers = [_NUMBER.match(line) for line in lines]
    if any(number is None or int(number[1]) != int(first[1]) + place for place, number in enumerate(numbers)):
        return lines
    return [line[number.end():] for line, number in zip(lines, numbers)]


def _without_dashes(lines: list[str]) -> list[str]:
    """Lines with a colon behind their speakers, where each has a dash there."""
    if len(lines) < 2 or not _DASHED.match(lines[0]):
        return lines
    dashes = [_DASHED.match(line) for line in lines]
    names = [dash[1] for dash in dashes if dash]
    if None in dashes or not _are_names(names, sure=all(map(_PERSON.fullmatch, names))):
        return lines
    return [f"{name}: {line[dash.end():]}" for line, dash, name in zip(lines, dashes, names)]


def _merge_headers(lines: list[str], origin: list[tuple[int, int]]
                   ) -> tuple[list[tuple[str | None, str]], list[tuple[int, int]]]:
    """(speaker, words) of each line that says something, and its origin, that of its header included."""
    turns, places, header, first = [], [], None, None
    cues = _cues(lines)
    headers = _headers(cues)
    for index, (line, place) in enumerate(zip(cues, origin)):
        name = headers.get(index)
        if name or not line or line == "WEBVTT" or _is_stamp(line):  # says nothing itself
            header, first = name or header, place[0] if first is None or name else first
            continue
        if voice := _VOICE.fullmatch(line):
            header, line = voice[1], voice[2].strip()
        turn = (_plain_name(header), line) if header else _turn(line)
        first = place[0] if first is None else first
        if turn[0] and not turn[1] and turn != _spoken(line):  # 张三 (10:00):
            following = "" if index + 1 in headers else "".join(cues[index + 1:index + 2])
            if following and not _is_stamp(following) and _turn(following)[0] is None:
                header = turn[0]
                continue
        turns.append(turn)
        places.append((first, place[1]))
        header = first = None
    return (turns, places) if turns or not lines else ([(None, line) for line in lines], origin)


def _cues(lines: list[str]) -> list[str]:
    """`lines` with nothing where subtitles have times, numbers, markup, notes or a header."""
    if not any("-->" in line and _TIMING.match(line) for line in lines):
        return lines
    cues, said, is_vtt = [], True, lines[0].startswith("WEBVTT")
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        timing = _TIMING.match(line)
        said = bool(timing) or said and not (is_vtt and _NOT_CUE.match(line))  # a note, too, lasts up to the next times
        silent = timing or not said or _CUE_NAME.fullmatch(line) and _TIMING.match(following)
        cues.append("" if silent else _MARKUP.sub("", line).strip())
    return cues


def _is_stamp(line: str) -> bool:
    """Whether a line is a time and nothing else; 5月1日 is an answer."""
    return (line[-1].isdigit() or not line[-1].isalnum()) and _FRONT.fullmatch(line) is not None


def _headers(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name and a time (WeChat, meetings) or the reverse (QQ).

    People begin and end what they say with a time, too, and words that are taken for a name are lost. So a name must
    head two messages or more, or look like a name in a text that begins with a header, has a name that returns, or
    gives times as programs do. Where most lines have a time, as in a picture of a chat, it is their own.
    """
    found = {}
    for place, line in enumerate(lines):
        if (":" in line or "：" in line) and (match := _NAME_FIRST.fullmatch(line) or _STAMP_FIRST.fullmatch(line)):
            if not _FRONT.fullmatch(line):  # 昨天 20:15
                found[place] = match
    if not found:
        return _timed_names(lines) or _lone_names(lines)
    if 3 * len(found) > 2 * sum(map(bool, lines)):
        return {}
    times = Counter(match["name"] for match in found.values())
    returning = {name for name, count in times.items() if count > 1}

    def is_header(place: int, is_chat: bool) -> bool:
        match, following = found[place], lines[place + 1] if place + 1 < len(lines) else ""
        name = match["name"]
        if not following or match.re is _STAMP_FIRST and _FRONT.match(following):
            return False
        if name in returning:
            return True
        if match.re is _NAME_FIRST and SPEAKER.match(following):
            return False
        exact = _EXACT.match(match.string)
        return bool(exact and returning or not _WORDS.search(name)
                    and (exact or is_chat and len(name.encode()) <= _LONG_NAME))

    begin = next(place for place, line in enumerate(lines) if line and not _is_stamp(line))
    is_chat = bool(returning) or begin in found and is_header(begin, True)
    return {place: match["name"] for place, match in found.items() if is_header(place, is_chat)}


def _timed_names(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name behind a time, on the same line or the one before."""
    inline, below, first = {}, {}, ""
    for place, line in enumerate(lines):
        stamp = line[:1] in "0123456789[(（【<〔" and _FRONT.match(line)
        if stamp and re.search(r"\d[:：]\d", stamp[0]):
            first = first or line
            if _is_stamp(line):
                below[place + 1] = "".join(lines[place + 1:place + 2])
            elif not stamp[0][-1].isalnum():  # 12:30前
                inline[place] = line[stamp.end():].strip()
    found = inline or below
    following = [lines[place + 1] if place + 1 < len(lines) and place + 1 not in found else "" for place in found]
    is_said = all(line and not _is_stamp(line) for line in following)
    return found if found and is_said and _are_names([*found.values()], sure=_CLOCK.match(first) is not None) else {}


def _lone_names(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name and nothing else: every second line, or as 说话人1."""
    if len(lines) < 2 or not _LONE.fullmatch(lines[0]):
        return {}
    if _NUMBERED.fullmatch(lines[0]):
        found = {place: line for place, line in enumerate(lines) if _NUMBERED.fullmatch(line)}
        return found if len(lines) - 1 not in found and all(place + 1 not in found for place in found) else {}
    names, said = lines[::2], lines[1::2]
    if len(names) != len(said) or not {*names}.isdisjoint(said) or any(map(SPEAKER.match, said)):
        return {}
    return dict(zip(range(0, len(lines), 2), names)) if _are_names(names) else {}


def _are_names(names: list[str], *, sure: bool = False) -> bool:
    """Whether these are speakers and no words: counted ones, or all return; half of them, where they are `sure`."""
    shaped = all(_LONE.fullmatch(name) and len(name.encode()) <= _LONG_NAME for name in names)
    if not shaped or all(map(_NUMBERED.fullmatch, names)):
        return shaped
    if len(names) < 2 or any(_REPLY.match(name) or _WORDS.search(name) for name in names):
        return False
    counts = Counter(names)
    persons = (sure or len(counts) < len(names)) and all(map(_PERSON.fullmatch, names))
    return persons or len(counts) > 1 and (min(counts.values()) > 1 or sure and 2 * len(counts) <= len(names) + 1)


def _turn(line: str) -> tuple[str | None, str]:
    """(speaker, words) of a line, without the time before or behind the speaker and brackets round the name."""
    if (stamp := _FRONT.match(line)) and (rest := line[stamp.end():].strip()):
        if _EXPLICIT.match(stamp[0]) or SPEAKER.match(rest) or _BEHIND.match(rest):
            line = f"{chat[1]}: {rest[chat.end():]}" if (chat := _TO_ALL.match(rest)) else rest
    if match := _SPAN_OF.match(line):
        return match[1], line[match.end():].strip()
    if (match := _NAME_AND_TIME.match(line)) and len(match[1].encode()) <= _LONG_NAME and not _WORDS.search(match[1]):
        return _plain_name(match[1]), line[match.end():].strip()
    if match := _BEHIND.match(line):
        return _plain_name(match["name"]), line[match.end():].strip()
    return _spoken(line)


def _spoken(line: str) -> tuple[str | None, str]:
    match = SPEAKER.match(line)
    name = _plain_name(match[1]) if match else ""
    return (name, line[match.end():].strip()) if name else (None, line)


def _plain_name(name: str) -> str:
    name = name.strip()
    if name.isalnum():
        return name
    name = name.translate(TO_HALF)
    bracketed = _BRACKETED.fullmatch(name)
    return safe_name(bracketed["name"]) if bracketed else name


def _bracketed_turns(turns: list[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Turns where a name in brackets opens every line, without a colon. (One 【快递】 opens a text message.)"""
    if len(turns) < 2 or turns[0][0] is not None or not _BRACKETED_TURN.match(turns[0][1]):
        return turns
    found = [name is None and _BRACKETED_TURN.match(said) for name, said in turns]
    if not all(found):
        return turns
    return [(_plain_name(safe_name(match["name"])), said[match.end():]) for match, (_, said) in zip(found, turns)]


def _filled(turns: list[tuple[str | None, str]], origin: list[tuple[int, int]]
            ) -> tuple[list[tuple[str | None, str]], list[tuple[int, int]]]:
    """Turns where each speaker is alone on a line and says the next."""
    if not turns or not turns[0][0] or turns[0][1] or any(name and said for name, said in turns) or (
            not _are_names([name for name, _ in turns if name], sure=True)):
        return turns, origin
    filled = []
    for (name, said), place in zip(turns, origin):
        if name is None and not filled[-1][0][1]:
            (name, _), (first, _) = filled.pop()
            place = first, place[1]
        filled.append(((name, said), place))
    return [turn for turn, _ in filled], [place for _, place in filled]


def _joined(name: str | None, said: str) -> str:
    if said and (_ASCII.search(said) or not _CHINESE.search(said)):
        said = _usual_marks(said)
    return said if name is None else f"{name}: {said}"


def _usual_marks(said: str) -> str:
    if _LATIN.search(said) and not _CHINESE.search(said):
        return said.translate(TO_HALF)
    said = said.translate(TO_FULL)
    if " " in said:
        said = _BLANK_AT_MARK.sub(r"\1", said)
    return _MARK_BEFORE_LATIN.sub(_width, said)


def _width(mark: re.Match) -> str:
    """A mark of Chinese text before a digit, letter or slash: half as wide inside a number, a time or an address."""
    place = mark.start()
    return mark[0].translate(TO_HALF) if _INSIDE_LATIN.match(mark.string[max(0, place - 1):place + 2]) else mark[0]
