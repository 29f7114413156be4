"""The way from a table of spoken lines, as a call centre exports it, to the next command."""

import json
import shlex

import pytest

import evaluate
from data.files import DataError
from data.formats import Reading
from data.inspection import describe, inspect
from data.prepare import Settings, main, prepare
from data.records import Skipped, read_dialogues, read_records, write_records

NAMES = ("录音编号", "角色", "开始时间", "内容")
TITLES = [("2024年5月通话转写明细", "", "", ""), ("导出人：王", "", "", ""), ("", "", "", "")]
LINES = [(f"00{call}", who, f"10:0{call}:01", said) for call in range(3)
         for who, said in (("坐席", "您好,请问是王女士吗"), ("客户", "是的"), ("坐席", f"请把第{call}笔钱转到账户"))]
CALLS = [f"坐席: 您好,请问是王女士吗\n客户: 是的\n坐席: 请把第{call}笔钱转到账户" for call in range(3)]
OF_CALLS = ["否", "否", "否", "是", "是", "是", "否", "否", "否"]  # the label of the call in each of its rows
OF_LINES = ["否", "否", "否", "否", "否", "是", "否", "否", "否"]
OF_FIRST = ["否", "", "", "是", "", "", "否", "", ""]


def table(path, rows):
    """An Excel workbook, or what Excel saves as CSV in China."""
    if path.suffix == ".xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in rows:
            book.active.append([cell or None for cell in row])
        book.save(path)
    else:
        rows = [",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows]
        path.write_bytes("".join(f"{row}\r\n" for row in rows).encode("gb18030"))
    return path


def labelled(labels):
    return [(*NAMES, "是否诈骗"), *((*line, label) for line, label in zip(LINES, labels, strict=True))]


def next_command(said):
    return shlex.split(said.rpartition("next: python ")[2].splitlines()[0])


@pytest.mark.parametrize("title", [[], TITLES[:1], TITLES])
@pytest.mark.parametrize("name", ["通话.xlsx", "通话.csv"])
def test_lines_without_labels_become_whole_calls_to_predict(tmp_path, capsys, name, title):
    path, out = table(tmp_path / name, [*title, NAMES, *LINES]), tmp_path / "out.jsonl"
    report = inspect(path)
    assert report["reading"] == Reading("lines", dict(zip(("case", "speaker", "content"), (*NAMES[:2], NAMES[3]))),
                                        encoding="utf-8" if path.suffix == ".xlsx" else "gb18030")
    assert (report["becomes"], report["rows"], report["good"], len(report["read"])) == ("records", 9, 9, 3)
    assert main(["--inspect", str(path), "--convert", str(tmp_path / "out.csv")]) == 2
    assert main(["--inspect", str(path), "--convert", str(out)]) == 0
    assert [json.loads(row) for row in out.read_text(encoding="utf-8").splitlines()] == [
        {"input": call, "case": f"00{number}"} for number, call in enumerate(CALLS)]
    command, *options = next_command(capsys.readouterr().out)
    args = evaluate._parser().parse_args(options)
    assert command == "evaluate.py" and args.predict == str(out) and args.output == str(tmp_path / "out.answers.jsonl")


@pytest.mark.parametrize("labels", [OF_CALLS, OF_LINES, OF_FIRST])
@pytest.mark.parametrize("name", ["通话.xlsx", "通话.csv"])
def test_lines_with_labels_become_whole_calls_to_split_or_to_judge(tmp_path, capsys, name, labels):
    path, out = table(tmp_path / name, [*TITLES, *labelled(labels)]), tmp_path / "out.jsonl"
    assert main(["--inspect", str(path)]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said.partition("to make whole calls of it: python -m data.prepare ")[2].splitlines()[0])
    assert main([*words[:-1], str(out)]) == 0
    assert read_records(out) == [{"input": call, "label": number == 1, "case": f"00{number}"}
                                 for number, call in enumerate(CALLS)]
    said = capsys.readouterr().out
    assert "warning" not in said
    assert next_command(said) == ["-m", "data.prepare", "--source", str(out), "--output", "DIR"]
    assert shlex.split(said.splitlines()[-1])[-2:] == ["--data", str(out)]


def test_calls_whose_labels_all_stand_above_their_lines_become_whole_calls(tmp_path, capsys):
    head, *lines = labelled([""] * 9)
    rows = [row for number, label in enumerate(["否", "是", "否"])
            for row in ((f"00{number}", "", "", "", label), *lines[3 * number:3 * number + 3])]
    path, out = table(tmp_path / "f.csv", [head, *rows]), tmp_path / "o.jsonl"
    assert main(["--inspect", str(path)]) == 0
    words = shlex.split(capsys.readouterr().out.partition("to convert it: python -m data.prepare ")[2].splitlines()[0])
    assert words[-1].endswith(".jsonl") and main([*words[:-1], str(out)]) == 0
    assert [(row["input"], row["label"]) for row in read_records(out)] == list(zip(CALLS, [False, True, False]))
    assert main([*words[:-1], str(tmp_path / "o.csv")]) == 2
    assert "records are written as .jsonl" in capsys.readouterr().err


def test_calls_of_which_some_have_no_label_are_to_predict(tmp_path, capsys):
    path = table(tmp_path / "f.csv", labelled(["是", "", "", *[""] * 6]))
    assert main(["--inspect", str(path), "--convert", str(tmp_path / "o.jsonl")]) == 0
    assert "--predict" in next_command(capsys.readouterr().out)
    assert [json.loads(row).get("label") for row in (tmp_path / "o.jsonl").read_text("utf-8").splitlines()] == [
        True, None, None]


@pytest.mark.parametrize("output, numbers, skipped, labels", [
    ("o.csv", "2 can be read; dialogues: 2", 8, "1 fraud, 1 non-fraud (50.0% fraud)"),
    ("o.jsonl", "9 can be read; records: 3", 1, "1 fraud, 1 non-fraud (50.0% fraud), 1 without a label")])
def test_the_report_counts_what_is_written(tmp_path, capsys, output, numbers, skipped, labels):
    rows = [*labelled(["是", "", "", "否", "", "", "", "", ""]), ("002", "客户", "10:02:09", "", "")]
    path, out = table(tmp_path / "f.csv", rows), tmp_path / output
    assert main(["--inspect", str(path), "--convert", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"  rows: 10, of which {numbers}" in said and f"  skipped: {skipped}" in said
    assert f"  labels as read: {labels}" in said
    assert sum(out.read_text(encoding="utf-8").count(who) for who in ("坐席", "客户")) == 10 - skipped


def test_a_column_for_labels_to_come_is_none(tmp_path):
    assert inspect(table(tmp_path / "f.csv", labelled([""] * 9)))["reading"].layout == "lines"


def test_dialogues_to_train_on_are_for_prepare(tmp_path, capsys):
    out = tmp_path / "o.csv"
    assert main(["--inspect", str(table(tmp_path / "f.xlsx", labelled(OF_LINES))), "--convert", str(out)]) == 0
    assert next_command(capsys.readouterr().out) == ["-m", "data.prepare", "--source", str(out), "--output", "DIR"]
    assert [line.is_fraud for line in read_dialogues(out, Skipped())[1].lines] == [False, False, True]


@pytest.mark.parametrize("rows", [
    [("编号", "姓名", "对话内容"), ("1", "王芳", "甲: 转账"), ("2", "李明", "甲: 爬山")],
    [("编号", "姓名", "对话内容", "标签"), ("1", "王芳", "甲: 转账", "是"), ("2", "李明", "甲: 爬山", "否")]])
def test_rows_whose_numbers_never_return_are_whole_dialogues(tmp_path, rows):
    report = inspect(table(tmp_path / "f.csv", rows))
    assert [row["input"] for row in report["read"]] == ["甲: 转账", "甲: 爬山"]


@pytest.mark.parametrize("column", ["channel", "声道", "角色类型"])
def test_a_channel_is_a_speaker(tmp_path, column):
    rows = [("通话ID", column, "内容"), ("7", "坐席", "您好"), ("7", "客户", "谁？")]
    assert [row["input"] for row in inspect(table(tmp_path / "f.csv", rows))["read"]] == ["坐席: 您好\n客户: 谁？"]


def test_rows_whose_numbers_return_may_be_lines_of_calls_where_no_speaker_is_known(tmp_path):
    rows = [("通话ID", "谁", "内容"), ("7", "坐席", "您好"), ("7", "客户", "谁？"), ("8", "坐席", "您好")]
    assert "where it is one line of a dialogue: " in describe(inspect(table(tmp_path / "f.csv", rows)))
    assert "where it is one line" not in describe(inspect(table(tmp_path / "g.csv", [rows[0], *rows[2:]])))
    records = [{"input": "甲: 好", "label": True, "case": "7"}] * 2  # segments of a dialogue
    write_records(tmp_path / "train.jsonl", records)
    assert "where it is one line" not in describe(inspect(tmp_path / "train.jsonl"))


def test_numbers_of_rows_are_not_those_of_calls(tmp_path):
    rows = [("编号", *NAMES), *((str(number), *line) for number, line in enumerate(LINES))]
    assert [record["input"] for record in inspect(table(tmp_path / "f.csv", rows))["read"]] == CALLS


# ---------------------------------------------------------------------------------------- the label of a whole call


@pytest.mark.parametrize("labels, is_warned", [(OF_CALLS, True), (OF_LINES, False), (["否"] * 9, False)])
def test_the_label_of_a_call_in_each_row_is_pointed_out_with_a_remedy(tmp_path, capsys, labels, is_warned):
    path = table(tmp_path / "f.csv", labelled(labels))
    for more in ([], ["--convert", str(tmp_path / "o.csv")]):
        assert main(["--inspect", str(path), *more]) == 0
        said = capsys.readouterr().out
        assert ("warning: every dialogue has one label in all its lines" in said) == is_warned
        assert ("a .jsonl" in said) == is_warned


def test_prepare_warns_of_it_too(tmp_path):
    rows = [(case, who, f"{case}号通话里{who}说的第{place}句话，讲{case * 37 * place}元", case % 2 == 1)
            for case in range(12) for place, who in enumerate(("甲", "乙"), start=1)]
    path = table(tmp_path / "f.csv", [("case", "speaker", "content", "is_fraud"), *(map(str, row) for row in rows)])
    warnings = prepare(path, tmp_path / "out", Settings(reading=Reading("dialogues", encoding="gb18030")))["warnings"]
    assert sum("one label in all its lines" in warning for warning in warnings) == 1


# ------------------------------------------------------------------------------------------------- titles, problems


@pytest.mark.parametrize("name", ["f.xlsx", "f.csv"])
def test_a_column_of_its_own_under_blank_cells_has_no_title(tmp_path, name):
    path = table(tmp_path / name, [("text", ""), *((f"转账{i}", "") for i in range(3))])
    assert [record["input"] for record in inspect(path)["read"]] == ["转账0", "转账1", "转账2"]


def test_the_index_of_pandas_is_no_title(tmp_path):
    assert len(inspect(table(tmp_path / "f.csv", [("", "text"), ("0", "转账"), ("1", "爬山")]))["read"]) == 2


def test_a_title_without_delimiters_is_one_problem_with_its_remedy(tmp_path):
    path = table(tmp_path / "f.csv", [("通话转写",), NAMES, *LINES])
    said = describe(inspect(path)).splitlines()
    assert said[-2] == "  problems: 10" and said[-1].startswith(f"    {path}: lines 2 to 11: ") and "title" in said[-1]


def test_equal_problems_and_skipped_rows_are_grouped(tmp_path):
    labels = ["可能", "可能", "是", "可能", "不明", "否", "", "", "否"]
    said = describe(inspect(path := table(tmp_path / "f.csv", labelled(labels)))).splitlines()
    start = said.index("  skipped: 2")
    assert said[start + 1] == f"    {path}: lines 8 to 9: column '是否诈骗' is empty"
    assert said[start + 2] == "  problems: 4" and len(said) == start + 5
    assert said[start + 3].startswith(f"    {path}: lines 2 to 3, 5: column '是否诈骗' must be ")
    assert said[start + 4].startswith(f"    {path}:6: column ")


def test_of_many_places_the_first_are_named(tmp_path):
    labels = ["可能", "是"] * 15
    path = tmp_path / "f.csv"
    path.write_text("text,label\n" + "".join(f"转账,{label}\n" for label in labels), encoding="utf-8")
    assert "lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 5 more places: " in describe(inspect(path))


def test_equal_problems_of_one_line_are_one_place(tmp_path):
    (tmp_path / "f.json").write_text('[{"input": 1, "label": true}, {"input": 1, "label": true}]', encoding="utf-8")
    assert f"  problems: 2\n    {tmp_path}/f.json:1: " in describe(inspect(tmp_path / "f.json"))


def test_dialogues_without_any_speaker_are_native(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("case,speaker,content,is_fraud\n1,,你好,False\n1,,请转账,True\n2,,吃饭,False\n", encoding="utf-8")
    report = inspect(path)
    assert (report["becomes"], report["options"], len(report["read"])) == ("dialogues", [], 2)


def test_labels_that_begin_late_are_not_lost(tmp_path):
    lines = [(f"{i // 2}", "客户", "", f"说了{i}", "" if i < 1200 else "否" if i < 1250 else "是") for i in range(1300)]
    path, out = table(tmp_path / "f.csv", [(*NAMES, "是否诈骗"), *lines]), tmp_path / "out.jsonl"
    assert main(["--inspect", str(path), "--convert", str(out)]) == 0
    labels = [json.loads(row).get("label") for row in out.read_text(encoding="utf-8").splitlines()]
    assert labels == [None] * 600 + [False] * 25 + [True] * 25


def test_a_filled_column_goes_before_an_empty_one_of_a_better_name(tmp_path):
    rows = [("case_id", "录音编号", "角色", "内容"), *(("", line[0], line[1], line[3]) for line in LINES)]
    assert [record["case"] for record in inspect(table(tmp_path / "f.csv", rows))["read"]] == ["000", "001", "002"]


def test_a_label_may_stand_above_the_lines_of_its_call(tmp_path):
    rows = [("001", "", "", "", "是"), *((*line, "") for line in LINES[3:6]), *((*line, "否") for line in LINES[:3])]
    path, out = table(tmp_path / "f.csv", [(*NAMES, "是否诈骗"), *rows]), tmp_path / "out.jsonl"
    assert main(["--inspect", str(path), "--convert", str(out)]) == 0
    assert [(record["case"], record["label"]) for record in read_records(out)] == [("001", True), ("000", False)]


@pytest.mark.parametrize("number", ["2.02405E+16", "2.02405010001234e+16"])
def test_numbers_that_a_spreadsheet_shortened_join_no_calls(tmp_path, number):
    report = inspect(table(tmp_path / "f.csv", [NAMES, *((number, *line[1:]) for line in LINES)]))
    assert not report["read"] and len(report["problems"]) == 9 and "as text" in report["problems"][0]


def test_numbers_too_long_for_excel_join_no_calls(tmp_path):
    calls = [20240501000123401, 20240501000123402]
    rows = [NAMES, *((call, who, "", said) for call in calls for _, who, _, said in LINES[:3])]
    problems = inspect(table(tmp_path / "f.xlsx", rows))["problems"]
    assert len(problems) == 6 and "2.02405010001234E+16" in problems[0]
    assert len(inspect(table(tmp_path / "g.xlsx", [NAMES, *((7.0, *line[1:]) for line in LINES)]))["read"]) == 1


def test_a_number_that_returns_is_warned_of(tmp_path, capsys):
    path = table(tmp_path / "f.csv", [NAMES, *LINES[:6], *LINES[:3]])
    assert main(["--inspect", str(path)]) == 0
    assert "  warning: dialogues that go on after lines of others: 1, as '000'; " in capsys.readouterr().out


def test_a_number_that_returns_in_lines_without_a_label_is_warned_of_too(tmp_path, capsys):
    again = [*labelled(OF_FIRST), (*LINES[0], "")]
    assert main(["--inspect", str(table(tmp_path / "f.csv", again))]) == 0
    assert "  warning: dialogues that go on after lines of others: 1, as '000'; " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["StartMs", "begin_time", "BeginTime", "发送时间", "时间戳", "开始时间(ms)", "序号"])
def test_columns_that_say_when_a_line_was_spoken(tmp_path, name):
    rows = [("录音编号", "角色", name, "内容"), ("1", "客户", "2000", "好"), ("1", "客户", "1000", "好")]
    assert f"in the column '{name}': 1, as '1'; " in inspect(table(tmp_path / "f.csv", rows))["warnings"][0]
    assert not inspect(table(tmp_path / "f.csv", [*rows[:2], ("2", "客户", "1000", "好"), rows[1]]))["warnings"][1:]


@pytest.mark.parametrize("times, back", [
    (("10:00:05", "10:00:01"), True), (("0.9", "0.25"), True), (("2024/5/1 9:59", "2024/5/1 10:00"), False),
    (("0.25", "0.5"), False), (("上午11:59", "下午0:01"), False), (("", "10:00"), False)])
def test_times_that_go_back_are_warned_of(tmp_path, times, back):
    rows = [NAMES, *(("1", "客户", time, "好") for time in times), ("2", "客户", "09:00", "好")]
    warnings = inspect(table(tmp_path / "f.csv", rows))["warnings"]
    assert warnings == [] if not back else "'开始时间': 1, as '1'; " in warnings[0]


def test_files_that_number_their_calls_alike_are_both_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"input": name, "label": True, "case": "1"}) + "\n")
    with pytest.raises(DataError, match=r"b\.jsonl:1: the case '1' is in .*a\.jsonl, too; "):
        read_dialogues(tmp_path, Skipped())


def test_whole_calls_read_as_dialogues_say_how_they_are_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"input": "请转账", "label": true}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"whole call: these are read from a \.jsonl in UTF-8, without such options"):
        read_dialogues(path, Skipped(), Reading("dialogues"))


@pytest.mark.parametrize("cases", [("1", "", "2"), ("A1 ", " A1", "A2")])
def test_numbers_left_out_or_with_blanks_are_those_of_lines(tmp_path, cases):
    report = inspect(table(tmp_path / "f.csv", [NAMES, *((case, "客户", "", "好") for case in cases)]))
    assert report["reading"].layout == "lines" and len(report["problems"]) == (not all(cases))


def test_null_is_a_label_left_out(tmp_path):
    path, out = tmp_path / "f.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps([{"call_id": 1, "role": "客户", "text": "好", "label": label} for label in (1, None)]))
    assert main(["--inspect", str(path), "--convert", str(out)]) == 0
    assert read_records(out) == [{"input": "客户: 好\n客户: 好", "label": True, "case": "1"}]
