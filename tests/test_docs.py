"""README and docs: links lead somewhere, commands have the options they are shown with, README stays short."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

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


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 8192
    prose = re.sub(r"```.*?```|\]\([^)]*\)", "", text, flags=re.DOTALL)
    assert len(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", prose)) <= 40
