"""The local page in a real browser: what is typed is scored and shown, on a telephone's width and on a wide screen."""

import dataclasses
import threading

import pytest
from browser import CHROMEDRIVER, CHROMIUM, Browser

from antifraud.serving.app import EXAMPLES, make_server, score_dialogue
from data.prompt import PromptEncoder
from evaluate import load_model

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
SHOWN = "!document.getElementById('check').disabled && !document.getElementById('result').hidden"
ROWS = "return [...document.querySelectorAll('#lines tr')].map(row => [...row.cells].map(cell => cell.textContent))"
TEXT = "return document.getElementById(arguments[0]).textContent"


@pytest.fixture(scope="module")
def loaded(base, run_folder):
    return load_model(base, run_folder, "cpu")


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
