"""The still picture."""

import warnings
from dataclasses import replace

import matplotlib
import pytest

from gradoscope.errors import CannotWrite, Usage
from gradoscope.report.static import save_figure


def test_svg_is_the_same_each_time_and_leaves_settings_alone(make, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(make("obstructed"), tmp_path / "a.svg")
    save_figure(make("obstructed"), tmp_path / "b.svg")
    content = (tmp_path / "a.svg").read_bytes()
    assert content == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in content
    assert dict(matplotlib.rcParams) == before


def test_rough_diagnoses_are_drawn_without_a_warning(diagnosis, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(diagnosis, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bad_paths(make, tmp_path):
    with pytest.raises(Usage, match=r"ends in \.gif"):
        save_figure(make("undetermined"), tmp_path / "a.gif")
    with pytest.raises(CannotWrite, match="no folder"):
        save_figure(make("undetermined"), tmp_path / "no" / "a.svg")


def test_a_logarithmic_axis_has_plain_numbers(make, tmp_path):
    steps = list(range(0, 101, 5))
    fallen = {"loss": {"steps": steps, "train": [10.0 ** (-s / 20) for s in steps]}}
    path = tmp_path / "log.svg"
    save_figure(replace(make("obstructed"), series=fallen, counterfactuals=()), path)
    text = path.read_text(encoding="utf-8")
    assert "mathdefault" not in text
    assert "<!-- 0.001 -->" in text
