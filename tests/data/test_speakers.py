"""Neutral roles: what counts as a speaker, and that names change nothing."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.speakers import (
    format_dialogue,
    join_lines,
    map_speakers,
    roles,
    split_lines,
    swap_speakers,
)
from data.transcripts import NARRATOR, safe_name

KNOWN_NAMES = ["发言人3", "张伟", "客服", "骗子", "骗子甲", "1", "12", "https", "Dr. Smith (2)", "王 女士", "A", "B1",
               NARRATOR]
NAME_CHARACTER = r"[^\s:：，。！？；,!?;]"
NAMES = st.one_of(st.sampled_from(KNOWN_NAMES),
                  st.from_regex(f"{NAME_CHARACTER}({NAME_CHARACTER}| ){{0,18}}{NAME_CHARACTER}", fullmatch=True))
KNOWN_CONTENTS = ["您好，请问是张伟吗？", "12:30 见", "30元", "请打开 https://example.com/退款?id=1", "//",
                  "验证码是：1234", "客服: 这是我说的", "", "：", ": :", "<|im_end|>"]
TRICKY = "甲乙1A:： \n\r\t，/!"
CONTENTS = st.one_of(st.sampled_from(KNOWN_CONTENTS), st.text(), st.text(TRICKY))


def with_roles(text: str) -> str:
    """As a dialogue in normal form is read."""
    return map_speakers(text, roles)


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("line, speaker, content", [
    ("客服: 您好", "客服", "您好"),
    ("客服：您好", "客服", "您好"),
    ("客服:您好", "客服", "您好"),
    ("  客服 :  您好 ", "客服", "您好 "),
    ("发言人3: 12:30 见", "发言人3", "12:30 见"),
    ("发言人3：5点见", "发言人3", "5点见"),
    ("张伟: 请打开 https://example.com", "张伟", "请打开 https://example.com"),
    ("张伟: 李明: 你好", "张伟", "李明: 你好"),
    ("12: 你好", "12", "你好"),
    ("https: 你好", "https", "你好"),
    ("客服:", "客服", ""),
    ("骗子甲: //", "骗子甲", "//"),
    ("12:30 我在门口等您", None, "12:30 我在门口等您"),
    ("12：30 我在门口等您", None, "12：30 我在门口等您"),
    ("今晚8:30见", None, "今晚8:30见"),
    ("请在12:30前转", None, "请在12:30前转"),
    ("发言人1:10点开会", "发言人1", "10点开会"),
    ("发言人1:20块", "发言人1", "20块"),
    ("发言人1:12306", "发言人1", "12306"),
    ("https://example.com/退款", None, "https://example.com/退款"),
    ("请打开 http://example.com", None, "请打开 http://example.com"),
    ("您好，验证码是: 1234", None, "您好，验证码是: 1234"),
    ("真的吗？客服说: 可以", None, "真的吗？客服说: 可以"),
    ("没有人说这一句", None, "没有人说这一句"),
    (": 没有名字", None, ": 没有名字"),
    ("  ： 没有名字", None, "  ： 没有名字"),
    ("长" * 40 + ": 名字", "长" * 40, "名字"),
    ("长" * 41 + ": 句子", None, "长" * 41 + ": 句子"),
    ("", None, ""),
])
def test_tells_a_speaker_from_a_sentence_a_time_and_an_address(line, speaker, content):
    assert split_lines(line) == [(speaker, content)]


def test_lines_without_a_speaker_stay_as_they_are():
    text = "\n客服: 您好\n（沉默）\n\n客服: 再见\n"
    assert split_lines(text) == [
        (None, ""), ("客服", "您好"), (None, "（沉默）"), (None, ""), ("客服", "再见"), (None, "")]
    assert with_roles(text) == "\nA: 您好\n（沉默）\n\nA: 再见\n"


LINES = st.lists(st.tuples(NAMES, CONTENTS.map(lambda content: " ".join(content.split()))), min_size=1)


@given(lines=LINES)
def test_splitting_undoes_joining(lines):
    assert split_lines(join_lines(lines)) == lines


@given(text=st.text(TRICKY))
def test_joining_undoes_splitting_but_for_the_form_of_the_colon(text):
    tidy = join_lines(split_lines(text))
    assert join_lines(split_lines(tidy)) == tidy
    assert len(tidy.split("\n")) == len(text.split("\n"))


# ---------------------------------------------------------------------------------------------- neutral roles


def test_roles_follow_the_order_of_appearance():
    assert with_roles("客服: 您好\n张伟: 谁？\n客服: 我\n李明: 哦") == "A: 您好\nB: 谁？\nA: 我\nC: 哦"


def test_a_speaker_already_called_like_a_role_gets_the_one_of_its_order():
    assert with_roles("B: 您好\nA: 谁？\nB: 我") == "A: 您好\nB: 谁？\nA: 我"


def test_the_27th_speaker_is_a1_and_the_53rd_a2():
    text = "\n".join(f"发言人{number}: 到" for number in range(1, 54))
    found = [name for name, _ in split_lines(with_roles(text))]
    assert found[25:28] == ["Z", "A1", "B1"] and found[51:] == ["Z1", "A2"]
    assert len(set(found)) == 53


@given(text=st.text(TRICKY))
def test_neutral_text_stays_as_it_is(text):
    assert with_roles(with_roles(text)) == with_roles(text)


@st.composite
def same_talk_under_other_names(draw):
    """(lines, the same lines with their speakers renamed one to one)"""
    lines = draw(LINES)
    names = sorted({name for name, _ in lines})
    others = draw(st.lists(NAMES, min_size=len(names), max_size=len(names), unique=True))
    renamed = dict(zip(names, others, strict=True))
    return lines, [(renamed[name], content) for name, content in lines]


@given(pair=same_talk_under_other_names())
@example(pair=([("客服", "30元"), ("张伟", "好")], [("12", "30元"), ("https", "好")]))
@example(pair=([("客服", "//"), ("张伟", "好")], [("张伟", "//"), ("客服", "好")]))
def test_dialogues_that_differ_only_in_names_become_the_same_text(pair):
    lines, renamed = pair
    assert with_roles(join_lines(lines)) == with_roles(join_lines(renamed))


@given(pair=same_talk_under_other_names())
def test_formatted_dialogues_that_differ_only_in_names_become_the_same_text(pair):
    lines, renamed = pair
    assert with_roles(format_dialogue(lines)) == with_roles(format_dialogue(renamed))


# ---------------------------------------------------------------------------------------------- formatting


@pytest.mark.parametrize("name, expected", [
    ("客服", "客服"), ("诈骗者: 李浩", "诈骗者 李浩"), ("", NARRATOR), ("：，", NARRATOR), (" 王\n女士 ", "王 女士"),
    ("12", "12"), ("长" * 50, "长" * 40), ("长" * 39 + " 短", "长" * 39),
])
def test_a_name_is_made_one_that_can_be_read_back(name, expected):
    assert safe_name(name) == expected


@pytest.mark.parametrize("stamped", ["10:00:1{} 客服", "[2024-05-01 10:0{}] 客服", "客服 (10:0{})", "客服 10:00:1{}"])
def test_a_time_in_the_column_of_speakers_makes_no_other_speaker_of_each_line(stamped):
    lines = [(stamped.format(number), f"第{number}句") for number in range(3)]
    assert format_dialogue(lines) == "客服: 第0句\n客服: 第1句\n客服: 第2句"


def test_names_that_hold_colons_and_contents_of_several_lines_stay_one_line_each():
    lines = [("诈骗者: 李浩", "您好：\n\n我是 客服"), ("", "张伟: 谁？")]
    assert format_dialogue(lines) == "诈骗者 李浩: 您好： 我是 客服\n旁白: 张伟: 谁？"
    assert split_lines(format_dialogue(lines)) == [("诈骗者 李浩", "您好： 我是 客服"), (NARRATOR, "张伟: 谁？")]


# Without control characters, which a line loses that may hold a stamp.
@given(lines=st.lists(st.tuples(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs"))), CONTENTS), min_size=1))
@example([("0000000000＂", "好")])
def test_whatever_the_names_every_line_is_read_back_as_one(lines):
    assert split_lines(format_dialogue(lines)) == [(safe_name(name), " ".join(said.split())) for name, said in lines]


# ---------------------------------------------------------------------------------------------- swapping


def test_meeting_speakers_get_personal_names():
    assert swap_speakers("发言人2: 开始吧\n发言人1: 好\n发言人2: 请讲") == "李明: 开始吧\n王芳: 好\n李明: 请讲"


def test_everybody_else_becomes_a_meeting_speaker():
    assert swap_speakers("骗子: 转账吧\n张伟: 不\n骗子: 快") == "发言人1: 转账吧\n发言人2: 不\n发言人1: 快"


def test_in_a_meeting_a_guest_is_renamed_too():
    assert swap_speakers("主持人: 请\n发言人1: 好") == "李明: 请\n王芳: 好"


def test_more_speakers_than_personal_names_stay_apart():
    text = "\n".join(f"发言人{number}: 到" for number in range(1, 31))
    names = [name for name, _ in split_lines(swap_speakers(text))]
    assert names[11:13] == ["孙浩", "李明12"] and len(set(names)) == 30


@given(lines=LINES)
def test_swapping_changes_names_only(lines):
    text = join_lines(lines)
    assert with_roles(swap_speakers(text)) == with_roles(text)


def test_renaming_sees_each_name_once_in_order_of_appearance():
    seen = []

    def shout(names):
        seen.extend(names)
        return [name + "!!" for name in names]

    assert map_speakers("乙: 1\n旁人说话\n甲: 2\n乙: 3", shout) == "乙!!: 1\n旁人说话\n甲!!: 2\n乙!!: 3"
    assert seen == ["乙", "甲"]
