"""A diagnosis as one page that works offline: the verdict, what to do, the evidence, and the evidence drawn."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from gradoscope.diagnosis import Counterfactual, Diagnosis, Evidence, Finding
from gradoscope.report import figures, words
from gradoscope.report.write import write_bytes

__all__ = ["render_html", "save_html"]

_GLYPH = {"obstructed": "!", "healthy": "✓", "undetermined": "?", "present": "!", "absent": "✓"}

# (name, title, how to read it, what to say where there is nothing to draw, function, whether it takes the full width)
_FIGURES: tuple[tuple[str, str, str, str, Callable[[Diagnosis], go.Figure | None], bool], ...] = (
    (
        "loss",
        "Loss, and what it would have been",
        "Grey is the training as it ran; each colour is the same training, same data order, under one change.",
        "Loss curve: no loss was recorded.",
        figures.loss,
        True,
    ),
    (
        "gains",
        "What each change was worth",
        "0% is the unchanged training, 100% all the loss that was left to remove. Whiskers: 95% intervals.",
        "Gains: no counterfactual was run to its end.",
        figures.gains,
        True,
    ),
    (
        "layers",
        "What reaches each layer",
        "From input to output. A fall over many powers of ten means that early layers get no signal.",
        "Layers: no per-layer signal was measured.",
        figures.layers,
        True,
    ),
    (
        "spectrum",
        "Curvature",
        "Bars mark the outermost eigenvalues. A step is unstable where an eigenvalue exceeds 2 / learning rate.",
        "Spectrum: no curvature was measured.",
        figures.spectrum,
        False,
    ),
    (
        "taylor",
        "Predicted and actual change per step",
        "On the diagonal the local model is exact. Points far from it: the step is longer than the model reaches.",
        "Taylor prediction: no steps were compared with their prediction.",
        figures.taylor,
        False,
    ),
    (
        "line",
        "Straight from start to end",
        "The loss between the first parameters and the last. A hump is a barrier that the training went around.",
        "Line: the loss between start and end was not measured.",
        figures.line,
        False,
    ),
    (
        "permutation",
        "Does the gradient know the targets?",
        "If the line lies within the bars, the gradient is the same whatever the targets are.",
        "Permutation test: not made.",
        figures.permutation,
        False,
    ),
)


def save_html(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the page of `render_html`, whole or not at all.

    Args:
        diagnosis: what to show.
        path: the file, e.g. "report.html"; one that is there is replaced.

    Raises:
        CannotWrite: where the folder is missing or locked, the path is a folder, or the disk is full.
    """
    write_bytes(path, render_html(diagnosis).encode("utf-8", "replace"))


def render_html(diagnosis: Diagnosis) -> str:
    """One self-contained HTML page of about 5 MB: no request leaves it, and a content security policy holds it to that.

    Args:
        diagnosis: what to show. Every string in it is shown as text, never read as HTML.

    Returns:
        The page.

    Example:
        >>> from gradoscope.diagnosis import Diagnosis, Health
        >>> page = render_html(Diagnosis("<b>", "healthy", (), Health(True, 0.97, "It learns.")))
        >>> "<b>" in page.split("<script")[0], "&lt;b&gt;" in page
        (False, True)
    """
    folder = files("gradoscope.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        percent=words.percent, number=words.number, obstacle=words.obstacle, phrase=words.phrase, clean=words.clean, interval=words.interval
    )
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    drawn = [(spec, spec[4](diagnosis)) for spec in _FIGURES]
    shown = [_figure(*spec, figure) for spec, figure in drawn if figure is not None]
    narrow = [f for f in shown if not f["wide"]]
    if len(narrow) % 2:
        narrow[-1]["wide"] = True  # no figure stands alone beside a hole
    cards = [_card(diagnosis, f) for f in diagnosis.findings]
    return template.render(
        d=diagnosis,
        glyph=_GLYPH,
        title=words.clean(diagnosis.name),
        lead=diagnosis.present[0].summary if diagnosis.present else diagnosis.healthy.summary,
        facts=_facts(diagnosis),
        actions=_actions(diagnosis),
        open_cards=[c for c in cards if c["status"] != "absent"],
        absent_cards=[c for c in cards if c["status"] == "absent"],
        health=[_proof(e) for e in diagnosis.healthy.evidence],
        figures=shown,
        not_drawn=[spec[3] for spec, figure in drawn if figure is None],
        experiments=[_experiment(c) for c in sorted(diagnosis.counterfactuals, key=_order)],
        cost=[(name.removesuffix(" seconds"), text) for name, text in words.flatten(diagnosis.cost)],
        provenance=words.flatten(diagnosis.provenance),
        css=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        js=Markup(folder.joinpath("page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if shown else "",
    )


def _figure(name: str, title: str, caption: str, _: str, __: Any, wide: bool, figure: go.Figure) -> dict[str, Any]:
    data = figure.to_plotly_json()
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "wide": wide,
        "height": data["layout"].get("height", 340),
        "json": _embedded({"data": data["data"], "layout": data["layout"]}),
        "log": name == "loss" and (data["layout"].get("meta") or {}).get("log") and data["layout"]["yaxis"]["type"],
    }


def _embedded(data: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or open another."""
    text = json.dumps(data, cls=PlotlyJSONEncoder, ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """The few numbers beside the verdict: (label, value, what it means)."""
    facts: list[tuple[str, str, str]] = []
    if diagnosis.present:
        first = diagnosis.present[0]
        tried = words.confirming(diagnosis, first)
        if words.percent(first.gain) != "–":
            facts.append(("Gain of the remedy", words.percent(first.gain), words.interval(first.gain_interval)))
        if tried is not None and not tried.failed:
            change = f"{words.number(tried.loss_unchanged)} → {words.number(tried.loss_remedy)}"
            facts.append((f"{words.judged_by(tried).capitalize()}, {tried.steps} steps", change, "unchanged → with the remedy"))
        facts.append(("Confidence", words.percent(first.confidence), f"in {words.phrase(first.obstacle)}"))
    else:
        facts.append(
            (
                "Confidence",
                words.percent(diagnosis.healthy.confidence),
                "that this training is healthy" if diagnosis.healthy.holds else "in this verdict",
            )
        )
    counts = {s: sum(1 for f in diagnosis.findings if f.status == s) for s in ("present", "undetermined", "absent")}
    facts.append(("Obstacles looked for", str(len(diagnosis.findings)), ", ".join(f"{n} {s}" for s, n in counts.items() if n)))
    if diagnosis.present:
        return facts
    runs = len(diagnosis.counterfactuals)
    seconds = dict(words.flatten(diagnosis.cost)).get("total seconds")
    facts.append(("Experiments", str(runs), f"in {seconds}, everything included" if seconds is not None else "counterfactual runs"))
    return facts


def _actions(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """What to try next: remedies that worked, then what would settle the open questions."""
    actions = []
    for f in diagnosis.present:
        tried = words.confirming(diagnosis, f)
        code = f.code or (tried.code if tried is not None else "")
        worth, within = words.percent(f.gain), words.interval(f.gain_interval)
        by_metric = tried is not None and tried.on == "metric"
        did = f"Gained {worth} of what right answers would" if by_metric else f"Removed {worth} of the remaining excess loss"
        why = (
            f"{did} when it was tried{' beside the change above' if f.behind else ''}{f' (95% interval {within})' if within else ''}."
            if worth != "–"
            else ""
        )
        actions.append({"say": f.remedy or (tried.explanation if tried else ""), "why": why, "code": words.clean(code).strip("\n")})
    unsettled: dict[tuple[str, ...], list[str]] = {}
    for f in diagnosis.findings:
        if f.status == "undetermined" and f.missing:
            unsettled.setdefault(f.missing, []).append(words.phrase(f.obstacle))
    for missing, names in unsettled.items():  # one entry per gap: a missing counterfactual often leaves many findings open
        actions.append({"say": f"Settle {', '.join(names)}.", "why": f"Missing: {'; '.join(missing)}.", "code": ""})
    if diagnosis.present:
        actions.append(
            {"say": "Diagnose again.", "why": "One obstacle can hide another: apply the change, then run the same diagnosis.", "code": ""}
        )
    elif diagnosis.healthy.missing:
        actions.append({"say": "Settle whether it is healthy.", "why": f"Missing: {'; '.join(diagnosis.healthy.missing)}.", "code": ""})
    return [a for a in actions if a["say"]]


def _card(diagnosis: Diagnosis, finding: Finding) -> dict[str, Any]:
    tried = words.confirming(diagnosis, finding)
    proofs = [_proof(e) for e in finding.evidence]
    return {
        "name": finding.obstacle,
        "status": finding.status,
        "confidence": finding.confidence,
        "summary": words.clean(finding.summary),
        "gain": words.gain(finding.gain, finding.gain_interval),
        "bar": _bar(finding.gain, finding.gain_interval),
        "sides": [
            (t, kept)
            for t, side in (("For", True), ("Against", False), ("Also seen", None))
            if (kept := [p for p in proofs if p["supports"] is side])
        ],
        "rules_out": sorted({name for e in finding.evidence for name in e.rules_out}),
        "missing": [words.clean(m) for m in finding.missing],
        "remedy": words.clean(finding.remedy),
        "code": words.clean(finding.code or (tried.code if tried and finding.status == "present" else "")).strip("\n"),
        "tried": _experiment(tried) if tried is not None else None,
    }


def _proof(evidence: Evidence) -> dict[str, Any]:
    return {"supports": evidence.supports, "says": words.clean(evidence.says), "terms": words.terms(evidence)}


def _experiment(c: Counterfactual) -> dict[str, Any]:
    return {
        "remedy": words.clean(c.remedy),
        "explanation": words.clean(c.explanation),
        "span": f"{c.start} – {c.start + c.steps}",
        "steps": c.steps,
        "start": c.start,
        "on": words.judged_by(c),
        "gain": words.percent(c.gain),
        "interval": words.interval(c.interval),
        "before": words.number(c.loss_before),
        "unchanged": words.number(c.loss_unchanged),
        "loss": words.number(c.loss_remedy),
        "examples": f"{words.number(c.examples_ratio)}×",
        "failed": words.clean(c.failed),
    }


def _bar(value: float | None, bounds: tuple[float, float] | None) -> dict[str, float] | None:
    """Where a gain, its interval and zero lie on a track from -25% (or lower) to 100%, in percent of its width."""
    if words.percent(value) == "–" or value is None:
        return None
    known = bounds is not None and words.interval(bounds) != ""
    low, high = (bounds[0], bounds[1]) if known and bounds is not None else (value, value)
    left = -0.25 if low < 0 else 0.0
    right = 1.0

    def place(x: float) -> float:
        return round(100 * (min(max(x, left), right) - left) / (right - left), 2)

    start, end = sorted((place(0.0), place(value)))
    return {
        "zero": place(0.0),
        "left": start,
        "width": end - start,
        "low": place(low),
        "span": round(place(high) - place(low), 2),
        "negative": float(value < 0),
    }


def _order(c: Counterfactual) -> tuple[bool, float]:
    known = words.percent(c.gain) != "–"
    return (bool(c.failed) or not known, -c.gain if known else 0.0)
