"""Predicting a file: a line out for each line in, in constant memory."""

import contextlib
import json
import os
import re
import tracemalloc
from types import SimpleNamespace

import pytest
from helpers import make_records
from hypothesis import example, given
from hypothesis import strategies as st
from predicting import read_lines, run, stubbed, write_lines

import evaluate as evaluate_module
from antifraud.checkpoint import Decision, Lineage
from antifraud.evaluation.scoring import Prediction, score_prompts
from antifraud.serving import chunks, predict
from antifraud.serving.chunks import read_chunks, require_rows
from antifraud.serving.predict import predict_file
from data.files import DataError
from data.prompt import PromptEncoder, Task
from data.records import write_records
from evaluate import load_model

GOOD = {"input": "客服: 请把验证码告诉我。"}


@pytest.fixture
def stub():
    with stubbed() as model:
        yield model


# ------------------------------------------------------------------------------------------------- the rows


def test_each_row_gets_its_line_its_keys_and_the_score_that_evaluation_gives_it(loaded, tmp_path):
    model, tokenizer = loaded
    records = [{"id": i, **record, "fraud_speaker": "甲"} for i, record in enumerate(make_records(21))]
    write_records(tmp_path / "in.jsonl", records)
    done = predict_file(model, tokenizer, tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl", batch_rows=8,
                        progress=False)
    encoder = PromptEncoder(tokenizer, Task())
    scores = score_prompts(model, encoder, encoder.prompts([record["input"] for record in records]))
    rows = read_lines(tmp_path / "new" / "out.jsonl")
    for number, (row, record, score) in enumerate(zip(rows, records, scores, strict=True), start=1):
        assert row == {"line": number, "id": number - 1, "case": record["case"], "category": record["category"],
                       "fraud_speaker": "甲", "probability": pytest.approx(score, abs=2e-6),
                       "is_fraud": bool(score >= 0.5)}
    assert scores.min() < 0.1 and scores.max() > 0.9
    assert done["rows_per_second"] > 0
    assert {**done, "rows_per_second": 0} == {"rows": 21, "errors": 0, "fraud": int((scores >= 0.5).sum()),
                                              "in_windows": 0, "rows_per_second": 0, "resumed_at": 0}


def test_a_label_is_neither_needed_nor_used(stub, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [GOOD, {**GOOD, "label": True}, {**GOOD, "label": "unknown"}])
    run(stub, source, tmp_path / "out.jsonl")
    first, *others = [{**row, "line": 0} for row in read_lines(tmp_path / "out.jsonl")]
    assert others == [first, first] and "label" not in first


@pytest.mark.parametrize("options, flags", [
    ({}, [False, True, True]), ({"threshold": 0.51}, [False, False, True]), ({"threshold": 0}, [True] * 3),
    ({"threshold": 1}, [False] * 3)])
def test_a_row_is_fraud_from_the_threshold_on(stub, tmp_path, options, flags):
    source = write_lines(tmp_path / "in.jsonl", [{"input": "x" * n} for n in (49, 50, 51)])
    done = run(stub, source, tmp_path / "out.jsonl", **options)
    rows = read_lines(tmp_path / "out.jsonl")
    assert [row["probability"] for row in rows] == [0.49, 0.5, 0.51]
    assert [row["is_fraud"] for row in rows] == flags and done["fraud"] == sum(flags)


def test_a_long_dialogue_is_read_whole_and_its_highest_window_is_named(loaded, tmp_path):
    model, tokenizer = loaded
    harmless, fraud = make_records(1)[0]["input"], make_records(2)[1]["input"]
    room = PromptEncoder(tokenizer, model.lineage.task).room
    long = "\n".join([harmless] * (2 * room // len(tokenizer(harmless)["input_ids"])))
    source = write_lines(tmp_path / "in.jsonl", [{"input": f"{long}\n{fraud}"}, {"input": fraud}])
    done = predict_file(model, tokenizer, source, tmp_path / "out.jsonl", progress=False)
    row, short = read_lines(tmp_path / "out.jsonl")
    lines = long.count("\n") + fraud.count("\n") + 2
    assert row["windows"] > 1 and done["in_windows"] == 1 and not {"windows", "window_lines"} & short.keys()
    first, last = row["window_lines"]
    assert 1 <= first <= last <= lines
    windows = PromptEncoder(tokenizer, model.lineage.task).windows(f"{long}\n{fraud}")
    scores = score_prompts(model, PromptEncoder(tokenizer, model.lineage.task), [window.ids for window in windows])
    assert row["probability"] == pytest.approx(scores.max(), abs=2e-6)
    assert (first, last) == (windows[scores.argmax()].first_line + 1, windows[scores.argmax()].last_line + 1)


def test_the_checkpoints_threshold_is_the_default(stub, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"input": "x" * 30}])
    model = SimpleNamespace(lineage=Lineage(decision=Decision(threshold=0.3)), device=stub.device)
    assert run(model, source, tmp_path / "out.jsonl")["fraud"] == 1


def test_a_probability_is_judged_as_it_is_written(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "predict_readings", lambda *_, **__: [Prediction(0.0, 0.4999999, 1, (1, 1))])
    run(stub, write_lines(tmp_path / "in.jsonl", [GOOD]), tmp_path / "out.jsonl")
    assert read_lines(tmp_path / "out.jsonl") == [{"line": 1, "probability": 0.5, "is_fraud": True}]


# ---------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize("line, error", [
    (b"", "blank line"), (b" \t\r", "blank line"), (b"{", "not JSON (Expecting property name"),
    (b"\xff", "not UTF-8 (invalid start byte at byte 0)"), (b"3", "expected a JSON object"),
    (b'["input"]', "expected a JSON object"), (b"{}", "key 'input' is missing"),
    (b'{"input": 3}', "key 'input' must be a string"), (b'{"input": null}', "key 'input' must be a string"),
    (b'{"input": " \\n"}', "'input' is empty"), (b'{"input": "\\u200b\\ufeff"}', "'input' is empty"),
    (b'{"input": "\\ud800"}', "key 'input' holds half a surrogate pair"),
    (b'{"input": "x", "id": "\\udc00"}', "key 'id' holds half a surrogate pair"),
    (b'{"input": "x", "input": "y"}', "key 'input' appears twice"),
    (b'{"input": "x", "id": NaN}', "key 'id' holds NaN"), (b'{"input": "x", "id": 1e999}', "key 'id' holds NaN"),
    (b'{"input": "x", "line": 3}', "key 'line' is one that"),
    (b'{"input": "x", "probability": 1}', "key 'probability' is one that"),
    (b'{"input": "x", "n": ' + b"9" * 5000 + b"}", "Exceeds the limit (4300 digits)"),
    (b'{"input": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
], ids=lambda value: value[:24] if isinstance(value, str) else None)
def test_a_bad_row_becomes_an_error_on_its_own_line(stub, tmp_path, line, error):
    source = write_lines(tmp_path / "in.jsonl", [GOOD, line, {**GOOD, "id": 7}])
    done = run(stub, source, tmp_path / "out.jsonl")
    first, bad, last = read_lines(tmp_path / "out.jsonl")
    assert bad.keys() == {"line", "error"} and bad["line"] == 2 and bad["error"].startswith(error)
    assert "probability" in first and last["id"] == 7 and last["probability"] == first["probability"]
    assert (done["rows"], done["errors"]) == (3, 1)


@pytest.mark.parametrize("row", [{"input": ""}, {"input": None}, {}, {"input": "x", "line": 3}, {"input": "\ud83d"},
                                 {"input": "x", "note": "\ud83d"}])
def test_an_error_keeps_the_id_of_its_row(stub, tmp_path, row):
    source = write_lines(tmp_path / "in.jsonl", [GOOD, {**row, "id": "007", "label": True}])
    run(stub, source, tmp_path / "out.jsonl")
    _, bad = read_lines(tmp_path / "out.jsonl")
    assert bad.keys() == {"line", "id", "error"} and (bad["line"], bad["id"]) == (2, "007")


def test_a_byte_order_mark_crlf_and_a_missing_last_line_end_are_no_errors(stub, tmp_path):
    line = json.dumps(GOOD).encode()
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\xef\xbb\xbf" + line)  # two files, joined
    assert run(stub, tmp_path / "in.jsonl", tmp_path / "out.jsonl")["errors"] == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 2


def test_a_score_that_is_not_finite_is_an_error_of_its_row_alone(base, tmp_path):
    model, tokenizer = load_model(base, "", "cpu")
    poison = tokenizer("ÿ")["input_ids"][0]
    model.get_input_embeddings().weight.data[poison] = float("nan")
    source = write_lines(tmp_path / "in.jsonl", [GOOD, {"input": "A: ÿ"}, GOOD])
    done = predict_file(model, tokenizer, source, tmp_path / "out.jsonl", progress=False)
    first, bad, last = read_lines(tmp_path / "out.jsonl")
    assert bad == {"line": 2, "error": "the model's score is not finite"} and done["errors"] == 1
    assert first["probability"] == last["probability"] and 0 <= first["probability"] <= 1


def test_the_first_bad_rows_are_named_and_all_are_counted(stub, tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [b"", GOOD, b"", b"", b"", b"", b"", b""])
    run(stub, source, tmp_path / "out.jsonl", batch_rows=3)
    *named, counted = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in named] == [f"{source}:{number}" for number in (1, 3, 4, 5, 6)]
    assert counted.startswith(f"{tmp_path}/out.jsonl: 7 of 8 ")


@given(data=st.one_of(st.binary(), st.lists(st.sampled_from(
    [b"\n", b"\r", b"{", b"}", b'{"input": "A: b"}', b'"input"', b":", b"\xe5\xae", b"\0", b"\xe2\x80\xa8", b"NaN",
     b"[", b'"', b"\xef\xbb\xbf", b"\\ud800", b" "])).map(b"".join)))
@example(data=b"")
def test_any_bytes_give_as_many_lines_as_they_have_and_raise_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").write_bytes(data)
    with stubbed() as model:
        done = run(model, folder / "in", folder / "out", batch_rows=3)
    lines = data.split(b"\n")[:-1] if data.endswith(b"\n") or not data else data.split(b"\n")
    written = (folder / "out").read_bytes()
    rows = [json.loads(line) for line in written.split(b"\n")[:-1]]
    assert [row["line"] for row in rows] == list(range(1, len(lines) + 1))
    assert written == b"" or written.endswith(b"\n")
    assert done["rows"] == len(lines) and done["errors"] == sum("probability" not in row for row in rows)


# ------------------------------------------------------------------------------------------ constant memory


def test_memory_does_not_grow_with_the_file(stub, tmp_path):
    def peak(rows):
        source = write_lines(tmp_path / f"{rows}.jsonl", [{**GOOD, "id": i} for i in range(rows)])
        tracemalloc.start()
        try:
            assert run(stub, source, tmp_path / f"{rows}.out", batch_rows=200)["rows"] == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(500)  # whatever is imported or cached the first time
    assert peak(9000) < 2 * peak(3000)  # five chunks of 200 at most are held at a time, never forty-five


def test_a_chunk_of_long_rows_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)
    (tmp_path / "in").write_bytes((b"x" * 59 + b"\n") * 5 + b"y\n" * 7)
    assert [(chunk.first, len(chunk.lines), chunk.end) for chunk in read_chunks(tmp_path / "in", 5)] == \
        [(1, 2, 120), (3, 2, 240), (5, 5, 308), (10, 3, 314)]


@given(lengths=st.lists(st.integers(0, 35)), ended=st.booleans())
def test_a_line_longer_than_the_longest_is_none_and_the_next_is_whole(tmp_path_factory, lengths, ended):
    lines = [bytes([97 + i % 26]) * length for i, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("long") / "in"
    path.write_bytes(b"\n".join(lines) + (b"\n" if lines and ended else b""))
    if not ended and lines and not lines[-1]:
        lines.pop()  # nothing stands after the last line end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "LONGEST_LINE", 10)
        found = [line for chunk in read_chunks(path, 4) for line in chunk.lines]
    assert [line and line.rstrip(b"\n") for line in found] == [line if len(line) <= 10 else None for line in lines]


def test_a_line_that_is_too_long_is_an_error(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "LONGEST_LINE", 2**20)
    source = write_lines(tmp_path / "in.jsonl", [GOOD, {"input": "x" * 3 * 2**20}, GOOD])
    run(stub, source, tmp_path / "out.jsonl")
    assert read_lines(tmp_path / "out.jsonl")[1] == {"line": 2, "error": "longer than 1 MiB"}


def test_long_dialogues_are_not_tokenised_together(stub, tmp_path, monkeypatch):
    together = []
    monkeypatch.setattr(predict, "ENCODED_CHARACTERS", 10)
    monkeypatch.setattr(predict, "read_dialogues",
                        lambda encoder, group, line_aware: together.append(len(group)) or group)
    source = write_lines(tmp_path / "in.jsonl", [{"input": "x" * n} for n in (4, 4, 4, 30, 1, 9)])
    run(stub, source, tmp_path / "out.jsonl")
    assert together == [2, 1, 1, 2]
    assert [row["probability"] for row in read_lines(tmp_path / "out.jsonl")] == [.04, .04, .04, .3, .01, .09]


def test_what_cannot_be_read_or_written_is_said_in_one_line(stub, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [GOOD])
    (tmp_path / "file").write_text("")
    for where, target, options, message in [
        (tmp_path / "none", "out", {}, "/none: "), (tmp_path, "out", {}, f"^{tmp_path}: "),
        (source, "in.jsonl", {"restart": True}, "/in.jsonl: "), (source, "", {}, f"^{tmp_path}: "),
        (source, "file/out", {}, "/file/out: "), (source, "out", {"batch_rows": 0}, "--batch-rows 0: "),
        *((source, "out", {"threshold": value}, f"--threshold {value:g}: ")
          for value in (float("nan"), 60.0, 1.01, -0.1)),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            run(stub, where, tmp_path / target, **options)
        assert "\n" not in str(caught.value)
    assert source.read_text() == json.dumps(GOOD) + "\n"


# ------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def command(base, run_folder):
    return ["--model", base, "--checkpoint", run_folder, "--device", "cpu"]


def test_the_commands_exit_code_says_whether_every_row_was_good(command, tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [GOOD, GOOD])
    target = tmp_path / "out.jsonl"
    predict_it = [*command, "--predict", str(source), "--output", str(target)]
    assert evaluate_module.main(predict_it) == 0 == evaluate_module.main(predict_it)
    write_lines(source, [GOOD, b"?"])
    capsys.readouterr()
    assert evaluate_module.main(predict_it) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{target}: ")
    assert evaluate_module.main([*predict_it, "--restart", "--threshold", "0", "--batch-rows", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{target}: 1 of 2 ")
    assert read_lines(target)[0]["is_fraud"] and read_lines(target)[1]["error"].startswith("not JSON")


@pytest.mark.parametrize("option", [["--threshold", "60"], ["--threshold", "nan"], ["--batch-rows", "0"]])
def test_the_command_refuses_numbers_before_it_loads_a_model(command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "load_model", None)
    source = write_lines(tmp_path / "in.jsonl", [GOOD])
    with contextlib.suppress(SystemExit):  # argparse's own refusal
        assert evaluate_module.main([*command, "--predict", str(source), "--output", str(tmp_path / "out"), *option]
                                    ) == 2
    assert option[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_refuses_paths_before_it_loads_a_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "load_model", None)
    missing = tmp_path / "none.jsonl"
    assert evaluate_module.main([*command, "--predict", str(missing), "--output", str(tmp_path / "out")]) == 2
    assert re.fullmatch(f"{missing}: .+\n", capsys.readouterr().err)
    source, table = write_lines(tmp_path / "in.jsonl", [GOOD]), tmp_path / "out.csv"  # JSON to whoever opens it
    assert evaluate_module.main([*command, "--predict", str(source), "--output", str(table)]) == 2
    assert re.fullmatch(f"{table}: .+\n", capsys.readouterr().err) and not table.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_refused_for_what_they_are(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "load_model", None)
    source, pipe = write_lines(tmp_path / "in.jsonl", [GOOD]), tmp_path / "pipe"
    os.mkfifo(pipe)
    for option, data, output, said in (("--predict", source, pipe, "is a pipe or device"),
                                       ("--data", source, pipe, "is a pipe or device"),  # it became a file
                                       ("--predict", pipe, tmp_path / "out.jsonl", "save it to a file first")):
        assert evaluate_module.main([*command, option, str(data), "--output", str(output)]) == 2
        assert re.fullmatch(f"{pipe}: .*{said}.*\n", capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == [source, pipe]


@pytest.mark.parametrize("content, said", [
    (b"", ": no rows; expected one JSON object a line"), (b"\xef\xbb\xbf\n \n", ": no rows; "),
    (b"\n" + json.dumps(GOOD, ensure_ascii=False).encode("gbk") + b"\n", ":2: not UTF-8 "),
    ("客服: 请转账\n王女士: 好".encode(), ":1: not JSON "), ("对话,编号\n转账,1\n".encode("gbk"), ": seems to be a "),
    (b'{"text": "x"}\n' * 3, ":1: key 'input' is missing"), (b'[\n{"input": "x"}\n]', ": is a JSON array"),
])
def test_the_command_refuses_a_file_of_another_format_before_it_loads_a_model(command, content, said, tmp_path,
                                                                              monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "load_model", None)
    (tmp_path / "in.jsonl").write_bytes(content)
    assert evaluate_module.main([*command, "--predict", f"{tmp_path}/in.jsonl", "--output", f"{tmp_path}/out"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/in.jsonl{said}") and not (tmp_path / "out").exists()
    assert "no rows" in line or line.endswith(f": python -m data.prepare --inspect {tmp_path}/in.jsonl")


@pytest.mark.parametrize("lines", [
    [b"\xff", b"", {"text": "x"}, GOOD], [b"?"] * 99 + [GOOD], [b"?", {"input": " "}],
    [b"{", GOOD], ['码", "id": 7}'.encode(), GOOD]])  # the first row cut off, by either end
def test_a_bad_row_beside_one_of_the_format_is_no_reason_to_refuse_a_file(tmp_path, lines):
    require_rows(write_lines(tmp_path / "in.jsonl", lines))


@pytest.mark.parametrize("options, message", [
    (["--predict", "in"], "--predict needs --output"), ([], "one of the arguments --data --predict is required"),
    (["--predict", "in", "--output", "out", "--method", "generate"], "scores only"),
    (["--predict", "in", "--output", "out", "--data", "in"], "not allowed with"),
])
def test_the_command_says_which_options_go_together(command, options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate_module.main([*command, *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err
