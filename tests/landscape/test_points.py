"""Every way to evaluate points gives what a plain loop gives, and leaves no trace."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import capture_random, private_random
from gradoscope.landscape import _ways
from gradoscope.landscape.points import evaluate, subject
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.training import Live
from tests.landscape.nets import NETS, WIDTH, cross_entropy, grid, line_of, mlp, objective, plain

METHODS = ("auto", "factored", "stacked", "loop")
FACTORED = {
    "relu",
    "tanh",
    "linear",
    "frozen",
    "frozen_bias",
    "tied",
    "twice",
    "dropout",
    "batch_norm",
    "cnn",
    "cnn_batch_norm",
    "attention",
    "counting",
}


@pytest.fixture(
    params=[("eval", n) for n in NETS] + [("train", n) for n in ("relu", "dropout", "batch_norm", "cnn_batch_norm", "counting")]
)
def given(request: Any) -> tuple[str, Objective]:
    mode, name = request.param
    return name, objective(name, mode=mode)


def test_every_way_is_the_plain_loop(given: tuple[str, Objective]) -> None:
    name, loss = given
    theta, d = line_of(loss)
    c = grid()
    wanted = plain(loss, theta, d, c)
    for method in METHODS:
        found = evaluate(loss, theta, d, c, method=method, per_example=True)
        np.testing.assert_allclose(found.loss, wanted.mean(1), rtol=1e-11)
        assert found.per_example is not None
        np.testing.assert_allclose(found.per_example @ found.weights, found.loss, rtol=1e-11)
        if method == "factored":
            assert found.method == ("factored" if name in FACTORED else "loop"), (name, found.why)
        if method == "loop":
            assert found.method == "loop"


def test_float32_is_right_to_rounding() -> None:
    loss, exact = objective("relu", dtype=torch.float32), objective("relu")
    theta, d = line_of(loss)
    exact.model.load_state_dict({k: v.double() for k, v in loss.model.state_dict().items()})
    exact.batches = [(x.double(), y) for x, y in loss.batches]
    wanted = plain(exact, theta.double(), d.double(), grid()).mean(1)
    for method in METHODS:
        np.testing.assert_allclose(evaluate(loss, theta, d, grid(), method=method).loss, wanted, rtol=3e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_lines_and_volumes(k: int) -> None:
    loss = objective("tanh")
    theta, d = line_of(loss, k)
    c = np.random.default_rng(0).normal(size=(11, k))
    for method in METHODS:
        np.testing.assert_allclose(evaluate(loss, theta, d, c, method=method).loss, plain(loss, theta, d, c).mean(1), rtol=1e-11)


def test_the_ways_that_are_taken() -> None:
    names = {"relu": "factored and stacked", "cnn": "factored", "lstm": "loop", "deep": "stacked"}
    for name, wanted in names.items():
        loss = objective(name)
        found = evaluate(loss, *line_of(loss), grid())
        assert found.method == wanted, (name, found)
        assert (found.why == "") == (wanted == "factored and stacked")
        assert ("convolutions" in found.why) == (name == "cnn")
    loss = objective("relu")
    assert evaluate(loss, *line_of(loss), grid(2)).why == "few points"


def test_chunks_do_not_matter() -> None:
    loss = objective("relu")
    theta, d = line_of(loss)
    for method in METHODS:
        whole = evaluate(loss, theta, d, grid(), method=method, metric=_accuracy)
        cut = evaluate(loss, theta, d, grid(), method=method, metric=_accuracy, chunk=3)
        np.testing.assert_allclose(cut.loss, whole.loss, rtol=1e-13)
        assert np.array_equal(cut.metric, whole.metric)


def test_again_gives_the_same_bits() -> None:
    for name in ("relu", "cnn"):
        loss = objective(name, dtype=torch.float32)
        theta, d = line_of(loss)
        assert np.array_equal(evaluate(loss, theta, d, grid()).loss, evaluate(loss, theta, d, grid()).loss)


def _accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target).double().mean())


@pytest.mark.parametrize("name", ["relu", "cnn", "lstm"])
def test_metric_is_that_of_all_examples(name: str) -> None:
    loss = objective(name)
    theta, d = line_of(loss)
    wanted = []
    for c in grid():
        with loss.moved(theta + torch.as_tensor(c) @ d), torch.no_grad():
            output = torch.cat([copy.deepcopy(loss.model).eval()(x) for x, _ in loss.batches])
        wanted.append(_accuracy(output, torch.cat([y for _, y in loss.batches])))
    for method in METHODS:
        assert np.allclose(evaluate(loss, theta, d, grid(), method=method, metric=_accuracy).metric, wanted)


def test_a_metric_that_fails_is_said() -> None:
    loss = objective("relu")
    with pytest.raises(CannotRun, match="ZeroDivisionError"):
        evaluate(loss, *line_of(loss), grid(), metric=lambda output, target: 1 / 0)


LOSSES = {
    "function": cross_entropy,
    "module": lambda m, b: nn.CrossEntropyLoss()(m(b[0]), b[1]),
    "mean last": lambda m, b: (m(b[0]) - F.one_hot(b[1], 3)).square().mean(),
    "mean not last": lambda m, b: 2 * (m(b[0]) - F.one_hot(b[1], 3)).square().mean() + 1,
    "input and output": lambda m, b: F.mse_loss(m(b[0]) * b[0][:, :1], F.one_hot(b[1], 3).to(b[0])),
}


@pytest.mark.parametrize("form", LOSSES)
def test_losses_are_cut_into_examples(form: str) -> None:
    loss = objective("tanh", loss=LOSSES[form])
    theta, d = line_of(loss)
    found = evaluate(loss, theta, d, grid(), per_example=True)
    assert found.unit == "examples"
    examples = Objective(
        loss.model, LOSSES[form], [(x[i : i + 1], y[i : i + 1]) for x, y in loss.batches for i in range(len(x))], mode="eval", seed=3
    )
    wanted = plain(examples, theta, d, grid())
    np.testing.assert_allclose(found.per_example, wanted, rtol=1e-9, atol=1e-12)
    w = np.r_[np.full(7, 1 / 14), np.full(5, 1 / 10)]
    error = np.sqrt(12 / 11 * ((wanted - (wanted @ w)[:, None]) ** 2 @ w**2))
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-9)


UNCUT = {
    "penalty": lambda m, b: cross_entropy(m, b) + 0.1 * sum(p.square().sum() for p in m.parameters()),
    "sum": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"),
    "weighted": lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)),
    "two passes": lambda m, b: cross_entropy(m, b) + 0.1 * m(-b[0]).square().mean(),
    "gradient": lambda m, b: torch.autograd.grad(m(x := b[0].clone().requires_grad_()).sum(), x, create_graph=True)[0].square().mean(),
}


@pytest.mark.parametrize("form", UNCUT)
def test_losses_that_are_no_mean_over_examples(form: str) -> None:
    loss = objective("tanh", loss=UNCUT[form])
    theta, d = line_of(loss)
    reference = plain if form != "gradient" else lambda *_: np.array([loss.at(theta + torch.as_tensor(c) @ d) for c in grid()])
    wanted = reference(loss, theta, d, grid())
    for method in METHODS:
        found = evaluate(loss, theta, d, grid(), method=method, per_example=True)
        assert found.unit == "batches"
        np.testing.assert_allclose(found.per_example, wanted, rtol=1e-11)
        np.testing.assert_allclose(found.standard_error, np.abs(wanted[:, 0] - wanted[:, 1]) / 2, rtol=1e-9)


def test_a_single_batch_without_examples_has_no_standard_error() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    loss = Objective(nn.ParameterList([weight]), lambda m, _: (m[0] ** 2).sum(), [None])
    found = evaluate(loss, torch.zeros(2).double(), torch.eye(2).double(), grid())
    np.testing.assert_allclose(found.loss, (grid() ** 2).sum(1), rtol=1e-13)
    assert np.isnan(found.standard_error).all()


def test_quadratic_in_closed_form() -> None:
    x, y = torch.randn(20, 9, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    model = nn.Linear(9, 1).double()
    loss = Objective(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(x, y)])
    theta, d = line_of(loss)
    design = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    for method in METHODS:
        found = evaluate(loss, theta, d, grid(), method=method)
        wanted = [float((design @ (theta + torch.as_tensor(c) @ d) - y[:, 0]).square().mean()) for c in grid()]
        np.testing.assert_allclose(found.loss, wanted, rtol=1e-12)


def test_a_linear_loss_has_constant_differences() -> None:
    """Rows one step off, as a published library has them, would show as alternating differences."""
    loss = objective("linear", loss=lambda m, b: m(b[0]).mean())
    theta, d = line_of(loss)
    axis = np.linspace(-1, 1, 9)
    for method in METHODS:
        c = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        surface = evaluate(loss, theta, d, c, method=method).loss.reshape(9, 9)
        for by in (0, 1):
            steps = np.diff(surface, axis=by)
            np.testing.assert_allclose(steps, steps[0, 0], rtol=1e-9)


def test_half_precision() -> None:
    loss = objective("relu", dtype=torch.bfloat16)
    theta, d = line_of(loss)
    wanted = np.array([loss.at((theta.float() + torch.as_tensor(c).float() @ d.float()).bfloat16()) for c in grid()]).mean(1)
    np.testing.assert_allclose(evaluate(loss, theta, d, grid()).loss, wanted, rtol=0.03)


def test_far_points_may_overflow() -> None:
    loss = objective("relu", loss=lambda m, b: m(b[0]).square().mean(), dtype=torch.float32)
    theta, d = line_of(loss)
    c = np.array([[0.0, 0], [1, 0], [1e18, 0], [0, 1e25], [1e30, 1e30], [1, 1], [2, 1], [3, 1], [4, 1]])
    wanted = np.array([loss.at(theta + torch.as_tensor(row).float() @ d) for row in c]).mean(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            found = evaluate(loss, theta, d, c, method=method, per_example=True)
            assert not np.isfinite(found.loss[3:5]).any()
            np.testing.assert_allclose(found.loss[[0, 1, 5, 6, 7, 8]], wanted[[0, 1, 5, 6, 7, 8]], rtol=1e-4)


# ---- batch normalisation ----------------------------------------------------------------------------------------------


def test_batch_norm_statistics_taken_anew() -> None:
    loss = objective("batch_norm")
    theta, d = line_of(loss)
    wanted = []
    for c in grid():
        model = copy.deepcopy(loss.model)
        torch.nn.utils.vector_to_parameters(theta + torch.as_tensor(c) @ d, model.parameters())
        torch.optim.swa_utils.update_bn([x for x, _ in loss.batches], model)
        model.eval()
        wanted.append(np.mean([float(cross_entropy(model, b).detach()) for b in loss.batches]))
    found = evaluate(loss, theta, d, grid(), batch_norm="recomputed")
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-11)
    assert "taken anew" in found.batch_norm
    stored = evaluate(loss, theta, d, grid())
    assert "stored" in stored.batch_norm
    assert np.abs(stored.loss - found.loss).max() > 1e-3
    assert evaluate(objective("batch_norm", mode="train"), theta, d, grid()).batch_norm == "the statistics of each batch"
    assert evaluate(objective("tanh"), *line_of(objective("tanh")), grid()).batch_norm == ""


def test_validation_takes_the_statistics_of_the_training_batches() -> None:
    loss = objective("batch_norm")
    held = Objective(loss.model, cross_entropy, [(torch.randn(6, WIDTH).double() + 3, torch.arange(6) % 3)], mode="eval")
    theta, d = line_of(loss)
    found = evaluate(held, theta, d, grid(), batch_norm="recomputed", statistics=loss)
    model = copy.deepcopy(loss.model)
    torch.nn.utils.vector_to_parameters(theta + torch.as_tensor(grid()[5]) @ d, model.parameters())
    torch.optim.swa_utils.update_bn([x for x, _ in loss.batches], model)
    assert found.loss[5] == pytest.approx(float(cross_entropy(model.eval(), held.batches[0]).detach()), rel=1e-11)


# ---- no trace ---------------------------------------------------------------------------------------------------------


def _everything(loss: Objective) -> Any:
    model = loss.model
    return (
        [(p.data_ptr(), p._version, p.detach().clone(), p.requires_grad, p.grad is None or p.grad.clone()) for p in model.parameters()],
        [(id(b), b.clone()) for b in model.buffers()],
        [(m.training, len(m._forward_hooks), "forward" in m.__dict__) for m in model.modules()],
        [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)],
        repr(capture_random()),
        torch.get_rng_state().tolist(),
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["relu", "tied", "dropout", "batch_norm", "cnn_batch_norm", "lstm", "counting"])
def test_no_trace(name: str, method: Any) -> None:
    loss = objective(name, mode="train")
    theta, d = line_of(loss)
    for p in loss.parameters:
        p.grad = torch.ones_like(p)
    loss.model.eval()
    before = _everything(loss)
    evaluate(loss, theta, d, grid(), method=method)
    if "batch_norm" in name:
        loss.mode = "eval"
        evaluate(loss, theta, d, grid(), method=method, batch_norm="recomputed")
    assert _same(before, _everything(loss))


class Fails(nn.Module):
    """Works a few times, then raises, in whatever way it is called."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.net, self.error, self.left = mlp(nn.Tanh()), error, 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.net(x) + torch.rand(()).to(x)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [0, 3, 8, 14])
def test_no_trace_after_an_exception(error: BaseException, method: Any, after: int) -> None:
    with private_random(1):
        model = Fails(error).double()
    loss = Objective(model, cross_entropy, [(torch.randn(4, WIDTH).double(), torch.arange(4) % 3)], mode="train")
    theta, d = line_of(loss)
    before = _everything(loss)
    model.left = after
    with pytest.raises(type(error)):
        evaluate(loss, theta, d, grid(5), method=method, chunk=2)
    assert _same(before, _everything(loss))


def test_a_kept_graph_stays_valid() -> None:
    loss = objective("tanh", mode="train")
    theta, d = line_of(loss)
    v = torch.ones(loss.dim, dtype=torch.float64)
    before = loss.hvp(v)
    value = cross_entropy(loss.model, loss.batches[0])
    evaluate(loss, theta, d, grid())
    value.backward()  # a user's own graph, between forward and backward
    assert torch.equal(loss.hvp(v), before)


# ---- what falls back --------------------------------------------------------------------------------------------------


class Aliased(nn.Module):
    """Holds a view of its weight, which lent memory does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3, dtype=torch.float64)
        self.view = [self.layer.weight.data]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.view[0].T


def test_a_model_with_a_view_of_its_own_weight() -> None:
    with private_random(1):
        model = Aliased()
    loss = Objective(model, cross_entropy, [(torch.randn(4, WIDTH).double(), torch.arange(4) % 3)])
    theta, d = line_of(loss)
    for method in METHODS:
        found = evaluate(loss, theta, d, grid(), method=method)
        np.testing.assert_allclose(found.loss, [loss.at(theta + torch.as_tensor(c) @ d).mean() for c in grid()], rtol=1e-12)
        assert found.method == "loop"
        assert "disagreed with a plain pass" in found.why


def test_a_layer_whose_input_jumps_is_not_factored() -> None:
    loss = objective("detached")
    theta, d = line_of(loss)
    d[0].zero_()
    d[0][0] = 1.0  # the gate
    c = np.stack([np.linspace(-1, 1, 17), np.zeros(17)], 1)  # the two points that are compared are 0 and -1; the jump is at 1/4
    found = evaluate(loss, theta, d, c, method="factored")
    np.testing.assert_allclose(found.loss, plain(loss, theta, d, c).mean(1), rtol=1e-12)
    assert found.method == "loop"
    assert "not the same at all points" in found.why


def test_a_penalty_on_the_first_layer_is_seen() -> None:
    loss = objective("tanh", loss=lambda m, b: cross_entropy(m, b) + m[0].weight.square().sum())
    theta, d = line_of(loss)
    found = evaluate(loss, theta, d, grid(), method="factored")
    assert found.method == "factored"
    np.testing.assert_allclose(found.loss, plain(loss, theta, d, grid()).mean(1), rtol=1e-11)


def test_wrong_requests() -> None:
    loss = objective("tanh")
    theta, d = line_of(loss)
    for origin, directions, c in ((theta[1:], d, grid()), (theta, d[:, 1:], grid()), (theta, d, grid()[:, :1]), (theta, d, grid()[:0])):
        with pytest.raises(Usage):
            evaluate(loss, origin, directions, c)
    with pytest.raises(Usage, match="finite"):
        evaluate(loss, theta, d, [[0.0, np.nan]])


def test_cost_and_progress() -> None:
    loss = objective("relu")
    told: list[float] = []
    found = evaluate(loss, *line_of(loss), grid(5), progress=told.append)
    assert found.cost.forward == 25 * 2
    assert found.cost.examples == 25 * 12
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_subject_has_the_losses_of_a_training() -> None:
    training = find("digits:healthy")
    with Live.of(training) as live:
        made = subject(live, rows=100)
        assert made.validation is not None
        assert (made.train.mode, made.metric) == ("eval", training.metric)
        d = torch.zeros(1, made.train.dim)
        found = evaluate(made.validation, made.train.theta(), d, [[0.0]], metric=made.metric)
        x, y = made.validation.batches[0]
        assert found.loss[0] == pytest.approx(float(F.cross_entropy(live.model(x), y).detach()), rel=1e-6)
        assert found.metric is not None
        assert found.metric[0] == pytest.approx(_accuracy(live.model(x), y))


def test_counted_operations_decide_about_stacking() -> None:
    big = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    loss = Objective(big, cross_entropy, [(torch.randn(256, 64), torch.arange(256) % 10)], mode="eval")
    found = evaluate(loss, loss.theta(), 0.01 * torch.randn(1, loss.dim), np.linspace(0, 1, 10)[:, None])
    assert found.method == "factored"
    assert "work, and not overhead" in found.why
    assert _ways.FEW <= 10
