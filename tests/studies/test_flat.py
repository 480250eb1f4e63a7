"""The study of flat activations: stacks against single networks, determinism, and every claim and figure on small runs."""

import math

import pytest
import torch
from torch import nn

from gradoscope.problems.steps import Smooth, classifier, relu_network, round_down, thresholds
from gradoscope.stacked import generator, start_like_source, unstack
from gradoscope.studies._flat import KEY, LAW, LR, Target, batches, multiplications, network, predict, steps_to
from gradoscope.studies._flat_plateau import where_it_stands
from gradoscope.studies.flat import BINS, STUDY, _distance, _rates
from gradoscope.study import Context, Results, Setting, Table
from gradoscope.updates.forward_only import ForwardOnly

APPROACHES = ("smooth", "end-to-end", "multi-class", "forward-only")


def small(scale):
    """The grid with fewer steps and a smaller stack; the claims need every part of it."""
    for setting in STUDY.grid(scale):
        values = dict(setting.values)
        values["steps"] = {"train": 40, "bias": 20, "bound": 150}[values["part"]]
        values |= {"n": 60, "d": 5} if values["part"] == "bound" else {"d": 20, "batch": 32}
        yield Setting(values, 2, 2)


def gathered(settings):
    rows, curves, arrays = [], [], []
    for setting in settings:
        result = STUDY.run(setting.values, (0, 1), Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
        arrays.append((setting.values, (0, 1), lambda found=result.arrays: found))
    return Results(Table(rows), Table(curves), arrays)


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    return request.param, gathered(small(request.param))


def test_every_claim_can_be_measured(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert judged.seeds >= 1 or claim.id.startswith("plateau")
        assert not math.isnan(judged.measured) or claim.id.startswith("plateau"), claim.id
    # These are theorems or arithmetic, and hold at any size.
    for claim in claims:
        if claim.id in ("glmtron-bound", "isotron-bound", "glmtron-falls", "isotron-falls", "hard-gradient-zero"):
            assert claim.judge(STUDY.name, found).holds, claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        drawing = figure.draw(found)
        assert any(ax.lines for ax in drawing.axes), figure.name
        assert len(figure.caption) > 80


def test_the_same_unit_twice_is_the_same_to_the_bit():
    settings = list(small("quick"))
    assert len(settings) == 14
    for setting in [settings[i] for i in (0, 2, 3, 6, 9, 12)]:  # each kind of work once
        a, b = (STUDY.run(setting.values, (3, 4), Context()) for _ in range(2))
        assert a.rows == b.rows
        assert a.curves == b.curves
        assert all(torch.equal(a.arrays[k].nan_to_num(-1), b.arrays[k].nan_to_num(-1)) for k in a.arrays)


def single(approach, d, offset):
    if approach == "end-to-end":
        return relu_network(d)
    if approach == "multi-class":
        return classifier(d, len(thresholds(LAW)))
    curve = Smooth(LAW, offset) if approach == "smooth" else ForwardOnly(lambda r: round_down(r, LAW, offset))
    return nn.Sequential(nn.Linear(d, 1), curve)


@pytest.mark.parametrize("approach", APPROACHES)
def test_a_stack_trains_each_network_as_it_would_alone(approach):
    from gradoscope.stacked import fit
    from gradoscope.studies._flat import adam, losses

    target = Target.of((5, 6, 7), 12, 0.3)
    stacked = network(approach, target)
    alone = Target.of((6,), 12, 0.3)
    model = single(approach, 12, alone.offset[0])
    start_like_source(model, generator(6, KEY, 2))
    fit(stacked, adam(stacked, LR[approach]), batches(target, 16), lambda m, x, i: losses(approach, target, m, x, i), 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR[approach], betas=(0.9, 0.99), eps=1e-5)
    stream = batches(alone, 16)
    for _ in range(40):
        x, index = next(stream)
        optimizer.zero_grad()
        out = model(x[0])
        if approach == "multi-class":
            loss = nn.functional.cross_entropy(out, index[0])
        else:
            loss = (out[:, 0] - (thresholds(LAW)[index[0]] + alone.offset[0, 0, 0])).square().mean()
        loss.backward()
        optimizer.step()
    linear = nn.Sequential(*(m for m in model if not isinstance(m, (Smooth, ForwardOnly))))
    copied = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in linear))
    unstack(nn.Sequential(*list(stacked)[: len(linear)]), 1, copied)
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)


def test_examples_and_levels_against_their_definition():
    target = Target.of((0, 1), 10, 0.5)
    x, r, index = target.probe(50)
    for s in range(2):
        for n in range(50):
            total = float((x[s, n].double() * target.direction[s].double()).sum())
            assert float(r[s, n]) == pytest.approx(total + float(target.offset[s, 0, 0]), abs=1e-5)
            assert int(index[s, n]) == max(i for i, z in enumerate(thresholds(LAW).tolist()) if z <= total)
    slow = torch.tensor(
        [[min(abs(float(v - b) - z) for z in thresholds(LAW)[1:].tolist()) for v in row] for row, b in zip(r, target.offset, strict=True)]
    )
    torch.testing.assert_close(_distance(r, target), slow, atol=1e-5, rtol=0)


def test_predictions_are_levels():
    target = Target.of((0, 1), 10, 0.5)
    x, _, index = target.probe(200)
    perfect = network("forward-only", target)
    with torch.no_grad():
        perfect[0].weight.copy_(target.direction.unsqueeze(-1))
        perfect[0].bias.copy_(target.offset)
    said, meant = predict("forward-only", target, perfect, x)
    assert float((meant == index).double().mean()) > 0.99  # sums are rounded in another order
    assert torch.equal(said, target.values(meant))


def test_rates_by_distance():
    near = torch.tensor([0.001, 0.001, 0.006, 0.03, 0.5])
    rates = _rates(torch.tensor([True, False, True, False, False]), near)
    assert rates[:3].tolist() == [0.5, pytest.approx(math.nan, nan_ok=True), 1.0]
    assert len(rates) == len(BINS) - 1
    assert rates[-1] == 0


def test_multiplications_by_hand():
    assert multiplications("forward-only", 100, 1)[1] == 100 + 100 + 7 * 101
    assert multiplications("smooth", 100, 1) == (100 + 153, 2 * (100 + 153) + 7 * 101)
    forward, step = multiplications("end-to-end", 100, 1)
    assert forward == 3 * 100 * 100 + 100
    assert step == 2 * forward + (2 * 100 * 100 + 100) + 7 * sum(p.numel() for p in relu_network(100).parameters())
    forward, step = multiplications("multi-class", 100, 1)
    assert forward == 2 * 100 * 100 + 52 * 100
    assert step == 2 * forward + (100 * 100 + 52 * 100) + 7 * sum(p.numel() for p in classifier(100, 52).parameters())


def test_steps_to():
    assert steps_to([(0, 3.0), (50, 1.0), (100, 2.0)], 1.0) == 50
    assert steps_to([(0, 3.0)], 1.0) is None


def test_a_plateau_and_a_slope_are_told_apart():
    target = Target.of((0,), 20, 0.01)
    x, _, index = target.probe(300)
    y = target.values(index)[0].unsqueeze(-1)
    found = {}
    for gap in (0.5, 0.02):
        stacked = network("smooth", target)
        with torch.no_grad():
            stacked[0].bias.copy_(target.offset + gap)
        found[gap] = where_it_stands(target, stacked, 0, 0.0, (x[0], y))
    stuck, moving = found[0.5], found[0.02]
    assert stuck["passed"] < 1e-6
    assert moving["passed"] > 0.1
    assert stuck["hard_gradient"] == moving["hard_gradient"] == 0
    assert stuck["barrier"] <= 1e-9
    assert stuck["path_end"] < 0.2
    # The gradient against a central difference in the bias, by far its largest part.
    model = nn.Sequential(nn.Linear(20, 1), Smooth(LAW, target.offset[0].reshape(1))).double()
    unstack(nn.Sequential(stacked[0]), 0, nn.Sequential(model[0]))
    values = []
    for step in (-1e-6, 1e-6):
        with torch.no_grad():
            model[0].bias += step
            values.append(float((model(x[0].double()) - y).square().mean()))
            model[0].bias -= step
    assert moving["gradient"] == pytest.approx(abs(values[1] - values[0]) / 2e-6, rel=0.05)
