"""The study of curves: fast paths against plain loops, units that repeat to the bit, claims that can be measured, figures that draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gradoscope.guard import private_random, random_fingerprint
from gradoscope.problems._curves import autoencoder_network
from gradoscope.stacked import generator, numpy_generator, start_like_source
from gradoscope.studies import _curves_train as train
from gradoscope.studies._curves_theory import landscape, monte_carlo
from gradoscope.studies.curves import STUDY
from gradoscope.study import Context, Result, Results, Scale, Table

SMALL = {"n": 20, "k": 3, "curves": 60}
Arrays = list[tuple[Mapping[str, Any], tuple[int, ...], Any]]


def run(values: Mapping[str, Any], seeds: Sequence[int]) -> Result:
    return STUDY.run(values, seeds, Context())


def same(a: Result, b: Result) -> None:
    assert repr(a.rows) == repr(b.rows)
    assert repr(a.curves) == repr(b.curves)
    assert a.arrays.keys() == b.arrays.keys()
    assert all(torch.equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


PARTS: dict[str, dict[str, Any]] = {
    "linear": {"part": "linear", "law": "code", "lr": 1e-3, "steps": 30, "batch": 10, **SMALL},
    "filter": {"part": "filter", "law": "paper", "whitened": False, "optimizer": "adam", "lr": 0.05, "steps": 30, "batch": 10, **SMALL},
    "sgd": {"part": "filter", "law": "code", "whitened": False, "optimizer": "sgd", "lr": 0.0, "steps": 30, "batch": 10, **SMALL},
    "whitened": {"part": "filter", "law": "code", "whitened": True, "optimizer": "adam", "lr": 0.99, "steps": 30, "batch": 10, **SMALL},
    "autoencoder": {"part": "autoencoder", "law": "paper", "width": 0.1, "depth": 2, "lr": 1e-3, "steps": 12, "batch": 10, **SMALL},
    "anywhere": {"part": "autoencoder", "law": "anywhere", "width": 0.1, "depth": 0, "lr": 1e-3, "steps": 12, "batch": 10, **SMALL},
    "whole": {"part": "whole", "law": "paper", "used": 60, "steps": 9, "batch": 10, "rate": 0.1, **SMALL},
    "runs": {"part": "runs", "n": 5, "runs": 20, "batch": 4, "steps": 100, "scaled": 1.0},
    "estimates": {"part": "estimates", "n": 12},
    "spectra": {"part": "spectra", "largest": 50},
    "theorem": {"part": "theorem", "n": 8, "small": 4, "steps": 50},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_unit_is_a_pure_function_of_setting_and_seeds(name: str):
    values = PARTS[name]
    seeds = () if name in ("spectra", "theorem") else (0, 1)
    before = random_fingerprint()
    first = run(values, seeds)
    torch.rand(3)
    assert random_fingerprint() != before
    with private_random():
        before = random_fingerprint()
        same(first, run(values, seeds))
        assert random_fingerprint() == before
    if seeds:
        assert {row["seed"] for row in first.rows} == {0, 1}


@pytest.mark.parametrize("name", ["linear", "filter", "sgd", "whitened", "autoencoder", "whole"])
def test_seeds_do_not_see_each_other(name: str):
    together, alone = run(PARTS[name], (0, 1)), run(PARTS[name], (1,))
    for a, b in zip([r for r in together.rows if r["seed"] == 1], alone.rows, strict=True):
        for key, value in b.items():
            loose = key in ("residual", "saddle_gain", "smallest", "gradient")  # what Lanczos makes of the last bit
            assert a[key] == pytest.approx(value, rel=1e-2 if loose else 1e-4, abs=1e-3 if loose else 1e-6), key


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
@pytest.mark.parametrize("whitened", [False, True])
def test_sufficient_statistics_take_the_steps_of_a_plain_loop(optimizer: str, whitened: bool):
    seeds, steps, batch, lr = (3, 4), 40, 7, 1e-5 if optimizer == "sgd" else 0.05
    data = [train.curves("paper", s, 20, 3, 50) for s in seeds]
    stats = np.stack([train.statistics(d) for d in data])
    maps = train.filter_maps(stats, whitened)
    path = train.train_filter(stats, seeds, train.Rule(optimizer, np.full((2, 1), lr)), steps=steps, batch=batch, maps=maps)
    for s, seed in enumerate(seeds):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        kind = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}[optimizer]
        rule, t = kind([w], lr=lr), torch.from_numpy(np.array(maps[s]))
        index = numpy_generator(seed, train.KEY, 3).integers(0, 50, (train.DRAWN, batch))
        for step in range(steps):
            np.testing.assert_allclose(path[step, s], (t @ w).detach().numpy(), rtol=1e-9, atol=1e-11)
            f, p = data[s].f[index[step]], data[s].p[index[step]]
            wide = torch.nn.functional.pad(f, (2, 0))
            x = torch.stack([wide[:, :-2], wide[:, 1:-1], wide[:, 2:]], dim=2)
            rule.zero_grad()
            (x @ t @ w - p).square().mean().backward()
            rule.step()


def test_the_linear_map_takes_the_steps_of_a_plain_loop():
    seeds, steps = (0, 1), 15
    data = [train.curves("code", s, 15, 3, 40) for s in seeds]
    seen: dict[int, torch.Tensor] = {}
    train.train_linear(data, seeds, lr=1e-2, steps=steps, batch=8, look=lambda i, v: seen.update({i: v.clone()}), tick=lambda share: None)
    assert list(seen) == train.marks(steps)
    for s, seed in enumerate(seeds):
        model = torch.nn.Parameter(torch.zeros(15, 15))
        optimizer = torch.optim.Adam([model], lr=1e-2)
        index = numpy_generator(seed, train.KEY, 2).integers(0, 40, (train.DRAWN, 8))
        for i in range(steps):
            f, p = data[s].f[index[i]].float(), data[s].p[index[i]].float()
            optimizer.zero_grad()
            (f @ model - p).square().sum(1).mean().backward()
            optimizer.step()
        assert torch.allclose(seen[steps][s], model.detach(), atol=1e-5)
        zero = data[s].p.abs().sum(0) == 0
        assert zero.sum() >= 6
        assert bool((seen[steps][s][:, zero] == 0).all())  # no gradient ever reaches what is never asked for


def test_the_autoencoder_takes_the_steps_of_a_plain_loop():
    seeds, steps = (0, 1), 10
    data = [train.curves("anywhere", s, 15, 3, 40) for s in seeds]
    shape = {"lr": 1e-3, "steps": steps, "batch": 8, "width": 0.1, "depth": 1, "k": 3}
    losses: list[float] = []

    def look(step: int, model: Any) -> None:
        with torch.no_grad():
            losses.append(float((model(data[1].f.float())[1] - data[1].f.float()).square().mean()))

    train.train_autoencoder(data, seeds, **shape, look=look, tick=lambda share: None)
    with private_random():
        single = start_like_source(autoencoder_network(15, 3, 0.1, 1), generator(1, train.KEY, 4))
    optimizer = torch.optim.Adam(single.parameters(), lr=1e-3)
    index = numpy_generator(1, train.KEY, 2).integers(0, 40, (train.DRAWN, 8))
    for i in range(steps):
        f = data[1].f[index[i]].float()
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(single(f), f).backward()
        optimizer.step()
    f = data[1].f.float()
    assert losses[-1] == pytest.approx(float(torch.nn.functional.mse_loss(single(f), f).detach()), rel=1e-4)
    assert losses[-1] < losses[0]


def test_marks_first_and_settled():
    assert train.marks(700)[:12] == [*range(11), 12]
    assert {0, 500, 700} <= set(train.marks(700))
    errors = np.array([[1, 1, 1], [0.001, 1, 0.001], [1, 1, 0.002], [0.001, 1, 0.003]], dtype=float)
    assert train.reached(errors) == [1, math.inf, 1]
    assert train.settled(errors) == [3, math.inf, 1]


def test_second_differences_undo_the_integrator():
    data = train.curves("paper", 0, 30, 3, 20)
    assert torch.allclose(train.slopes_of(data.f), data.p, atol=1e-12)
    perfect = train.judged(data.p_validation, data, 3)
    assert (perfect["loss"], perfect["recall"], perfect["slope_error"]) == (0, 1, 0)
    assert train.judged(0 * data.p_validation, data, 3)["relative"] == train.judged(0 * data.p_validation, data, 3)["curve_relative"] == 1


def test_runs_of_sgd_find_a_wrong_closed_form():
    right = monte_carlo(0, n=5, runs=300, batch=10, steps=300, scaled=1.0)
    assert max(row["z"] for row in right) < 5
    with pytest.MonkeyPatch.context() as patch:
        from gradoscope.theory import curves

        exact = curves.expected_iterate
        patch.setattr(curves, "expected_iterate", lambda n, t, scaled: exact(n, t, scaled, "plain"))
        wrong = monte_carlo(0, n=5, runs=300, batch=10, steps=300, scaled=1.0)
    assert max(row["z"] for row in wrong) > 20


def test_the_landscape_of_a_linear_network_is_known():
    f = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with private_random(0):
        model = torch.nn.Linear(4, 4)
    found = landscape(model, f)
    rows = torch.cat([f, torch.ones(50, 1)], dim=1)
    values = torch.linalg.eigvalsh(2 * rows.T @ rows / 50 / 4)
    assert found["largest"] == pytest.approx(float(values[-1]), rel=1e-2)
    assert found["smallest"] == pytest.approx(float(values[0]), rel=1e-2, abs=1e-2 * float(values[-1]))


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """A setting of the grid that runs in a blink, and is found by the same questions."""
    small = dict(values)
    small.update({key: min(small[key], most) for key, most in (("curves", 300), ("runs", 20), ("largest", 200)) if key in small})
    if small["part"] == "autoencoder":
        small["n"], small["curves"], small["width"] = 20, 50, 0.1
    if small["part"] == "filter":
        small["n"] = 20
    if "steps" in small:
        small["steps"] = {"theorem": 300, "runs": 2000}.get(small["part"], 12)
    return small


def results(scale: Scale) -> Results:
    rows, lines, arrays = [], [], Arrays()
    for setting in STUDY.grid(scale):
        values, seeds = setting.values, tuple(range(min(setting.seeds, 2)))
        found = run(shrunk(values), seeds)
        asked = 1_000 if scale == "quick" and values["part"] == "autoencoder" else 10_000  # the step that claims look at
        named = [{**row, "step": asked if row.get("step") == 12 else row.get("step")} for row in found.curves]
        rows += [{**values, **row} for row in found.rows]
        if values["part"] == "spectra":  # the claims ask for sizes that take seconds
            larger = {100: values["largest"] // 2, 200: values["largest"]}
            rows += [{**values, **row, "n": larger[row["n"]]} for row in found.rows if row["n"] in larger]
        lines += [{**values, **row} for row in named]
        arrays.append((values, seeds, lambda found=found: found.arrays))
    return Results(Table(rows), Table(lines), arrays)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_every_claim_is_measured_and_every_figure_draws(scale: Scale):
    found = results(scale)
    claims = STUDY.claims(scale)
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert judged.seeds > 0, claim.id
    if scale == "quick":
        for figure in STUDY.figures(scale):
            drawn = figure.draw(found)
            assert drawn.axes, figure.name


def test_the_sources_settings_are_those_of_the_paper_scale():
    grid = [s.values for s in STUDY.grid("paper")]
    linear = next(v for v in grid if v["part"] == "linear")
    assert (linear["lr"], linear["steps"], linear["batch"], linear["n"], linear["curves"]) == (1e-4, 50_000, 100, 100, 10_000)
    whitened = next(v for v in grid if v.get("whitened"))
    assert (whitened["lr"], whitened["steps"], whitened["batch"]) == (0.99, 500, 10)
    assert sum(unit.cost for s in STUDY.grid("paper") for unit in s.units(STUDY, None)) < 20 * 60
