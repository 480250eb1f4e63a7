"""Draws the picture of the README and writes the output that it shows: `python docs/make_images.py`. The diagnosis is run here."""

import re
from pathlib import Path

from gradoscope import diagnose
from gradoscope.problems import find
from gradoscope.report.static import save_figure

ROOT = Path(__file__).parents[1]
OUTPUT = re.compile(r"(<!-- output: gradoscope diagnose digits:deep-sigmoid -->\n```\n).*?(```)", re.DOTALL)


def main() -> None:
    diagnosis = diagnose(find("digits:deep-sigmoid"))
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    save_figure(diagnosis, images / "deep-sigmoid.svg")
    readme = ROOT / "README.md"
    text, found = OUTPUT.subn(lambda block: f"{block[1]}{str(diagnosis).strip()}\n{block[2]}", readme.read_text(encoding="utf-8"))
    assert found == 1, "the README has no place for the output"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
