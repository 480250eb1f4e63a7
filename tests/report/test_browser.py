"""The page in a real browser: it draws, offline, without an error, and fits a laptop and a phone."""

import os
import shutil

import pytest

from gradoscope.report.html import save_html

CHROMIUM = os.environ.get("GRADOSCOPE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH and GRADOSCOPE_CHROMIUM is not set")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, path, width, height, **options):
    """The page after its figures were drawn, and all that it complained about or asked for."""
    page = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options).new_page()
    trouble = []
    page.on("console", lambda m: trouble.append(m.text))
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on("dialog", lambda d: (trouble.append(f"dialog {d.message}"), d.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(r.url))
    page.set_default_timeout(120_000)  # a busy machine draws slowly
    page.goto(path.as_uri())
    page.wait_for_function("[...document.querySelectorAll('figure')].every(f => f.querySelector('.main-svg'))", timeout=120_000)
    return page, trouble


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_every_page_draws_and_fits(browser, diagnosis, tmp_path, width, height):
    save_html(diagnosis, tmp_path / "report.html")
    page, trouble = opened(browser, tmp_path / "report.html", width, height)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # nothing sticks out, also not what a parent would cut off
    outside = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg'))"
    assert page.evaluate(f"{outside}.length") == 0
    assert page.evaluate("document.querySelectorAll('figure').length") == page.evaluate(
        "document.querySelectorAll('.plot.js-plotly-plot').length"
    )
    assert trouble == []
    page.context.close()


def test_toggle_legend_copy_and_dark_mode(browser, make, tmp_path):
    save_html(make("obstructed"), tmp_path / "report.html")
    page, trouble = opened(browser, tmp_path / "report.html", 1280, 900, color_scheme="dark")
    axis = "document.querySelector('#figure-loss .plot')._fullLayout.yaxis.type"
    assert page.evaluate(axis) == "linear"
    page.click("#figure-loss .toggle button:last-child")
    assert page.evaluate(axis) == "log"
    page.click("#figure-loss .legend button:first-child")
    assert page.evaluate("document.querySelector('#figure-loss .plot').data.find(t => t.name === 'training').visible") is False
    assert page.evaluate(axis) == "log"
    page.click("#next .copy")
    assert "group['lr'] *= 1000" in page.evaluate("window.getSelection().toString()")
    assert page.evaluate("document.querySelector('#figure-loss .plot')._fullLayout.font.color") == "#dde2ea"
    assert trouble == []
    page.context.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_study_shows_its_claims_and_fits(browser, tmp_path, width, height, scheme):
    from tests.a_study import Averages

    from gradoscope import sweep
    from gradoscope.conduct import conduct

    done = conduct(Averages(), out=tmp_path, where=sweep.local(1))
    page = browser.new_context(viewport={"width": width, "height": height}, offline=True, color_scheme=scheme).new_page()
    trouble = []
    page.on("console", lambda m: trouble.append(m.text))
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(r.url))
    page.set_default_timeout(120_000)
    page.goto((done.folder / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".claim").count() == len(done.claims)
    assert page.locator(".claim .chip").all_inner_texts() == ["holds", "fails, as expected"]
    figure = page.locator("figure svg").first
    assert figure.bounding_box()["width"] > 300
    # every mark that the drawing refers to is there, under its new name
    missing = "[...document.querySelectorAll('svg use')].filter(u => !document.querySelector(u.getAttribute('xlink:href'))).length"
    assert page.evaluate(missing) == 0
    assert trouble == []
    page.context.close()
