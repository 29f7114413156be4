"""What --inspect finds, says and converts; and the examples of docs/data.md."""

import json
import re
import shlex
from pathlib import Path

import pytest

from data.files import DataError
from data.formats import Reading
from data.inspection import convert, describe, inspect
from data.prepare import main
from data.records import Skipped, read_dialogues, read_records, write_records

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
YES_NO = {"是": True, "否": False}


def written(folder, name, content, encoding="utf-8"):
    content = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_bytes(content.encode(encoding))
    return folder / name


# ------------------------------------------------------------------------------------------------------- guessing


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_finds_encoding_delimiter_columns_and_meaning(tmp_path, encoding, delimiter):
    said = "爬山; 钓鱼, 下棋" if delimiter in "\t|" else "爬山"
    rows = [("对话", "标签"), ("甲说，乙听", "是"), ("", ""), (said, "否")]
    report = inspect(written(tmp_path, "f.csv", "\r\n".join(map(delimiter.join, rows)), encoding))
    assert report["reading"] == Reading("records", {"input": "对话", "label": "标签"},
                                        YES_NO, encoding, delimiter)
    assert (report["rows"], report["good"], len(report["skipped"]), report["problems"]) == (3, 2, 1, [])


@pytest.mark.parametrize("encoding", ["utf-8", "big5", "big5hkscs"])
def test_finds_traditional_characters_and_their_encoding(tmp_path, encoding):
    rows = "通話編號,說話人,內容,是否詐騙\n1,客服,請把驗證碼告訴我,是\n1,顧客,好,否\n"
    report = inspect(written(tmp_path, "f.csv", rows, encoding))
    assert report["reading"] == Reading(
        "dialogues", {"case": "通話編號", "speaker": "說話人", "content": "內容", "is_fraud": "是否詐騙"}, YES_NO,
        "utf-8" if encoding == "utf-8" else "big5hkscs")
    assert not report["problems"]


def test_a_character_for_private_use_makes_no_text_big5(tmp_path):
    report = inspect(written(tmp_path, "f.csv", "文本,标签\n您好\ue5ee的账户有风险,是\n好,否\n", "gb18030"))
    assert report["reading"].encoding == "gb18030" and not report["problems"]


@pytest.mark.parametrize("content, expected", [
    ('{"input": "a", "label": true}', Reading()),
    ("case,speaker,content,is_fraud\n1,a,b,True", Reading("dialogues")),
    ("case,speaker,content,is_fraud\n1,a,b,0", Reading("dialogues", label_values={"1": True, "0": False})),
    ([{"text": "a", "label": "true"}], Reading(columns={"input": "text"}, label_values={"true": True, "false": False})),
    ([{"instruction": "?", "input": "a", "output": "是"}], Reading("alpaca", label_values=YES_NO)),
    ([{"instruction": "a", "input": "", "output": "是"}], Reading("alpaca", {"input": "instruction"}, YES_NO)),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "是"}]}],
     Reading("messages", label_values=YES_NO)),
    ([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": '{"is_fraud": true}'}]}],
     Reading("messages", {"messages": "conversations"})),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "is_fraud": True}],
     Reading("turns", {"label": "is_fraud"})),
])
def test_finds_the_layout(tmp_path, content, expected):
    report = inspect(written(tmp_path, "f", content))
    assert report["reading"] == expected and not report["problems"] and report["good"] == 1


@pytest.mark.parametrize("content, said", [
    ({"segments": [{"speaker": "甲", "text": "您好", "start": 0}, {"speaker": "乙", "text": "谁"}], "language": "zh"},
     "甲: 您好\n乙: 谁"),  # WhisperX; then FunASR
    ({"segments": [{"text": "喂"}, {"speaker": "甲", "text": "您好"}]}, "旁白: 喂\n甲: 您好"),  # nobody knows who
    ({"segments": [{"start": 0, "text": "您好"}, {"start": 1, "text": "谁"}]}, "旁白: 您好\n旁白: 谁"),  # nobody asked
    ({"segments": [{"start": 0, "speaker": None, "text": "您好"}]}, "旁白: 您好"),
    ({"sentence_info": [{"text": "您好", "spk": 0.0}, {"text": "谁", "spk": 1.0}]}, "0: 您好\n1: 谁"),  # by pandas
    ({"text": "您好 谁", "sentence_info": [{"text": "您好", "spk": 0}, {"text": "谁", "spk": 1}]}, "0: 您好\n1: 谁"),
    ({"text": "您好谁", "segments": [{"start": 0, "text": "您好"}, {"start": 1, "text": "谁"}]}, "您好谁"),  # Whisper
    ([{"messages": []}, {"messages": [{"role": "客服", "content": "您好"}]}], "客服: 您好"),
])
def test_what_a_recogniser_wrote_keeps_its_speakers_without_options(tmp_path, content, said):
    assert inspect(written(tmp_path, "f.json", content))["read"][0]["input"] == said


@pytest.mark.parametrize("column", ["是否正常", "質檢結果", "is_normal"])
def test_a_yes_is_not_taken_for_fraud_where_it_may_say_that_all_is_well(tmp_path, column):
    path = written(tmp_path, "f.csv", f"文本,{column}\n请转账,否\n吃饭,是\n")
    report = inspect(path, {"layout": "records", "columns": {"input": "文本", "label": column}})
    assert report["reading"].label_values == {} and not report["good"]
    assert report["problems"][0].endswith("--label-values '否=true' '是=false'")
    if "label" not in inspect(path)["reading"].names:
        assert inspect(path)["warnings"][0].endswith(
            f"{shlex.quote(f'label={column}')} --label-values '否=true' '是=false'")
    words = written(tmp_path, "g.csv", f"文本,{column}\n请转账,诈骗\n吃饭,正常\n")
    report = inspect(words, {"layout": "records", "columns": {"input": "文本", "label": column}})
    assert [row["label"] for row in report["read"]] == [True, False]


@pytest.mark.parametrize("label, options", [("是否诈骗", ["label=是否诈骗", "--label-values", "是=true", "否=false"]),
                                            ("工号", [])])
def test_messages_in_the_cells_of_a_table_are_turns(tmp_path, label, options):
    said = '"[{""role"": ""坐席"", ""text"": ""您好""}, {""role"": ""客户"", ""text"": ""谁""}]"'
    report = inspect(written(tmp_path, "f.csv", f"通话内容,{label}\n{said},是\n"))
    assert report["options"] == ["--layout", "turns", "--columns", "messages=通话内容", *options]
    assert report["read"][0]["input"] == "坐席: 您好\n客户: 谁" and not report["problems"]
    assert inspect(written(tmp_path, "f.csv", "通话内容\n[微笑]您好\n[{好\n"))["reading"].layout == "texts"


def test_texts_without_labels_are_for_predict_alone(tmp_path):
    path = written(tmp_path, "f.csv", "id,text\n1,转账\n")
    report = inspect(path)
    assert report["reading"] == Reading("texts", {"input": "text"}) and report["labels"] == {"fraud": 0, "non-fraud": 0}
    assert main(["--inspect", str(path), "--convert", str(tmp_path / "f.jsonl")]) == 0
    assert json.loads((tmp_path / "f.jsonl").read_text(encoding="utf-8")) == {"input": "转账", "id": "1"}


def test_its_own_formats_need_no_options(tmp_path):
    assert inspect(written(tmp_path, "a", '{"input": "a", "label": true}'))["options"] == []
    assert inspect(written(tmp_path, "t", '{"input": "a", "id": 1}'))["options"] == []
    assert inspect(written(tmp_path, "b", "case,speaker,content,is_fraud\n1,a,b,True"))["options"] == []
    assert inspect(written(tmp_path, "c", [{"input": "a", "label": True}]))["options"] == ["--layout", "records"]


@pytest.mark.parametrize("row, key", [({"input": "a", "label": True, "case": 5}, "case"),
                                      ({"input": "a", "label": '{"is_fraud": true}'}, "label")])
def test_what_options_alone_make_readable_is_named_and_converted(tmp_path, capsys, row, key):
    path = written(tmp_path, "f.jsonl", '{"input": "b", "label": false, "case": "b"}\n' + json.dumps(row))
    assert main(["--inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"without them: {path}:2: key '{key}' must be " in said and said.count("--inspect") == 1
    assert main([*shlex.split(said.splitlines()[-1])[6:]]) == 0
    assert [record["label"] for record in read_records(tmp_path / "f.native.jsonl")] == [False, True]
    with pytest.raises(DataError, match="--inspect"):
        read_records(path)


def test_what_is_given_is_not_guessed(tmp_path):
    path = written(tmp_path, "f.csv", "text;label\n转账;1\n")
    given = {"label_values": {"1": False}, "columns": {"input": "label", "label": "label"}}
    report = inspect(path, given)
    assert report["reading"] == Reading(**given, delimiter=";")
    with pytest.raises(DataError):
        inspect(written(tmp_path, "g.csv", "文本", "gb18030"), {"encoding": "utf-8"})


@pytest.mark.parametrize("content, columns, expected", [
    ("转写文本,判定\n转账,诈骗\n爬山,正常\n", {"label": "判定"},
     Reading("records", {"input": "转写文本", "label": "判定"}, {"诈骗": True, "正常": False})),
    ("工单,角色,内容,判定\n1,客服,转账,是\n1,客户,好,否\n2,客服,喂,否\n", {"case": "工单", "is_fraud": "判定"},
     Reading("dialogues", {"speaker": "角色", "content": "内容", "case": "工单", "is_fraud": "判定"}, YES_NO)),
    ([{"轮次": [{"role": "客服", "content": "转账"}], "label": True}], {"messages": "轮次"},
     Reading("turns", {"messages": "轮次"})),
])
def test_the_layout_is_that_of_the_columns_that_are_named(tmp_path, content, columns, expected):
    assert inspect(written(tmp_path, "f", content), {"columns": columns})["reading"] == expected


@pytest.mark.parametrize("content, option", [
    ("转写文本,坐席,判定\n转账,8001,诈骗\n爬山,8002,正常\n钓鱼,8001,疑似\n下棋,,\n", "label=判定"),
    ("工单,角色,内容,判定\n1,客服,转账,是\n1,客户,好,否\n2,客服,喂,否\n", "is_fraud=判定"),
    ([{"segments": [{"speaker": "甲", "text": "转账"}], "判定": word} for word in "是否"], "label=判定"),
])
def test_a_column_that_may_be_the_label_is_named_where_none_is_read(tmp_path, capsys, content, option):
    path = written(tmp_path, "f.csv", content)
    given = ["case=工单"] if "工单" in content else []
    for columns, is_hinted in ((given, True), ([*given, option], False)):
        main(["--inspect", str(path), *(["--columns", *columns] if columns else [])])
        said = capsys.readouterr().out
        assert (f"--columns '{option}'" in said, "labels as written" in said) == (is_hinted, not is_hinted)


def test_a_label_that_means_nothing_known_is_a_problem_with_its_place(tmp_path):
    path = written(tmp_path, "f.csv", "text,label\n转账,是\n爬山,不确定\n爬山,否\n")
    report = inspect(path)
    assert report["label_words"] == {"是": 1, "不确定": 1, "否": 1}
    assert report["good"] == 2 and len(report["problems"]) == 1
    assert report["problems"][0].startswith(f"{path}:3: ") and "不确定" in report["problems"][0]


@pytest.mark.parametrize("name, labels", [
    ("f.csv", ["是", "诈骗", "否", "正常", "非诈骗"]), ("f.csv", ["1", "true", "0", "False"]),
    ("f.jsonl", [1, "true", 0, "false", True, "否"])])
def test_labels_of_several_kinds_are_one_option(tmp_path, capsys, name, labels):
    rows = (["text,label", *(f"爬山,{label}" for label in labels)] if name == "f.csv" else
            [json.dumps({"input": "爬山", "label": label}) for label in labels])
    assert main(["--inspect", str(written(tmp_path, name, "\n".join(rows)))]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert main([*words[3:-1], str(tmp_path / "o.jsonl")]) == 0
    assert [record["label"] for record in read_records(tmp_path / "o.jsonl")] == \
        [label in ("是", "诈骗", "1", "true", 1) for label in labels]


def test_a_label_without_a_meaning_is_suggested_after_those_that_have_one(tmp_path):
    path = written(tmp_path, "f.csv", "text,label\n转账,诈骗\n爬山,否\n爬山,未知\n")
    first, second = inspect(path, {"label_values": {"诈骗": True, "正常": False}})["problems"]
    assert first.endswith(" --label-values '诈骗=true' '正常=false' '是=true' '否=false'")
    assert second.endswith(" --label-values '诈骗=true' '正常=false' '未知=true' or '未知=false'")


# -------------------------------------------------------------------------------------------------- what it counts


def test_counts_labels_lengths_repeats_and_contradictions(tmp_path):
    path = tmp_path / "f.jsonl"
    rows = [("一", True), ("一二三", False), ("一", True), ("一二三 ", True), ("一二三四五", False), (" \u200b", True)]
    write_records(path, [{"input": text, "label": label} for text, label in rows])
    report = inspect(path)
    assert report["labels"] == {"fraud": 3, "non-fraud": 2}
    assert report["lengths"] == {"min": 1, "median": 3, "max": 5}
    assert (report["duplicates"], report["contradictions"]) == (2, 1)
    assert (report["rows"], report["good"], report["skipped"]) == (6, 5, [f"{path}:6: 'input' is empty"])


def test_a_dialogue_is_fraud_if_a_line_is(tmp_path):
    path = written(tmp_path, "f.csv", "case,speaker,content,is_fraud\n1,a,一二,False\n1,b,三,True\n2,a,四,False\n")
    report = inspect(path)
    assert (report["becomes"], report["rows"]) == ("dialogues", 3)
    assert report["labels"] == {"fraud": 1, "non-fraud": 1}
    assert report["lengths"] == {"min": 1, "median": 2.5, "max": 4}


def test_ten_rows_are_shown_as_they_would_be_read(tmp_path):
    path = written(tmp_path, "f.json", [{"input": f"甲: 第{i}句\n乙: 好", "label": True} for i in range(12)])
    report = inspect(path)
    assert [row["input"][:6] for row in report["first"]] == [f"甲: 第{i}句" for i in range(10)]
    text = describe(report)
    assert "第9句" in text and "第10句" not in text and r"\u" not in text


def test_bad_rows_are_all_named_and_a_break_in_the_file_too(tmp_path):
    path = written(tmp_path, "f.jsonl", '{"input": "a", "label": true}\n{"input": 3, "label": true}\n\n{"input"\n[1]\n')
    assert [problem.removeprefix(f"{path}:").split(":")[0] for problem in inspect(path)["problems"]] == ["2", "4", "5"]
    path = written(tmp_path, "f.csv", 'input,label\na,True\n"b,True\n')
    assert inspect(path)["good"] == 1 and inspect(path)["problems"][0].startswith(f"{path}:3: ")


def test_a_workbook_names_the_sheet_where_there_are_several(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(("text", "label"))
    book.active.append(("转账", 1))
    path = tmp_path / "f.xlsx"
    book.save(path)
    assert inspect(path)["options"] == ["--layout", "records", "--columns", "input=text", "--label-values", "1=true",
                                        "0=false"]
    book.create_sheet("二").append(("text", "label"))
    book["二"].append(("爬山", 0))
    book.save(path)
    report = inspect(path)
    assert (report["reading"].sheet, report["other_sheets"]) == (book.sheetnames[0], ["二"])
    assert "二" in describe(report)
    assert inspect(path, {"sheet": "二"})["first"] == [{"input": "爬山", "label": False}]
    book.create_sheet("说明", 0).append(("本表为通话",))  # the first is no data
    book.save(path)
    with pytest.raises(DataError, match="no rows in it; .* name another sheet with --sheet: Sheet, 二"):
        inspect(path)


def test_a_workbook_is_loaded_once_with_a_bar_for_one_that_takes_long(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book, load, loads = openpyxl.Workbook(), openpyxl.load_workbook, []
    for sheet in book.active, book.create_sheet("二"):
        sheet.append(("text",))
        sheet.append(("转账",))
    book.save(tmp_path / "f.xlsx")
    monkeypatch.setattr("openpyxl.load_workbook", lambda file, **options: loads.append(file) or load(file, **options))
    assert inspect(tmp_path / "f.xlsx")["other_sheets"] == ["二"]
    assert [type(file).__name__ for file in loads] == ["CallbackIOWrapper"]  # tqdm's, which counts what is read


def test_names_of_columns_that_break_in_a_narrow_cell_are_one_line(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in ("通话\n内容", "是否\r\n诈骗"), ("转账", "是"), ("爬山", "否"):
        book.active.append(row)
    book.save(tmp_path / "f.xlsx")
    assert inspect(tmp_path / "f.xlsx")["reading"] == Reading(columns={"input": "通话内容", "label": "是否诈骗"},
                                                              label_values=YES_NO)


def test_a_table_that_pandas_wrote_column_by_column_is_told_how_to_write_rows(tmp_path):
    for columns in {"input": ["转账"], "label": [1]}, {"input": {"0": "转账"}, "label": {"0": 1}}:
        problem, = inspect(written(tmp_path, "f.json", columns))["problems"]
        assert "orient='records'" in problem and "--label-values" not in problem


# ----------------------------------------------------------------------------------------------------- the command


def test_the_printed_command_converts(tmp_path, capsys):
    path = written(tmp_path, "留 言.csv", "text;label\n转账;是\n爬山;否\n", "gb18030")
    assert main(["--inspect", str(path)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "data.prepare"] and main(words[3:]) == 0
    assert read_records(tmp_path / "留 言.jsonl") == [{"input": "转账", "label": True},
                                                    {"input": "爬山", "label": False}]


def test_dialogues_are_converted_to_csv_and_a_printed_command_never_overwrites(tmp_path, capsys):
    path = written(tmp_path, "退款.csv", "case;speaker;content;is_fraud\n1;a;b;True\n")
    assert main(["--inspect", str(path)]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert words[-1] != str(path) and main(words[3:]) == 0
    assert [line.content for line in read_dialogues(words[-1], Skipped())[0].lines] == ["b"]


def test_files_that_differ_in_their_suffix_alone_are_converted_to_files_of_their_own(tmp_path, capsys):
    for name in ("a.csv", "a.tsv", "a.json"):
        written(tmp_path, name, "text,label\n转账,1\n")
    written(tmp_path, "b.csv", "case;speaker;content;is_fraud\n1;a;b;True\n")
    written(tmp_path, "b.tsv", "case;speaker;content;is_fraud\n1;a;b;True\n")
    for _ in range(2):  # the second time beside what the first wrote
        assert main(["--inspect", str(tmp_path)]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if "to convert it: " in line]
        commands = [shlex.split(line.split(": ", 1)[1]) for line in said]
        assert len({words[-1] for words in commands}) == len(commands) == 5
        assert [main(words[3:]) for words in commands] == [0] * 5


@pytest.mark.parametrize("content, output", [
    ("text,label\n转账,可能\n", "o.jsonl"), ("text,label\n", "o.jsonl"), ("text,label\n转账,1\n", "o.csv"),
    ("text,label\n转账,1\n", "f.csv"), ("case,speaker,content,is_fraud\n1,a,b,True\n", "o.json"),
])
def test_nothing_is_converted_that_is_bad_or_of_the_wrong_name(tmp_path, capsys, content, output):
    path = written(tmp_path, "f.csv", content)
    assert main(["--inspect", str(path), "--convert", str(tmp_path / output)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.csv"] and path.read_text() == content


def test_a_folder_is_inspected_file_by_file(tmp_path, capsys):
    written(tmp_path, "a.jsonl", '{"input": "a", "label": true}')
    written(tmp_path, "b.json", '{"input": ')
    written(tmp_path, "c.csv", "version https://git-lfs.github.com/spec/v1\n")
    written(tmp_path, "notes.txt", "-")
    assert main(["--inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert all(f"{tmp_path}/{name}: " in said for name in ("a.jsonl", "b.json", "c.csv"))
    assert "notes.txt" in said.splitlines()[0]
    assert main(["--inspect", str(tmp_path), "--convert", "o.jsonl"]) == 2


TWO = [{"input": "甲: 转账", "label": True}, {"input": "甲: 爬山", "label": False}]
TWO_LINES = [json.dumps(record, ensure_ascii=False) for record in TWO]


@pytest.mark.parametrize("content", [
    "\n".join(json.dumps(record, indent=2) for record in TWO), "".join(TWO_LINES), "\r".join(TWO_LINES) + "\r",
    "\n\ufeff".join(TWO_LINES), "\ufeff" + "\r\n\ufeff".join(TWO_LINES),
])
def test_objects_over_several_lines_or_joined_are_read(tmp_path, content):
    report = inspect(written(tmp_path, "f.json", content))
    assert (report["read"], report["problems"]) == (TWO, [])


@pytest.mark.parametrize("content", [
    b"", b" \n\n", b"\xef\xbb\xbf", b"text,label\n", b"null", b"[]", b"\0" * 300,
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xd8\0",
])
def test_what_holds_no_rows_is_one_line_and_not_to_be_converted(tmp_path, capsys, content):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    assert main(["--inspect", str(path)]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and not said.out and "--encoding" not in said.err


def test_the_names_of_the_columns_in_the_middle_are_a_problem_not_a_row(tmp_path):
    table = "对话,标签\n转账,是\n"
    report = inspect(written(tmp_path, "f.csv", table + "\ufeff" + table))
    assert report["good"] == 2 and [problem.split(": ")[0] for problem in report["problems"]] == [f"{tmp_path}/f.csv:3"]


def test_rows_under_a_key_of_one_object_are_named(tmp_path):
    problem, = inspect(written(tmp_path, "f.json", {"version": 1, "data": TWO}))["problems"]
    assert "'data'" in problem


TRANSCRIPTS = {"a.srt": "1\n00:00:00,000 --> 00:00:02,000\n客服: 您好\n",
               "b.vtt": "WEBVTT\n\n00:00.000 --> 00:02.000\n您好\n",
               "c.txt": "客服: 您好, 请转账\n王: 好\n", "d.txt": "张三 2024-05-01 10:00\n在吗\n",
               "e.json": '{"segments": [{"start": 0, "speaker": "SPEAKER_00", "text": "您好"}]}'}


def test_transcripts_are_named_as_such_and_the_page_makes_json_lines_of_them(tmp_path, monkeypatch):
    (tmp_path / "通话").mkdir()
    for name, text in TRANSCRIPTS.items():
        path = written(tmp_path / "通话", name, text)
        if path.suffix != ".json":
            with pytest.raises(DataError, match="docs/data.md"):
                inspect(path)
    (tmp_path / "通话" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\xff")
    (tmp_path / "通话" / "旧").mkdir()
    written(tmp_path / "通话", "f.txt", "客服: 您好", "utf-16")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1], {})
    report = inspect("calls.jsonl")
    assert [row["id"] for row in report["read"]] == [*TRANSCRIPTS, "f.txt"] and not report["problems"]
    assert [row["input"] for row in report["read"][-2:]] == ["SPEAKER_00: 您好", "客服: 您好"]
    assert inspect(written(tmp_path, "table.txt", "文本,标签\n转账,是\n"))["good"] == 1


def test_a_line_a_row_without_a_case_is_said_to_be_a_dialogue_each(tmp_path):
    for columns, said in (("说话人,内容", True), ("编号,说话人,内容,标签", False), ("姓名,内容", False)):
        table = f"{columns}\n" + 2 * f"{','.join('1' * len(columns.split(',')))}\n"
        assert ("--layout dialogues" in describe(inspect(written(tmp_path, "f.csv", table))).partition(
            "options: ")[2].partition("\n")[2]) == said


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_what_is_not_there_is_an_error_of_one_line(tmp_path, capsys, name):
    assert main(["--inspect", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}")


def test_convert_refuses_its_own_input(tmp_path):
    path = tmp_path / "f.jsonl"
    write_records(path, [{"input": "a", "label": True}])
    with pytest.raises(DataError):
        convert(inspect(path), path)


# -------------------------------------------------------------------------------------------------------- the page


BLOCK = r"```\n(?P<{}>.*?)```"
EXAMPLE = re.compile(r"^`(?P<name>[^`\n]+)`(?: in (?P<encoding>\w+))?\n" + BLOCK.format("content")
                     + r"(?:\n\n`(?P<options>--layout [^`\n]+)`\n\ngives\n\n" + BLOCK.format("gives") + ")?",
                     re.M | re.S)
EXAMPLES = list(EXAMPLE.finditer(PAGE.read_text(encoding="utf-8")))


def test_every_example_of_the_page_is_one_of_these():
    text = PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLES) == text.count("\ngives\n") + 2  # two are of the own formats and give themselves
    assert {shlex.split(example["options"])[1] for example in EXAMPLES if example["options"]} == \
        {"records", "texts", "alpaca", "messages", "turns", "dialogues", "lines"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
def test_an_example_of_the_page_gives_what_it_says(tmp_path, example):
    path = written(tmp_path, example["name"], example["content"], example["encoding"] or "utf-8")
    report = inspect(path)
    assert not report["problems"]
    if example["options"] is None:
        assert report["options"] == [] and report["rows"] == example["content"].count("\n") - (path.suffix == ".csv")
        return
    options = shlex.split(example["options"])
    assert sorted(report["options"]) == sorted(options)
    output = tmp_path / f"out{'.csv' if report['becomes'] == 'dialogues' else '.jsonl'}"
    assert main(["--inspect", str(path), *options, "--convert", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == example["gives"]


def test_prepare_reads_its_source_as_asked(tmp_path):
    rows = ["会话;说话人;内容;标签"] + [f"{case};{who};第{case}次说{what}的事情，编号{case * 37};{label}"
                                  for case in range(12) for who, what, label in
                                  [("甲", "转账" if case % 2 else "爬山", "是" if case % 2 else "否"),
                                   ("乙", "明天", "否")]]
    path = written(tmp_path, "通话.csv", "\r\n".join(rows), "gb18030")
    options = inspect(path)["options"]
    assert main(["--source", str(path), "--output", str(tmp_path / "out")]) == 2
    assert main(["--source", str(path), "--output", str(tmp_path / "out"), *options]) == 0
    records = [record for name in ("train", "eval", "test") for record in read_records(tmp_path / f"out/{name}.jsonl")]
    assert {record["label"] for record in records if "转账" in record["input"]} == {True}


def test_columns_that_a_call_centre_exports_are_known_and_a_file_of_which_nothing_is_read_is_not_native(tmp_path):
    lines = written(tmp_path, "lines.csv", "会话ID,说话人,内容,标注\n1,客服,转账,是\n1,用户,好,否\n", "gb18030")
    assert inspect(lines)["reading"].columns == {
        "case": "会话ID", "speaker": "说话人", "content": "内容", "is_fraud": "标注"}
    calls = written(tmp_path, "calls.jsonl", '{"conversation": "A: 转账", "is_scam": 1}\n')
    assert inspect(calls)["read"] == [{"input": "A: 转账", "label": True}]
    unknown = describe(inspect(written(tmp_path, "unknown.jsonl", '{"a": "转账", "b": 1}\n')))
    assert "options: none found" in unknown and "format of this project" not in unknown


@pytest.mark.parametrize("name, numbers, is_case", [
    ("通话ID", "1123", True), ("call_id", "1123", True), ("session", "1123", True), ("案例", "1123", True),
    ("通话ID", "1234", False), ("编号", "1123", False)])  # each its own, or what may count the rows
def test_rows_of_one_call_are_known_by_its_number_and_not_offered_to_be_split(tmp_path, capsys, name, numbers, is_case):
    rows = [f"{number},转账{place},{'是否'[place % 2]}" for place, number in enumerate(numbers)]
    path, output = written(tmp_path, "f.csv", "\n".join([f"{name},文本,标签", *rows])), tmp_path / "o.jsonl"
    assert main(["--inspect", str(path), "--convert", str(output)]) == 0
    assert [record.get("case") for record in read_records(output)] == (list(numbers) if is_case else [None] * 4)
    assert ("--source" in capsys.readouterr().out) != is_case
    assert inspect(path, {"columns": {"case": name}})["read"][0]["case"] == "1"
    assert inspect(path, {"columns": {"input": name}})["reading"].columns == {"input": name, "label": "标签"}


@pytest.mark.parametrize("again, command", [
    ("1,转账,是", "--source"), ("1,爬山,是", "labels: 1, as '1'; make one row of each call"),
    ("1,转账,否", "labels: 1, as '1'; make one row of each call")])
def test_a_call_twice_can_be_split_and_two_of_one_number_are_named(tmp_path, capsys, again, command):
    path = written(tmp_path, "f.csv", f"通话ID,文本,标签\n1,转账,是\n2,下棋,否\n{again}\n")
    assert main(["--inspect", str(path), "--convert", str(tmp_path / "o.jsonl")]) == 0
    assert command in capsys.readouterr().out.split("next: ")[1]


def test_lines_that_the_page_joins_are_whole_dialogues_and_its_next_command_splits_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    convert, = re.findall(r"^python -m data.prepare (--inspect 通话.*)$", page, re.M)
    split, = re.findall(r"^python -m data.prepare (--source calls.jsonl.*)$", page, re.M)
    written(tmp_path, "通话.csv", "录音编号,角色,内容,标签\n" + "".join(
        f"0{call},坐席,{chr(0x5000 + call) * 9},{label}\n0{call},客户,再见,{label}\n"
        for call in range(10) for label in "否是"[call % 2]), "gb18030")
    assert main(shlex.split(convert.replace(".xlsx", ".csv"))) == 0
    report = inspect("calls.jsonl")
    assert report["read"][0] == {"input": f"坐席: {chr(0x5000) * 9}\n客户: 再见", "label": False, "case": "00"}
    assert main(shlex.split(split)) == 0
    parts = [read_records(f"outputs/data/{name}.jsonl") for name in ("train", "eval", "test")]
    assert {row["case"] for part in parts for row in part} == {
        row["case"] for row in report["read"]}
