"""A study as one page that works offline: its claims and whether they hold, its figures, and what one sees in them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from gradoscope.claims import Judged
from gradoscope.report import words

__all__ = ["Drawn", "Page", "outcome", "render_page", "spread", "value"]


@dataclass(frozen=True)
class Drawn:
    """A figure that has been drawn: file name without ending, caption, SVG text."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Page:
    """What stands on the page of a study."""

    name: str
    title: str
    source: str
    about: Sequence[str]
    scale: str
    claims: Sequence[Judged]
    figures: Sequence[Drawn]
    provenance: Mapping[str, Any]


def outcome(claim: Judged) -> tuple[str, str]:
    """(a word for what came out, the class it is coloured by).

    Example:
        >>> outcome(Judged("s", "a", "", "", 1.0, None, "", 5, holds=False, expected_to_fail=True))
        ('fails, as expected', 'undetermined')
    """
    if claim.holds:
        return ("holds, unexpectedly", "present") if claim.expected_to_fail else ("holds", "absent")
    return ("fails, as expected", "undetermined") if claim.expected_to_fail else ("fails", "present")


def value(claim: Judged) -> str:
    """The measured value with its 95% interval, in words.

    Example:
        >>> value(Judged("s", "a", "", "", 0.5, (0.49, 0.51), "", 5, True, False))
        '0.5 [0.49 to 0.51]'
    """
    shown = words.number(claim.measured, 4) if math.isfinite(claim.measured) else "not measured"
    return f"{shown} [{spread(claim)}]" if spread(claim) else shown


def spread(claim: Judged) -> str:
    """The 95% interval in words, or nothing.

    Example:
        >>> spread(Judged("s", "a", "", "", 0.5, (0.49, 0.51), "", 5, True, False))
        '0.49 to 0.51'
    """
    return "" if claim.ci is None else f"{words.number(claim.ci[0], 4)} to {words.number(claim.ci[1], 4)}"


def render_page(page: Page) -> str:
    """The page as HTML, in one file, with nothing fetched."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(outcome=outcome, value=value, spread=spread, duration=words.duration)
    here = files("gradoscope.report")
    css = (here / "page.css").read_text() + (here / "study.css").read_text()
    template = environment.from_string((here / "study.html.jinja").read_text())
    held = sum(claim.holds for claim in page.claims if not claim.expected_to_fail)
    meant = sum(not claim.expected_to_fail for claim in page.claims)
    return template.render(
        page=page,
        css=Markup(css),
        drawn=[(figure, Markup(_inline(figure.svg, figure.name))) for figure in page.figures],
        facts=[
            ("Claims that should hold", f"{held} of {meant} hold"),
            ("Statements known to be wrong", f"{sum(c.expected_to_fail for c in page.claims)}"),
            ("Scale", page.scale),
            ("Processor time", words.duration(page.provenance["cpu_seconds"])),
        ],
    )


def _inline(svg: str, name: str) -> str:
    """The SVG element alone, with its ids made unique on the page."""
    element = svg[svg.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        element = element.replace(mark, f"{mark}{name}-")
    return element.replace("<svg ", f'<svg role="img" aria-label="figure {name}" ', 1)
