"""The study of interpolation: its numbers against plain loops, claims and figures on tiny runs."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.guard import private_random
from gradoscope.landscape.trajectory import path_of, project
from gradoscope.loop import advance
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.report import plots
from gradoscope.studies._interpolation import obstacle, plateau
from gradoscope.studies._interpolation_claims import GRID, NETWORKS, beside, on_line, views
from gradoscope.studies.interpolation import STUDY
from gradoscope.study import Context, Results, Table
from gradoscope.training import Live

RELU = {
    "model": "relu",
    "target": "interpolation:relu,width=12,steps=40",
    "rows": 1347,
    "view_rows": 40,
    "points": 64,
    "side": 5,
    "views": True,
    "walks": 40,
}
TINY = {
    "maxout": "maxout,units=6,pieces=2",
    "adversarial": "adversarial,units=6,pieces=2",
    "convnet": "convnet,first=2,second=2",
    "lstm": "lstm,hidden=6,length=6,rows=40",
    "mp-dbm": "mp-dbm,first=4,second=3,sweeps=2",
}


@pytest.fixture(scope="module")
def unit():
    return STUDY.run(RELU, [3, 8], Context())


@pytest.fixture(scope="module")
def plain():
    """The same two trainings as plain loops: their points in float64."""
    training = find(RELU["target"])
    found = {}
    for seed in (3, 8):
        with Live.of(training, seed=seed) as live:
            points = [live_vector(live)]
            advance(live, 0, 40, [lambda live, i, loss, points=points: points.append(live_vector(live)) and None])
        found[seed] = torch.stack(points)
    return found


def live_vector(live):
    return nn.utils.parameters_to_vector(live.model.parameters()).detach().double().clone()


@functools.cache
def relu():
    training = find(RELU["target"])
    with private_random(0):
        return training.model(), *training.data


def loss_at(vector):
    model, x, y = relu()
    nn.utils.vector_to_parameters(vector.float(), model.parameters())
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x).double(), y))


def test_losses_on_the_lines_are_those_of_a_plain_loop(unit, plain):
    for row, seed, other in ((unit.rows[0], 3, 8), (unit.rows[1], 8, 3)):
        start, end = plain[seed][0], plain[seed][-1]
        for a in (-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
            error = 1e-3 if a in (0.25, 0.75) else 2e-5  # these lie between two points of the line
            assert row[f"J{a:g}"] == pytest.approx(loss_at(start + a * (end - start)), rel=error)
        ends = [loss_at(end), loss_at(plain[other][-1])]
        way = [loss_at(end + a * (plain[other][-1] - end)) for a in np.linspace(0, 1, 26)]
        assert row["between"] == pytest.approx(max(way) - max(ends), abs=2e-5)
        losses = [loss_at(start + a * (end - start)) for a in np.linspace(0, 1, 51)]
        rises = [losses[j] - losses[i] for i in range(51) for j in range(i, 51)]
        assert row["rise"] == pytest.approx(max(rises), abs=2e-5)
        assert row["left_half_way"] == pytest.approx((losses[25] - losses[-1]) / (losses[0] - losses[-1]), abs=1e-4)
        half = next(k for k, loss in enumerate(losses) if loss <= losses[0] - (losses[0] - min(losses)) / 2)
        assert row["half_at"] == pytest.approx(half / 50)


def test_the_path_lies_where_plain_projections_put_it(unit, plain):
    for row, seed in zip(unit.rows, (3, 8), strict=True):
        moved = plain[seed] - plain[seed][0]
        length = float(moved[-1].norm())
        along = (moved @ moved[-1] / length**2).numpy()
        aside = (moved / length - torch.as_tensor(along)[:, None] * moved[-1] / length).norm(dim=1).numpy()
        curve = Table(unit.curves).where(kind="path", seed=seed)
        assert np.allclose(curve.column("alpha"), along, atol=1e-6)
        assert np.allclose(curve.column("beta"), aside, atol=1e-5)
        assert row["residual"] == pytest.approx(aside.max(), rel=1e-4)
        assert row["detour"] == pytest.approx(float(moved.diff(dim=0).norm(dim=1).sum()) / length, rel=1e-4)
        assert curve.column("loss")[::10] == pytest.approx([loss_at(p) for p in plain[seed][::10]], rel=2e-5)
        variances = np.linalg.svd((moved - moved.mean(0)).numpy(), compute_uv=False) ** 2
        assert row["pca2"] == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-4)


def test_walks_lie_near_the_semicircle_and_paths_inside(unit):
    for row in unit.rows:
        assert row["from_semicircle"] < 0.1  # 1,072 dimensions
        assert 0.4 < row["plain_median"] < 0.55
        assert row["equal_pca1"] == pytest.approx(6 / math.pi**2, abs=0.03)
    walk = Table(unit.curves).where(kind="walk", seed=3)
    assert (walk.column("alpha")[0], walk.column("beta")[0]) == (0.0, 0.0)
    assert walk.column("alpha")[-1] == pytest.approx(1)


def test_a_unit_is_the_same_again(unit):
    again = STUDY.run(RELU, [3, 8], Context())
    assert again.rows == unit.rows
    assert again.curves == unit.curves
    assert all(torch.equal(again.arrays[name], array) for name, array in unit.arrays.items())


def test_surfaces_hold_the_path_and_the_ends(unit, plain):
    assert unit.arrays["view_loss"].shape == (2, 5, 5)
    path, x = unit.arrays["three_path"], unit.arrays["three_x"]
    assert path[0].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert float(path[-1, 0]) == pytest.approx(float((plain[3][-1] - plain[3][0]).norm()), rel=1e-5)
    assert float(x[0]) < float(path[:, 0].min()) < float(path[:, 0].max()) < float(x[-1])
    assert float(unit.arrays["pca_explained"].sum()) == pytest.approx(unit.rows[0]["pca2"], rel=1e-4)


def test_one_seed_alone_gets_a_second_solution_of_its_own():
    values = {**RELU, "side": 0, "views": False, "rows": 100}
    result = STUDY.run(values, [3], Context())
    assert result.rows[0]["apart"] > 0.5
    assert not result.arrays


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("height", [0.0, 3.0])
def test_an_obstacle_is_a_ridge_between_path_and_line(height):
    def loss(model, batch):
        w = model.w
        ridge = height * torch.exp(-((w[1] - 0.2) ** 2) / 0.005)
        return (1 - w[0]) + ridge * batch.mean()

    batches = [torch.full((4,), 1 + 0.01 * k) for k in range(20)]
    objective = Objective(Two(), loss, batches)
    t = torch.linspace(0, 1, 21)
    points = torch.stack([t, 0.4 * torch.sin(math.pi * t)], dim=1)
    row = obstacle(objective, points, project(path_of(points)), seed=0)
    assert row["obstacle_significant"] is (height > 0)
    assert row["obstacle"] == pytest.approx(height * 1.095, rel=0.05, abs=1e-6)


def test_a_plateau_is_the_longest_wait_before_the_fall_is_done():
    steps = np.arange(101.0)
    ramp = np.linspace(1, 0, 101)
    assert plateau(steps, ramp) == pytest.approx(0.05 / 0.9, abs=0.01)
    late = np.r_[np.ones(60), np.linspace(1, 0, 41)]
    assert plateau(steps, late) == pytest.approx((59 + 3) / 96, abs=0.02)
    middle = np.r_[np.linspace(1.5, 1, 20), np.ones(50), np.linspace(1, 0, 31)]
    assert 0.5 < plateau(steps, middle) < 0.7


@pytest.fixture(scope="module")
def results():
    rows, curves, arrays = [], [], []
    for setting in STUDY.grid("quick"):
        values = dict(setting.values)
        model = values["model"]
        if model in TINY:
            values["target"] = "interpolation:" + TINY[model]
        elif model in NETWORKS:
            values["target"] = f"interpolation:{model},width=6"
        steps = 60 if "factored" in model else 12
        values["target"] = ",".join([w for w in values["target"].split(",") if not w.startswith("steps=")] + [f"steps={steps}"])
        values |= {"rows": 40, "view_rows": 16, "points": 16, "walks": 6, "side": 5 if values["side"] else 0}
        found = STUDY.run(values, (0,), Context())
        rows += [{**setting.values, **row} for row in found.rows]
        curves += [{**setting.values, **row} for row in found.curves]
        arrays.append((setting.values, (0,), lambda found=found: found.arrays))
    return Results(Table(rows), Table(curves), arrays)


def test_every_claim_is_measured_on_what_a_run_gives(results):
    for scale in ("quick", "paper"):
        claims = STUDY.claims(scale)
        assert len({claim.id for claim in claims}) == len(claims)
        for claim in claims:
            values = claim.measure(results)
            assert len(values) >= 1, claim.id
            assert np.isfinite(values).all(), claim.id
            assert not claim.expected_to_fail or claim.why
    assert len(on_line(results, "lstm")) == len(beside(results, "lstm")) == len(views(results, "lstm")) == 1
    assert on_line(results, "relu")[0].shape == GRID.shape


def test_figures_draw(results):
    for figure in STUDY.figures("quick"):
        drawing = figure.draw(results)
        drawing.set_layout_engine("none")  # which draws everything twice
        assert plots.render(drawing, "png", dpi=20).startswith(b"\x89PNG")


def test_rows_say_which_data_they_are_of(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADOSCOPE_DATA", raising=False)
    assert {s.values["data"] for s in STUDY.grid("paper")} == {"digits", "grammar", "none"}
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (folder / name).write_bytes(b"")
    monkeypatch.setenv("GRADOSCOPE_DATA", str(tmp_path))
    assert {s.values["data"] for s in STUDY.grid("paper")} == {"mnist", "grammar", "none"}
    assert {s.values["data"] for s in STUDY.grid("quick")} == {"digits", "grammar", "none"}
    for setting in [*STUDY.grid("quick"), *STUDY.grid("paper")]:
        assert ("data=mnist" in setting.values["target"]) == (setting.values["data"] == "mnist")
