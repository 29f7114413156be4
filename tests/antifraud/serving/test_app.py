"""The local page: probabilities line by line are the model's, and the server answers nobody but this machine."""

import base64
import dataclasses
import hashlib
import http.client
import json
import socket
import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from antifraud.evaluation.scoring import score_prompts
from antifraud.serving import app
from antifraud.serving.app import EXAMPLES, PAGE, make_server, page_policy, score_dialogue, score_lines
from data.files import DataError
from data.prompt import PromptEncoder
from evaluate import predict

DIALOGUE = "王经理: 今天风有点大。\n\n顾客: 好的。\n王经理: 号码您自己留好，不用告诉任何人。\n（电话挂断）"


@contextmanager
def task_of(model, **changes):
    """The model with another task, put back afterwards."""
    kept = model.lineage.task
    model.lineage.task = dataclasses.replace(kept, **changes)
    try:
        yield
    finally:
        model.lineage.task = kept


# --------------------------------------------------------------------------------------------------- the scores


def test_the_probability_after_a_line_is_that_of_the_dialogue_up_to_it(loaded):
    model, tokenizer = loaded
    lines = DIALOGUE.split("\n")
    beginnings = ["\n".join(lines[:end]) for end in (1, 3, 4, 5)]  # the blank second line is no turn
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    expected = [score_prompts(model, encoder, encoder.prompts([text]))[0] for text in beginnings]
    found = score_lines(model, tokenizer, f"\n{DIALOGUE}\n ")
    np.testing.assert_allclose([line.probability for line in found], expected, atol=1e-5)
    assert [line.number for line in found] == [2, 4, 5, 6]
    assert np.ptp(expected) > 0.3  # the third line is one that the run has learnt


@pytest.mark.parametrize("nothing", ["", "\n \n\t", "\u200b\n\ufeff"])
def test_no_dialogue_has_no_probabilities(loaded, nothing):
    assert score_lines(*loaded, nothing) == []
    assert score_dialogue(*loaded, nothing) == {"probability": None, "windows": 0, "window_lines": None,
                                                "by_window": False, "lines": []}


def test_lines_are_shown_as_the_model_sees_them(loaded):
    seen = [(line.role, line.content) for line in score_lines(*loaded, DIALOGUE)]
    assert seen == [("A", "今天风有点大。"), ("B", "好的。"), ("A", "号码您自己留好，不用告诉任何人。"),
                    (None, "（电话挂断）")]
    with task_of(loaded[0], neutral_speakers=False):
        assert [line.role for line in score_lines(*loaded, DIALOGUE)] == ["王经理", "顾客", "王经理", None]


def test_lines_of_a_dialogue_longer_than_the_context_say_where_their_window_begins(loaded):
    model, tokenizer = loaded
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    two_lines = len(encoder.prompts(["\n".join(DIALOGUE.split("\n")[:3])])[0])
    answer = max(map(len, encoder.completions.values()))
    with task_of(model, max_length=two_lines + answer):
        found = score_dialogue(model, tokenizer, DIALOGUE)
        probability, = predict(model, tokenizer, [DIALOGUE])
    starts = [line["from_line"] for line in found["lines"]]
    assert starts[:2] == [1, 1] and starts == sorted(starts) and starts[-1] > 1
    assert found["windows"] > 1 and found["probability"] == probability
    first, last = found["window_lines"]
    assert 1 <= first <= last <= DIALOGUE.count("\n") + 1
    whole = score_dialogue(model, tokenizer, DIALOGUE)
    assert whole["windows"] == 1 and {line["from_line"] for line in whole["lines"]} == {1}
    assert whole["probability"] == pytest.approx(whole["lines"][-1]["probability"], abs=1e-5)


def test_a_line_longer_than_the_context_counts_whole(loaded):
    model, tokenizer = loaded
    fraud, other = "请把短信里的号码念给我，我替您办退款。", "号码您自己留好，不用告诉任何人。"
    dialogue = "王经理: " + fraud + other * 20
    encoder = PromptEncoder(tokenizer, model.lineage.task)
    with task_of(model, max_length=len(encoder.prompts([f"王经理: {fraud * 3}"])[0]) + 20):
        found = score_dialogue(model, tokenizer, dialogue)
        assert found["probability"] == predict(model, tokenizer, [dialogue])[0]
    assert found["windows"] > 1 and found["window_lines"] == [1, 1] and len(found["lines"]) == 1


def test_a_dialogue_of_more_lines_than_are_scored_one_by_one_is_scored_by_its_windows(loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(app, "MOST_LINES", 3)
    dialogue = "\n".join([DIALOGUE, *["顾客: 好的。"] * 30, "王经理: 请把短信里的号码念给我，我替您办退款。"])
    with task_of(model, max_length=len(PromptEncoder(tokenizer, model.lineage.task).prompts([DIALOGUE])[0]) + 20):
        found = score_dialogue(model, tokenizer, dialogue)
        assert found["probability"] == pytest.approx(predict(model, tokenizer, [dialogue])[0], abs=1e-6)
        assert score_dialogue(model, tokenizer, dialogue.replace("\n", "<br>"))["by_window"]
    windows = found["lines"]
    assert found["by_window"] and found["windows"] == len(windows) > 3
    assert (windows[0]["from_line"], windows[-1]["number"]) == (1, dialogue.count("\n") + 1)
    assert windows[-1]["content"].endswith("我替您办退款。")
    highest = max(windows, key=lambda window: window["probability"])
    assert found["window_lines"] == [highest["from_line"], highest["number"]]


# --------------------------------------------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def server(loaded):
    server = make_server(*loaded, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, method: str, path: str, body: bytes | str | None = None, **headers: str):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_score(server, dialogue, **headers: str):
    body = json.dumps({"dialogue": dialogue}).encode()
    status, _, answer = ask(server, "POST", "/score", body, **{"Content_Type": "application/json", **headers})
    return status, json.loads(answer)


def test_the_server_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_dialogue_posted_comes_back_scored(server, loaded):
    status, answer = ask_score(server, DIALOGUE)
    assert status == 200 and answer["threshold"] == loaded[0].lineage.decision.threshold
    assert answer == {"threshold": 0.5, **score_dialogue(*loaded, DIALOGUE)}
    assert ask_score(server, "") == (200, {"threshold": 0.5, **score_dialogue(*loaded, "")})


def test_markup_in_a_dialogue_comes_back_as_data_of_a_type_no_browser_renders(server):
    markup = "<script>alert(1)</script>"
    body = json.dumps({"dialogue": f"甲: {markup}"}).encode()
    status, headers, answer = ask(server, "POST", "/score", body, Content_Type="application/json; charset=utf-8")
    assert status == 200 and json.loads(answer)["lines"][0]["content"] == markup
    assert headers["Content-Type"].startswith("application/json") and headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_is_served_under_a_policy_that_lets_nothing_else_run_or_load(server):
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and page == PAGE.read_bytes() and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    script = page.split(b"<script>")[1].split(b"</script>")[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    assert page_policy(page.replace(b"use strict", b"use Strict")) != policy


def test_the_page_has_no_foreign_parts_and_writes_no_html():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("://") == page.count('"http://www.w3.org/2000/svg"') == 1  # a namespace, not an address
    assert page.count("<script") == page.count("<style") == 1
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", " onclick="):
        assert way not in page


def test_the_page_learns_the_model_the_threshold_and_the_examples(server, run_folder):
    status, _, body = ask(server, "GET", "/task")
    task = json.loads(body)
    assert status == 200 and task["threshold"] == 0.5 and task["examples"] == EXAMPLES
    assert task["checkpoint"].startswith("checkpoint-")
    assert run_folder not in body.decode()


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:7860", 200), ("localhost", 200), ("evil.example", 403), ("127.0.0.1.evil.example:7860", 403),
    ("", 403)])
def test_a_foreign_name_for_this_machine_is_refused(server, host, status):
    assert ask(server, "GET", "/task", Host=host)[0] == status
    assert ask_score(server, "甲: 好", Host=host)[0] == status


@pytest.mark.parametrize("body, content_type", [
    (b'{"dialogue": "x"}', "text/plain"), (b'{"dialogue": "x"}', "application/x-www-form-urlencoded"),
    *((body, "application/json") for body in (b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"dialog": "x"}',
                                             b'{"dialogue": 7}', b'{"dialogue": "\\ud800"}')),
])
def test_a_bad_request_gets_one_line(server, body, content_type):
    status, _, answer = ask(server, "POST", "/score", body, Content_Type=content_type)
    answer = json.loads(answer)
    assert status == 400 and answer.keys() == {"error"} and len(answer["error"].splitlines()) == 1


@pytest.mark.parametrize("length", ["262145", "-1", "a", "9" * 5000])
def test_a_length_that_is_too_long_or_none_is_refused_unread(server, length):
    status, _, answer = ask(server, "POST", "/score", b"", Content_Type="application/json", Content_Length=length)
    assert status == 400 and "256 KiB" in json.loads(answer)["error"]


def test_a_model_that_fails_costs_an_answer_of_one_line_and_not_the_server(server, monkeypatch):
    def fail(*args):
        raise RuntimeError("CUDA out of memory\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(app, "score_dialogue", fail)
        status, answer = ask_score(server, DIALOGUE)
    assert status == 500 and len(answer["error"].splitlines()) == 1 and "out of memory" in answer["error"]
    assert ask_score(server, "甲: 好")[0] == 200


def test_many_requests_at_once_wait_their_turn(loaded):
    busy = make_server(*loaded, port=0)  # it accepts none yet, as while it is busy
    with ExitStack() as held:
        held.callback(busy.server_close)
        for _ in range(40):
            held.enter_context(socket.create_connection(busy.server_address, timeout=0.5))


def test_other_pages_do_not_exist(server):
    assert ask(server, "GET", "/../app.py")[0] == 404
    assert ask(server, "POST", "/other", b"{}", Content_Type="application/json")[0] == 400


def test_nothing_of_what_is_asked_is_written_down(server, capfd):
    ask_score(server, DIALOGUE)
    ask(server, "GET", "/nothing")
    assert capfd.readouterr() == ("", "")


def test_a_task_without_room_for_a_dialogue_is_said_in_one_line(server, loaded):
    with task_of(loaded[0], max_length=10):
        status, answer = ask_score(server, DIALOGUE)
    assert status == 400 and answer["error"].startswith("max_length 10 leaves no room")


def test_the_command_says_what_is_wrong_in_one_line(server, loaded, tmp_path, monkeypatch, capsys):
    assert app.main(["--model", str(tmp_path), "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}: no config.json")
    monkeypatch.setattr(app, "load_tuned", lambda *args: pytest.fail("a model was loaded for a port that is taken"))
    for port in (server.server_address[1], 70000):
        assert app.main(["--model", "m", "--port", str(port)]) == 2
        line, = capsys.readouterr().err.splitlines()
        assert line.startswith(f"port {port}: ") and line.endswith("choose another with --port")
    with pytest.raises(DataError):
        make_server(*loaded, port=-1)
