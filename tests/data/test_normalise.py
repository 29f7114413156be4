"""The normal form of a dialogue text: what does not change the meaning does not change the tokens."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.normalise import is_blank, normalise, normalise_lines
from data.prompt import PromptEncoder, Task, canonical_line_labels

PLAIN = "客服: 您好，请转3,000元，12:30前到账！\n王女士: 为什么？我问问（家人）"


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return PromptEncoder(tokenizer, Task())


# ------------------------------------------------------------------------------------------------ what stays


@pytest.mark.parametrize("text", [
    PLAIN, "", "没有人说这一句", "12:30 我在门口等您", "客服: 12:30 见",
    "张伟: 请打开 https://example.com/a?id=1，谢谢",
    "今晚8:30见", "发言人1: 10点开会", "甲: 5s后见", "甲: a<b&amp;c",
    "【快递】包裹滞留，点链接补税", "（沉默）\n客服: 在吗？",
    "Tom: Hello, how are you? I am (still) fine!", "甲: 好😀👍",
    "甲: 涨了3.5%，1.2万元", "发言人3: 到2月份的第一周，就是15刚过的", "甲: C:\\new\\路径", "张伟: 李明：你好",
    "您好，验证码是：1234", "甲: 5月1日 10:00 开会", "5月1日开会，别忘了", "甲: 第1条\n1", "李**: 好", "https: 你好",
])
def test_the_usual_form_stays_as_it_is(text):
    assert normalise(text) == text


def test_emoji_and_accents_are_kept_whichever_way_they_are_written():
    assert normalise("甲: 好❤\ufe0f👍🏻") == "甲: 好❤👍🏻"
    assert normalise("Ana: cafe\u0301") == "Ana: caf\u00e9"


# ------------------------------------------------------------------------------------------ characters, blanks


@pytest.mark.parametrize("line_break", ["\r\n", "\r", "\u0085", "\u2028", "\u2029", "\v", "\f", "<br>", "<br/>",
                                        "<BR />", "\\n", "\\r\\n", "\n\n", "\n \t\n", "  \n", "\t\r\n\r\n", "\n\u3000"])
def test_every_kind_of_line_end_is_a_line_feed(line_break):
    assert normalise(PLAIN.replace("\n", line_break)) == PLAIN


@pytest.mark.parametrize("blank", ["  ", "\t", "\xa0", "\u3000", " \u2003 ", "&nbsp;"])
def test_every_kind_of_blank_is_one_blank(blank):
    assert normalise(f"{blank}甲:{blank}我是{blank}客服{blank}\n") == "甲: 我是 客服"


@pytest.mark.parametrize("invisible", ["\u200b", "\u200c", "\u200d", "\ufeff", "\u200e", "\u200f", "\u202a", "\u2066",
                                       "\u00ad", "\u2060", "\x00", "\x1b"])
def test_invisible_characters_are_left_out(invisible):
    assert normalise(invisible.join(PLAIN)) == PLAIN


@given(st.lists(st.sampled_from(["\u200b", "\ufeff", "\u2060", "\u00ad", " ", "\u3000", "\n", "\r", "\u2028", "\\n",
                                 "<br>", "&nbsp;", "1.", "12:30", "：", "甲"])).map("".join))
def test_a_text_is_blank_where_its_normal_form_is_empty(text):
    assert is_blank(text) == (normalise(text) == "")


@pytest.mark.parametrize("text, expected", [
    ("客服：ＡＢＣ１２３：好", "客服: ABC123：好"),
    ("甲: 你好,在吗?在!(嗯);好:", "甲: 你好，在吗？在！（嗯）；好："),
    ("甲: 你好, 在吗? 在", "甲: 你好，在吗？在"),
    ("甲: ３，０００元，１２：３０见", "甲: 3,000元，12:30见"),
    ("甲: 5％～8％，＊号﹑｡", "甲: 5%~8%，*号、。"),
    ("甲: Ｈｅｌｌｏ，ｗｏｒｌｄ！", "甲: Hello,world!"),
    ("甲: 请打开ｈｔｔｐｓ：／／ａ．ｃｏｍ／ｂ？ｉｄ＝１", "甲: 请打开https://a.com/b?id=1"),
    ("客服（小李）: 好\n客服(小李)：嗯", "客服(小李): 好\n客服(小李): 嗯"),
])
def test_a_mark_has_one_width_in_its_place(text, expected):
    assert normalise(text) == expected


def test_entities_are_the_characters_that_they_stand_for():
    assert normalise("甲: 好&#65292;&#x5728;&quot;&lt;&nbsp;&gt;") == '甲: 好，在"< >'


# ------------------------------------------------------------------------------------------------ line labels


def test_labels_follow_their_lines_and_a_header_counts_with_its_message():
    text = "\n张三 10:00\n转账\n\n李四: 好<br>的\n10:01 王五: 嗯\n"
    assert normalise(text) == "张三: 转账\n李四: 好\n的\n王五: 嗯"
    of_lines = [False, True, False, False, True, False, False]
    assert canonical_line_labels(text, of_lines, Task()) == [True, True, True, False]
    assert canonical_line_labels(text, [False, False, True, False, False, True, False], Task())[3]
    assert canonical_line_labels(text, of_lines, Task(normaliser=0)) == of_lines


def test_there_is_always_a_line():
    assert normalise_lines("") == ([""], [(0, 0)])
    assert normalise_lines(" \n\n") == ([""], [(0, 2)])


# ------------------------------------------------------------------------------------------------- properties

SPOKEN = st.sampled_from(["您好，请转3,000元", "为什么？我12:30到", "好的！（挂断）", "我是ABC公司的客服",
                          "Hello, Tom!", "好😀", "请打开https://a.com/b?id=1", "嗯"])
TURNS = st.lists(st.tuples(st.sampled_from(["客服", "王女士", "骗子甲", "Tom", "发言人3"]), SPOKEN),
                 min_size=1, max_size=6)
TIMES = ["2024-05-01 10:00:11", "10:00:11", "2024年5月1日 10:00", "2024/05/01 上午9:05"]


def vary_line(name, said, chance):
    """A turn as somebody else would have typed or exported it."""
    time = chance.choice(TIMES)
    full = {ord(half): chr(ord(half) + 0xfee0) for half in "ABC0123456789"}
    if chance.random() < 0.3:
        said = said.translate(full)
    if chance.random() < 0.3:
        said = said.translate(str.maketrans("，！？（）,:", chance.choice([",!?(),:", "，！？（），："])))
    if chance.random() < 0.3:
        place = chance.randrange(len(said) + 1)
        said = said[:place] + chance.choice(["\u200b", "\ufeff", "\u00ad", "\u200e"]) + said[place:]
    name = chance.choice([name, name, f"【{name}】", f"[{name}]", f"（{name}）", f"「{name}」"])
    colon = chance.choice([": ", "：", ":", " : "])
    return chance.choice([f"{name}{colon}{said}", f"[{time}] {name}{colon}{said}", f"{time} {name}{colon}{said}",
                          f"{name} {time}{colon}{said}", f"{name} ({time}){colon}{said}", f"{name} {time}\n{said}"])


@given(turns=TURNS, seed=st.integers(0, 2**32))
def test_no_mixture_of_variations_changes_the_tokens(encoder, turns, seed):
    chance = random.Random(seed)
    plain = "\n".join(f"{name}: {said}" for name, said in turns)
    ends = ["\n", "\r\n", "\u2028", "<br>", "\\n", " \n", "\n\n", "\t\n\u3000"]
    varied = "".join(vary_line(name, said, chance) + chance.choice(ends) for name, said in turns)
    assert encoder.prompts([varied]) == encoder.prompts([plain])


TRICKY = st.lists(st.sampled_from([*"甲A1:： \n\r，,/!?([)]-【】<>😀\u200b\u3000", "10:00", "2024-05-01 ", "10:00:11 ",
                                   "-->", "张三 ", "00:01,000 --> 00:02,000", "\\n", "<br>", "<v 甲>", "\u0301", "好",
                                   "\n张三\n", "\n00:01 李四\n", "[0:0.02,0:1.5,1]", " - ", "【客服 10:00】",
                                   " 甲: ", " 乙：好"]),
                  max_size=25)


@given(text=st.one_of(st.text(), TRICKY.map("".join)))
def test_the_normal_form_stays_and_every_line_has_its_origin(text):
    lines, origin = normalise_lines(text)
    again = normalise_lines("\n".join(lines))[0]
    assert again == lines and len(origin) == len(lines)
    assert all(0 <= first <= last <= text.count("\n") for first, last in origin)
    assert [last for _, last in origin] == sorted(last for _, last in origin)
