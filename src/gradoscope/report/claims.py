"""A study's claims on the terminal: what holds, what was measured, and against which criterion."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradoscope.report.study import outcome, value

if TYPE_CHECKING:
    from gradoscope.conduct import Conducted

__all__ = ["print_study"]

_STYLE = {"absent": "green", "present": "bold red", "undetermined": "yellow"}


def print_study(done: "Conducted", console: Console | None = None) -> None:
    """Print one line per claim, and where the rest is."""
    console = console or Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("outcome", no_wrap=True)
    table.add_column("claim", ratio=3)
    table.add_column("measured", ratio=1)
    table.add_column("criterion", ratio=1, style="dim")
    for claim in done.claims:
        word, kind = outcome(claim)
        table.add_row(Text(word, style=_STYLE[kind]), Text(claim.says), Text(value(claim)), Text(claim.criterion))
    console.print(Text(f"{done.study} ({done.scale})", style="bold"))
    console.print(table)
    held = sum(claim.holds for claim in done.claims if not claim.expected_to_fail)
    meant = sum(not claim.expected_to_fail for claim in done.claims)
    wrong = len(done.claims) - meant
    line = f"{held} of {meant} claims that should hold do"
    line += f"; {wrong} statement{'s' if wrong != 1 else ''} of the source known to be wrong" if wrong else ""
    console.print(Text(f"{line}. Page, figures and tables: {done.folder / 'index.html'}", style="dim"), soft_wrap=True)
