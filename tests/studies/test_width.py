"""The study of width: stacked starts against single trainings, separability by brute force, claims and figures on small runs."""

import math

import pytest
import torch
from torch import nn

from gradoscope.studies._width import network, pixels, separable_pair
from gradoscope.studies.width import STUDY
from gradoscope.study import Context, Results, Table

TINY = {
    "starts": {"images": 40, "steps": 12},
    "autoencoder": {"steps": 20},
    "separable": {"images": 30, "steps": 15},
}


def test_a_start_of_a_stack_is_a_plain_training():
    values = {"part": "starts", "images": 30, "lr": 0.5, "steps": 20, "classify": 3, "width": 3}
    rows = STUDY.run(values, [4, 1], Context()).rows
    (x, y), (x_valid, y_valid) = pixels(0, 30)
    for row, seed in zip(rows, [4, 1], strict=True):
        model = network(seed, 64, 3, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            assert row["train"] == pytest.approx(float(nn.functional.cross_entropy(model(x), y)), rel=1e-3)
            assert row["valid"] == pytest.approx(float(nn.functional.cross_entropy(model(x_valid), y_valid)), rel=1e-3)
        parameters = list(model.parameters())
        dense = _hessian(model, x, y, parameters)
        eigenvalues = torch.linalg.eigvalsh(dense)
        assert row["lowest"] == pytest.approx(float(eigenvalues[0] / eigenvalues[-1]), abs=0.03)


def _hessian(model, x, y, parameters):
    sizes = [p.shape for p in parameters]

    def loss(theta):
        parts = [part.view(size) for part, size in zip(theta.split([s.numel() for s in sizes]), sizes, strict=True)]
        named = dict(zip((name for name, _ in model.named_parameters()), parts, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in parameters]))


def test_pixels_are_between_zero_and_one():
    (x, y), (x_valid, _) = pixels(0, 200)
    assert len(x) == len(y) == 200
    assert float(x.min()) == 0
    assert float(x.max()) == 1
    assert len(x_valid) == 450


def test_a_separating_plane_is_found_where_there_is_one():
    x, y, apart = separable_pair(60)
    assert apart
    assert set(y.flatten().tolist()) == {0.0, 1.0}
    w = torch.zeros(65, dtype=torch.float64)  # the perceptron stops where a plane exists, and only there
    z = torch.cat([x, torch.ones(len(x), 1)], 1).double() * (2 * y.double() - 1)
    for _ in range(10_000):
        wrong = (z @ w <= 0).nonzero()
        if not len(wrong):
            break
        w += z[wrong[0, 0]]
    assert bool((z @ w > 0).all())


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves = [], []
    for setting in STUDY.grid(request.param):
        values = {**setting.values, **TINY[setting.values["part"]]}
        result = STUDY.run(values, (0, 1), Context())
        rows += [{**setting.values, **row} for row in result.rows]
    return request.param, Results(Table(rows), Table(curves))


def test_every_claim_can_be_measured_and_theorems_hold(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert not math.isnan(judged.measured), claim.id
        if (claim.id.startswith("autoencoder-") and claim.id != "autoencoder-trained") or claim.id == "separable":
            assert judged.holds, claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for part in ("starts", "separable"):
        values = next(s.values for s in STUDY.grid("quick") if s.values["part"] == part) | TINY[part]
        first, second = (STUDY.run(values, (0, 1), Context()) for _ in range(2))
        assert first.rows == second.rows
    assert torch.equal(before, torch.get_rng_state())
