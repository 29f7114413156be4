"""Draws the pictures that README and the site show: a dialogue line by line, and the local page as a browser shows it.

    python -m tools.make_pictures --model MODEL --checkpoint DIR [--output docs]

Writes dialogue.png and, where a Chromium is installed, app.png. The dialogue is one of ours, the probabilities are
those of the model that is given, and both pictures name it. Chinese needs a font that has it, such as Noto Sans CJK.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from antifraud.checkpoint import lineage_of
from antifraud.figures import dialogue_with_gloss
from antifraud.model import default_device, load_tuned
from antifraud.serving.app import EXAMPLES, PAGE, score_dialogue, score_lines
from data.command import command
from data.english import Glossed, glossed_dialogues

ROOT = Path(__file__).parents[1]
SHOWN = "refund scam"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
APP_SIZE = "900,1090"  # pixels
# The page asks its server twice; a picture of it needs none.
ANSWERED = """<script>
const ANSWERS = $answers;
window.fetch = async address => ({ok: true, json: async () => ANSWERS[address]});
window.addEventListener("load", () => {
  document.getElementById("dialogue").value = ANSWERS.dialogue;
  document.getElementById("check").click();
});
</script>
"""


def draw_dialogue(model, tokenizer, shown: Glossed, path: Path) -> None:
    """The dialogue with its English, and the probability after each line."""
    after = [line.probability for line in score_lines(model, tokenizer, shown.text)]
    lineage = lineage_of(model)
    title = f"A call as it goes on; {lineage.base['name']}, fine-tuned"
    dialogue_with_gloss(shown.rows, after, title, threshold=lineage.decision.threshold).save(path)


def app_page(model, tokenizer, dialogue: str) -> str:
    """The page with the model's answer to `dialogue` in it, for a browser without a server."""
    lineage = lineage_of(model)
    answers = {
        "dialogue": dialogue,
        "/task": {"model": lineage.base["name"], "checkpoint": lineage.checkpoint, "examples": EXAMPLES},
        "/score": {"threshold": lineage.decision.threshold, **score_dialogue(model, tokenizer, dialogue)},
    }
    said = json.dumps(answers, ensure_ascii=False).replace("</", "<\\/")
    answered = ANSWERED.replace("$answers", said)
    return PAGE.read_text(encoding="utf-8").replace("<script>", f"{answered}<script>", 1)


def photograph(page: str, path: Path, browser: str) -> None:
    """What a browser shows of an HTML page."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "page.html"
        source.write_text(page, encoding="utf-8")
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--window-size={APP_SIZE}", "--virtual-time-budget=5000", f"--user-data-dir={scratch}/profile",
                        f"--screenshot={path.resolve()}", source.as_uri()],
                       check=True, capture_output=True, timeout=120)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_pictures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--device", default=default_device())
    args = parser.parse_args(argv)
    model, tokenizer = load_tuned(args.model, args.checkpoint, args.device)
    shown = glossed_dialogues()[SHOWN]
    args.output.mkdir(parents=True, exist_ok=True)
    draw_dialogue(model, tokenizer, shown, args.output / "dialogue.png")
    print(args.output / "dialogue.png")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no app.png: none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
    else:
        photograph(app_page(model, tokenizer, shown.text), args.output / "app.png", browser)
        print(args.output / "app.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
