"""The trace of the Hessian: exact where it can be, against the whole matrix; else with the standard error that was asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random, random_fingerprint
from gradoscope.measure.curvature import gauss_newton_product
from gradoscope.measure.hessian_trace import gauss_newton_trace, hessian_trace, why_not_linear
from gradoscope.objective import Objective
from tests.measure import nets

B = 5


class Residual(nn.Module):
    """A convolution with a sum around it and batch normalisation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x + torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Gate(nn.Module):
    """A product of two things that depend on parameters, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(torch.relu(self.a(x)))))


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 3).to(batch[0]))


LINEAR: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3)), (B, 4)),
    "residual": (Residual, (B, 2, 4, 4)),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)), (B, 2, 4, 4)),
}


def make(build: Callable[[], nn.Module], shape: tuple[int, ...], loss: Callable[..., Tensor]) -> Objective:
    with private_random(4):
        model = build().double()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()  # type: ignore[union-attr]  # it tracks them
        batches = [(torch.randn(*shape, dtype=torch.float64), torch.randint(0, 3, (shape[0],))) for _ in range(2)]
    return Objective(model, loss, batches, mode="eval")


def matrix(objective: Objective, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    return torch.stack([(product or objective.hvp)(row) for row in torch.eye(objective.dim, dtype=torch.float64)])


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("loss", [cross_entropy, squared])
def test_exact_where_the_model_is_piecewise_linear(name: str, loss: Callable[..., Tensor]) -> None:
    objective = make(*LINEAR[name], loss)
    found = hessian_trace(objective)
    assert why_not_linear(objective) == ""
    assert found.se is None
    assert found.value == pytest.approx(float(matrix(objective).trace()), rel=1e-9)
    assert found.details["probes"] == 0


NOT_LINEAR: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), "Tanh"),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "NativeLayerNorm"),
    "shared": (Shared, "several places"),
    "gate": (Gate, "Mul of two"),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_estimated_elsewhere_with_the_error_that_was_asked_for(name: str) -> None:
    build, why = NOT_LINEAR[name]
    objective = make(build, (B, 4), cross_entropy)
    truth, inner = float(matrix(objective).trace()), float(matrix(objective, gauss_newton_product(objective)).trace())
    assert why in why_not_linear(objective)
    errors = []
    for seed in range(10):
        found = hessian_trace(objective, relative_error=0.2, seed=seed, max_probes=1000)
        assert found.details["reached"]
        assert found.se <= 0.2 * abs(found.value)
        errors.append((found.value - truth) / found.se)
    assert np.sqrt(np.mean(np.square(errors))) < 2.2  # of t-distributed errors with few probes
    if name != "shared":
        assert gauss_newton_trace(objective).value == pytest.approx(inner, rel=1e-9)
        assert found.details["gauss_newton"] == pytest.approx(inner, rel=1e-9)


def test_the_control_variate_saves_probes() -> None:
    """Near a minimum of a smooth network the Hessian is nearly the Gauss-Newton matrix."""
    objective = make(NOT_LINEAR["tanh"][0], (B, 4), squared)
    optimizer = torch.optim.LBFGS(objective.model.parameters(), max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(squared(objective.model, b) for b in objective.batches)
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's
    objective.model.zero_grad()
    with_it = hessian_trace(objective, relative_error=0.01, seed=1)
    assert "control variate" in with_it.method
    assert with_it.value == pytest.approx(float(matrix(objective).trace()), rel=0.04)
    without = np.array([float(z @ objective.hvp(z)) for z in (torch.randint(0, 2, (20, objective.dim)) * 2 - 1).double()])
    needed = (without.std(ddof=1) / (0.01 * with_it.value)) ** 2
    assert with_it.details["probes"] < needed / 3


def test_what_does_not_fit_is_said_and_estimated() -> None:
    objective = make(LINEAR["mlp"][0], (B, 4), lambda m, b: cross_entropy(m, b) + 0.1 * sum(p.square().sum() for p in m.parameters()))
    assert "past the model's output" in why_not_linear(objective)
    found = hessian_trace(objective, relative_error=0.03)
    assert found.value == pytest.approx(float(matrix(objective).trace()), abs=4 * found.se)
    pairs = make(LINEAR["mlp"][0], (B, 4), lambda m, b: (lambda z: (z @ z.T).logsumexp(1).mean())(m(b[0])))
    with pytest.raises(CannotRun, match="couples its rows"):
        gauss_newton_trace(pairs)
    attention = Objective(*nets.make("attention"))
    assert "not piecewise linear" in why_not_linear(attention) or "two tensors" in why_not_linear(attention)
    with pytest.raises(CannotRun, match=r"lstm\."):
        gauss_newton_trace(Objective(*nets.make("lstm")))
    lstm = Objective(*nets.make("lstm"))
    found = hessian_trace(lstm, relative_error=0.1, max_probes=100)
    assert found.value == pytest.approx(float(matrix(lstm).trace()), abs=4 * found.se)
    assert found.details["gauss_newton"] is None
    with pytest.raises(Usage):
        hessian_trace(lstm, relative_error=0)


def test_many_outputs_are_sampled() -> None:
    def tokens(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1])

    with private_random(1):
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9)).double()
        batch = (torch.randint(0, 9, (B, 10)), torch.randint(0, 9, (B, 10)))
    objective = Objective(model, tokens, [batch])
    truth = float(matrix(objective, gauss_newton_product(objective)).trace())
    errors = []
    for seed in range(10):
        found = gauss_newton_trace(objective, relative_error=0.05, seed=seed)
        assert found.se is not None
        assert found.se <= 0.05 * found.value
        errors.append((found.value - truth) / found.se)
    assert np.sqrt(np.mean(np.square(errors))) < 2.2


@pytest.mark.parametrize("way", ["auto", "probes"])
def test_nothing_is_left_behind(way: Any) -> None:
    objective = make(*LINEAR["residual"], cross_entropy)
    model = objective.model.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = random_fingerprint()
    hessian_trace(objective, way=way, max_probes=9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert model.training
    assert stream == random_fingerprint()
    assert not any(m._forward_hooks for m in model.modules())
