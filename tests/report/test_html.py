"""The page: nothing breaks out of it, nothing leaves it, and it is written whole or not at all."""

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradoscope.errors import CannotWrite
from gradoscope.report import figures
from gradoscope.report.html import render_html, save_html


class Elements(HTMLParser):
    """Collects elements with their attributes, text outside scripts, and the scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.scripts, self.stack = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        (self.scripts if self.stack and self.stack[-1] == "script" else self.text).append(data)


def test_every_user_string_is_text(make, nasty_text):
    page = Elements(render_html(make("nasty")))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed", "form", "base")]
    assert nasty_text in "".join(page.text)
    assert "{{ 7*7 }}" in "".join(page.text)
    # figures, Plotly, our own script: none more, so no string opened or closed one
    assert sum(tag == "script" for tag, _ in page.elements) == sum(tag == "figure" for tag, _ in page.elements) + 2


def test_embedded_json_is_strict_and_cannot_end_its_element(make):
    page = render_html(make("nasty"))
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        assert "<" not in block
        json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_nothing_is_fetched(diagnosis):
    page = Elements(render_html(diagnosis))
    for tag, attributes in page.elements:
        assert tag != "link" or attributes["href"] == "data:,"
        assert "src" not in attributes
        assert tag != "a" or attributes["href"].startswith("#")
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    style = (Path(figures.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_size_and_sections(make, tmp_path):
    save_html(make("obstructed"), tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(content.encode()) < 8e6
    assert content.count("plotly.js v") == 1
    text = " ".join("".join(Elements(content).text).split())
    for part in [
        "Obstructed",
        "Step too small",
        "What to try next",
        "group['lr'] *= 1000",
        "Experiments",
        "2.13.0",
        "failed: the loss became infinite",
    ]:
        assert part in text
    assert "step_stability = 0.00021 ± 3e-5" in text
    assert os.listdir(tmp_path) == ["report.html"]


def test_without_series_a_sentence_and_no_script_of_plotly(make):
    page = render_html(make("undetermined"))
    assert "no curvature was measured" in page
    assert "<figure" not in page
    assert len(page) < 100_000


@pytest.mark.parametrize("name", ["loss", "gains", "spectrum", "layers", "taylor", "line", "permutation"])
def test_figures_draw_what_they_are_given(make, name):
    draw = getattr(figures, name)
    assert draw(make("obstructed")).data
    assert draw(make("undetermined")) is None
    rough = draw(make("nasty"))
    assert rough is None or "NaN" not in rough.to_json()


def test_loss_overlays_the_counterfactual_curves(make):
    d = make("obstructed")
    figure = figures.loss(d)
    by_name = {trace.name: trace for trace in figure.data}
    assert {"training", "validation", "batch", "step_size(x1000)"} <= set(by_name)
    assert list(zip(by_name["step_size(x1000)"].x, by_name["step_size(x1000)"].y, strict=True)) == [
        tuple(p) for p in d.counterfactuals[0].curve
    ]
    assert by_name["validation"].y[-2:] == (None, None)


def test_a_run_that_blew_up_does_not_flatten_the_others(make):
    figure = figures.loss(make("nasty"))
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.meta["log"][1] - figure.layout.meta["log"][0] <= 12


def test_gains_are_sorted_with_their_intervals(make):
    bars = figures.gains(make("obstructed")).data[0]
    assert list(bars.x) == sorted(bars.x)
    assert bars.x[-1] == pytest.approx(0.97)
    assert bars.x[-1] + bars.error_x.array[-1] == pytest.approx(0.983)
    assert bars.x[-1] - bars.error_x.arrayminus[-1] == pytest.approx(0.957)


def test_a_layer_without_any_gradient_is_marked_and_not_left_out(make):
    d = make("obstructed")
    d.series["layers"]["gradient_norm"] = [0.0, 0.0, 0.01, 0.1, None, 1.0]
    trace = next(t for t in figures.layers(d).data if t.name == "gradient norm")
    assert list(trace.marker.symbol[:3]) == ["x", "x", "circle"]
    assert trace.y[0] < 0.01
    assert trace.customdata[0] == "0"
    assert trace.y[4] is None


def test_the_stability_line_is_drawn_only_where_it_fits(make):
    d = make("obstructed")
    assert not figures.spectrum(d).layout.shapes
    d.series["spectrum"]["learning_rate_limit"] = 10.0
    assert figures.spectrum(d).layout.shapes[0].x0 == 10.0


@pytest.mark.parametrize("where", ["missing/report.html", "folder", "file/report.html"])
def test_a_path_that_cannot_be_written_is_told(make, tmp_path, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot write") as caught:
        save_html(make("undetermined"), tmp_path / where)
    assert caught.value.exit_code == 4
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told(make):
    with pytest.raises(CannotWrite, match="No space left"):
        save_html(make("undetermined"), "/dev/full")
    assert not Path("/dev/full").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(make, tmp_path, monkeypatch, error):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CannotWrite if isinstance(error, OSError) else KeyboardInterrupt):
        save_html(make("undetermined"), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_lone_surrogates_do_not_stop_the_page(tmp_path, make):
    save_html(dataclasses.replace(make("undetermined"), name="bad \ud800 name"), tmp_path / "report.html")
    assert "bad ? name" in (tmp_path / "report.html").read_text(encoding="utf-8")
