"""A diagnosis on the terminal: the verdict first, then what was found, what helps, what it cost."""

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradoscope.diagnosis import Counterfactual, Diagnosis, Evidence, Finding
from gradoscope.report.words import clean, confirming, gain, judged_by, measured, number, percent, summary_of_cost

__all__ = ["print_diagnosis", "render_text"]

_COLOUR = {"obstructed": "red", "healthy": "green", "undetermined": "yellow", "present": "red", "absent": "green"}
_SIDE = {True: "for", False: "against", None: "also"}
_ASCII = str.maketrans({"−": "-", "–": "-", "→": ">", "±": "~", "·": ".", "∞": "inf", "│": "|", "─": "-", "≥": ">=", "×": "x", "…": "."})
_WIDEST = 100


def render_text(diagnosis: Diagnosis, width: int = 100) -> str:
    """The diagnosis as plain text, readable without colour.

    Args:
        diagnosis: what to show.
        width: columns; no line is longer.

    Returns:
        Lines of at most `width` columns, the verdict in the first.

    Example:
        >>> from gradoscope.diagnosis import Diagnosis, Health
        >>> print(render_text(Diagnosis("digits", "healthy", (), Health(True, 0.97, "The loss fell by 98%."))).splitlines()[0])
        HEALTHY  digits
    """
    # `_environ` keeps COLUMNS and the like of the surrounding terminal out of a text of fixed width
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={})
    with console.capture() as captured:
        console.print(_Page(diagnosis, width))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n") + "\n"


def print_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the diagnosis with rich, in colour where the terminal has it, at most 100 columns wide.

    Args:
        diagnosis: what to show.
        console: where to; by default standard output.
    """
    console = console if console is not None else Console()
    width = min(console.width, _WIDEST)
    if "utf" not in console.encoding.lower():
        # a terminal that knows only Latin or ASCII letters gets those, instead of an encoding error
        plain = render_text(diagnosis, width).translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
        console.print(Text(plain), end="", soft_wrap=True)
        return
    console.print(_Page(diagnosis, width), width=width)


class _Page:
    """The whole output as one rich renderable."""

    def __init__(self, diagnosis: Diagnosis, width: int) -> None:
        self.diagnosis = diagnosis
        self.narrow = width < 90

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        d = self.diagnosis
        yield from self._verdict()
        shown = [f for f in d.findings if f.status != "absent"]
        if shown:
            yield Text()
            yield _table(d, shown, self.narrow)
        absent = [f.obstacle for f in d.findings if f.status == "absent"]
        if absent:
            yield Text()
            yield _item("absent", Text(f"{len(absent)}: {', '.join(clean(a) for a in absent)}"), style="green")
        for finding in shown:
            yield Text()
            yield from _details(d, finding, 5 if finding.status == "present" else 2 if len(shown) < 6 else 1)
        yield from self._health()
        yield from self._end()

    def _verdict(self) -> Iterable[Text]:
        d = self.diagnosis
        line = Text(d.verdict.upper(), style=f"bold {_COLOUR[d.verdict]}")
        if d.present:
            line.append(f" by {clean(d.obstructed_by())}", style="bold")
        line.append("  ").append(_line(d.name), style="dim")
        yield line
        summary = d.present[0].summary if d.present else d.healthy.summary
        yield Text(_line(summary))

    def _health(self) -> RenderResult:
        health = self.diagnosis.healthy
        if not health.evidence and not health.missing:
            return
        holds = {True: "yes", False: "no", None: "cannot be told"}[health.holds]
        yield Text()
        head = Text("healthy", style="bold").append(f"  {holds}, {percent(health.confidence)} sure", style="dim")
        yield head
        if self.diagnosis.verdict == "obstructed":
            yield _item("", Text(_line(health.summary)))
        yield from _evidence(health.evidence, 6)
        if health.missing:
            yield _item("missing", Text("; ".join(_line(m) for m in health.missing)), style="yellow")

    def _end(self) -> RenderResult:
        d = self.diagnosis
        if d.notes or d.cost:
            yield Text()
        for note in d.notes:
            yield _item("note", Text(_line(note)), style="dim")
        if d.cost:
            yield _item("cost", Text(_line(summary_of_cost(d.cost))), style="dim")


def _table(diagnosis: Diagnosis, findings: Sequence[Finding], narrow: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("finding", no_wrap=not narrow, overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("sure", justify="right", no_wrap=True)
    table.add_column("gain of the remedy")
    if not narrow:
        table.add_column("loss: unchanged → remedy")
    for f in findings:
        tried = confirming(diagnosis, f)
        mark = "bold red" if f.status == "present" else "yellow"
        cells = [
            Text(clean(f.obstacle), style="bold" if f.status == "present" else ""),
            Text("PRESENT" if f.status == "present" else f.status, style=mark),
            Text(percent(f.confidence)),
            Text(gain(f.gain, f.gain_interval)),
        ]
        if not narrow:
            cells.append(Text(f"{number(tried.loss_unchanged)} → {number(tried.loss_remedy)}" if tried and not tried.failed else "–"))
        table.add_row(*cells)
    return table


def _details(diagnosis: Diagnosis, finding: Finding, count: int) -> RenderResult:
    present = finding.status == "present"
    yield Text(clean(finding.obstacle), style="bold")
    if not present or finding is not diagnosis.present[0]:
        yield _item("", Text(_line(finding.summary)))
    yield from _evidence(finding.evidence, count)
    ruled_out = sorted({clean(name) for e in finding.evidence for name in e.rules_out})
    if ruled_out and present:
        yield _item("rules out", Text(", ".join(ruled_out)), style="dim")
    tried = confirming(diagnosis, finding)
    if tried is not None:
        yield _item("tried", _experiment(tried), style="cyan")
    if finding.missing:
        yield _item("missing", Text("; ".join(_line(m) for m in finding.missing)), style="yellow")
    if finding.remedy:
        yield _item("remedy", Text(_line(finding.remedy), style="bold"), style="green")
    if finding.code:
        yield _item("", Text("\n".join(f"│ {line}" for line in clean(finding.code).strip("\n").split("\n")), style="cyan"))


def _experiment(tried: Counterfactual) -> Text:
    out = Text(_line(tried.remedy), style="bold")
    out.append(f", {tried.steps} steps from step {tried.start}: ", style="not bold")
    if tried.failed:
        return out.append(f"failed, {_line(tried.failed)}", style="not bold")
    out.append(
        f"{judged_by(tried)} {number(tried.loss_before)} → {number(tried.loss_remedy)} (unchanged: {number(tried.loss_unchanged)}), "
        f"gain {gain(tried.gain, tried.interval)}, {number(tried.examples_ratio)}x the examples",
        style="not bold",
    )
    return out


def _evidence(evidence: Sequence[Evidence], count: int) -> RenderResult:
    # what speaks against comes last but is never cut off by what speaks for
    chosen = sorted(evidence, key=lambda e: (e.supports is None, e.supports is False))
    against = [e for e in chosen if e.supports is False][: count // 2]
    rest = [e for e in chosen if e.supports is not False][: count - len(against)]
    last = ""
    for e in [*[e for e in rest if e.supports], *against, *[e for e in rest if e.supports is None]]:
        text = Text(_line(e.says))
        m = e.measurement
        value = _line(measured(m))
        if value not in e.says:  # the sentence carries the number already, most times also its error
            text.append(f"  {clean(m.name)} {value}", style="dim")
        if m.p is not None:
            text.append(f", p = {number(m.p, 2)}", style="dim")
        side = _SIDE[e.supports]
        yield _item(side if side != last else "", text, style="dim")
        last = side
    if len(evidence) > len(against) + len(rest):
        yield _item("", Text(f"{len(evidence) - len(against) - len(rest)} more in the report and in --json", style="dim"))


def _item(label: str, body: Text, style: str = "") -> Padding:
    """A label with a hanging body, so that wrapped lines stay in their column."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, width=9)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style=style), body)
    return Padding(grid, (0, 0, 0, 2))


def _line(text: object) -> str:
    """User text on one line, to be wrapped by the terminal."""
    return " ".join(clean(text).split())
