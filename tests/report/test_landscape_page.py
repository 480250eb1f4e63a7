"""The page of a landscape: complete, safe, offline, and drawn in a real browser on a laptop and on a phone; and its still pictures."""

import json
import math
import os
import shutil

import numpy as np
import pytest

from gradoscope.errors import CannotWrite
from gradoscope.landscape.result import Landscape
from gradoscope.report import landscape_evidence, landscape_figures
from gradoscope.report.landscape import render_html, save_html, summary
from gradoscope.report.landscape_figures import scaled, ticks

CHROMIUM = os.environ.get("GRADOSCOPE_CHROMIUM") or shutil.which("chromium")
NASTY = "</script><img src=x onerror=alert(1)> $x$ \x1b[31m"


def number(name, value=0.5):
    return {"name": name, "value": value, "low": 0.4, "high": None, "note": "95% interval"}


def plane(kind):
    x = np.linspace(-1, 2, 6)
    path = [[-0.5 + 0.2 * k, 0.1 * k * k - 0.3] for k in range(9)]
    return {
        "kind": kind,
        "x": x,
        "y": x / 2,
        "loss": 0.01 + (x[None] ** 2 + 3 * x[:, None] ** 2),
        "path": path,
        "other": path[::-1] if kind == "three" else None,
        "marks": [["start", 0, 0], ["end", 1, 0], ["end of the other run", 0.5, 0.8]] if kind == "three" else [],
        "labels": ["component 1: 90% of it", "component 2: 5% of it"],
        "explained": [0.9, 0.05],
        "control_explained": [0.6, 0.2],
        "controls": [[[0.1 * k * s, 0.05 * k] for k in range(9)] for s in (1, -1)],
        "exact": True,
        "error": 0.0,
        "method": "stacked",
        "facts": {},
    }


def made(name="mine"):
    alpha = np.linspace(-0.25, 1.25, 16)
    line = {
        "alpha": alpha,
        "loss": 2 * np.exp(-2 * alpha),
        "standard_error": 0.05 + 0 * alpha,
        "metric": 1 - np.exp(-3 * (alpha + 0.3)),
        "metric_name": "accuracy",
        "validation_loss": 2.1 * np.exp(-1.9 * alpha),
        "validation_standard_error": 0.05 + 0 * alpha,
        "validation_metric": 0.9 - np.exp(-3 * (alpha + 0.3)),
        "barrier": 0.0,
        "barrier_at": 0.0,
        "convex_share": 1.0,
        "rise": {"monotone": True},
    }
    t = np.linspace(0, 1, 9)
    run = {
        "steps": np.arange(9) * 5,
        "loss": 2 - 1.9 * t,
        "alpha": t,
        "beta": 0.5 * np.sqrt(t * (1 - t)),
        "distance": 3.0,
        "length": 4.5,
        "walks": [{"alpha": t, "beta": np.sqrt(t * (1 - t))}],
        "straightness": {"residual": 0.25, "verdict": "straighter than chance"},
    }
    window = {
        "first": 3,
        "steps": [3, 4, 5],
        "fixed": [-0.1, 0.02, -0.05],
        "first_order": [-0.12, -0.05, -0.06],
        "second_order": [-0.1, 0.01, math.nan],
        "negligible": [False, False, True],
        "curvature": [1.0, 2.0, 1.5],
        "overshoot": [0.5, 1.2, 0.7],
    }
    change = {k: {"value": v, "se": 0.1} for k, v in (("D", 1.0), ("C", 0.4), ("M", 0.7), ("change", 0.1))}
    evidence = {
        "norms": {"steps": [0, 10, 20], "running": [math.nan, 1.0, 0.8], "snapshot": [0.9, 0.7, 0.6], "loss": [2.0, 1.0, 0.2]},
        "windows": [window],
        "terms": [{"step": 6, "noise": {"signal": 0.3}, "change": change}],
    }
    answers = [
        {"key": k, "question": f"Question {k}?", "answer": a, "says": f"Because {name}.", "numbers": [number(f"of {name}")]}
        for k, a in (("minimum", "no"), ("saddle", "yes"), ("detour", "in part"), ("bumps", "cannot be told"), ("canyon", "no"))
    ]
    questions = {
        "answers": answers,
        "bumps": {"steps": [[0, 5], [5, 10]], "tested": [-0.1, 0.2], "se": [0.05, 0.01], "significant": [False, True]},
        "canyon": {"lags": [1, 2, 4], "cosine": [0.5, 0.3, 0.1], "se": [0.1] * 3, "low": [-0.1] * 3, "high": [0.1] * 3},
        "spectrum": {
            "step": 40,
            "eigenvalues": [5.0, 2.0, -0.1],
            "residuals": [0.01, 0.02, 0.01],
            "grid": np.linspace(-1, 6, 40),
            "density": np.exp(-(np.linspace(-1, 6, 40) ** 2)),
        },
    }
    planes = [plane(kind) for kind in ("pca", "random", "hessian", "three")]
    beta = np.linspace(-0.3, 0.3, 5)
    view = {"alpha": alpha, "beta": beta, "nearest": [5] * 16, "loss": 0.05 + (1.2 - alpha[None]) ** 2 + 5 * beta[:, None] ** 2}
    sections = {"run": run, "line": line, "solutions": line, "planes": planes, "view": view, "evidence": evidence, "questions": questions}
    return Landscape(name, sections, (f"A note on {name}.",), {"total_seconds": 1.5}, {"seed": 0})


# ------------------------------------------------------------------ what stands on it


def test_what_a_user_named_is_shown_as_text_and_nothing_is_fetched():
    page = render_html(made(NASTY))
    assert NASTY not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    head, _, rest = page.partition("<script>")
    assert "&lt;/script&gt;" in head
    assert "default-src 'none'" in head
    assert 'src="http' not in page
    assert 'href="http' not in head
    assert rest


def test_every_section_is_drawn_and_a_control_stands_beside_every_path():
    page = render_html(made())
    assert "Interrupted: this is" not in page
    wanted = ["line", "solutions", "view", "projection", "norms", "taylor", "curvature", "split", "bumps", "canyon", "spectrum"]
    for kind in ("pca", "random", "hessian", "three"):
        wanted += [f"plane-{kind}", f"control-{kind}"]
        assert page.index(f'id="figure-plane-{kind}"') < page.index(f'id="figure-control-{kind}"')
    for name in wanted:
        assert page.count(f'id="figure-{name}"') == 1
    assert page.count('class="answer"') == 5
    assert "95% of the path&#39;s variance" in page
    assert "80% of the walks&#39; variance" in page


@pytest.mark.parametrize("left_out", ["run", "line", "solutions", "planes", "view", "evidence", "questions"])
def test_what_was_not_measured_is_left_out(left_out):
    whole = made()
    part = Landscape("part", {k: v for k, v in whole.sections.items() if k != left_out}, interrupted=True)
    page = render_html(part)
    assert "Interrupted: this is" in page
    assert summary(whole)
    assert summary(part)


def test_nothing_at_all_is_a_page_too():
    page = render_html(Landscape("empty", {}))
    assert "Nothing could be measured." in page
    assert "<figure" not in page


def test_numbers_that_are_not_finite_leave_gaps():
    sections = made().sections
    sections["planes"][0]["loss"][0, 0] = math.inf
    sections["line"]["loss"][3] = math.nan
    page = render_html(Landscape("gaps", sections))
    assert "NaN" not in page.split('id="figure-line"')[1].split("</script>")[0]
    blown = {**plane("pca"), "loss": [[None] * 6] * 6}
    assert landscape_figures.plane(blown, [0] * 9) is None


def test_colours_are_logarithmic_where_the_loss_varies_widely():
    values, back = scaled([[0.01, 1.0], [100.0, math.nan]])
    assert back is not None
    assert np.allclose(values[np.isfinite(values)], [-2, 0, 2])
    assert scaled([1.0, 2.0])[1] is None
    assert scaled([-1.0, 1e6])[1] is None  # no logarithm of a negative loss
    for low, high in ((-3.0, 4.0), (0.1, 0.4), (-0.02, 1.2), (2.0, 2.05)):
        where, texts = ticks(low, high, True)
        assert 2 <= len(where) <= 8
        assert len(where) == len(texts)
        assert low - 1e-9 <= min(where) <= max(where) <= high + 1e-9


def test_steps_within_rounding_are_not_drawn():
    data = json.loads(made().to_json())["sections"]["evidence"]
    figure = landscape_evidence.taylor(data)
    assert figure is not None
    assert [len(t.x) for t in figure.data if t.mode == "markers"] == [2, 2]


def test_pictures_are_written_and_the_same_twice(tmp_path):
    files = made().save_figures(tmp_path / "new" / "folder")
    names = {f.name for f in files}
    for name in ("line", "solutions", "plane-pca", "plane-three", "view", "evidence", "spectrum"):
        assert {f"{name}.svg", f"{name}.png"} <= names
    few = Landscape("few", {k: made().sections[k] for k in ("line", "questions")})
    for again in few.save_figures(tmp_path / "again"):
        assert again.read_bytes() == (tmp_path / "new" / "folder" / again.name).read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot make the folder"):
        made().save_figures(tmp_path / "file")


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH and GRADOSCOPE_CHROMIUM is not set")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_the_page_draws_offline_and_fits(browser, tmp_path, width, height, scheme):
    save_html(made(NASTY), tmp_path / "page.html")
    page = browser.new_context(viewport={"width": width, "height": height}, offline=True, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)  # the surface is drawn by software here
    trouble = []
    page.on("console", lambda m: None if "GL" in m.text or "Canvas2D" in m.text else trouble.append(m.text))
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on("dialog", lambda d: (trouble.append(f"dialog {d.message}"), d.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("[...document.querySelectorAll('figure')].every(f => f.querySelector('.main-svg'))")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg'))"
    assert page.evaluate(f"{outside}.length") == 0
    assert page.locator("figure").count() == 19
    beside = page.evaluate(
        "['plane', 'control'].map(n => document.querySelector(`#figure-${n}-pca`).getBoundingClientRect()).map(r => [r.x, r.y])"
    )
    assert (beside[0][1] == beside[1][1]) == (width > 1000)  # side by side, or one below the other
    page.click("#figure-line .toggle button:last-child")
    assert page.evaluate("document.querySelector('#figure-line .plot')._fullLayout.yaxis.type") == "log"
    if scheme == "dark":
        assert page.evaluate("document.querySelector('#figure-line .plot')._fullLayout.font.color") == "#dde2ea"
    assert trouble == []
    page.context.close()
