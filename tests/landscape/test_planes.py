"""Surfaces: exact ones against the plain loop, coarse ones against exact ones, and whether their error estimate can be trusted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.landscape import _coarse, directions
from gradoscope.landscape.planes import surface
from gradoscope.objective import Objective
from gradoscope.problems._data import digits
from tests.landscape.nets import cross_entropy, line_of, objective, plain


def test_rows_are_y_and_columns_are_x() -> None:
    loss = objective("relu")
    theta, d = line_of(loss)
    found = surface(loss, theta, d, extent=(-1, 0.5, -0.2, 0.4), points=(5, 4))
    assert found.loss.shape == (4, 5) == (len(found.y), len(found.x))
    np.testing.assert_allclose(found.x, np.linspace(-1, 0.5, 5))
    for i, y in enumerate(found.y):
        np.testing.assert_allclose(found.loss[i], plain(loss, theta, d, [[x, y] for x in found.x]).mean(1), rtol=1e-11)
    assert (found.exact, found.error, found.met, len(found.evaluated)) == (True, 0.0, True, 20)
    assert found.standard_error is not None
    assert (found.standard_error > 0).all()


def test_a_linear_loss_is_a_plane() -> None:
    loss = objective("linear", loss=lambda m, b: m(b[0]).mean())
    theta, d = line_of(loss)
    found = surface(loss, theta, d, points=9)
    for axis in (0, 1):
        steps = np.diff(found.loss, axis=axis)
        np.testing.assert_allclose(steps, steps[0, 0], rtol=1e-9)


def test_a_quadratic_in_closed_form() -> None:
    loss = Objective(nn.ParameterList([torch.zeros(2, dtype=torch.float64)]), lambda m, _: m[0][0] ** 2 + 3 * m[0][1] ** 2, [None])
    found = surface(loss, torch.zeros(2).double(), torch.eye(2).double(), x=[-1, 0, 2], y=[1, 4])
    np.testing.assert_allclose(found.loss, [[4, 3, 7], [49, 48, 52]])
    coarse = surface(loss, torch.zeros(2).double(), torch.eye(2).double(), points=40, coarse=True)
    assert coarse.error < 1e-12  # cubic splines have quadratics exactly
    x, y = np.meshgrid(coarse.x, coarse.y)
    np.testing.assert_allclose(coarse.loss, x**2 + 3 * y**2, atol=1e-12)


def test_validation_metric_and_progress() -> None:
    loss = objective("relu")
    theta, d = line_of(loss)
    told: list[float] = []
    held = Objective(loss.model, cross_entropy, [(x - 1, y) for x, y in loss.batches], mode="eval")
    accuracy = lambda output, target: (output.argmax(1) == target).double().mean()  # noqa: E731
    found = surface(loss, theta, d, points=4, metric=accuracy, validation_objective=held, progress=told.append)
    np.testing.assert_allclose(found.validation_loss, surface(held, theta, d, points=4).loss)
    assert found.metric is not None
    assert found.validation_metric is not None
    assert found.metric.shape == found.validation_metric.shape == (4, 4)
    assert told == sorted(told)
    assert told[-1] == 1.0
    coarse = surface(loss, theta, d, points=30, metric=accuracy, validation_objective=held, coarse=True, tolerance=0.5)
    assert coarse.metric is None
    assert coarse.validation_loss is not None
    exact = surface(held, theta, d, points=30).loss
    assert np.abs(coarse.validation_loss - exact).max() <= coarse.error * np.ptp(exact)


# ---- coarse surfaces --------------------------------------------------------------------------------------------------


def _trained(kind: str, steps: int, depth: int = 2) -> Objective:
    (x, y), _ = digits(0)
    x, y = x[:128], y[:128]
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[kind]
    with private_random(steps + depth):
        layers: list[nn.Module] = [nn.Linear(64, 16), act()]
        for _ in range(depth - 1):
            layers += [nn.Linear(16, 16), act()]
        model = nn.Sequential(*layers, nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Objective(model, cross_entropy, [(x, y)], mode="eval")


@pytest.mark.parametrize(
    ("kind", "steps", "depth"),
    [("relu", 0, 2), ("relu", 30, 2), ("relu", 200, 1), ("relu", 60, 4), ("tanh", 30, 2), ("tanh", 200, 2), ("sigmoid", 200, 1)],
)
def test_the_error_estimate_bounds_the_error(kind: str, steps: int, depth: int) -> None:
    loss = _trained(kind, steps, depth)
    d = directions.random(loss, torch.Generator().manual_seed(steps))
    exact = surface(loss, loss.theta(), d)
    for tolerance in (2e-2, 1e-3):
        found = surface(loss, loss.theta(), d, coarse=True, tolerance=tolerance)
        true = np.abs(found.loss - exact.loss).max() / np.ptp(exact.loss)
        assert true <= found.error
        assert true > found.error / 20  # and does not bound it by being useless
        assert found.met == (found.error <= tolerance)
        assert (found.why == "") or not found.met
        assert len(found.evaluated) == len(np.unique(found.evaluated, axis=0)) < 0.7 * exact.loss.size
        assert not found.exact


def test_a_rough_surface_is_said_not_to_be_met() -> None:
    bumps = lambda at: np.sin(37 * at[:, :1]) * np.cos(29 * at[:, 1:])  # noqa: E731
    axis = np.linspace(-1, 1, 51)
    found = _coarse.coarse(axis, axis, bumps, 1e-3)
    assert not found.met
    assert found.values is not None
    true = np.abs(found.values[0] - bumps(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)).reshape(51, 51)).max() / 2
    assert true <= found.error
    assert "the error is still" in found.why


def test_only_the_rough_direction_is_refined() -> None:
    ridge = lambda at: np.sin(9 * at[:, :1]) + 0.1 * at[:, 1:]  # noqa: E731
    axis = np.linspace(-1, 1, 81)
    found = _coarse.coarse(axis, axis, ridge, 1e-4)
    assert found.met
    assert len(np.unique(found.evaluated[:, 0])) > 1.5 * len(np.unique(found.evaluated[:, 1]))


def test_no_point_is_evaluated_twice_and_edges_are_exact() -> None:
    seen: list[np.ndarray] = []

    def values(at: np.ndarray) -> np.ndarray:
        seen.append(at)
        return np.exp(2 * at[:, :1] * at[:, 1:])

    x, y = np.linspace(-0.3, 1.1, 40), np.linspace(0.1, 2, 30)
    found = _coarse.coarse(x, y, values, 1e-5)
    points = np.concatenate(seen)
    assert len(np.unique(points, axis=0)) == len(points) == len(found.evaluated)
    assert points.min(0).tolist() == [-0.3, 0.1]
    assert points.max(0).tolist() == [1.1, 2.0]
    assert found.values is not None
    np.testing.assert_allclose(found.values[0], np.exp(2 * x * y[:, None]), atol=1e-5 * np.exp(4.4))


def test_infinite_values_and_small_surfaces_are_evaluated_exactly() -> None:
    loss = Objective(nn.ParameterList([torch.zeros(2)]), lambda m, _: torch.exp(m[0].sum() * 100), [None])
    found = surface(loss, torch.zeros(2), torch.eye(2), points=30, coarse=True)
    assert found.exact
    assert not np.isfinite(found.loss).all()
    assert "not finite" in found.why
    small = surface(loss, torch.zeros(2), 0.01 * torch.eye(2), points=9, coarse=True)
    assert small.exact
    assert "would not save any" in small.why


def test_wrong_requests() -> None:
    loss = objective("tanh")
    theta, d = line_of(loss)
    for options in ({"extent": -1.0}, {"extent": (1, 2, 3)}, {"points": 1}, {"x": [1.0]}, {"y": [0.0, np.inf]}, {"tolerance": 0.0}):
        with pytest.raises(Usage):
            surface(loss, theta, d, **options)  # type: ignore[arg-type]
    with pytest.raises(Usage):
        surface(loss, theta, d[:1])
