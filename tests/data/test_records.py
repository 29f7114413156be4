"""Reading and writing records (JSONL) and dialogues (CSV): what is accepted, and the one line a bad file gets."""

import shlex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.files import DataError, write_json, write_text
from data.formats import Reading
from data.normalise import is_blank
from data.records import (
    Dialogue,
    Line,
    Skipped,
    read_dialogues,
    read_numbered_records,
    read_records,
    write_dialogues,
    write_records,
)

GOOD = '{"input": "客服: 您好。", "label": false}'
HEADER = "case,speaker,content,is_fraud\n"
# The fixture's folder is shared between examples; every example writes the file anew.
REUSE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "诈骗 (3).jsonl"


def error_of(read, path, *args):
    """What `read` raises, less the path it begins with; checks that it is one line."""
    with pytest.raises(DataError) as caught:
        read(path, *args)
    message = str(caught.value)
    assert message.startswith(f"{path}:") and len(message.splitlines()) == 1
    return message.removeprefix(f"{path}:")


# ---------------------------------------------------------------------------------------------- records


def test_reads_records_with_all_their_keys(path):
    path.write_text(GOOD + '\n{"input": "a", "label": true, "case": "c", "category": "k", "instruction": "i", '
                    '"fraud_speaker": "张伟", "other": [1]}\n', encoding="utf-8")
    assert read_records(path) == [
        {"input": "客服: 您好。", "label": False},
        {"input": "a", "label": True, "case": "c", "category": "k", "instruction": "i", "fraud_speaker": "张伟",
         "other": [1]},
    ]


def test_accepts_byte_order_mark_crlf_blank_lines_and_no_final_newline(path):
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n  \n{GOOD}\n\ufeff{GOOD}".encode())
    assert read_records(str(path)) == [{"input": "客服: 您好。", "label": False}] * 3


def test_blank_lines_count_in_line_numbers(path):
    path.write_text(f"{GOOD}\n\n\n[]\n", encoding="utf-8")
    assert error_of(read_records, path) == "4: expected a JSON object, found a list"


@pytest.mark.parametrize("line, expected", [
    ("客服: 您好。", "not JSON (Expecting value at column 1)"),
    (GOOD[:-1], "not JSON (Expecting ',' delimiter at column 36)"),
    (GOOD + GOOD, "not JSON (Extra data at column 37)"),
    ("[1]", "expected a JSON object, found a list"),
    ("null", "expected a JSON object, found null"),
    ('"A: 好"', 'expected a JSON object, found the string "A: 好"; a text alone is written {"input": TEXT}'),
    ("NaN", "expected a JSON object, found the number NaN"),
    ('{"label": true}', "key 'input' is missing; found: label; "),
    ('{"input": "a"}', "key 'label' is missing; found: input; "),
    ('{"input": "a", "label": "false"}',
     "key 'label' must be true or false, without quotes, found the string \"false\""),
    ('{"input": "a", "label": 0}', "key 'label' must be true or false, without quotes, found the number 0"),
    ('{"input": "a", "label": 1}', "key 'label' must be true or false, without quotes, found the number 1"),
    ('{"input": "a", "label": 1.0}', "key 'label' must be true or false, without quotes, found the number 1.0"),
    ('{"input": "a", "label": null}', "key 'label' must be true or false, without quotes, found null"),
    ('{"input": "a", "label": NaN}', "key 'label' must be true or false, without quotes, found the number NaN"),
    ('{"input": true, "label": true}', "key 'input' must be a string, found true"),
    ('{"input": ["a"], "label": true}', "key 'input' must be a string, found a list"),
    ('{"input": {}, "label": true}', "key 'input' must be a string, found an object"),
    ('{"input": "a", "label": true, "case": 7}', "key 'case' must be a string, found the number 7"),
    ('{"input": "a", "label": true, "category": null}', "key 'category' must be a string, found null"),
    ('{"input": "a", "label": true, "source": 1}', "key 'source' must be a string, found the number 1"),
    ('{"input": "a", "label": true, "position": "0"}', "key 'position' must be a number, found the string \"0\""),
    ('{"input": "a", "label": true, "position": true}', "key 'position' must be a number, found true"),
    ('{"input": "a", "label": true, "position": 1.5}', "key 'position' must be from 0 to 1, found the number 1.5"),
    ('{"input": "a", "label": true, "position": NaN}', "key 'position' must be from 0 to 1, found the number NaN"),
    ('{"input": "a", "label": true, "instruction": false}', "key 'instruction' must be a string, found false"),
    ('{"input": "a", "label": true, "line_labels": true}',
     "key 'line_labels' must be a list of true and false, found true"),
    ('{"input": "a", "label": true, "line_labels": [1]}',
     "key 'line_labels' must be a list of true and false, found the number 1 in it"),
    ('{"input": "a\\nb", "label": true, "line_labels": [true]}', "key 'line_labels' has 1 labels, 'input' has 2 lines"),
    ('{"input": "a", "label": true, "fraud_speaker": []}', "key 'fraud_speaker' must be a string, found a list"),
    ('{"input": "a", "label": true, "score": NaN}', "key 'score' holds NaN or Infinity, which are not JSON"),
    ('{"input": "a", "label": true, "score": [-Infinity]}', "key 'score' holds NaN or Infinity, which are not JSON"),
    ('{"input": "a", "label": true, "label": false}', "key 'label' appears twice"),
    ('{"input": "a", "label": true, "more": {"k": 1, "k": 2}}', "key 'k' appears twice"),
    (r'{"input": "a\ud800", "label": true}', "key 'input' holds half a surrogate pair, which is not text"),
    (r'{"input": "a", "label": true, "x\ny": "\udfff"}', r"key 'x\ny' holds half a surrogate pair, which is not text"),
    (r'{"input": "a", "label": "\ud800"}',
     r'''key 'label' must be true or false, without quotes, found the string "\ud800"'''),
    (f'{{"input": "a", "label": "{"长" * 50}"}}',
     "key 'label' must be true or false, without quotes, found the string " + '"' + "长" * 36 + "..."),
    ('{"input": "", "label": true}', "'input' is empty; remove the line or give it a dialogue"),
    (r'{"input": "\u200b\ufeff\n\u2060", "label": true}', "'input' is empty; remove the line or give it a dialogue"),
    (r'{"input": " \n\t　", "label": true}', "'input' is empty; remove the line or give it a dialogue"),
])
def test_a_bad_line_is_named_with_its_number_and_key(path, line, expected):
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    assert error_of(read_records, path).startswith(f"2: {expected}")


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 900 + "]" * 900, "1" * 5_000])
def test_a_monstrous_value_is_an_error_or_read(path, value):
    path.write_text(f'{GOOD}\n{{"input": "a", "label": true, "more": {value}}}\n', encoding="utf-8")
    try:
        assert len(read_records(path)) == 2
    except DataError as error:
        assert str(error).startswith(f"{path}:2: ")


def test_a_missing_file_a_folder_and_a_file_without_records_are_errors(path, tmp_path):
    assert error_of(read_records, path) == " no such file"
    with pytest.raises(DataError, match="folder"):
        read_records(tmp_path)
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert error_of(read_records, path).startswith(" no records; expected one JSON object a line")


@pytest.mark.parametrize("number", [1, 2, 50, 5_000])
def test_a_byte_that_is_not_utf8_is_found_in_its_own_line(path, number):
    path.write_bytes(f"{GOOD}\n".encode() * (number - 1) + GOOD.encode("gbk") + b"\n" + f"{GOOD}\n".encode() * 9)
    said = error_of(read_records, path)
    assert said.startswith(f"{number}: not UTF-8 (invalid start byte)")
    assert shlex.split(said.split(": ")[-1]) == ["python", "-m", "data.prepare", "--inspect", str(path)]


@pytest.mark.parametrize("content", [b"\0" * 100, b"\x89PNG\r\n\x1a\n\0\0,\0;", GOOD.encode("utf-16-le")])
def test_bytes_that_are_no_text_are_no_table(path, content):
    path.write_bytes(content)
    assert "table" not in error_of(read_records, path)


def test_an_empty_input_is_skipped_counted_and_named_where_asked(path):
    path.write_text(f'{GOOD}\n{{"input": "", "label": true}}\n{{"input": "\u200b", "label": true}}\n', encoding="utf-8")
    skipped = Skipped()
    assert len(read_records(path, skipped)) == 1
    assert len(skipped) == 2
    assert skipped.places == [f"{path}:2: 'input' is empty", f"{path}:3: 'input' is empty"]


def test_a_file_of_empty_inputs_only_is_an_error_even_where_they_may_be_skipped(path):
    path.write_text('{"input": "", "label": true}\n')
    assert error_of(read_records, path, Skipped()) == " no records; 'input' is empty in every row"


def test_an_empty_input_with_a_bad_label_is_an_error_not_a_skip(path):
    path.write_text('{"input": "", "label": "true"}\n')
    assert error_of(read_records, path, Skipped()).startswith("1: key 'label'")


def test_a_summary_of_what_was_skipped_names_the_first_and_counts_the_rest():
    skipped = Skipped(["a:1", "a:2", "a:3"])
    assert skipped.summary(shown=2) == "skipped 3: a:1; a:2 and 1 more"
    assert skipped.summary() == "skipped 3: a:1; a:2; a:3"


def is_not_blank(text):
    return not is_blank(text)


RECORDS = st.lists(min_size=1, max_size=5, elements=st.fixed_dictionaries(
    {"input": st.text(min_size=1).filter(is_not_blank), "label": st.booleans()},
    optional={"case": st.text(), "category": st.text(), "instruction": st.text(), "fraud_speaker": st.text()}))


@REUSE_FOLDER
@given(records=RECORDS)
def test_records_come_back_as_they_were_written(path, records):
    write_records(path, records)
    assert read_records(path) == records


def test_lines_end_with_lf_only_whatever_unicode_calls_a_line_end(path):
    write_records(path, [{"input": "您好\u2028再见\x85\x0b", "label": True}])
    assert read_records(path) == [{"input": "您好\u2028再见\x85\x0b", "label": True}]


BYTES_LIKE_A_FILE = st.one_of(
    st.binary(),
    st.lists(st.sampled_from([GOOD.encode(), b"\n", b"\r", b'"label"', b"NaN", b'"', b",", b"\\ud800", b"\xe5", b"{",
                              b"}", b":", b'"input"', b"true", b" ", b"1e999", HEADER.encode(), b"False", b"1",
                              b"\x00", b"\xef\xbb\xbf"])).map(b"".join))


@REUSE_FOLDER
@given(content=BYTES_LIKE_A_FILE, with_skips=st.booleans())
def test_any_bytes_are_records_or_one_line_that_begins_with_the_path(path, content, with_skips):
    path.write_bytes(content)
    try:
        records = read_records(path, Skipped() if with_skips else None)
    except DataError as error:
        assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1
    else:
        assert records and all(is_not_blank(record["input"]) and type(record["label"]) is bool for record in records)


# ---------------------------------------------------------------------------------------------- writing


def test_writes_one_readable_line_a_record(path):
    write_records(path, [{"input": "您好\n再见", "label": True}, {"input": "a", "label": False}])
    assert path.read_bytes().decode() == '{"input": "您好\\n再见", "label": true}\n{"input": "a", "label": false}\n'


def test_makes_the_folders_above_and_leaves_no_other_file(tmp_path):
    write_json(tmp_path / "a" / "b" / "report.json", {"召回": 1.0})
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["report.json"]
    assert (tmp_path / "a" / "b" / "report.json").read_text(encoding="utf-8") == '{\n  "召回": 1.0\n}\n'


@pytest.mark.parametrize("write", [
    lambda path: write_text(path, "half a surrogate pair: \ud800"),
    lambda path: write_records(path, [{"input": "a", "label": True}, {"input": "\ud800", "label": True}]),
    lambda path: write_records(path, [{"input": object()}]),
    lambda path: write_json(path, {"f1": float("nan")}),
    lambda path: write_json(path, [float("inf")]),
])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(path, write):
    path.write_text("old")
    with pytest.raises((ValueError, TypeError)):
        write(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_disk_that_fails_at_the_last_moment_leaves_the_old_file_and_no_other(path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    path.write_text("old")
    monkeypatch.setattr("data.files.os.fsync", full)
    assert error_of(write_text, path, "new") == " cannot be written (No space left on device)"
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written_to_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert error_of(write_text, tmp_path / "file" / "x.json", "").startswith(" cannot be written (")


# ---------------------------------------------------------------------------------------------- dialogues


def csv_file(tmp_path, text, name="冒充客服(3).csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_a_dialogue_of_each_case_in_order_of_appearance(tmp_path):
    path = csv_file(tmp_path, HEADER + "2,客服, 您好 ,True\n1,张伟,你好,false\n2,,再见,FALSE\n")
    assert read_dialogues(path, Skipped()) == [
        Dialogue("冒充客服/2", "冒充客服", (Line("客服", "您好", True), Line("", "再见", False))),
        Dialogue("冒充客服/1", "冒充客服", (Line("张伟", "你好", False),)),
    ]


@pytest.mark.parametrize("name, category", [
    ("退款(200).csv", "退款"), ("“红包” 群 (2).csv", "“红包” 群"), ("meeting_label_false.csv", "meeting_label_false"),
    ("贷款(新).csv", "贷款(新)"), ("通话（3）.csv", "通话"),
])
def test_the_category_is_the_file_name_without_its_count(tmp_path, name, category):
    path = csv_file(tmp_path, HEADER + "1,a,b,True\n", name)
    assert [(d.category, d.case) for d in read_dialogues(path, Skipped())] == [(category, f"{category}/1")]


def test_two_files_may_number_their_cases_alike(tmp_path):
    csv_file(tmp_path, HEADER + "1,a,退款,True\n", "乙.csv")
    csv_file(tmp_path, HEADER + "1,a,会议,False\n", "丙.csv")
    (tmp_path / "notes.txt").write_text("not a dialogue")
    assert [d.case for d in read_dialogues(tmp_path, Skipped())] == ["丙/1", "乙/1"]


def test_tables_of_a_folder_that_are_not_read_are_named(tmp_path):
    (tmp_path / "五月").mkdir()
    for name in ("甲.csv", "五月/乙.csv", "丙.xlsx", "~$丙.xlsx", "leakage.json"):
        csv_file(tmp_path, HEADER + "1,a,b,True\n", name)
    skipped = Skipped()
    assert [d.case for d in read_dialogues(tmp_path, skipped)] == ["甲/1"]
    assert [place.split(": ")[0] for place in skipped.places] == [f"{tmp_path}/丙.xlsx", f"{tmp_path}/五月"]


def test_files_that_a_number_tells_apart_are_one_category_and_may_number_their_cases_alike(tmp_path):
    for name in ("通话.csv", "通话 (1).csv", "通话 (2).csv", "通话(3).csv", "投资诈骗(200).csv"):
        csv_file(tmp_path, HEADER + f"1,a,{name},True\n", name)
    csv_file(tmp_path, HEADER + "2,a,b,True\n", "投资诈骗 (9).csv")  # numbered on, as a corpus that was continued
    read = read_dialogues(tmp_path, Skipped())
    assert {dialogue.category for dialogue in read} == {"通话", "投资诈骗"}
    assert sorted(dialogue.case for dialogue in read) == [
        "投资诈骗/1", "投资诈骗/2", "通话 (1)/1", "通话 (2)/1", "通话(3)/1", "通话/1"]


def test_two_files_of_one_name_must_not_hold_the_same_case(tmp_path):
    csv_file(tmp_path, HEADER + "1,a,b,True\n", "退款.csv")
    csv_file(tmp_path, HEADER + "1,a,c,True\n", "退款.tsv")
    assert error_of(read_dialogues, tmp_path, Skipped(), Reading("dialogues")) == \
        " two files hold the case '退款/1'; rename one of the files"


def test_columns_may_stand_in_any_order_and_more_may_follow(tmp_path):
    path = csv_file(tmp_path, "is_fraud,note,content,speaker,case\nTrue,x,您好,客服,1\n")
    assert read_dialogues(path, Skipped())[0].lines == (Line("客服", "您好", True),)


def test_accepts_byte_order_mark_crlf_blank_rows_and_quoted_contents(tmp_path):
    text = '\ufeffcase,speaker,content,is_fraud\r\n1,客服,"您好,\n""王""先生",True\r\n\r\n1,王,嗯,False\r\n'
    lines = read_dialogues(csv_file(tmp_path, text), Skipped())[0].lines
    assert lines == (Line("客服", '您好,\n"王"先生', True), Line("王", "嗯", False))


@pytest.mark.parametrize("text, expected", [
    ("speaker,content,is_fraud\na,b,True\n", "2: column 'case' is missing; found: speaker, content, is_fraud"),
    ("case,speaker,content\n1,a,b\n", "2: column 'is_fraud' is missing; found: case, speaker, content"),
    ("case;speaker;content;is_fraud\n1;a;b;True\n", "2: column 'case' is missing; found: case;speaker;"),
    ("", " no dialogue lines; expected rows of case, speaker, content, is_fraud"),
    ("case,speaker,content,content,is_fraud\n", "1: column 'content' appears twice"),
    (HEADER, " no dialogue lines; expected rows of case, speaker, content, is_fraud"),
    (HEADER + "1,a,,True\n1,b,\u200b\ufeff,True\n", " no dialogue lines; expected rows of case, speaker, content, "),
    (HEADER + "1,a,b,True\n1,a,b,yes\n", "3: column 'is_fraud' must be True or False, found the string \"yes\""),
    (HEADER + "1,a,b,1\n", "2: column 'is_fraud' must be True or False, found the string \"1\""),
    (HEADER + "1,a,b, True\n", "2: column 'is_fraud' must be True or False, found the string \" True\""),
    (HEADER + "1,a,b,c,True\n", "2: expected 4 columns, found 5"),
    (HEADER + "1,a,True\n", "2: expected 4 columns, found 3"),
    (HEADER + " ,a,b,True\n", "2: column 'case' is empty; every line belongs to a dialogue"),
    (HEADER + '1,a,"b\nc\nd",True\n1,a,e,no\n', "5: column 'is_fraud' must be True or False, found the string \"no\""),
    (HEADER + '1,a,"b\nc\nd",no\n', "4: column 'is_fraud' must be True or False, found the string \"no\""),
    (HEADER + '1,a,b,True\n1,a,"b,True\n1,a,b,True\n', "3: not CSV (unexpected end of data)"),
    (HEADER + '1,a,"b"c,True\n', "2: not CSV (',' expected after '\"'); a cell that begins with a quote ends with"),
    (HEADER.encode() + "1,a,您,True\n".encode("gbk"), "2: not UTF-8"),
])
def test_a_bad_csv_is_named_with_its_line_and_column(tmp_path, text, expected):
    assert error_of(read_dialogues, csv_file(tmp_path, text), Skipped()).startswith(expected)


def test_a_cell_may_be_as_long_as_a_dialogue_in_json(tmp_path):
    path = csv_file(tmp_path, HEADER + f"1,a,{'长' * 140_000},True\n")
    dialogue, = read_dialogues(path, Skipped())
    assert len(dialogue.lines[0].content) == 140_000


def test_a_missing_csv_and_a_folder_without_any_are_errors(tmp_path):
    assert error_of(read_dialogues, tmp_path / "no.csv", Skipped()) == " no such file"
    assert error_of(read_dialogues, tmp_path, Skipped()).startswith(
        " no *.csv files in this folder; expected columns case, speaker, content, is_fraud; to look at other files: ")


def test_rows_without_content_or_label_are_skipped_counted_and_named(tmp_path):
    path = csv_file(tmp_path, HEADER + "1,a,,True\n1,a,您好,True\n1,a,您好,\n1,a, ,\n")
    skipped = Skipped()
    assert read_dialogues(path, skipped)[0].lines == (Line("a", "您好", True),)
    assert skipped.places == [f"{path}:2: column 'content' is empty", f"{path}:4: column 'is_fraud' is empty",
                              f"{path}:5: column 'content' is empty"]


STRIPPED = st.text().map(str.strip)
DIALOGUES = st.dictionaries(STRIPPED.filter(bool), min_size=1, max_size=4, values=st.lists(
    st.builds(Line, STRIPPED, STRIPPED.filter(is_not_blank), st.booleans()), min_size=1, max_size=4))


@REUSE_FOLDER
@given(lines_of_case=DIALOGUES)
def test_dialogues_come_back_as_they_were_written(tmp_path, lines_of_case):
    dialogues = [Dialogue(f"退款/{case}", "退款", tuple(lines)) for case, lines in lines_of_case.items()]
    write_dialogues(tmp_path / "退款.csv", dialogues)
    skipped = Skipped()
    assert read_dialogues(tmp_path / "退款.csv", skipped) == dialogues
    assert len(skipped) == 0


@REUSE_FOLDER
@given(content=BYTES_LIKE_A_FILE)
def test_any_bytes_are_dialogues_or_one_line_that_begins_with_the_path(tmp_path, content):
    path = csv_file(tmp_path, content)
    try:
        dialogues = read_dialogues(path, Skipped())
    except DataError as error:
        assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1
    else:
        assert all(line.content for dialogue in dialogues for line in dialogue.lines)


def test_a_place_in_the_dialogue_may_be_written_as_a_whole_number(tmp_path):
    write_records(tmp_path / "f.jsonl", [{"input": "a", "label": True, "position": place} for place in (0, 1, 0.5)])
    assert [record["position"] for record in read_records(tmp_path / "f.jsonl")] == [0, 1, 0.5]


def test_numbers_of_records_are_those_of_their_lines(tmp_path):
    good, empty = '{"input": "a", "label": true}', '{"input": " ", "label": true}'
    (tmp_path / "f.jsonl").write_text(f"{good}\n\n{empty}\n{good}\n")
    assert [number for number, _ in read_numbered_records(tmp_path / "f.jsonl", Skipped())] == [1, 4]
