"""A landscape as one page that works offline, as still pictures, and as a summary for the terminal."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gradoscope.errors import CannotWrite
from gradoscope.landscape.result import Landscape
from gradoscope.report import landscape_evidence as seen
from gradoscope.report import landscape_figures as draw
from gradoscope.report import words
from gradoscope.report.html import _embedded as embedded
from gradoscope.report.write import write_bytes

__all__ = ["print_landscape", "render_html", "save_figures", "save_html", "summary"]

_CHIP = {"yes": "present", "no": "absent", "in part": "undetermined", "cannot be told": "undetermined"}
_PLANES = {
    "pca": ("Where the run moves most", "The plane of the two directions in which the path varies most."),
    "random": (
        "A random plane around the end",
        "Two random directions, each filter as long as the network's own. The path hardly lies in it.",
    ),
    "hessian": ("Steepest and lowest curvature at the end", "The plane of the Hessian's extreme eigenvectors where the run ended."),
    "three": (
        "Between two solutions",
        "The plane through the start, the end, and the end of a run from another start. Nothing is permuted to match.",
    ),
}
_CONTROL = (
    "Grey: random walks with the same step lengths, in a plane chosen the same way; the axes fit the paths. "
    "What the walks show too is no valley."
)


def save_html(landscape: Landscape, path: str | Path) -> None:
    """Write the page of `render_html`, whole or not at all.

    Args:
        landscape: what to show.
        path: the file, e.g. "landscape.html"; one that is there is replaced.

    Raises:
        CannotWrite: where the path cannot be written.
    """
    write_bytes(path, render_html(landscape).encode("utf-8", "replace"))


def render_html(landscape: Landscape) -> str:
    """One self-contained HTML page of about 5 MB: no request leaves it.

    Args:
        landscape: what to show. Every string in it is shown as text.

    Returns:
        The page.

    Example:
        >>> "<h1>&lt;b&gt;" in render_html(Landscape("<b>", {}))
        True
    """
    folder = files("gradoscope.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(clean=words.clean, number=words.number)
    template = environment.from_string(folder.joinpath("landscape.html.jinja").read_text(encoding="utf-8"))
    data = landscape.to_dict()["sections"]
    groups = [(key, title, [f for f in drawn if f is not None]) for key, title, drawn in _groups(data)]
    groups = [(key, title, _paired(drawn)) for key, title, drawn in groups if drawn]
    css = (folder / "page.css").read_text(encoding="utf-8") + (folder / "landscape.css").read_text(encoding="utf-8")
    return template.render(
        title=words.clean(landscape.name),
        interrupted=landscape.interrupted,
        lead=_lead(data),
        facts=_facts(data),
        answers=[_answer(a) for a in (data.get("questions") or {}).get("answers", ())],
        groups=groups,
        notes=[words.clean(n) for n in landscape.notes],
        cost=[(name.removesuffix(" seconds"), text) for name, text in words.flatten(landscape.cost)],
        provenance=words.flatten(landscape.provenance),
        css=Markup(css),
        js=Markup((folder / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if groups else "",
    )


def _groups(data: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any] | None]]]:
    """The page's parts: (anchor, title, figures in their order)."""
    run, evidence, asked = data.get("run"), data.get("evidence"), data.get("questions")
    around: list[dict[str, Any] | None] = []
    if run and data.get("view"):
        says = "Height is the loss. The direction of the residual is that of the nearest recorded point: it changes along the line."
        around.append(_figure("view", "Along the line, and beside it", says, draw.view(data["view"], run)))
    if run:
        band = "A random walk in many dimensions runs on the dotted semicircle. Below it the run is straighter, above it takes a detour."
        around.append(_figure("projection", "The same path beside random walks", band, draw.projection(run)))
    for plane in data.get("planes") or ():
        title, says = _PLANES[plane["kind"]]
        around.append(
            _figure(f"plane-{plane['kind']}", title, f"{says} {_share(plane)}", draw.plane(plane, run["steps"] if run else [0, 0]))
        )
        control = f"{_CONTROL} {_share(plane, control=True)}".strip()
        around.append(_figure(f"control-{plane['kind']}", "The same for random walks", control, draw.control(plane)))
    return [
        ("lines", "Straight lines", [_line(data, "line"), _line(data, "solutions")]),
        ("around", "The path and its surroundings", around),
        ("evidence", "Conditioning and noise along the run", _evidence(evidence) + _asked(asked)),
    ]


def _line(data: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    found = data.get(name)
    if not found:
        return None
    height = (
        f"The loss rises {words.number(found['barrier'], 2)} above the straight line between its ends."
        if found["barrier"]
        else "The loss never rises above the chord of its ends."
    )
    rise = found["rise"]["monotone"]
    told = {True: " It falls all the way.", False: " It does not fall all the way: part of the rise is beyond chance.", None: ""}[rise]
    if name == "line":
        return _figure("line", "Straight from start to end", height + told, draw.line(found, ("start", "end")))
    return _figure(
        "solutions",
        "From this solution to another",
        height + " The other solution is that of a run from another start.",
        draw.line(found, ("this end", "other end")),
    )


def _evidence(data: Any) -> list[dict[str, Any] | None]:
    if not data:
        return []
    return [
        _figure(
            "norms",
            "Does it come near a critical point?",
            "Where the loss falls but the snapshot norm does not, the run is not on its way into one.",
            seen.norms(data),
        ),
        _figure(
            "taylor",
            "Predicted and actual change per step",
            "On the diagonal the local model is exact; far from it, a step is longer than the model reaches.",
            seen.taylor(data),
        ),
        _figure(
            "curvature",
            "Curvature changes from step to step",
            "Along the gradient, on fixed examples, in stretches of consecutive steps.",
            seen.curvature(data),
        ),
        _figure(
            "split",
            "Uphill by curvature, or by noise?",
            "What curvature and noise take back of the descent of one step. Whiskers: 95%.",
            seen.split(data),
        ),
    ]


def _asked(data: Any) -> list[dict[str, Any] | None]:
    if not data:
        return []
    return [
        _figure(
            "bumps",
            "Bumps between recorded points",
            "How far the loss between two neighbours rises above both, on examples that did not choose the place. Below 0: no bump.",
            seen.bumps(data["bumps"]),
        ),
        _figure(
            "canyon",
            "Does it keep its direction?",
            "1: displacements so far apart are parallel; 0: they have nothing in common.",
            seen.canyon(data["canyon"]),
        ),
        _figure(
            "spectrum",
            "Curvature at the end",
            "Bars mark the outermost eigenvalues of the Hessian, with their error.",
            seen.spectrum(data["spectrum"]),
        ),
    ]


def _share(plane: Mapping[str, Any], *, control: bool = False) -> str:
    found = plane["control_explained" if control else "explained"]
    if not found:
        return ""
    whose = "the walks'" if control else "the path's"
    return f"It holds {words.percent(min(sum(v or 0.0 for v in found), 1.0))} of {whose} variance."


def _figure(name: str, title: str, caption: str, figure: go.Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    data = figure.to_plotly_json()
    meta = data["layout"].get("meta") or {}
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "wide": False,
        "height": data["layout"].get("height", 340),
        "json": embedded({"data": data["data"], "layout": data["layout"]}),
        "log": "linear" if meta.get("log") else None,
    }


def _paired(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two figures a row; one that would stand alone beside a hole takes the whole width."""
    if len(drawn) % 2:
        alone = drawn[0] if drawn[0]["name"] in ("projection", "line") else drawn[-1]
        alone["wide"] = True
    return drawn


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    numbers = [
        {
            "name": words.clean(n["name"]),
            "value": words.number(n["value"], 3),
            "range": "" if n["low"] is None or n["high"] is None else f"{words.number(n['low'], 2)} to {words.number(n['high'], 2)}",
            "note": words.clean(n["note"]),
        }
        for n in answer["numbers"]
    ]
    return {
        "question": answer["question"],
        "answer": answer["answer"],
        "chip": _CHIP[answer["answer"]],
        "says": words.clean(answer["says"]),
        "numbers": numbers,
    }


def _lead(data: Mapping[str, Any]) -> str:
    run = data.get("run")
    if not run:
        return "Nothing could be measured."
    verdict = run["straightness"]["verdict"]
    side = words.percent(run["straightness"]["residual"])
    told = {
        "straighter than chance": f"The path strays {side} of its length from a straight line, less than random walks of the same steps.",
        "a detour": f"The path strays {side} of its length from a straight line, further than random walks of the same steps.",
        "no straighter than chance": f"The path strays {side} of its length from a straight line, as random walks of the same steps do.",
    }
    return told[verdict]


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    facts: list[tuple[str, str, str]] = []
    if run := data.get("run"):
        facts.append(("Loss", f"{words.number(run['loss'][0])} → {words.number(run['loss'][-1])}", f"over {run['steps'][-1]} steps"))
        facts.append(("Path / distance", f"{words.number(run['length'] / run['distance'])}×", f"distance {words.number(run['distance'])}"))
    if line := data.get("line"):
        facts.append(
            (
                "Barrier from start to end",
                words.number(line["barrier"], 2),
                f"above the chord; {words.percent(line['convex_share'])} of the points convex",
            )
        )
    if other := data.get("solutions"):
        facts.append(
            ("Barrier to another solution", words.number(other["barrier"], 2), f"at {words.number(other['barrier_at'], 2)} of the way")
        )
    return facts[:4]


def summary(landscape: Landscape) -> str:
    """The landscape in a few lines of text.

    Example:
        >>> print(summary(Landscape("mine", {})))
        mine: Nothing could be measured.
    """
    data = landscape.to_dict()["sections"]
    rows = [f"{words.clean(landscape.name)}: {_lead(data)}", *_lines(data)]
    asked = (data.get("questions") or {}).get("answers", ())
    rows += [f"  {a['question']:<42}{a['answer']}: {words.clean(a['says'])}" for a in asked]
    rows += [f"  Note: {words.clean(note)}" for note in landscape.notes]
    return "\n".join(rows)


def _lines(data: Mapping[str, Any]) -> list[str]:
    """What stands between the headline and the answers, one fact a line."""
    rows = [f"  {name:<42}{value}  ({note})" for name, value, note in _facts(data)]
    for plane in data.get("planes") or ():
        share = words.percent(min(sum(v or 0.0 for v in plane["explained"] or ()), 1.0))
        rows.append(f"  {_PLANES[plane['kind']][0]:<42}{share} of the path's variance")
    return rows


def print_landscape(landscape: Landscape) -> None:
    """Print the summary to stdout, folded to the terminal."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    data = landscape.to_dict()["sections"]
    console.print(words.clean(landscape.name), style="bold", markup=False)
    console.print(_lead(data), markup=False)
    for row in _lines(data):
        console.print(row, markup=False)
    for answer in (data.get("questions") or {}).get("answers", ()):
        console.print(f"\n{answer['question']}  {answer['answer']}", style="bold", markup=False)
        console.print(f"  {words.clean(answer['says'])}", markup=False)
        for n in answer["numbers"][:3]:
            shown = _answer({**answer, "numbers": [n]})["numbers"][0]
            within = f" [{shown['range']}]" if shown["range"] else ""
            console.print(f"    {shown['name']}: {shown['value']}{within}", markup=False, style="dim")
    for note in landscape.notes:
        console.print(f"\nNote: {words.clean(note)}", markup=False)


def save_figures(landscape: Landscape, folder: str | Path) -> list[Path]:
    """Write every figure as SVG and as PNG into a folder, which is made where it is missing.

    Args:
        landscape: what to draw.
        folder: where.

    Returns:
        The files.

    Raises:
        CannotWrite: where the folder cannot be made or written.
    """
    from gradoscope.report import plots
    from gradoscope.report.landscape_static import pictures

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {folder}: {error.strerror or error}. Name a folder that you may write to.") from error
    written = []
    for name, figure in pictures(landscape.to_dict()["sections"]):
        for kind in ("svg", "png"):
            path = target / f"{re.sub(r'[^a-z0-9-]', '-', name)}.{kind}"
            write_bytes(path, plots.render(figure, kind))
            written.append(path)
    return written
