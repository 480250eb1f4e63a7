"""Where the published tools return wrong numbers, fail, or change the training: each case works here, and nothing is changed."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import CannotRun
from gradoscope.guard import math_attention, private_random
from gradoscope.landscape import directions
from gradoscope.landscape.lines import line
from gradoscope.landscape.planes import surface
from gradoscope.measure.curvature import extreme_eigenvalues, gauss_newton_product
from gradoscope.measure.hessian_trace import hessian_trace
from gradoscope.measure.per_sample import per_sample
from gradoscope.measure.preconditions import preconditions
from gradoscope.objective import Objective
from tests.measure.states import MEASUREMENTS, state


class OnceReLU(torch.autograd.Function):
    """A ReLU whose second derivative is silently wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * (ctx.saved_tensors[0] > 0)


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceReLU.apply(x)  # type: ignore[no-any-return, no-untyped-call]  # autograd's


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.qkv, self.out = nn.Embedding(5, 4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.token(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.spare = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)))


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), *middle, nn.Linear(7, 4))


def frozen() -> nn.Module:
    model = mlp(nn.Tanh())
    for p in model[0].parameters():  # type: ignore[index]  # a Sequential
        p.requires_grad_(False)
    return model


def module_loss(model: Any, batch: Any) -> Tensor:
    return nn.CrossEntropyLoss()(model(batch[0]), batch[1])  # type: ignore[no-any-return]  # a module's call


def lambda_loss(model: Any, batch: Any) -> Tensor:
    return (lambda out, target: F.cross_entropy(out, target))(model(batch[0]), batch[1])


CASES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    # name: model, kind of input, mode
    "once_differentiable": (lambda: mlp(Once()), "vector", "eval"),
    "fused attention": (Attention, "tokens", "eval"),
    "batch norm, train": (lambda: mlp(nn.BatchNorm1d(7), nn.Tanh()), "vector", "train"),
    "dropout, train": (lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), "vector", "train"),
    "lstm": (Recurrent, "sequence", "eval"),
    "tied": (Tied, "vector", "eval"),
    "lambda loss": (lambda: mlp(nn.Tanh()), "vector", "eval"),
    "frozen": (frozen, "vector", "eval"),
    "unused": (Unused, "vector", "eval"),
}


def make(name: str) -> Objective:
    build, kind, mode = CASES[name]
    with private_random(6):
        model = build().double()
        x = {
            "vector": lambda: torch.randn(12, 6, dtype=torch.float64),
            "sequence": lambda: torch.randn(12, 5, 6, dtype=torch.float64),
            "tokens": lambda: torch.randint(0, 5, (12, 6)),
        }[kind]()
        y = torch.randint(0, 4, (12,))
    loss = lambda_loss if name == "lambda loss" else module_loss
    return Objective(model, loss, [(x, y)], mode=mode)  # type: ignore[arg-type]  # a literal


def truth(objective: Objective) -> Tensor:
    """The Hessian column by column from central differences of plain gradients, which need no second derivative and no tool of ours."""
    model, batch = objective.model, objective.batches[0]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient() -> Tensor:
        with objective.inside(0), math_attention(), torch.enable_grad():
            grads = torch.autograd.grad(objective._loss(model, batch), parameters, allow_unused=True)
        return torch.cat([torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(grads, parameters, strict=True)])

    columns, h = [], 1e-5
    for p in parameters:
        values = p.data.view(-1)
        for i in range(p.numel()):
            own = float(values[i])
            values[i] = own + h
            ahead = gradient()
            values[i] = own - h
            behind = gradient()
            values[i] = own
            columns.append((ahead - behind) / (2 * h))
    matrix = torch.stack(columns)
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_are_right_and_signed(name: str) -> None:
    objective = make(name)
    values = torch.linalg.eigvalsh(truth(objective))
    found = extreme_eigenvalues(objective, k=2, tolerance=1e-6, max_products=objective.dim)
    # Of a function that lies both sides are finite differences, across kinks of the ReLU.
    error = 1e-3 if name == "once_differentiable" else 1e-6
    assert found.top == pytest.approx(values.flip(0)[:2].numpy(), abs=error)
    assert found.bottom[0] == pytest.approx(float(values[0]), abs=error)  # of a multiple one (zero, of a linear layer) one copy is found
    assert found.largest > 0
    assert objective.method == ("finite differences" if name == "once_differentiable" else "autograd"), objective.why
    if name == "once_differentiable":
        assert "OnceReLU" in objective.why
        assert "finite differences" in found.method


@pytest.mark.parametrize("name", CASES)
def test_trace_gauss_newton_and_rows_are_right(name: str) -> None:
    objective = make(name)
    matrix = truth(objective)
    # Of a lying function, finite differences are several passes per product: fewer probes, a wider error.
    trace = hessian_trace(objective, relative_error=0.3, max_probes=60)
    assert trace.value == pytest.approx(float(matrix.trace()), abs=1e-3 + 4 * (trace.se or 0.0))
    product = gauss_newton_product(objective)
    v = torch.randn(objective.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(v @ product(v)) >= -1e-9
    assert product(v) == pytest.approx(_gauss_newton(objective) @ v, rel=1e-5, abs=1e-6)
    if name not in ("dropout, train", "batch norm, train"):  # rows with masks, or statistics, of their own
        rows = per_sample(objective)
        for i in (0, 7):
            own = Objective(objective.model, objective._loss, [tuple(t[i : i + 1] for t in objective.batches[0])], mode="eval")
            assert rows.norms[i] == pytest.approx(float(own.gradient().norm()), rel=1e-9)


def _gauss_newton(objective: Objective) -> Tensor:
    """J' H_L J from the output's Jacobian by finite differences of the output."""
    model, (x, _) = objective.model, objective.batches[0]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def output() -> Tensor:
        with objective.inside(0), torch.no_grad():
            return model(x).reshape(-1)  # type: ignore[no-any-return]  # a module's call

    columns, h = [], 1e-5
    for p in parameters:
        values = p.data.view(-1)
        for i in range(p.numel()):
            own = float(values[i])
            values[i] = own + h
            ahead = output()
            values[i] = own - h
            columns.append((ahead - output()) / (2 * h))
            values[i] = own
    jacobian = torch.stack(columns, 1)
    z = output().reshape(len(x), -1)
    p_ = z.softmax(1)
    blocks = torch.diag_embed(p_) - p_.unsqueeze(2) * p_.unsqueeze(1)
    return jacobian.T @ torch.block_diag(*blocks) @ jacobian / len(x)


def test_a_function_that_lies_is_named() -> None:
    objective = make("once_differentiable")
    found = preconditions(objective)
    assert found.once_differentiable == ("OnceReLU",)
    assert found.second_derivatives == objective.method == "finite differences"
    assert any("OnceReLU" in note and "wider error bars" in note for note in found.notes)


def test_dropout_and_batch_statistics_are_named() -> None:
    drop, norm = preconditions(make("dropout, train")), preconditions(make("batch norm, train"))
    assert (drop.random, drop.repeatable) == (("2",), True)
    assert norm.batch_statistics == ("1",)
    assert preconditions(make("lambda loss")).sound


# --- Damage -------------------------------------------------------------------------------------------------------------


def trajectory(call: Callable[[Objective], Any] | None, optimizer: str) -> dict[str, Any]:
    """Six steps of a network with dropout and batch normalisation in training mode; in the middle somebody measures."""
    with private_random(2):
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)).train()
        x, y = torch.randn(16, 6), torch.randint(0, 4, (16,))
        make_optimizer = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.01)}
        stepper = make_optimizer[optimizer](model.parameters())
        for step in range(6):
            stepper.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if step == 3 and call is not None:  # between forward and backward, the worst moment
                before = state(model)
                with contextlib.suppress(CannotRun):  # a trace by rows, where statistics of the batch couple them
                    call(Objective(model, module_loss, [(x, y)]))
                assert state(model) == before
            loss.backward()
            stepper.step()
        return {k: v for k, v in state(model).items() if k.startswith(("buffer", "random"))} | {
            k: v.detach().clone() for k, v in model.state_dict().items()
        }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_training_goes_on_bit_for_bit(name: str, optimizer: str) -> None:
    plain, measured = trajectory(None, optimizer), trajectory(MEASUREMENTS[name], optimizer)
    assert all(torch.equal(plain[k], measured[k]) for k in plain if isinstance(plain[k], Tensor))
    assert plain["random"] == measured["random"]


class Broken(Exception):
    """A mistake in a user's code."""


@pytest.mark.parametrize("case", ["batch norm, train", "dropout, train", "lstm", "tied", "frozen"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_everything_is_as_it_was_also_after_an_exception(name: str, case: str) -> None:
    for fail_at in (None, 0, 1, 3):
        objective = make(case)
        model, calls, own = objective.model.train(case != "lstm"), [0], objective._loss
        for i, p in enumerate(model.parameters()):
            p.grad = None if i % 2 else torch.full_like(p, 0.5)

        def loss(m: nn.Module, b: Any, calls: list[int] = calls, own: Any = own, fail_at: int | None = fail_at) -> Tensor:
            value: Tensor = own(m, b)
            calls[0] += 1
            if fail_at is not None and calls[0] > fail_at:
                raise Broken("in the middle")
            return value

        objective._loss = loss
        before = state(model)
        raised: Exception | None = None
        try:
            MEASUREMENTS[name](objective)
        except Exception as error:
            raised = error
        # What a measurement refuses it says by an error of its own; a user's error comes through as it is.
        assert raised is None or isinstance(raised, (Broken, CannotRun)), raised
        assert state(model) == before


# --- Landscapes -----------------------------------------------------------------------------------------------------------


def linear_loss() -> Objective:
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    return Objective(model, lambda m, b: m(b[0]).sum(), [(x,)], mode="eval")


def test_rows_of_a_surface_are_where_they_belong() -> None:
    """On a linear loss all rows, and all columns, are equally far apart (a published tool displaces every second row)."""
    objective = linear_loss()
    axes = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    found = surface(objective, objective.theta(), axes, x=np.linspace(-1, 1, 7), y=np.linspace(-1, 1, 5))
    rows, columns = np.diff(found.loss, axis=0), np.diff(found.loss, axis=1)
    assert rows == pytest.approx(np.full(rows.shape, rows[0, 0]))
    assert columns == pytest.approx(np.full(columns.shape, columns[0, 0]))
    assert {round(abs(float(rows[0, 0])), 6), round(abs(float(columns[0, 0])), 6)} == {1.0, round(1 / 3, 6)}


def test_directions_are_centred_and_lines_begin_at_the_start() -> None:
    model = nn.Linear(60, 50).double()
    objective = Objective(model, lambda m, b: m(b[0]).square().mean(), [(torch.ones(2, 60, dtype=torch.float64),)], mode="eval")
    drawn = directions.random(objective, torch.Generator().manual_seed(0))
    for direction in drawn:
        assert abs(float(direction.mean())) < 4 * float(direction.std()) / len(direction) ** 0.5
    small = linear_loss()
    start = small.theta()
    found = line(small, start, start + 1, alphas=np.array([0.0, 0.5, 1.0]))
    assert found.alphas[0] == 0
    assert found.loss[0] == pytest.approx(small.loss())
