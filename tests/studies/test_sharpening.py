"""The study of sharpening: sharpness and spectra against dense Hessians, rows of known runs, claims and figures on small runs."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.studies._sharpening import _deep, _edge_row, _network, _pixels
from gradoscope.studies.sharpening import STUDY
from gradoscope.study import Context, Results, Table

TINY = {
    "edge": {"images": 20, "time": 1.2, "hidden": 3, "look": 0.4},
    "spectra": {"images": 16, "hidden": 3, "batch": 6, "products": 31},
}


def tiny(values):
    small = {**values, **TINY[values["part"]]}
    if values["part"] == "spectra":
        small |= {"steps": 4, "looks": [0, 2, 4]}
    return small


def dense(model, loss):
    parameters = dict(model.named_parameters())
    sizes = [p.shape for p in parameters.values()]

    def flat_loss(theta):
        parts = [part.view(size) for part, size in zip(theta.split([s.numel() for s in sizes]), sizes, strict=True)]
        return loss(torch.func.functional_call(model, dict(zip(parameters, parts, strict=True)), (loss.x,)))

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.autograd.functional.hessian(flat_loss, theta), torch.autograd.functional.jacobian(flat_loss, theta)


def test_sharpness_along_descent_is_that_of_a_plain_loop():
    values = {"part": "edge", "lr": 0.1, "time": 1.0, "images": 15, "hidden": 3, "look": 0.5}
    result = STUDY.run(values, [3, 1], Context())
    x, classes = _pixels(15)
    y = nn.functional.one_hot(classes, 10).float()
    for seed in (3, 1):
        model = _network(seed, 3)
        optimizer, sharp, losses = torch.optim.SGD(model.parameters(), lr=0.1), [], []

        def loss(out):
            return 0.5 * (out - y).square().sum(1).mean()

        loss.x = x
        for step in range(11):
            if step % 5 == 0:
                sharp.append(0.1 * float(torch.linalg.eigvalsh(dense(model, loss)[0])[-1]))
            optimizer.zero_grad()
            now = loss(model(x))
            losses.append(float(now.detach()))
            now.backward()
            optimizer.step()
        rows = [row for row in result.curves if row["seed"] == seed]
        assert [row["sharpness"] for row in rows] == pytest.approx(sharp[: len(rows)], rel=0.02)
        assert [row["loss"] for row in rows] == pytest.approx([np.mean(losses[:5]), np.mean(losses[5:10])], rel=1e-4)


def test_the_row_of_a_known_run():
    path = np.array([9.0, 8, 7, 6, 5, 4, 5, 4, 5, 3, 4, 2])
    row = _edge_row(path, np.array([1.0, 1.5, 1.8, 1.95, 2.05, 2.0]), every=2)
    assert row["start"] == 1.0
    assert row["median"] == pytest.approx(2.025)
    assert row["reached"]
    assert row["uphill_calm"] == 0  # of the first four steps
    assert row["uphill"] == pytest.approx(2 / 4)
    row = _edge_row(path, np.array([1.0, 1.5, 1.8, 1.5, 1.6, 1.4]), every=2)
    assert not row["reached"]
    assert row["uphill_calm"] == pytest.approx(3 / 10)


@pytest.mark.parametrize("normalised", [False, True])
def test_spectra_and_shares_against_dense_hessians(normalised):
    values = {"part": "spectra", "normalised": normalised, "images": 12, "hidden": 2, "lr": 0.05, "batch": 6}
    values |= {"steps": 1, "looks": [0], "products": 200}
    (row,) = STUDY.run(values, [2], Context()).rows
    model = _deep(2, 2, normalised).double()
    x, y = _pixels(12)

    def loss(out):
        return nn.functional.cross_entropy(out, y)

    loss.x = x.double()
    hessian, gradient = dense(model, loss)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    assert row["largest"] == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
    share = (vectors[:, -10:].T @ gradient).square().sum() / gradient.square().sum()
    assert row["share"] == pytest.approx(float(share), abs=0.01)
    assert 1 / row["outlier"] == pytest.approx(float(eigenvalues[-30].clamp_min(0) / eigenvalues[-1]), abs=1e-3)


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves, arrays = [], [], []
    for setting in STUDY.grid(request.param):
        result = STUDY.run(tiny(setting.values), (0, 1), Context())
        steps = {0: 0, 2: setting.values.get("looks", [0, 0, 0])[1], 4: setting.values.get("looks", [0, 0, 0])[2]}
        for row in result.rows:
            row |= {"step": steps[row["step"]]} if "step" in row else {"reached": True}
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
        arrays.append((setting.values, (0, 1), lambda found=result.arrays: found))
    return request.param, Results(Table(rows), Table(curves), arrays)


def test_every_claim_can_be_measured(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        assert not math.isnan(claim.judge(STUDY.name, found).measured), claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for setting in (STUDY.grid("quick")[0], STUDY.grid("quick")[-1]):
        first, second = (STUDY.run(tiny(setting.values), (0, 1), Context()) for _ in range(2))
        assert first.rows == second.rows
        assert first.curves == second.curves
        assert all(torch.equal(first.arrays[k], second.arrays[k]) for k in first.arrays)
    assert torch.equal(before, torch.get_rng_state())
