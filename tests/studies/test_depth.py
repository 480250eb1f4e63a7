"""The study of depth: signals, gradients and trainings against plain loops, claims and figures on small settings."""

import math

import pytest
import torch
from torch import nn

from gradoscope.problems._data import digits
from gradoscope.report import plots
from gradoscope.stacked import blank, generator, numpy_generator, unstack
from gradoscope.studies._depth import KEY, CrossEntropy, gain_of, network, weights
from gradoscope.studies.depth import STUDY
from gradoscope.study import Context, Results, Table
from gradoscope.theory.depth import random_walk_gain
from tests.studies.information_results import same

SEEDS = (0, 1)


@pytest.fixture(scope="module", params=["quick", "paper"])
def found(request):
    """Every setting of a scale; signals of 40 layers, and trainings of 4 layers under the names of the deep ones."""
    rows, curves = [], []
    for setting in STUDY.grid(request.param):
        tiny = {"layers": 40} if setting.values["part"] == "signals" else {"layers": 4, "steps": 3, "batch": 8}
        result = STUDY.run({**setting.values, **tiny}, SEEDS, Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **point} for point in result.curves]
    return request.param, Results(Table(rows), Table(curves))


def single(seed, layers, gain):
    parts = []
    for w in weights(seed, 64, layers - 1, gain_of(gain, 64, layers)):
        layer = blank(64, 64)
        with torch.no_grad():
            layer.weight.copy_(w.T)
            layer.bias.zero_()
        parts += [layer, nn.ReLU()]
    last = blank(64, 10)
    with torch.no_grad():
        last.weight.copy_((torch.randn(64, 10, generator=generator(seed, KEY, 4)) / 8).T)
        last.bias.zero_()
    return nn.Sequential(*parts, last)


def test_a_seed_of_a_stack_is_a_plain_training():
    values = {"part": "training", "width": 64, "layers": 7, "gain": "he", "steps": 12, "batch": 16, "lr": 3e-3}
    row = STUDY.run(values, (3, 5), Context()).rows[1]
    model, random = single(5, 7, "he"), numpy_generator(0, KEY, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    (x, y), (x_valid, y_valid) = digits(0)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 12)
        chosen = torch.from_numpy(random.integers(0, len(x), 16))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        assert row["loss"] == pytest.approx(float(nn.functional.cross_entropy(model(x[:512]), y[:512])), rel=1e-3)
        assert row["valid"] == pytest.approx(float((model(x_valid).argmax(1) == y_valid).double().mean()), abs=0.01)


def test_a_stack_starts_as_single_networks_do():
    stacked = network((3, 5), 64, 6, "random walk")
    x = torch.randn(4, 64, generator=generator(1, 1))
    alone = single(5, 6, "random walk")
    assert torch.allclose(stacked(x)[1], alone(x), rtol=1e-4, atol=1e-6)
    assert torch.allclose(unstack(stacked, 0, single(5, 6, "he"))(x), single(3, 6, "random walk")(x), rtol=1e-4, atol=1e-6)


def test_signals_and_gradients_are_those_of_autograd():
    values = {"part": "signals", "width": 64, "layers": 12, "gain": "0.9 he"}
    found = STUDY.run(values, (4,), Context())
    ws = [w.requires_grad_() for w in weights(4, 64, 12, gain_of("0.9 he", 64, 12), torch.float64)]
    x = digits(4)[0][0][:32].double()
    h = signal = x
    sizes, angles = [], []
    for w in ws:
        h = (h @ w).relu()
        sizes.append(float((h[0].norm() / x[0].norm()).log().detach()))
        u = nn.functional.normalize(h, dim=1)
        angles.append(float((u[1:] @ u[0]).clamp(max=1).acos().mean().detach()))
    top = torch.randn(64, generator=generator(4, KEY, 2), dtype=torch.float64)
    (h[0] @ (top / top.norm())).backward()
    curves = {c["layer"]: c for c in found.curves}
    for layer in (1, 5, 12):
        assert curves[layer]["signal"] == pytest.approx(sizes[layer - 1], abs=1e-9)
        assert curves[layer]["angle"] == pytest.approx(angles[layer - 1], rel=1e-6)
    assert found.rows[0]["gradient_first"] == pytest.approx(float(ws[0].grad.norm().log()), abs=1e-9)
    assert found.rows[0]["gradient_last"] == pytest.approx(float(ws[-1].grad.norm().log()), abs=1e-9)
    assert signal is x


def test_cross_entropy_is_torchs():
    scores = torch.randn(2, 5, 10, generator=generator(2, 2), dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1, 0, 9, 3, 3])
    losses, slope = CrossEntropy().slope(scores.detach(), y)
    plain = torch.stack([nn.functional.cross_entropy(s, y) for s in scores])
    plain.sum().backward()
    assert torch.allclose(losses, plain.detach(), atol=1e-12)
    assert torch.allclose(slope, scores.grad, atol=1e-12)


def test_the_formula_is_that_of_the_width_unless_it_is_misread():
    assert gain_of("random walk", 64, 1000) == random_walk_gain(64)
    assert gain_of("random walk by layers", 64, 1000) == random_walk_gain(1000)


def test_every_claim_can_be_measured(found):
    scale, outcome = found
    judged = {c.id: c.judge(STUDY.name, outcome) for c in STUDY.claims(scale)}
    assert len(judged) == len(STUDY.claims(scale))
    assert all(math.isfinite(j.measured) for j in judged.values())
    for name in ("formula-has-no-drift", "gradient-alike", "angles-whatever-gain"):
        assert judged[name].holds, name


def test_figures_draw(found):
    scale, outcome = found
    for figure in STUDY.figures(scale):
        assert len(plots.render(figure.draw(outcome), "png", dpi=40)) > 1000
        assert len(figure.caption) > 60


@pytest.mark.parametrize("part", ["signals", "training"])
def test_a_unit_is_the_same_when_it_runs_again(part):
    values = next(s.values for s in STUDY.grid("quick") if s.values["part"] == part)
    values = {**values, **({"layers": 20} if part == "signals" else {"layers": 6, "steps": 4})}
    before = torch.get_rng_state()
    assert same(STUDY, values, SEEDS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_grid():
    paper = STUDY.grid("paper")
    assert {s.values["layers"] for s in paper} == {10, 30, 100, 300, 1000}
    assert all(s.seeds >= 5 for scale in ("quick", "paper") for s in STUDY.grid(scale))
    assert len({repr(s.values) for s in paper}) == len(paper)
