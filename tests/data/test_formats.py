"""Files of other formats, read as options ask for it; those of none of them, refused with the remedy."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.files import DataError
from data.formats import Reading, add_reading_options, reading_of
from data.inspection import _read_all
from data.records import Dialogue, Line, Skipped, read_dialogues, read_records, record_rows

ROOT = Path(__file__).parents[2]
YES_NO = {"是": True, "否": False}
TWO = [{"input": "甲: 转账", "label": True}, {"input": "乙: 爬山", "label": False}]


def written(folder, name, content, encoding="utf-8"):
    path = folder / name
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def workbook(folder, name="通话.xlsx", **sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(folder / name)
    return folder / name


def read_as(path, reading):
    """The records of a file of any layout; the first problem is an error."""
    good, _, problems = _read_all(path, reading)
    if problems:
        raise DataError(problems[0])
    return good


def error_of(read, path, *args):
    with pytest.raises(DataError) as caught:
        read(path, *args)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable()
    return message


# ------------------------------------------------------------------------------------------ records, as asked for


@pytest.mark.parametrize("content", [
    TWO, json.dumps(TWO, indent=2), "\n\n" + "\n".join(map(json.dumps, TWO)) + "\n", "\ufeff" + json.dumps(TWO),
    'input,label\n"甲: 转账",True\n"乙: 爬山",false\n', '"label","input"\r\n"TRUE","甲: 转账"\r\n\r\nFALSE,乙: 爬山',
])
def test_an_array_lines_and_a_table_give_the_same_records(tmp_path, content):
    assert read_as(written(tmp_path, "f", content), Reading()) == TWO


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_in_any_encoding_with_any_delimiter_and_words_for_labels(tmp_path, encoding, delimiter):
    rows = [("对话", "标签"), ('"甲: 您好，\n乙: 在"', "是"), ("", ""), ("爬山😀", " 否 ")]
    path = written(tmp_path, "f.csv", "\r\n".join(map(delimiter.join, rows)) + "\r\n", encoding)
    reading = Reading(columns={"input": "对话", "label": "标签"}, label_values=YES_NO, delimiter=delimiter,
                      encoding=encoding.removesuffix("-sig"))
    assert list(record_rows(path, reading)) == [
        (3, {"input": "甲: 您好，\n乙: 在", "label": True}), (4, None), (5, {"input": "爬山😀", "label": False})]


def test_other_columns_of_a_table_stay_as_text_and_the_two_that_are_none_are_read(tmp_path):
    path = written(tmp_path, "f.csv", 'input,label,case,position,line_labels,note\n'
                                      '"a\nb",True,7,0.5,"[true, false]",\n')
    assert read_as(path, Reading()) == [
        {"input": "a\nb", "label": True, "case": "7", "position": 0.5, "line_labels": [True, False]}]


def test_alpaca_takes_the_output_for_the_label(tmp_path):
    rows = [{"instruction": "诈骗？", "input": "转账", "output": "诈骗"},
            {"instruction": "诈骗？", "input": "爬山", "output": '{"is_fraud": false}', "case": 3}]
    reading = Reading("alpaca", label_values={"诈骗": True})
    assert read_as(written(tmp_path, "f.json", rows), reading) == [
        {"input": "转账", "label": True, "instruction": "诈骗？"},
        {"input": "爬山", "label": False, "instruction": "诈骗？", "case": "3"}]


def test_alpaca_without_an_input_is_read_by_its_instruction_where_asked(tmp_path):
    path = written(tmp_path, "f.json", [{"instruction": "诈骗？转账", "input": "", "output": "是"}])
    assert read_as(path, Reading("alpaca", label_values=YES_NO)) == []
    assert read_as(path, Reading("alpaca", {"input": "instruction"}, YES_NO)) == [
        {"input": "诈骗？转账", "label": True}]


@pytest.mark.parametrize("who, what, asking, answering", [
    ("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_messages_are_a_question_and_its_answer(tmp_path, who, what, asking, answering):
    messages = [{who: "system", what: "诈骗？"}, {who: asking, what: "转账"}, {who: answering, what: "是"}]
    reading = Reading("messages", label_values=YES_NO)
    path = written(tmp_path, "f.json", [{"messages": messages}, {"messages": messages[1:]}])
    assert read_as(path, reading) == [{"input": "转账", "label": True, "instruction": "诈骗？"},
                                      {"input": "转账", "label": True}]


def test_turns_are_the_lines_of_a_dialogue(tmp_path):
    messages = [{"role": "user", "name": "客服", "content": "请\n转账"}, {"from": "王", "value": "好"}]
    path = written(tmp_path, "f.json", [{"messages": messages, "is_fraud": 1, "id": 5}])
    reading = Reading("turns", {"label": "is_fraud"}, {"1": True, "0": False})
    assert read_as(path, reading) == [{"input": "客服: 请 转账\n王: 好", "label": True, "id": 5}]


@pytest.mark.parametrize("row", [
    {"messages": "转账"}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": ["转账"]},
    {"messages": [{"role": "user", "content": "转账"}]},
    {"messages": [{"role": "assistant", "content": "转账"}, {"role": "user", "content": "是"}]},
    {"messages": [{"role": r, "content": "是"} for r in ("user", "assistant", "user", "assistant")]},
    {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "是"}]},
])
def test_messages_of_another_form_are_an_error_with_their_place(tmp_path, row):
    path = written(tmp_path, "f.json", [row])
    assert error_of(read_as, path, Reading("messages", label_values=YES_NO)).startswith(f"{path}:1: ")


@pytest.mark.parametrize("label, shown", [("是", "是"), ("true", "true"), (1, "1"), (1.0, "1.0"), ('{"a": 1}', "a"),
                                          ("x" * 99, "xxx")])
def test_a_label_that_no_option_explains_is_never_read(tmp_path, label, shown):
    path = written(tmp_path, "f.json", [{"input": "转账", "标签": label}])
    message = error_of(read_as, path, Reading(columns={"label": "标签"}))
    assert message.startswith(f"{path}:1: ") and "标签" in message and shown in message and "--label-values" in message


def test_booleans_are_what_they_are_whatever_the_options_say(tmp_path):
    path = written(tmp_path, "f.json", [{"input": "转账", "label": True}])
    assert read_as(path, Reading(label_values={"True": False, "true": False}))[0]["label"] is True


def test_a_missing_column_names_those_that_are_there_and_one_that_might_be_it(tmp_path):
    path = written(tmp_path, "f.json", [{"文本": "转账", "标签": "是"}])
    message = error_of(read_as, path, Reading())
    assert "'input'" in message and "文本, 标签" in message and "--columns input=文本" in message


def test_places_in_an_array_are_the_lines_that_its_objects_begin_in(tmp_path):
    path = written(tmp_path, "f.json", '\n[\n{"input": "a",\n "label": true},\n{"input": "b", "label": false}, '
                                       '{"input": "c", "label": true}\n,\n\n3]\n')
    assert error_of(read_as, path, Reading()).startswith(f"{path}:8: ")
    path.write_text(path.read_text().replace(",\n\n3]", "]"))
    assert [number for number, _ in record_rows(path, Reading())] == [3, 5, 5]


@pytest.mark.parametrize("content", ["[", "[{}", '[{"input": "a", "label": true} {}]', "[1", '{"a": 1', "甲\n1",
                                     '[{"input": "a", "input": "b", "label": true}]', "[" * 5000])
def test_what_is_broken_is_an_error_with_the_path(tmp_path, content):
    path = written(tmp_path, "f.json", content)
    assert error_of(read_as, path, Reading()).startswith(f"{path}:")


def test_a_table_with_nameless_columns_is_read_while_they_are_empty(tmp_path):
    path = written(tmp_path, "f.csv", "input,label,,\n转账,True,,\n爬山,False,,\n转账,True,,,\n")
    assert len(read_as(path, Reading())) == 3
    path = written(tmp_path, "g.csv", "input,label,\n转账,True,备注\n")
    message = error_of(read_as, path, Reading())
    assert message.startswith(f"{path}:2: ") and "column 3" in message


def test_the_index_that_pandas_writes_is_a_column(tmp_path):
    path = written(tmp_path, "f.csv", ",input,label\n0,转账,True\n1,爬山,False\n")
    assert read_as(path, Reading())[1] == {"input": "爬山", "label": False, "Unnamed: 0": "1"}


@pytest.mark.parametrize("content", ["input,label\n转账,是\n爬山,\n", "input,label\n转账,是\n爬山,nan\n",
                                     '{"input": "转账", "label": "是"}\n{"input": "爬山", "label": null}\n'])
def test_a_row_without_a_label_is_not_asked_what_its_label_means(tmp_path, content):
    path = written(tmp_path, "f", content)
    message = error_of(read_as, path, Reading(label_values=YES_NO))
    assert "'label' is empty" in message and "--label-values" not in message


def test_turns_may_be_those_of_a_recogniser(tmp_path):
    turns = [{"start": 0.0, "end": 1.5, "speaker": "客服", "text": "转账"}, {"speaker": "王", "text": ""}]
    path = written(tmp_path, "f.json", json.dumps([{"messages": turns, "label": True}]))
    assert read_as(path, Reading("turns")) == [{"input": "客服: 转账\n王: ", "label": True}]


@pytest.mark.parametrize("row", [{}, {"label": None}, {"label": ""}])
def test_turns_without_a_label_are_to_predict(tmp_path, row):
    path = written(tmp_path, "f.json", [{"messages": [{"role": "客服", "content": "转账"}], **row}])
    assert read_as(path, Reading("turns")) == [{"input": "客服: 转账"}]


REUSE_FOLDER = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIKE_A_FILE = st.lists(st.sampled_from([
    b"[", b"]", b"{", b"}", b",", b";", b"\t", b"\n", b'"', b":", b'"input"', b'"label"', b"input", b"label", b"true",
    b"True", b'"messages"', b'"role"', b'"content"', b'{"input": "a", "label": true}', b"\xff\xfe", b"\0", b"\xe5",
    b"PK\x03\x04", b"case,speaker,content,is_fraud\n", "是".encode(), "是".encode("gbk")])).map(b"".join)


@REUSE_FOLDER
@given(content=LIKE_A_FILE, layout=st.sampled_from(["records", "alpaca", "messages", "turns", "dialogues"]),
       encoding=st.sampled_from(["utf-8", "gb18030", "utf-16"]), delimiter=st.sampled_from(",;\t"))
def test_any_bytes_are_read_or_refused_in_one_line_that_begins_with_the_path(tmp_path, content, layout, encoding,
                                                                             delimiter):
    path = written(tmp_path, "f", content)
    reading = Reading(layout, label_values=YES_NO, encoding=encoding, delimiter=delimiter)
    try:
        assert read_dialogues(path, Skipped(), reading) if layout == "dialogues" else read_as(path, reading) is not None
    except DataError as error:
        assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1


# ---------------------------------------------------------------------------------------------------- dialogues


COLUMNS = {"case": "会话", "speaker": "说话人", "content": "内容", "is_fraud": "标签"}
CALL = [("会话", "说话人", "内容", "标签"), ("1", "客服", "转账", "是"), ("", "", "", ""), ("1", "王", "好", "否"),
        ("2", "李", "", "否"), ("2", "李", "爬山", "否")]
DIALOGUES = [Dialogue("通话/1", "通话", (Line("客服", "转账", True), Line("王", "好", False))),
             Dialogue("通话/2", "通话", (Line("李", "爬山", False),))]


def test_dialogues_in_gb18030_with_semicolons_and_words(tmp_path):
    path = written(tmp_path, "通话(2).csv", "\r\n".join(map(";".join, CALL)), "gb18030")
    skipped = Skipped()
    reading = Reading("dialogues", COLUMNS, YES_NO, "gb18030", ";")
    assert read_dialogues(path, skipped, reading) == DIALOGUES
    assert [place.removeprefix(f"{path}:").split(":")[0] for place in skipped.places] == ["3", "5"]
    assert "内容" in skipped.places[1]


def test_a_folder_of_tables_of_all_kinds(tmp_path):
    reading = Reading("dialogues", COLUMNS, YES_NO, delimiter="\t")
    written(tmp_path, "甲.tsv", "\n".join(map("\t".join, CALL)))
    workbook(tmp_path, 一=CALL)
    written(tmp_path, "~$通话.xlsx", b"a lock of Excel")
    assert [dialogue.case for dialogue in read_dialogues(tmp_path, Skipped(), reading)] == \
        ["甲/1", "甲/2", "通话/1", "通话/2"]
    assert error_of(read_dialogues, tmp_path, Skipped()).startswith(f"{tmp_path}: no *.csv")


def test_records_are_refused_where_dialogues_are_expected(tmp_path):
    path = written(tmp_path, "f.json", TWO)
    assert "--layout dialogues" in error_of(read_dialogues, path, Skipped(), Reading())


# ------------------------------------------------------------------------------------------------------- Excel


def test_a_workbook_of_dialogues(tmp_path):
    skipped = Skipped()
    rows = [*CALL[:1], (1, "客服", "转账", "是"), (None,) * 4, (1.0, "王", "好", "否"), (2, "李", None, "否"),
            (2, "李", "爬山", "否")]
    path = workbook(tmp_path, 一=rows, 空=[])
    assert read_dialogues(path, skipped, Reading("dialogues", COLUMNS, YES_NO)) == DIALOGUES
    assert len(skipped) == 2


def test_merged_cells_hold_their_value_in_each_of_their_rows(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [CALL[0], (1, "客服", "转账", "是"), (None, "王", "好", "否"), (2, "李", "爬山", "否")]:
        book.active.append(row)
    book.active.merge_cells("A2:A3")
    book.active.merge_cells("E1:F1")  # beside the table: nothing to fill
    book.save(tmp_path / "通话.xlsx")
    assert read_dialogues(tmp_path / "通话.xlsx", Skipped(), Reading("dialogues", COLUMNS, YES_NO)) == DIALOGUES


@pytest.mark.parametrize("title", [[], [("五月外呼",)], [("五月外呼",), ("导出时间：2024年",)]])
def test_a_heading_over_the_names_of_several_columns_is_passed_over(tmp_path, title):
    openpyxl = pytest.importorskip("openpyxl")
    book, top = openpyxl.Workbook(), len(title)
    for row in [*title, ("会话", "通话", None, "质检"), (None, *CALL[0][1:]), (1, "客服", "转账", "是"),
                (1, "王", "好", "否"), (2, "李", "爬山", "否")]:
        book.active.append(row)
    for row in range(1, top + 1):
        book.active.merge_cells(f"A{row}:D{row}")
    book.active.merge_cells(f"B{top + 1}:C{top + 1}")
    book.active.merge_cells(f"A{top + 1}:A{top + 2}")
    book.save(tmp_path / "通话.xlsx")
    assert read_dialogues(tmp_path / "通话.xlsx", Skipped(), Reading("dialogues", COLUMNS, YES_NO)) == DIALOGUES


def test_a_name_over_two_columns_of_which_one_is_empty_is_no_heading(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("input", None, "label"), ("甲: 转账", None, True), ("乙: 爬山", None, False)]:
        book.active.append(row)
    for row in range(1, 4):
        book.active.merge_cells(f"A{row}:B{row}")
    book.save(tmp_path / "通话.xlsx")
    assert read_as(tmp_path / "通话.xlsx", Reading()) == TWO


def test_a_workbook_of_records_with_booleans(tmp_path):
    path = workbook(tmp_path, 一=[("input", "label"), ("甲: 转账", True), ("乙: 爬山", False)])
    assert read_as(path, Reading()) == TWO


def test_one_of_several_sheets_has_to_be_named(tmp_path):
    path = workbook(tmp_path, 一月=[("input", "label"), ("转账", True)], 二月=[("input", "label"), ("爬山", False)])
    assert "一月, 二月" in error_of(read_as, path, Reading())
    assert "三月" in error_of(read_as, path, Reading(sheet="三月"))
    assert read_as(path, Reading(sheet="二月")) == [{"input": "爬山", "label": False}]


def test_a_zip_file_that_is_no_workbook_is_an_error(tmp_path):
    path = written(tmp_path, "f.xlsx", b"PK\x03\x04 of something else")
    assert error_of(read_as, path, Reading()).startswith(f"{path}: ")


def test_without_openpyxl_a_workbook_names_what_to_install(tmp_path, monkeypatch):
    path = workbook(tmp_path, 一=[("input", "label"), ("转账", True)])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in error_of(read_as, path, Reading())


# ------------------------------------------------------------------------------- without options: the own format


@pytest.mark.parametrize("content", [
    json.dumps(TWO), "\n [" + json.dumps(TWO[0]) + "]", "text,label\n转账,1\n",
    "case;speaker;content;is_fraud\n1;a;b;True",
    '"text"\t"label"\n', json.dumps(TWO[0], indent=1), json.dumps(TWO).encode("utf-16"), b"PK\x03\x04\0\0",
    "文本,标签\n".encode("gb18030"), '{"text": "转账", "label": true}', '{"input": "转账", "label": "是"}',
])
def test_another_format_is_named_with_the_command_that_reads_it(tmp_path, content):
    path = written(tmp_path, "数据 一.jsonl", content)
    message = error_of(read_records, path)
    assert message.startswith(f"{path}:") and f"python -m data.prepare --inspect '{path}'" in message


@pytest.mark.parametrize("read", [read_records, lambda path: read_dialogues(path, Skipped()),
                                  lambda path: read_as(path, Reading())])
@pytest.mark.parametrize("content, names", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 30\n", "lfs pull"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".xlsx"), (b"\x1f\x8b\x08", "unpack"),
    (b"\n<HTML><table><tr><td>text</td></tr></table>", "save it as .xlsx"), (b"\xef\xbb\xbf<?xml ?>", "save it as")])
def test_a_pointer_an_old_workbook_and_an_archive_say_what_to_do(tmp_path, read, content, names):
    path = written(tmp_path, "f.jsonl", content)
    message = error_of(read, path)
    assert message.startswith(f"{path}: ") and names in message


# ------------------------------------------------------------------------------------------------------ options


def parsed(*words, layout="records"):
    parser = argparse.ArgumentParser()
    add_reading_options(parser)
    return reading_of(parser.parse_args(words), layout)


def test_no_option_asks_for_nothing_and_one_asks_for_a_reading():
    assert parsed() is None
    assert parsed("--encoding", "gb18030", layout="dialogues") == Reading("dialogues", encoding="gb18030")
    assert parsed("--delimiter", "semicolon", "--columns", "label=标=签", "input=a", "--label-values", "a=b=true",
                  "否=false") == Reading("records", {"label": "标=签", "input": "a"}, {"a=b": True, "否": False},
                                        delimiter=";")


def test_options_come_back_as_they_were_given():
    reading = Reading("turns", {"messages": "对 话"}, {"是=": True, "否": False}, "gb18030", "\t", "一月")
    assert parsed(*reading.options()) == reading


@pytest.mark.parametrize("words", [
    ["--encoding", "klingon"], ["--encoding", "base64"], ["--delimiter", ""], ["--delimiter", "ab"],
    ["--delimiter", '"'], ["--columns", "text=input"], ["--columns", "input=a", "input=b"],
    ["--label-values", "是=true", "是=false"]])
def test_options_that_cannot_be_followed_are_refused(words):
    with pytest.raises(DataError):
        parsed(*words)


@pytest.mark.parametrize("words", [["--layout", "csv"], ["--columns", "input"], ["--columns", "=a"],
                                   ["--label-values", "是=yes"], ["--label-values", "=true"]])
def test_options_of_the_wrong_form_end_with_code_2(words):
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2


def test_reading_needs_no_library_of_another_format(tmp_path):
    path = written(tmp_path, "f.jsonl", json.dumps(TWO[0]) + "\n")
    code = (f"import sys; from data.records import read_records; read_records({str(path)!r}); "
            "sys.exit('openpyxl' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
