"""Who speaks in what people paste: transcripts, chat exports and subtitles, and words that only resemble them."""

import time

import pytest

from data.normalise import normalise, normalise_lines
from data.speakers import map_speakers, roles, split_lines

# ------------------------------------------------------------------------------------------- a mark in each line


@pytest.mark.parametrize("mark", ["\t", "|", " | ", "｜"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\u2028", "<br>"])
def test_a_tab_or_a_bar_behind_every_speaker_is_a_colon(mark, line_break):
    assert normalise(line_break.join(f"{name}{mark}{said}" for name, said in (("甲", "您好"), ("乙", "你好")))
                     ) == "甲: 您好\n乙: 你好"
    assert normalise("价格表\n苹果|3元") == "价格表\n苹果|3元" and normalise("甲|乙") == "甲|乙"


@pytest.mark.parametrize("number", ["{}. ", "{}.", "{}、", "{}) ", "{}） "])
def test_lines_that_are_counted_lose_their_numbers_and_a_list_that_is_said_does_not(number):
    lines = ["客服: 您好", "王女士: 谁？", "客服: 我"]
    assert normalise("\n".join(number.format(place) + line for place, line in enumerate(lines, start=9))) == \
        "\n".join(lines)
    for said in ("1. 先转账", "甲: 三件事\n1. 先转账\n2. 再挂断", "1.5万元\n2.5万元", "3. 好\n5. 不好"):
        assert normalise(said) == said


def test_names_in_brackets_without_colon_are_speakers_where_all_lines_have_one():
    assert normalise("【客服】您好\n[王女士] 为什么？") == "客服: 您好\n王女士: 为什么？"
    assert normalise("【快递】包裹滞留\n怎么办？") == "【快递】包裹滞留\n怎么办？"


# --------------------------------------------------------------------------------------------- a call in one line


@pytest.mark.parametrize("names", [("客服", "王女士"), ("说话人 1", "说话人 2"), ("SPEAKER_00", "SPEAKER_01"),
                                   ("我", "小鸟")])
@pytest.mark.parametrize("end, colon", [(" ", ": "), ("\u3000", "："), ("。", "："), ("？ ", " : ")])
def test_a_call_in_one_line_has_a_line_for_each_who_speaks(names, end, colon):
    said = ["您好", "今晚8:30见", "请看https://a.b/c", "验证码：4839", "地点：银行", "好"]
    names = [*names, *names, names[1], names[0]]
    squeezed = end.join(f"{name}{colon}{what}" for name, what in zip(names, said, strict=True))
    lines, origin = normalise_lines(squeezed)
    assert lines == [f"{name}: {what}{end.strip()}" for name, what in zip(names, said[:-1])] + [f"{names[-1]}: 好"]
    assert origin == [(0, 0)] * 6
    assert normalise(f"1\n00:00:01,000 --> 00:00:03,000\n{squeezed}") == "\n".join(lines)


@pytest.mark.parametrize("text", [
    "客服：您好 用户：你好 客服：好", "客服：您好 客服：在吗 用户：在 用户：好",
    "客服：您好用户：你好客服：好用户：再见", "客服：您好 [00:05] 用户：好 客服：嗯 [00:09] 用户：再见",
    "妈妈：聊天记录在这 小李：在吗 小王：在 小李：走 小王：好", "我看看 客服：您好 用户：你好 客服：好 用户：再见",
    "商品：苹果 价格：贵 商品：梨 价格：便宜", "苹果：5元 梨：6元 苹果：7元 梨：8元",
    "小李：小王说 客服：您好 用户：你好 客服：好 用户：再见", "甲：走 乙：好 丙：行 甲：走 乙：好 丙：行",
    "老师：两句话 客服：您好 用户：好 客服：嗯 用户：再见\n学生：好"])
def test_names_in_one_line_that_may_be_said_stay_words(text):
    assert normalise(text).replace(": ", "：") == text


# -------------------------------------------------------------------------------------------- stamps and headers


@pytest.mark.parametrize("line", [
    "[2024-05-01 10:00:11] 骗子: 请转账", "10:00:11 骗子: 请转账", "骗子 10:00:11: 请转账", "骗子 (10:00): 请转账",
    "2024年5月1日 下午3:20 骗子：请转账", "2024-05-01T10:00:11 骗子: 请转账",
    "[01.05.24, 10:00:11] 骗子: 请转账",
    "01/05/2024, 10:00 - 骗子: 请转账", "2024/5/1 星期三 10:00 骗子: 请转账",
    "10:00 骗子: 请转账", "2024-05-01 骗子: 请转账", "【10:00】骗子：请转账", "[00:01.00 --> 00:03.00] 骗子: 请转账",
    "骗子[2024-05-01 10:00]: 请转账", "10:00 PM 骗子: 请转账", "【骗子】: 请转账", "[骗子]：请转账",
    "(骗子): 请转账", "「骗子」: 请转账",
    "（骗子）：请转账", "[10:00:11]【骗子】：请转账",
    "骗子 2024-05-01 10:00:11\n请转账", "骗子 10:00\n请转账", "2024-05-01 10:00:11 骗子(12345678)\n请转账",
    "骗子  昨天 20:15\n\n请转账", "2024-05-01 10:00:11 骗子<a@qq.com>\n请转账", "10:00:11\n骗子: 请转账",
    "[1.52s -> 4.20s] 骗子: 请转账", "[0.5s] 骗子: 请转账",
    "1\n00:00:01,000 --> 00:00:03,000\n骗子: 请转账",
    "WEBVTT\n\n00:01.000 --> 00:03.000 align:start\n<v 骗子>请转账</v>",
])
def test_times_brackets_headers_and_subtitles_leave_speaker_and_words(line):
    assert normalise(line) == "骗子: 请转账"
    assert normalise(f"{line}\n{line.replace('请转账', '快')}") == "骗子: 请转账\n骗子: 快"


def test_a_message_of_several_lines_follows_its_header():
    text = "张三 2024-05-01 10:00:11\n在吗？\n急事\n李四 2024-05-01 10:00:15\n在"
    assert normalise_lines(text) == (["张三: 在吗？", "急事", "李四: 在"], [(0, 1), (2, 2), (3, 4)])


@pytest.mark.parametrize("text", [
    "我们下午三点见面 15:30\n好的", "周三开会 15:30\n收到", "See you at 3:30\nOK", "请三点到（15:30）\n好的",
    "几点开会？\n我们改到下午 15:30\n好的\n那明天见 9:30\n行", "会议改到 2024-05-01 15:30\n好的",
    "甲: 几点见？\n老地方 15:30\n好的\n乙: 行", "张三: 在吗\n开会时间是 12:30:22\n好的",
    "昨天 12:30 我在门口等您\n您没来", "你好 15:30\n转账 15:31\n好的 15:32\n嗯 15:33",
    "请把钱转到安全账户 15:30\n好的\n请把身份证号给我 15:40\n好的",
])
def test_words_with_a_time_are_no_header(text):
    assert normalise(text) == text


@pytest.mark.parametrize("header", [
    "{}  {}:30", "{} 昨天 20:{}", "{} 下午3:{}", "{} 2024/5/1 12:{}", "{} 2024-05-01 12:{}:22", "{}({}:00:12)",
    "{} 0:{}:01", "{}\xa05月1日 10:{}", "{} 05-01 12:{}", "{}, [2024/5/1 12:{}]", "{}: 05-01 12:{}:22",
])
def test_a_chat_is_known_by_names_that_return(header):
    said = [("快乐的小鸟", "在吗"), ("我是王总", "在"), ("快乐的小鸟", "账号：6222\n三点见 15:30\n好吗"),
            ("我是王总", "好"), ("李四", "嗯")]
    text = "\n\n".join(f"{header.format(name, place)}\n{words}" for place, (name, words) in enumerate(said, start=10))
    expected = "\n".join(f"{name}: {words}" for name, words in said)
    for before, kept in (("", ""), ("以下是微信聊天记录\n", "以下是微信聊天记录\n"), ("2024年5月1日 9:00\n", "")):
        assert normalise(before + text) == kept + expected


@pytest.mark.parametrize("header", ["张三 12:30", "Zhang San 3:45 PM", "客服部张经理 昨天 20:15", "【张三】 12:30",
                                    "张三, [2024/5/1 12:30]", "张三: 05-01 12:30:22", "2024-05-01 10:00:11 张三(123)"])
def test_a_single_message_keeps_its_sender(header):
    assert normalise(f"{header}\n你好").endswith(": 你好")


@pytest.mark.parametrize("day", ["—————  2024-05-02  —————", "---- 5月2日 星期四 ----", "———2024年5月2日———"])
def test_a_day_between_dashes_is_a_stamp_of_a_chat(day):
    first, second = "张三  20:05\n\n在吗\n\n李四  20:06\n\n在", "张三  09:10\n\n借我钱"
    assert normalise(f"{day}\n\n{first}\n\n{day}\n\n{second}") == "张三: 在吗\n李四: 在\n张三: 借我钱"
    assert normalise("甲: 看\n---2024---\n-----") == "甲: 看\n---2024---\n-----"


def test_a_line_of_a_day_and_a_time_is_no_name():
    assert normalise("昨天 20:15\n在吗\n5月1日 10:00\n在") == "在吗\n在"
    assert normalise("哪天？\n1991年9月13日\n10:00开始\n好") == "哪天？\n1991年9月13日\n10:00开始\n好"


@pytest.mark.parametrize("stamp", ["1700000000 ", "1700000000123 ", "1700000000.25 ", "[1700000000] "])
def test_seconds_since_1970_are_a_stamp_and_a_telephone_number_is_none(stamp):
    assert normalise(f"{stamp}甲: 您好") == "甲: 您好"
    assert normalise("13800138000 是我的号码") == "13800138000 是我的号码"


@pytest.mark.parametrize("header", ["{} 10:00:11\n{}", "2024-05-01 10:00:11 {}(12345)\n{}", "【{}】{}"])
def test_a_time_that_is_said_is_none_of_a_header(header):
    lines = [("客服", "您好，在吗？"), ("王女士", "请在12:30前到"), ("客服", "今晚8:30见")]
    text = "\n".join(header.format(*line) for line in lines)
    assert normalise(text) == "\n".join(f"{name}: {said}" for name, said in lines)


# ----------------------------------------------------------------------------------------------------- subtitles

TIMES_OF_A_CUE = "00:0{0}.000 --> 00:0{0}.900 align:start position:0%"


@pytest.mark.parametrize("head", ["WEBVTT", "WEBVTT - 一个通话", "WEBVTT\nKind: captions\nLanguage: zh",
                                  "WEBVTT\n\nSTYLE\n::cue { color: red }\n\nNOTE 说明: 无"])
@pytest.mark.parametrize("name", ["", "{}\n", "7f3c1c9e-1111-4444-8888-123456789abc/1{}-0\n",
                                  "NOTE\n两行\n说明: 这里\n\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_of_subtitles_only_what_is_said_is_left(head, name, line_end):
    cues = ["<v 客服>您好，<00:01.500><c.yellow>我是</c>\n<i>客服</i></v>",
            "{\\an8}<font color=\"#fff\">王女士: 谁？</font>"]
    text = "\n\n".join([head, *(f"{name.format(place)}{TIMES_OF_A_CUE.format(place)}\n{cue}"
                                for place, cue in enumerate(cues, start=1))])
    assert normalise(text.replace("\n", line_end)) == "客服: 您好，我是\n客服\n王女士: 谁？"


@pytest.mark.parametrize("text", ["甲: <i>好</i>", "甲: {\\an8}", "NOTE 一\n甲: 好", "WEBVTT 是什么\n甲: 好"])
def test_without_the_times_of_subtitles_their_marks_are_words(text):
    assert normalise(text) == text


# ------------------------------------------------------------------------------------------- transcripts

TWO = "张三: 你好\n李四: 好的"


@pytest.mark.parametrize("text, expected", [
    ("[0:0.020,0:2.380,0]  您好\n[0:2.380,1:4.0,1]  好的", "0: 您好\n1: 好的"),
    ("[00:00:00.020,00:00:02.380,0]  您好", "0: 您好"),
    ("[0:0.020,0:2.380]  您好", "您好"),
    ("[0:0.020,0:2.380]\n您好", "您好"),
    ("张三(00:01:23):\n你好\n李四(00:01:25):\n好的", TWO),
    ("小鸟(00:01:23):\n你好", "小鸟: 你好"),
    ("张三:\n你好\n\n李四：\n好的", TWO),
    ("10:01:22 From 张三 to Everyone:\n\t你好\n10:01:25 From  李四  to  Everyone : 好的", TWO),
    ("10:01:22 From 张三 to 李四(Direct Message):\n你好", "张三: 你好"),
    ("10:01:22 来自 张三 到 所有人：\n你好", "张三: 你好"),
    ("【客服 10:00】您好", "客服: 您好"),
    ("[张三 2024-05-01 10:00:01]: 你好\n[李四 10:00] 好的", TWO),
    ("【张三 2024-05-01 10:00】\n你好", "张三: 你好"),
    ("客服——您好\n王女士——好的", "客服: 您好\n王女士: 好的"),
    ("小鸟 - 您好\n老王 – 好的\n小鸟 — 嗯\n老王 - 行", "小鸟: 您好\n老王: 好的\n小鸟: 嗯\n老王: 行"),
    ("说话人1\n您好\n我是客服\n说话人2\n好", "说话人1: 您好\n我是客服\n说话人2: 好"),
    ("张三\n你好，听得到吗？\n李四\n请12:30到\n张三\n好", "张三: 你好，听得到吗？\n李四: 请12:30到\n张三: 好"),
    ("小鸟\n在吗？\n老王\n在\n小鸟\n那好\n老王\n嗯", "小鸟: 在吗？\n老王: 在\n小鸟: 那好\n老王: 嗯"),
])
def test_a_transcript_is_read_as_its_program_writes_it(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize("header", ["00:01:2{} {}\n", "[00:01:2{}] {}\n", "00:01:2{}\n{}\n", "00:0{} {}\n",
                                    "00:0{}\n\n{}\n\n", "00:00:0{}.120 {}\n", "10:00:0{} {}\n"])
def test_a_name_behind_a_time_announces_what_follows(header):
    for names in (("张三", "李四"), ("说话人1", "说话人 2"), ("小鸟", "老王", "小鸟"), ("说话人1",)):
        text = "\n".join(f"{header.format(*turn)}三点见，12:30前到\n账号：622" for turn in enumerate(names))
        assert normalise(text) == "\n".join(f"{name}: 三点见，12:30前到\n账号：622" for name in names)


def test_a_name_behind_a_time_counts_with_its_message():
    assert normalise_lines("00:01\n张三\n你好\n嗯\n00:05 \n李四\n好的")[1] == [(1, 2), (3, 3), (5, 6)]
    assert normalise_lines("张三:\n你好\n嗯\n李四:\n好的")[1] == [(0, 1), (2, 2), (3, 4)]
    assert normalise_lines("张三(00:01):\n你好\n嗯")[1] == [(0, 1), (2, 2)]


@pytest.mark.parametrize("text", [
    "验证码 12:30\n483920", "取件码 12:30\n8-1", "今晚 8:30\n老地方见", "付款 10:00\n已付\n付款 10:30\n已付",
    "支付成功 2024-05-01 10:00:00\n金额5000元", "通话时长 00:35\n我转了\n通话时长 01:35\n你再转", "OTP 12:30\n483920",
    "2024-05-01 10:00 订单编号123\n请付款", "充值\n火速\n充值\n尽快\n提现\n三万\n提现\n四万",
    "安全账户\n转过来\n公证处\n确认\n安全账户\n再转\n公证处\n再确认", "密码\n123\n账号\nabc\n密码\n123\n账号\nabc",
    "任务一\n下载\n任务二\n注册\n任务一\n完成\n任务二\n完成了", "按1\n查询\n按2\n转账\n按1\n查询\n按2\n转账",
    "苹果\n五块\n香蕉\n三块\n苹果\n五块\n香蕉\n三块", "苹果 - 5元\n香蕉 - 3元\n苹果 - 5元\n香蕉 - 3元",
    "工资 10:00\n五千\n工资 10:10\n六千",
    "黄金 - 500\n黄豆 - 5", "转账|5000\n充值|3000", "账号|622202\n户名|王小明", "[转账] 给您\n[红包] 拿着",
    "[微笑] 你好\n[微笑] 在吗", "（哭）妈妈救我\n（急）快转钱", "【紧急】账户异常\n【紧急】请转账",
])
def test_what_heads_an_entry_of_a_list_or_is_a_mood_is_no_speaker(text):
    assert normalise(text) == text


@pytest.mark.parametrize("said", [
    "【工商银行】您的验证码：483920，请勿泄露", "验证码：483920（5分钟内有效）", "金额：5000元", "转账金额：五万元！",
    "时间：明天下午3点", "日期：2024-05-01 10:00", "账号：6222 0200 1111", "订单编号：SF12345678。", "客服电话：95588",
    "我的身份证号：1101**********123X", "密码：123", "利率：3.5%"])
def test_what_heads_a_number_is_said_and_no_speaker(said):
    for text in (said, said.replace("：", ": "), f"甲: 收到短信\n{said}\n乙: 好",
                 f"张三 10:00\n在吗\n{said}\n张三 10:01\n好"):
        assert said in normalise(text).split("\n")
        assert said in map_speakers(normalise(text), roles).split("\n")


@pytest.mark.parametrize("text", [
    "陌生电话: 您好\n我: 谁？", "陌生号码: 10086的", "官方账号: 恭喜您", "时间: 12:30见", "1号: 5000元\n嘉宾2号: 三万",
    "甲: 5000元", "客户: 123", "对方: 金额：5000元"])
def test_a_speaker_may_be_called_like_an_entry_and_talk_of_numbers(text):
    assert normalise(text) == text and split_lines(text)[0][0] == text.partition(": ")[0]


def test_long_numbers_are_told_from_names_at_once():
    text = f"甲|{'万' * 20000}个人\n乙|好"
    started = time.perf_counter()
    assert normalise(text) == text.replace("|", ": ")
    assert time.perf_counter() - started < 2


def test_speakers_who_only_talk_of_money_are_speakers():
    assert normalise("张总 10:00\n转账\n小李 10:01\n收到\n张总 10:02\n验证码 12:30") == (
        "张总: 转账\n小李: 收到\n张总: 验证码 12:30")
    assert normalise("贷款经理\n五万\n贷款经理\n放款了") == "贷款经理: 五万\n贷款经理: 放款了"
    assert normalise("1\t喂\n2\t你好") == "1: 喂\n2: 你好"
    assert normalise("[客服小王] 您好\n[我] 你好\n[客服小王] 请转账\n[我] 好") == (
        "客服小王: 您好\n我: 你好\n客服小王: 请转账\n我: 好")


@pytest.mark.parametrize("text", [
    "8:30 王府井\n集合\n10:00 黄山\n解散", "12:30 李村站\n见", "8:30 我家\n集合\n9:00 学校\n到了\n9:30 我家\n好",
    "好的\n多少钱\n好的\n三块\n嗯\n便宜\n嗯\n行", "多少钱\n三块\n太贵\n两块\n多少钱\n一块", "张三\n你好\n李四\n好的",
    "[图片]\n看\n[图片]\n看看\n[表情]\n嗯\n[表情]\n哦", "说话人1\n说话人2\n好",
    "小鸟\n在\n老王\n小鸟\n小鸟\n好\n老王\n嗯",
    "北京——上海\n上海——广州\n北京——广州", "我——不知道\n你——再说\n我——好\n你——嗯", "客服 - 您好\n好的", "客服——您好",
    "【周三 10:00】开会", "【公告 2024-05-01】停电", "（会议室 10:00）见", "甲: \n乙: 好",
    "案例一: \n有人转账\n案例二: \n又有人", "From 张三 to Everyone: 好", "甲: [0:0.020,0:2.380,0] 您好",
])
def test_what_only_resembles_a_transcript_stays(text):
    assert normalise(text) == text


@pytest.mark.parametrize("text, expected", [
    ("00:00:01 好的\n我是客服\n00:00:05 好的\n嗯嗯", "好的\n我是客服\n好的\n嗯嗯"),
    ("00:00:01 早上好\n我是客服\n00:00:05 请讲\n嗯", "早上好\n我是客服\n请讲\n嗯"),
    ("10:00:11 从 北京 到 上海 高铁：快", "从 北京 到 上海 高铁: 快"),
    ("15:30\n好的\n我来了", "好的\n我来了"),
])
def test_words_behind_a_time_are_no_names(text, expected):
    assert normalise(text) == expected
