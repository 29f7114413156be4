"""The pictures of README and site: what they are made of; drawing them needs a browser and a font with Chinese."""

import json
import re
from types import SimpleNamespace

import pytest
from browser import CHROMEDRIVER, CHROMIUM, Browser

from antifraud.checkpoint import Decision, Lineage
from tools import make_pictures

ANSWER = {"probability": 0.75, "windows": 1, "window_lines": [1, 1], "lines": [
    {"number": 1, "role": "A", "content": "</script><b>", "probability": 0.75, "from_line": 1, "of_line": None}]}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(make_pictures, "score_dialogue", lambda *_: ANSWER)
    lineage = Lineage(base={"name": "tiny"}, checkpoint="checkpoint-7", decision=Decision(threshold=0.4))
    return make_pictures.app_page(SimpleNamespace(lineage=lineage), None, "A: </script>")


def test_the_page_in_the_picture_has_the_models_answer_as_data_not_as_markup(page):
    said, = re.findall(r"const ANSWERS = (.+);\n", page)
    answers = json.loads(said)
    assert answers["dialogue"] == "A: </script>" and "</script>" not in said
    assert answers["/task"]["model"] == "tiny" and answers["/task"]["checkpoint"] == "checkpoint-7"
    assert answers["/score"] == {"threshold": 0.4, **ANSWER}
    assert page.count("<script>") == 2


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and chromedriver")
def test_the_page_in_the_picture_shows_the_answer_without_a_server(page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "page.html").as_uri(), width=900)
        browser.wait("document.querySelectorAll('#lines tr').length === 1")
        assert "75.0\u00a0%" in browser.run("return document.getElementById('verdict').textContent")
        assert browser.run("return document.getElementById('windows').hidden") and browser.errors() == []
