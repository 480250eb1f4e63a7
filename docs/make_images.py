"""Draws the pictures of the README: `python docs/make_images.py`. Each is a diagnosis that is run here."""

from pathlib import Path

from gradoscope import diagnose
from gradoscope.problems import find
from gradoscope.report.static import save_figure

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    diagnosis = diagnose(find("digits:deep-sigmoid"))
    save_figure(diagnosis, IMAGES / "deep-sigmoid.svg")
    print(diagnosis)


if __name__ == "__main__":
    main()
