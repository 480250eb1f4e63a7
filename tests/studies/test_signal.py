"""F4: the direct estimates against loops, the population's value against a slow quadrature, and the study on a small grid."""

import math

import pytest
import torch

from gradoscope.stacked import generator
from gradoscope.studies._signal import PARTS, Pool, authors_ratio, direct, pool_of, population, second_network
from gradoscope.studies.signal import STUDY
from gradoscope.study import Context, Results, Table

POOL = pool_of(0, 3840, 12)


def gradients(k: int) -> torch.Tensor:
    """h g of each disjoint tuple, by autograd through the last layer, one tuple at a time."""
    net = second_network(0, k, 12)
    weight = torch.zeros(POOL.features.shape[1], dtype=torch.float64, requires_grad=True)
    rows = []
    for start in range(0, 64 * k, k):
        part = slice(start, start + k)
        scores = POOL.scores[part] + POOL.features[part] @ weight  # around the weights that are there
        (gradient,) = torch.autograd.grad(net.combine(scores[None]).sum(), weight)
        rows.append(gradient * POOL.labels[part].prod())
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_direct_estimate_is_that_of_autograd(k: int) -> None:
    few = Pool(POOL.features[: 64 * k], POOL.scores[: 64 * k], POOL.labels[: 64 * k])
    found = direct(few, second_network(0, k, 12))
    z = gradients(k)
    signal = (float(z.sum(0) @ z.sum(0)) - float((z**2).sum())) / (64 * 63)
    assert found.n == 64
    assert found.signal == pytest.approx(signal, rel=1e-9)


def test_authors_estimate() -> None:
    net = second_network(0, 1, 12)
    few = Pool(POOL.features[:640], POOL.scores[:640], POOL.labels[:640])
    slopes = torch.stack([_slope(net, s) for s in few.scores])
    z = few.labels[:, None] * slopes[:, None] * few.features
    batches = z[:600].view(6, 100, -1).mean(1)
    signal = float(batches.mean(0).square().sum())
    noise = 100 * float(batches.square().sum(1).mean())
    assert authors_ratio(few, net) == pytest.approx(signal / (noise - signal**2), rel=1e-9)


def _slope(net: torch.nn.Module, score: torch.Tensor) -> torch.Tensor:
    leaf = score.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.combine(leaf[None, None]).sum(), leaf)  # type: ignore[operator]
    return slope


def test_population_is_the_law_of_single_images_composed() -> None:
    """With as many bins as distinct scores the quadrature is exact: all pairs of images of two parts of the pool."""
    random = torch.Generator().manual_seed(1)
    n, k = PARTS * 5, 2
    levels = torch.tensor([-0.4, 0.1, 0.5], dtype=torch.float64)
    index = torch.randint(0, 3, (n,), generator=random)
    labels = torch.where(torch.rand(n, generator=random) < 0.5, 1.0, -1.0).double()
    pool = Pool(torch.randn(n, 4, generator=random, dtype=torch.float64), levels[index], labels)
    net = second_network(3, k, 12)
    found = population(pool, net, 3, 1, torch.Generator().manual_seed(7))
    order = torch.randperm(PARTS, generator=torch.Generator().manual_seed(7)).view(2, k, -1)
    part = torch.arange(n) % PARTS
    means = torch.stack([labels[part == p].mean() for p in range(PARTS)])
    y = labels - means[part]
    halves = []
    for deal in order:
        first, second = (torch.isin(part, parts) for parts in deal)
        a, b = first.nonzero()[:, 0], second.nonzero()[:, 0]
        total = torch.zeros(4, dtype=torch.float64)
        for i in a:
            for j in b:
                leaf = torch.stack([pool.scores[i], pool.scores[j]])[None].requires_grad_()
                (slopes,) = torch.autograd.grad(net.combine(leaf).sum(), leaf)
                total += y[i] * y[j] * (slopes[0, 0] * pool.features[i] + slopes[0, 1] * pool.features[j])
        halves.append(total / len(a) / len(b))
    assert found == pytest.approx(float(halves[0] @ halves[1]), rel=1e-9)


def test_population_agrees_with_the_direct_estimate_where_that_resolves() -> None:
    pool = pool_of(1, 19_200, 28)
    net = second_network(1, 1, 28)
    found = direct(pool, net)
    value = population(pool, net, 40, 8, generator(1, 9)) / found.noise
    assert abs(value - found.snr) < 3 * found.se
    scatter = [population(pool, net, 40, 2, generator(i, 9), shuffled=True) / found.noise for i in range(3)]
    assert max(map(abs, scatter)) < value / 10


def test_the_study_runs_draws_and_repeats() -> None:
    small = [
        {"part": "lines", "images": 2400, "bins": 8},
        *({"part": "theorem", "k": k, "d": d, "samples": 4096} for k in (1, 2, 3) for d in (8, 64)),
    ]
    rows = []
    for values in small:
        seeds = [0] if values["part"] == "lines" else [0, 1]
        result = STUDY.run(values, seeds, Context())
        assert result.rows == STUDY.run(values, seeds, Context()).rows
        rows += [{**values, **row} for row in result.rows]
    results = Results(Table(rows), Table([]))
    for claim in STUDY.claims("quick"):
        judged = claim.judge("signal", results)
        assert math.isfinite(judged.measured), claim.id
    for figure in STUDY.figures("quick"):
        figure.draw(results).canvas.draw()
