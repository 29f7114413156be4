"""Who says what in a pasted text: transcripts, chat exports, subtitles, tables of two columns.

Each program writes the speaker in its own place: before a colon, a dash, a tab or a bar, in brackets, beside or below a
time, in a header above the message, alone on every second line. `read_turns` finds the speaker and drops times,
numbers and markup. Spoken words can look like any of this, so a rule takes a name only where the whole text bears it
out: every line has the same shape, the names return, or the times are a program's. In doubt the words stay.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, zip_longest

Turn = tuple[str | None, str]  # speaker and words; a line without a speaker belongs to the turn before
Place = tuple[int, int]  # the first and the last line of the text that a turn was made from

NARRATOR = "旁白"
MARKS, FULL_MARKS = ",!?;:()", "，！？；：（）"  # in either width; those of a name are half-width
TO_HALF = str.maketrans(FULL_MARKS, MARKS)
_UNNAMED = ":：，。！？；,!?;"  # never in a name
# What heads a number and is nobody's name, by its last two characters: 您的验证码：483920, 金额：5000元, 时间：明天3点.
_ENTRY_ENDS = ("证码|验码|取码|件码|密码|号码|账号|帐号|卡号|单号|编号|机号|尾号|证号|户号|账户|帐户|电话|金额|余额|"
               "总额|限额|额度|价格|单价|总价|费用|月供|利率|利息|工资|时间|日期")
_FIGURES = (r"[A-Za-z\d零一二两三四五六七八九十百千万亿半今明后天上下中午早晚周日星期年月号时点分秒元块角个整"
            r"¥￥$.,:：/*%-]++")
# A speaker is what stands before the first colon of a line, unless it reads like a sentence, a time (12:30, 今晚8:30见)
# or the beginning of an address (https://), or heads a number. A speaker may well be called 1, though, and say 10点 or
# 20块 at once.
SPEAKER = re.compile(rf"^(?!\d+[:：]\d)([^{_UNNAMED}\n]{{1,40}})[:：](?!//)"
                     rf"(?!(?<=(?:{_ENTRY_ENDS})[:：])[^\S\n]*{_FIGURES}(?![^\s，。！；,;!(（]))"
                     r"(?!(?<=\d[:：])[0-5]\d(?![\d点号块元月日年个万千百分岁天次人楼度%多几]))[^\S\n]*")

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
MAY_BE_STAMPED = re.compile(r"\d(?:[:：]\d|\d{9}|\d{3}[-/.年]\d|月\d|s ?[-~\])）】>〕])")  # what every stamp holds
_BEGINNING = 100  # characters of a line: a name (40), a date and a range of times fit; the rest need not be searched
_DAY_LINE = re.compile(rf"[—–─-]{{3,}} ?{_DATE}(?: ?{_DAY})? ?[—–─-]{{3,}}")  # between the days of a chat
_HAS_TIME = re.compile(r"\d[:：]\d")
_CLOCK = r"\d[:：]\d\d[:：]\d\d"  # with seconds: programs write them, people do not
_EXPLICIT = re.compile(rf"{_OPEN}|.*(?:{_CLOCK}|-->)")  # a stamp, whatever follows it
_EXACT = re.compile(rf".*(?:{_CLOCK}|\d{{4}}[-/.年]\d)")  # a program's, if a name is beside it
_RECORDED = re.compile(rf"{_OPEN}?0?0[:：]|.*{_CLOCK}")  # a program's, if it stands in front

# ------------------------------------------------------------------------------------- names beside a stamp
_NAME = rf"([^{_UNNAMED}\n]{{1,40}}?)"
_BEHIND = re.compile(rf"{_NAME}(?> ?{_OPEN} ?{_RANGE} ?{_CLOSE}| {_RANGE})+ ?[:：](?!\d\d) ?")  # 张三 (10:00): 好
_SPAN_OF = re.compile(rf"\[{_SPAN},(\d{{1,3}})\] ?")  # a span and the speaker's number
_NAME_AND_TIME = re.compile(rf"[\[【] ?([^\[\]()（）【】<>〔〕{_UNNAMED}]{{1,40}}?)[ ,，]{{1,2}}(?=[^\]】]*\d[:：]\d)"
                            rf"{_RANGE} ?[\]】] ?[:：]? ?")  # [张三 10:00] 好
_TO_ALL = re.compile("(?:From|来自|从|自) ([^:：]{1,40}?) (?:to|至|到|发送至|发送给) "  # Zoom's chat
                     r"(?:(?:Everyone|所有人|每个人|大家|me|我)(?:[ (（][^:：]{0,30})?|"
                     r"[^:：]{1,40}[(（](?:Direct Message|Privately|私聊|私信)[)）]) ?[:：]", re.IGNORECASE)
_NAME_FIRST = re.compile(rf"(?:[\[【](?=[^\]】]*[\]】]$))?{_NAME}(?:[,，]? ?{_OPEN} ?| |"
                         rf"[:：] (?={_SHORT_DATE} {_TIME}$)(?=.*[:：]\d\d[:：])){_RANGE} ?{_CLOSE}?")
_STAMP_FIRST = re.compile(rf"{_OPEN}?(?:{_DATE}|{_SHORT_DATE})[T,， ]{{0,2}}(?:{_DAY} )?{_TIME}{_CLOSE}? {_NAME}"
                          r"(?: ?[(（<][^()（）<>]{4,40}[)）>])?")

# ------------------------------------------------------------------------------------ names beside a mark
_NUMBER = re.compile(r"(\d{1,4})(?:[.)）] |[.)）](?![\d ])|、) ?(?=\S)")
_COLUMN = re.compile(rf"\s*([^\t|｜{_UNNAMED}]{{1,40}}?) ?[\t|｜]\s*(?=[^\s|｜])")
_DASHED = re.compile(rf"([^—–|｜{_UNNAMED}]{{1,40}}?)(?: ?—{{1,2}} ?| [-–] )(?=[^\s—–-])")
_BRACKETED = re.compile(r"[\[(（【「『〈《<〔]([^\[\]()（）【】「」『』〈〉《》<>〔〕]{1,38})[\])）】」』〉》>〕]")
_BRACKETED_TURN = re.compile(_BRACKETED.pattern + r" ?(?=[^ :：])")

# ----------------------------------------------------------------------------------------- names and words
# What a name hardly holds and words do: 我们下午三点见, 周三开会, See you at.
_WORDS = re.compile("[我你您他她咱们这哪是在到了吗呢吧啊呀请把给去没不要见转点等改]|[今明昨后前每][天晚早]|[上中下]午|"
                    "[早晚]上|(?:周|星期)[一二三四五六日天末]| [a-z]")
# A line or a beginning without marks that can be a name, what is short and none, and what is hardly anything else.
_LONE = re.compile(r"[^\W\d_][\w ·.*()（）-]{0,19}")
_REPLY = re.compile("[好嗯哦噢喔啊对行喂诶哎唉啥可没有不是真多怎什为谁那然因所但如收]|谢谢|知道|明白|同意|哈哈|再见|早|"
                    r"(?:ok|okay|yes|no|hi|hello|hey|thanks|well|right)\b", re.IGNORECASE)
# What heads an entry, a step or a message in talk about money, and is no name: 验证码, 支付成功, 订单编号123, 五千元.
_AMOUNT = re.compile(r"[¥￥$]?(?:[\d,.]+|[一二两三四五六七八九十百千万亿零半]++) ?"
                     "(?:[元块角分万亿个件只份克斤次天月年%]|美元|人民币|公斤|千克)*")
_ENTRY = re.compile(
    "(?:转[账钱]|打[款钱]|[付收退汇还放扣借贷存取余欠]款|[收发退]货|充值|提现|取现|支付|缴费|交易|[到入]账|[下订接刷做]单|返[利现佣]|"
    "佣金|本金|利[息率]|[押定]金|保证金|手续费|[退学运话水电]费|[金余总限]额|额度|[价总单]价|价格|数量|备注|说明|时[间长]|日期|有效期?|"
    "期限|到期|最后|还款日|地[点址]|[姓户品]名|名称|商品|项目|平台|状态|开户行|银行卡|[卡单编序尾]号|安全|[账帐][号户单]|密码|验证|码|"
    "激活|邀请|身份证号?|手机号?|电话|邮箱|网址|链接|会议号?|航班|车次|登机口?|[开退]庭|开会|上课|考试|手术|直播|集合|截止|[上下]车|"
    "签[到收]|打卡|到达|出发|买入|卖出|[开收]盘|[开平建加]仓|止[损盈]|[涨跌]停|盈利|亏损|稳赚|保本|[高低]?收益|[高低]?风险|投资|理财|"
    "股票|基金|黄金|白银|[中抽]奖|红包|优惠券?|取件|下载|注册|登[录陆]|安装|点击|确认|审[核批]|完成|成功|失败|通过|对方|已|取消|撤回|"
    "开始|结束|任务|步骤|第.步|按|图片|照片|语音|视频|通话|未接|来电|表情|文件|位置|名片|短信|通知|公告|紧急|工资|[早午晚]餐|吃药|"
    "洗钱|违法|坐牢|逮捕令?|通缉令?|诈骗|冻结|报警|投诉|救命|快跑|加油|马上|立[刻即]|快点|赶[紧快]|现在|[早晚]安|"
    "code|otp|password|account|transfer|payment|amount|price|order)+"
    f"[一二三四五六七八九十\\d]*|(?!\\d+$){_AMOUNT.pattern}", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:说话人|发言人|讲话人|角色|Speaker|spk)[ _]?(?:\d{1,3}|[A-Z])", re.IGNORECASE)
_PERSON = re.compile(
    "[王李张刘陈杨赵黄周吴徐孙朱郭罗宋郑韩唐冯董萧曹袁邓傅沈彭吕苏卢蒋蔡贾丁魏薛叶阎潘杜戴夏钟汪姜姚谭廖邹熊陆郝崔邱秦侯邵孟汤尹黎贺赖龚]"
    "[\u4e00-\u9fff]{1,2}|.{1,4}(?:先生|女士|小姐|经理|老师|警官|医生|主任)|客服|坐席|客户|用户|顾客|主持人|嘉宾|骗子|受害者")
# A name and a colon inside a line, at its beginning, behind a blank or behind the end of a sentence.
_INSIDE = re.compile(rf"(?<![^ 。！？；!?;…])({_NUMBERED.pattern}|(?!\d)[^{_UNNAMED}\s]{{1,20}}) ?[:：](?!//)",
                     re.IGNORECASE)
# --------------------------------------------------------------------------------------------------- subtitles
_TIMING = re.compile(rf"{_TIME} ?--> ?{_TIME}.*")
_VOICE = re.compile(r"<v(?:\.[\w.]+)? ([^<>:：]{1,40})>(.*?)(?:</v>)?")
_NOT_CUE = re.compile(r"WEBVTT\b|NOTE(?: |$)")
_CUE_NAME = re.compile(r"\d+|[0-9a-f-]{36}/[\d-]+")  # counted, or as Teams writes it
_MARKUP = re.compile(r"</?(?:[biuc]|font|ruby|rt|lang)(?:[. ][^<>]*)?>|</v>|<[\d:.]+>|\{\\[^{}]*\}", re.IGNORECASE)


def safe_name(name: str) -> str:
    """A speaker's name that `SPEAKER` reads back."""
    name = " ".join(re.sub(rf"[{_UNNAMED}\s]+", " ", name).split())[:40].strip()
    return name or NARRATOR


def without_columns(lines: list[str]) -> list[str]:
    """Lines with a colon behind their speakers, where each that is not blank has a tab or a bar there."""
    found = _beside(_COLUMN, [line for line in lines if line.strip()])
    rest = iter(found)
    return [_with_colon(next(rest)) if line.strip() else line for line in lines] if found else lines


def read_turns(lines: list[str], places: list[Place], *, stamped: bool) -> tuple[list[Turn], list[Place]]:
    """What is said and who says it, with the places of the headers that announce it.

    Args:
        lines: one form for their characters, and none blank.
        places: where each line comes from.
        stamped: whether the text that the lines were made from may hold times, headers or subtitles.
    """
    lines, places = _unsqueezed(lines, places)
    lines = _without_dashes(_unnumbered(lines))
    if stamped or _lone_names(lines):
        turns, places = _merge_headers(lines, places)
    else:
        turns = [_spoken(line) for line in lines]
    return _filled(_bracketed_turns(turns), places)


# ------------------------------------------------------------------------------- a mark in each line of a text


def _each(pattern: re.Pattern, lines: Sequence[str]) -> list[re.Match]:
    """What `pattern` finds in each line of two or more; nothing if one lacks it."""
    if len(lines) < 2 or not pattern.match(lines[0]):
        return []
    found = [pattern.match(line) for line in lines]
    return [] if None in found else found


def _beside(pattern: re.Pattern, lines: Sequence[str]) -> list[re.Match]:
    """The names that `pattern` finds in each line; nothing if one heads an entry, or if all is numbers behind them."""
    found = _each(pattern, lines)
    names, said = [name[1] for name in found], [name.string[name.end():].strip() for name in found]
    is_list = any(map(_ENTRY.fullmatch, names)) or _are_amounts(said) or not {*names}.isdisjoint(said)
    return [] if is_list else found


def _with_colon(name: re.Match) -> str:
    return f"{name[1]}: {name.string[name.end():]}"


def _unsqueezed(lines: list[str], places: list[Place]) -> tuple[list[str], list[Place]]:
    """The lines of a call that is squeezed into one, as ``客服: 您好 用户: 谁？ 客服: 我 用户: 哦``, and their places.

    What is said holds names and colons, too. So only where two speakers, one of whom begins, take turns three times.
    """
    first = _INSIDE.match(lines[0]) if len(lines) == 1 else None
    if not first:
        return lines, places
    times = Counter(head[1] for head in _INSIDE.finditer(lines[0]))
    speakers = {name for name, count in times.items() if count > 1 and not _ENTRY.fullmatch(name)}
    if len(speakers) != 2 or first[1] not in speakers:
        return lines, places
    heads = [head for head in _INSIDE.finditer(lines[0]) if head[1] in speakers]
    starts = [head.start() for head in heads]
    turns = [lines[0][start:end].strip() for start, end in zip(starts, [*starts[1:], None])]
    changes = sum(one[1] != other[1] for one, other in pairwise(heads))
    return (turns, places * len(turns)) if changes >= 3 and _beside(SPEAKER, turns) else (lines, places)


def _unnumbered(lines: list[str]) -> list[str]:
    """Lines without the numbers that count them; a single ``1.`` is said."""
    found = _each(_NUMBER, lines)
    if not found or any(int(number[1]) != int(found[0][1]) + place for place, number in enumerate(found)):
        return lines
    return [number.string[number.end():] for number in found]


def _without_dashes(lines: list[str]) -> list[str]:
    """Lines with a colon behind their speakers, where each has a dash there."""
    if not (found := _beside(_DASHED, lines)):
        return lines
    names = [dash[1] for dash in found]
    return [*map(_with_colon, found)] if _are_names(names, sure=_are_persons(names)) else lines


def _bracketed_turns(turns: list[Turn]) -> list[Turn]:
    """Turns where a name in brackets opens every line, without a colon. (One 【快递】 opens a text message.)"""
    if not turns or turns[0][0] is not None or any(name is not None for name, _ in turns):
        return turns
    found = _beside(_BRACKETED_TURN, [said for _, said in turns])
    names = ["客户" if name[1] == "我" else name[1] for name in found]
    if not found or not _are_names(names, sure=True):  # [微笑], （哭） and 【紧急】 are no names either
        return turns
    return [(safe_name(name[1]), name.string[name.end():]) for name in found]


def _filled(turns: list[Turn], places: list[Place]) -> tuple[list[Turn], list[Place]]:
    """Turns where each speaker is alone on a line and says the next."""
    if not turns or not turns[0][0] or turns[0][1] or any(name and said for name, said in turns) or (
            not _are_names([name for name, _ in turns if name], sure=True)):
        return turns, places
    filled = []
    for (name, said), place in zip(turns, places):
        if name is None and not filled[-1][0][1]:
            (name, _), (first, _) = filled.pop()
            place = first, place[1]
        filled.append(((name, said), place))
    return [turn for turn, _ in filled], [place for _, place in filled]


# ----------------------------------------------------------------------------------------- stamps and headers


def _merge_headers(lines: list[str], origin: list[Place]) -> tuple[list[Turn], list[Place]]:
    """The turn of each line that says something, and its place, that of its header included."""
    turns, places, header, first = [], [], None, None
    cues = _cues(lines)
    headers = _headers(cues)
    for index, (line, following, place) in enumerate(zip(cues, [*cues[1:], ""], origin)):
        if first is None or index in headers:
            first = place[0]
        if index in headers or not line or line == "WEBVTT" or _is_stamp(line):  # says nothing itself
            header = headers.get(index, header)
            continue
        if voice := _VOICE.fullmatch(line):
            header, line = voice[1], voice[2].strip()
        name, said = (_plain_name(header), line) if header else _turn(line)
        if name and not said and (name, said) != _spoken(line) and following and index + 1 not in headers and (
                not _is_stamp(following) and _turn(following)[0] is None):  # 张三 (10:00):
            header = name
            continue
        turns.append((name, said))
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
    return (line[-1].isdigit() or not line[-1].isalnum()) and any(
        stamp.fullmatch(line) for stamp in (_FRONT, _DAY_LINE))


def _headers(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name and a time (WeChat, meetings) or the reverse (QQ).

    People begin and end what they say with a time, too, and words that are taken for a name are lost. So a name must
    head two messages or more, or look like a name in a text that begins with a header, has a name that returns, or
    gives times as programs do. Where most lines have a time, as in a picture of a chat, it is their own.
    """
    found = {}
    for place, line in enumerate(lines):
        if not _HAS_TIME.search(line, 0, _BEGINNING) or _FRONT.fullmatch(line):  # 昨天 20:15
            continue
        match = _NAME_FIRST.fullmatch(line) or _STAMP_FIRST.fullmatch(line)
        if match and not _ENTRY.fullmatch(match[1]):
            found[place] = match
    if not found:
        return _timed_names(lines) or _lone_names(lines)
    if 3 * len(found) > 2 * sum(map(bool, lines)):
        return {}
    times = Counter(match[1] for match in found.values())
    returning = {name for name, count in times.items() if count > 1}

    def is_header(place: int, is_chat: bool) -> bool:
        match, following = found[place], lines[place + 1] if place + 1 < len(lines) else ""
        name = match[1]
        if not following or match.re is _STAMP_FIRST and _FRONT.match(following):
            return False
        if name in returning:
            return True
        if match.re is _NAME_FIRST and SPEAKER.match(following):
            return False
        is_exact, is_name = _EXACT.match(match.string), not _WORDS.search(name)
        return bool(is_exact and (returning or is_name) or is_chat and is_name and _is_short(name))

    begin = next(place for place, line in enumerate(lines) if line and not _is_stamp(line))
    is_chat = bool(returning) or begin in found and is_header(begin, True)
    return {place: match[1] for place, match in found.items() if is_header(place, is_chat)}


def _timed_names(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name behind a time, on the same line or the one before."""
    inline, below, first = {}, {}, ""
    after = [*lines[1:], "", ""]
    for place, line in enumerate(lines):
        stamp = line[:1] in "0123456789[(（【<〔" and _FRONT.match(line)
        if stamp and _HAS_TIME.search(stamp[0]):
            first = first or line
            if _is_stamp(line):
                below[place + 1] = after[place]
            elif not stamp[0][-1].isalnum():  # 12:30前
                inline[place] = line[stamp.end():].strip()
    found = inline or below
    are_heard = all(after[place] and place + 1 not in found and not _is_stamp(after[place]) for place in found)
    return found if are_heard and _are_names([*found.values()], sure=bool(_RECORDED.match(first))) else {}


def _lone_names(lines: list[str]) -> dict[int, str]:
    """Who speaks next, by the place of each line that is a name and nothing else: every second line, or as 说话人1."""
    if len(lines) < 2 or not _LONE.fullmatch(lines[0]):
        return {}
    if _NUMBERED.fullmatch(lines[0]):
        found = {place: line for place, line in enumerate(lines) if _NUMBERED.fullmatch(line)}
        return found if {place + 1 for place in found}.isdisjoint({*found, len(lines)}) else {}
    names, said = lines[::2], lines[1::2]
    if len(names) != len(said) or not {*names}.isdisjoint(said) or any(map(SPEAKER.match, said)):
        return {}
    return dict(zip(range(0, len(lines), 2), names)) if _are_names(names) and not _are_amounts(said) else {}


# -------------------------------------------------------------------------------------------- lines and names


def _turn(line: str) -> Turn:
    """The turn of a line, without the time before or behind the speaker and brackets round the name."""
    if not MAY_BE_STAMPED.search(line, 0, _BEGINNING):
        return _spoken(line)
    if (stamp := _FRONT.match(line)) and (rest := line[stamp.end():].strip()):
        if _EXPLICIT.match(stamp[0]) or SPEAKER.match(rest) or _BEHIND.match(rest):
            line = _with_colon(chat) if (chat := _TO_ALL.match(rest)) else rest
    for pattern in (_SPAN_OF, _NAME_AND_TIME, _BEHIND):
        match = pattern.match(line)
        if match and (pattern is not _NAME_AND_TIME or _is_short(match[1]) and not _WORDS.search(match[1])):
            return _plain_name(match[1]), line[match.end():].strip()
    return _spoken(line)


def _spoken(line: str) -> Turn:
    match = SPEAKER.match(line)
    name = _plain_name(match[1]) if match else ""
    return (name, line[match.end():]) if name else (None, line)


@lru_cache(256)  # a text has few names, and each on many lines
def _plain_name(name: str) -> str:
    name = name.strip().translate(TO_HALF)
    bracketed = _BRACKETED.fullmatch(name)
    return safe_name(bracketed[1]) if bracketed else name


def _are_names(names: list[str], *, sure: bool = False) -> bool:
    """Whether these are speakers and no words: counted ones, or all return; half of them, where they are `sure`."""
    shaped = all(_LONE.fullmatch(name) and _is_short(name) for name in names)
    if not shaped or all(map(_NUMBERED.fullmatch, names)):
        return shaped
    if len(names) < 2 or any(_REPLY.match(name) or _WORDS.search(name) or _ENTRY.fullmatch(name) for name in names):
        return False
    counts = Counter(names)
    if (sure or len(counts) < len(names)) and _are_persons(names):
        return True
    return len(counts) > 1 and (min(counts.values()) > 1 or sure and 2 * len(counts) <= len(names) + 1)


def _are_amounts(said: list[str]) -> bool:
    return all(map(_AMOUNT.fullmatch, said))


def _are_persons(names: list[str]) -> bool:
    return all(map(_PERSON.fullmatch, names))


def _is_short(name: str) -> bool:
    return len(name.encode()) <= 24  # eight Chinese characters
