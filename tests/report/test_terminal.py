"""The terminal output: order, width, colour, and text that tries to take the terminal over."""

import io
import unicodedata

import pytest
from rich.console import Console

from gradoscope.report.terminal import print_diagnosis, render_text


def columns(line):
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


@pytest.mark.parametrize("width", [100, 80, 60])
def test_no_line_is_wider(diagnosis, width):
    text = render_text(diagnosis, width)
    assert max(columns(line) for line in text.splitlines()) <= width
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_verdict_stands_in_the_first_line(diagnosis):
    first = render_text(diagnosis).splitlines()[0]
    assert first.startswith(diagnosis.verdict.upper())
    if diagnosis.present:
        assert diagnosis.present[0].obstacle in first


def test_it_says_what_helped_and_by_how_much(make):
    text = " ".join(render_text(make("obstructed")).split())
    assert "97% [96% to 98%]" in text
    assert "loss 2.3 → 0.0924 (unchanged: 2.25)" in text
    assert "41x the examples" in text
    assert "group['lr'] *= 1000" in text
    assert "diagnosis 21.4 s" in text


def test_present_stands_before_undetermined_before_absent(make):
    text = render_text(make("obstructed"))
    assert text.index("PRESENT") < text.index("undetermined") < text.index("absent")


def test_missing_evidence_is_named(make):
    assert "validation data; counterfactual" in render_text(make("undetermined"))


def test_no_control_characters_and_no_markup(make):
    text = render_text(make("nasty"))
    assert "[red]no markup[/red]" in text
    assert not [c for c in text if c != "\n" and unicodedata.category(c) == "Cc"]


def test_width_ignores_the_surrounding_terminal(make, monkeypatch):
    before = render_text(make("obstructed"))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert render_text(make("obstructed")) == before
    assert str(make("obstructed")) == before


def test_colour_only_adds_to_the_text(make):
    out = io.StringIO()
    print_diagnosis(make("obstructed"), Console(file=out, width=140, force_terminal=True, color_system="truecolor"))
    assert "\x1b[1;31m" in out.getvalue()
    stripped = Console(file=io.StringIO(), width=140)
    print_diagnosis(make("obstructed"), stripped)
    plain = "\n".join(line.rstrip() for line in stripped.file.getvalue().splitlines())
    assert plain.strip() == render_text(make("obstructed")).strip()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_with_few_letters_get_those(diagnosis, encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_diagnosis(diagnosis, Console(file=file, width=90))
    file.flush()
    assert diagnosis.verdict.upper() in raw.getvalue().decode(encoding).splitlines()[0]
