"""The pictures of README and site: what they are made of; drawing them needs a browser and a font with Chinese."""

import json
import re
from types import SimpleNamespace

from antifraud.checkpoint import Decision, Lineage
from antifraud.serving.app import ScoredLine
from tools import make_pictures


def test_the_page_in_the_picture_has_the_models_answer_as_data_not_as_markup(monkeypatch):
    line = ScoredLine(number=1, role="A", content="</script><b>", probability=0.25, from_line=1, of_line=None)
    monkeypatch.setattr(make_pictures, "score_lines", lambda *_: [line])
    lineage = Lineage(base={"name": "tiny"}, checkpoint="checkpoint-7", decision=Decision(threshold=0.4))
    page = make_pictures.app_page(SimpleNamespace(lineage=lineage), None, "A: </script>")
    said, = re.findall(r"const ANSWERS = (.+);\n", page)
    answers = json.loads(said)
    assert answers["dialogue"] == "A: </script>" and "</script>" not in said
    assert answers["/task"]["model"] == "tiny" and answers["/task"]["checkpoint"] == "checkpoint-7"
    assert answers["/score"]["threshold"] == 0.4 and answers["/score"]["lines"][0]["probability"] == 0.25
    assert page.count("<script>") == 2
