"""The local page in a real browser: what is typed is scored and shown, on a telephone's width and on a wide screen."""

import dataclasses
import threading

import pytest
from browser import CHROMEDRIVER, CHROMIUM, Browser

from antifraud.serving.app import EXAMPLES, make_server, score_dialogue
from data.prompt import PromptEncoder

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
SHOWN = "!document.getElementById('check').disabled && !document.getElementById('result').hidden"
ROWS = "return [...document.querySelectorAll('#lines tr')].map(row => [...row.cells].map(cell => cell.textContent))"
TEXT = "return document.getElementById(arguments[0]).textContent"


@pytest.fixture(scope="module")
def address(loaded):
    server = make_server(*loaded, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("width", [400, 1400])
def test_a_dialogue_typed_in_is_scored_and_nothing_is_wider_than_the_window(browser, address, loaded, width):
    browser.open(address, width=width)
    dialogue = f"王经理: 今天风有点大。\n\n顾客: {'好的' * 60}{'x' * 60}\n王经理: 号码您自己留好，不用告诉任何人。"
    browser.type("#dialogue", dialogue)
    browser.click("#check")
    browser.wait(SHOWN)
    expected = score_dialogue(*loaded, dialogue)
    rows = browser.run(ROWS)
    assert [row[:3] for row in rows] == [[str(line["number"]), line["role"], line["content"]]
                                         for line in expected["lines"]]
    assert browser.run("return document.querySelectorAll('#chart circle').length") == 3
    assert browser.run("return document.getElementById('windows').hidden")
    fraud = expected["probability"] >= 0.5
    assert browser.run("return document.getElementById('verdict').className") == ("fraud" if fraud else "non-fraud")
    assert browser.run("return document.scrollingElement.scrollWidth") <= width
    assert browser.errors() == []


def test_an_example_is_one_click_away_and_nothing_typed_is_said_so(browser, address):
    browser.open(address, width=1400)
    browser.wait("document.querySelector('#examples button')")
    browser.click("#check")
    browser.wait("document.getElementById('message').textContent")
    assert browser.run("return document.getElementById('result').hidden")
    browser.click("#examples button")
    browser.wait(SHOWN)
    assert len(browser.run(ROWS)) == next(iter(EXAMPLES.values())).count("\n") + 1
    assert browser.run(TEXT, "message") == ""


def test_what_is_shown_is_always_of_the_dialogue_asked_last_and_an_edit_since_is_said(browser, address):
    browser.open(address, width=1400)
    browser.wait("document.querySelectorAll('#examples button').length > 1")
    browser.run("""
        const fetchNow = window.fetch;
        let sent = 0;
        window.fetch = async (...request) => {
          const late = ++sent === 1, answer = await fetchNow(...request);
          if (late) await new Promise(go => setTimeout(go, 1000));
          window.answered = (window.answered ?? 0) + 1;
          return answer;
        };""")
    first, second = list(EXAMPLES.values())[:2]
    browser.run("for (const button of [...document.querySelectorAll('#examples button')].slice(0, 2)) button.click()")
    browser.wait("window.answered === 2")
    browser.wait(SHOWN)
    assert [row[2] for row in browser.run(ROWS)] == [line.split(": ")[1] for line in second.split("\n")]
    assert browser.run(TEXT, "message") == ""
    browser.type("#dialogue", first)
    assert "改动" in browser.run(TEXT, "message")
    assert browser.run("document.getElementById('check').click(); return document.getElementById('result').hidden")
    browser.wait(SHOWN)
    assert browser.run(TEXT, "message") == "" and len(browser.run(ROWS)) == first.count("\n") + 1
    assert browser.errors() == []


@pytest.mark.parametrize("threshold, verdict, advice", [(0.0, "达到阈值 0.0 %", "96110"),
                                                        (0.9999, "低于阈值 > 99.9 %", "不等于安全")])
def test_the_page_says_what_to_do_next(browser, address, loaded, monkeypatch, threshold, verdict, advice):
    monkeypatch.setattr(loaded[0].lineage, "decision", dataclasses.replace(
        loaded[0].lineage.decision, threshold=threshold))
    browser.open(address, width=400)
    browser.wait("document.querySelector('#examples button')")
    browser.click("#examples button")
    browser.wait(SHOWN)
    assert browser.run(TEXT, "verdict").replace("\u00a0", " ").endswith(verdict)
    assert advice in browser.run(TEXT, "advice")


def test_markup_in_a_dialogue_is_shown_and_not_run(browser, address):
    browser.open(address, width=1400)
    markup = "<img src=x onerror=window.broken=1><script>window.broken=1</script>"
    browser.type("#dialogue", f"甲: {markup}")
    browser.click("#check")
    browser.wait(SHOWN)
    assert browser.run(ROWS)[0][2] == markup
    assert browser.run("return window.broken === undefined && !document.querySelector('#lines img')")


def test_a_dialogue_longer_than_the_context_says_in_how_many_windows_it_was_read(browser, address, loaded, monkeypatch):
    model, tokenizer = loaded
    dialogue = "\n".join(f"甲: 今天风有点大，第{number}次说。" for number in range(12))
    room = len(PromptEncoder(tokenizer, model.lineage.task).prompts([dialogue])[0]) - 40
    monkeypatch.setattr(model.lineage, "task", dataclasses.replace(model.lineage.task, max_length=room))
    windows = score_dialogue(model, tokenizer, dialogue)["windows"]
    assert windows > 1
    browser.open(address, width=400)
    browser.type("#dialogue", dialogue)
    browser.click("#check")
    browser.wait(SHOWN)
    assert not browser.run("return document.getElementById('windows').hidden")
    assert str(windows) in browser.run(TEXT, "windows")
