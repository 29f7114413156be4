"""README and docs: links lead somewhere, commands have the options they are shown with, README stays short."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import tables, training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:torchrun --nproc-per-node \d+ |python )((?:-m )?[\w./]+) ?(.*)$")


def anchors(page: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(module, words) of each Python command of this project in the page's bash blocks."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.match(line.strip()):
                module = match[1].removeprefix("-m ").removesuffix(".py")
                if (ROOT / (module.replace(".", "/") + ".py")).is_file():
                    found.append((module, shlex.split(match[2], comments=True)))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_anchors_lead_somewhere(path):
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_command_of_the_pages_has_the_options_it_is_shown_with(capsys):
    shown = [command for path in PAGES for command in commands(path.read_text(encoding="utf-8"))]
    assert {"trainer", "evaluate", "data.prepare"} <= {module for module, _ in shown}
    helps = {}
    for module, words in shown:
        if module not in helps:
            with pytest.raises(SystemExit):
                importlib.import_module(module).main(["--help"])
            helps[module] = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        unknown = {word for word in words if word.startswith("--")} - helps[module]
        assert not unknown, (module, unknown)


@pytest.mark.parametrize("module", ["antifraud.training.average", "antifraud.evaluation.early_warning"])
def test_a_command_that_a_help_shows_over_several_lines_can_be_pasted(module, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    shown = capsys.readouterr().out.split("\n\n    python ")[1].split("\n\n")[0].splitlines()
    assert len(shown) > 1 and all(line.endswith("\\") for line in shown[:-1])


def test_the_help_of_prepare_says_how_to_look_at_a_file_first(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("data.prepare").main(["--help"])
    assert "--inspect FILE [--convert OUT]" in " ".join(capsys.readouterr().out.split())


# Numbers in the prose that are not of results/, each with its source.
OF_ELSEWHERE = {
    "3.11": "pyproject.toml, requires-python", "3.12": "the Python that results/ were made with",
    "95%": "antifraud.evaluation.metrics.LEVEL", "0.5": "antifraud.checkpoint.Decision.threshold",
    "0.97": "a goal", "0.009": "docs/lab_log.md, rounding alone", "0.008": "docs/lab_log.md, three trainings a seed",
}
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?(?: ?%)?(?![\w-])")


def numbers_of(page: str) -> list[str]:
    """Decimal numbers and percentages of a page, but for code and addresses; 1,234.5 as 1234.5 and 5 % as 5%."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!-- \w+:?[^>]*-->", " ", page, flags=re.DOTALL)
    found = (number.replace(",", "").replace(" ", "").lstrip("+") for number in NUMBER.findall(prose))
    return [number for number in found if "." in number or "%" in number]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/results.md", "docs/memory_and_speed.md"])
def test_every_decimal_number_and_percentage_comes_from_the_results(name):
    derived = {number for table in tables.TABLES.values() for number in numbers_of(table() or "")}
    said = set(numbers_of((ROOT / name).read_text(encoding="utf-8")))
    assert said - derived - set(OF_ELSEWHERE) == set()


def test_numbers_are_read_from_prose_and_not_from_code_links_or_names():
    page = "F1 0.935 (0.9 to +1,234.5), 98 % or -0.5; 12 calls, `0.1`, [a](0.2) of Qwen2.5-1.5B, GPL-3.0\n```\n7.5\n```"
    assert numbers_of(page) == ["0.935", "0.9", "1234.5", "98%", "-0.5"]


def test_every_recipe_of_training_is_explained_whether_it_can_be_measured_or_has_been():
    measured = {name for path in (ROOT / "results" / "speed").glob("training*.json")
                for name in json.loads(path.read_text(encoding="utf-8"))["recipes"]}
    explained = re.findall(r"`(\w+)`", (ROOT / "docs" / "memory_and_speed.md").read_text(encoding="utf-8"))
    assert (measured | set(training.RECIPES)) - set(explained) == set()


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 8192
    prose = re.sub(r"```.*?```|\]\([^)]*\)", "", text, flags=re.DOTALL)
    assert len(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", prose)) <= 40


# Under these the keys are of the data: kinds, sources, names of probes and of classifiers, reasons.
NAMES_OF_DATA = {"by_category", "by_source", "by_position", "by_length", "probes", "baselines", "not_made", "versions",
                 "at_false_alarms_per_hundred"}


def keys_of(found: object, under: str = "") -> set[str]:
    """The keys of a report, inner ones included, but for those of the data."""
    if isinstance(found, list):
        return {key for part in found for key in keys_of(part, under)}
    if not isinstance(found, dict):
        return set()
    own = set() if under in NAMES_OF_DATA else set(found)
    return own | {key for name, part in found.items() for key in keys_of(part, "" if under in NAMES_OF_DATA else name)}


@pytest.mark.parametrize("path", sorted(path for path in (ROOT / "results" / "reports").rglob("seed-*.json")
                                        if path.parts[-3] != "early_warning"),  # of another command
                         ids=lambda path: "-".join(path.parts[-3:]))
def test_every_key_of_a_committed_report_is_described(path):
    described = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", (ROOT / "docs" / "report.md").read_text(
        encoding="utf-8")))))
    found = {key.removesuffix("_interval") for key in keys_of(json.loads(path.read_text(encoding="utf-8")))}
    assert found - described == set()


def test_keys_are_found_wherever_they_stand_but_not_names_of_data():
    report = {"n": 1, "rows": [{"line": 2}], "by_source": {"kdconv": {"calls": {"5": 1}}}}
    assert keys_of(report) == {"n", "rows", "line", "by_source", "calls", "5"}
