"""The commands of README, one after the other as a stranger would type them, with a tiny model and few dialogues."""

import importlib
import json
from pathlib import Path

import openpyxl
import pytest
from test_docs import ROOT, commands

from data.records import Dialogue, write_dialogues
from data.sample import sample_dialogues, sets_of_kinds

SMALLER = {"trainer": ["--max-steps", "4", "--eval-steps", "2", "--save-steps", "2", "--device", "cpu"],
           "evaluate": ["--device", "cpu"]}


@pytest.fixture
def fetched(tmp_path) -> Path:
    """What `data.fetch` brings, made of our sample: dialogues, and ordinary talk of two sources."""
    talk = sets_of_kinds(1, seed=1)
    for name, dialogues in (("dialogs/scams", sample_dialogues(80)), ("everyday/crosswoz", talk["ordinary_train"][:20]),
                            ("everyday/kdconv", talk["ordinary_judge"])):
        write_dialogues(tmp_path / "public" / f"{name}.csv", [
            Dialogue(f"{name}-{number}", name, dialogue.lines) for number, dialogue in enumerate(dialogues)])
    return tmp_path


def test_the_commands_of_the_readme_run_in_their_order(fetched, base, capsys):
    public = str(fetched / "public")
    put = {"data/public": public, "outputs": str(fetched / "outputs"), "Qwen/Qwen2-1.5B-Instruct": base,
           **{name: str(fetched / name) for name in ("CALLS.xlsx", "IN.jsonl", "OUT.jsonl")}}
    sheet = openpyxl.Workbook()
    for row in [("通话编号", "说话人", "内容"), (1, "客服", "您好"), (1, "王女士", "请讲"), (2, "客服", "请转账")]:
        sheet.active.append(row)
    sheet.save(fetched / "CALLS.xlsx")
    ran = []
    for module, words in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        if module == "data.fetch":
            continue  # it has a server of its own in its tests
        for shown, here in put.items():
            words = [word.replace(shown, here, 1) if word.startswith(shown) else word for word in words]
        words = ["1" if before == "--sets" else word for before, word in zip(["", *words], words)]
        main = importlib.import_module(module).main
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                main(words)
        else:
            assert main([*words, *SMALLER.get(module, [])]) == 0, (module, words, capsys.readouterr().err)
        ran.append(module)
    assert ran[:5] == ["data.sample", "data.prepare", "trainer", "evaluate", "evaluate"] and len(ran) >= 9
    report = json.loads((fetched / "outputs" / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["fitted_on"]["target"] == {"best_f1": True}
    assert {"kdconv", "crosswoz", "sample_ordinary_judge"} <= set(report["ordinary"]["by_source"])
    answers = [json.loads(line) for line in (fetched / "OUT.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 2 and all("probability" in answer for answer in answers)
