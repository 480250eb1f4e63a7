"""The training at a point: products against whole Hessians, and nothing left behind."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.curvature import extreme_eigenvalues, gauss_newton_product, krylov_newton
from gradoscope.measure.steps import predict_step
from gradoscope.objective import Objective
from tests.measure import nets
from tests.reference import curvature as reference


def vector(dim, seed=0, dtype=torch.float64):
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", nets.NAMES)
def test_products_equal_the_whole_hessian(name, mode):
    model, loss, batches = nets.make(name)
    objective = Objective(model, loss, batches, mode=mode)
    dense = reference.dense_hessian(model, loss, batches, mode=mode)
    v = vector(objective.dim)
    assert relative(objective.hvp(v), dense @ v) < 1e-10
    assert relative(objective.hvp(3 * v), dense @ (3 * v)) < 1e-10  # from the kept graph
    assert relative(objective.batch_hvps(v).mean(0), dense @ v) < 1e-10
    assert objective.method == "autograd"


@pytest.mark.parametrize("name", ["mlp", "relu", "batch_norm", "lstm", "attention", "dropout"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_finite_differences_agree(name, dtype, error):
    model, loss, batches = nets.make(name)
    dense = reference.dense_hessian(model, loss, batches)
    objective = Objective(model.to(dtype), loss, [(x.to(dtype), y) for x, y in batches])
    objective.distrust("a test")
    top = torch.linalg.eigh(dense)[1][:, -1]
    for v in (vector(objective.dim), top, 1e6 * top):
        assert relative(objective.hvp(v.to(dtype)).double(), dense @ v) < error
    assert relative(objective.batch_hvps(top.to(dtype)).mean(0).double(), dense @ top) < error
    assert objective.difference_error < 0.1


def test_finite_differences_find_their_scale():
    # The loss bends on a length of 1e-3, and then of 1e3.
    for length in (1e-3, 1e3):
        x = nn.Parameter(torch.tensor([0.3 * length], dtype=torch.float64))
        objective = Objective(nn.ParameterList([x]), lambda m, _, length=length: torch.cos(m[0][0] / length), [None])
        objective.distrust("a test")
        assert objective.hvp(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(-np.cos(0.3) / length**2, rel=1e-5)


def snapshot(model):
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "identity": [id(b) for b in model.buffers()] + [id(p.grad) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
    }


def same(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def noisy_net():
    with private_random(3):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
        x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    model[4].eval()
    F.cross_entropy(model[4](torch.ones(8, 6)), y).backward()
    return model, (x, y)


def everything(objective):
    v = torch.ones(objective.dim)
    objective.losses()
    gradient = objective.gradient()
    objective.hvp(v)
    objective.at(objective.theta() + v)
    predict_step(objective, -0.1 * gradient)
    extreme_eigenvalues(objective, max_products=5)
    krylov_newton(objective, gradient, products=4)
    gauss_newton_product(objective)(v)
    objective.distrust("a test")
    objective.hvp(v)


def test_nothing_is_left_behind():
    model, batch = noisy_net()
    before = snapshot(model)
    everything(Objective(model, nets.cross_entropy, [batch]))
    after = snapshot(model)
    for key, value in before.items():
        assert same(value, after[key]), key


@pytest.mark.parametrize("call", ["losses", "gradient", "hvp", "at", "difference", "gauss_newton"])
@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_nothing_is_left_behind_after_an_exception(call, fail_at):
    model, batch = noisy_net()
    calls = 0

    def loss(m, b):
        nonlocal calls
        value = nets.cross_entropy(m, b)
        np.random.rand()
        random.random()
        calls += 1
        if calls > fail_at:
            m.eval()
            raise ZeroDivisionError("the user's own")
        return value

    objective = Objective(model, loss, [batch] * 4)
    v = torch.ones(objective.dim)
    before = snapshot(model)
    if call == "difference":
        objective.distrust("a test")
    measure = {
        "losses": objective.losses,
        "gradient": objective.gradient,
        "hvp": lambda: objective.hvp(v),
        "difference": lambda: objective.hvp(v),
        "at": lambda: objective.at(v),
        "gauss_newton": lambda: gauss_newton_product(objective)(v),
    }[call]
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        measure()
    after = snapshot(model)
    for key, value in before.items():
        assert same(value, after[key]), key


def test_kept_graph_survives_a_look_elsewhere_and_dies_with_a_step():
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    v = vector(objective.dim)
    first = objective.hvp(v)
    passes = objective.cost.forward
    objective.at(objective.theta() + v)
    assert torch.equal(objective.hvp(v), first)
    assert objective.method == "autograd"
    assert objective.cost.forward == passes + len(batches)  # of `at` alone
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert relative(objective.hvp(v), reference.dense_hessian(model, loss, batches) @ v) < 1e-10
    objective.mode = "eval"
    assert objective.hvp(v).isfinite().all()


def test_a_users_own_graph_stays_valid():
    model, loss, batches = nets.make("mlp")
    pending = loss(model, batches[0])
    objective = Objective(model, loss, batches)
    objective.at(objective.theta() * 2)
    objective.distrust("a test")
    objective.hvp(vector(objective.dim))
    pending.backward()
    assert model[0].weight.grad is not None


def test_masks_are_fixed_and_differ_between_batches():
    model, loss, batches = nets.make("dropout")
    objective = Objective(model, loss, [batches[0]] * 2, seed=4)
    losses = objective.losses()
    assert losses[0] != losses[1]
    assert np.array_equal(objective.losses(), losses)
    assert not np.array_equal(Objective(model, loss, [batches[0]] * 2, seed=5).losses(), losses)


def test_memory_that_runs_out_is_met_step_by_step(monkeypatch):
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    v, plain = vector(objective.dim), Objective(model, loss, batches).hvp(vector(objective.dim))
    original = Objective.differentiable_gradient

    def scarce(self, k):
        if self.keep_graph and k == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, k)

    monkeypatch.setattr(Objective, "differentiable_gradient", scarce)
    torch.testing.assert_close(objective.hvp(v), plain)
    assert not objective.keep_graph
    assert objective.method == "autograd"
    assert not objective._graphs

    def none(self, k):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Objective, "differentiable_gradient", none)
    assert relative(objective.hvp(v), plain) < 1e-6
    assert objective.why == "not enough memory for second derivatives"


def test_losses_that_differentiate_inside():
    with private_random(0):
        model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def residual(m, x):
        x = x.clone().requires_grad_(True)
        u = m(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope + u).square().mean()

    x = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    objective = Objective(model, residual, [x])
    assert objective.loss() == pytest.approx(residual(model, x).item())
    dense = reference.dense_hessian(model, residual, [x])
    v = vector(objective.dim)
    assert relative(objective.hvp(v), dense @ v) < 1e-9


def test_linear_constant_and_mixed_precision_losses():
    model = nn.Linear(3, 1, bias=False)
    linear = Objective(model, lambda m, b: m(b).sum(), [torch.ones(2, 3)])
    assert torch.equal(linear.hvp(torch.ones(3)), torch.zeros(3))
    constant = Objective(model, lambda m, b: torch.tensor(2.0), [None])
    assert torch.equal(constant.gradient(), torch.zeros(3))
    assert torch.equal(constant.hvp(torch.ones(3)), torch.zeros(3))
    assert constant.method == "autograd"

    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    mixed = Objective(nn.ParameterList([a, b]), lambda m, _: (m[0].double() * m[1]).sum().square(), [None])
    hessian = torch.stack([mixed.hvp(e) for e in torch.eye(4, dtype=torch.float64)])
    torch.testing.assert_close(hessian, hessian.T)
    assert hessian[0, 0] == 2


def test_sparse_gradients_are_made_dense():
    with private_random(0):
        table = nn.Embedding(5, 2, sparse=True).double()
    index = torch.tensor([0, 1, 1, 3])
    objective = Objective(table, lambda m, i: m(i).square().sum(), [index])
    torch.testing.assert_close(objective.gradient().reshape(5, 2), 2 * torch.tensor([1, 2, 0, 1, 0])[:, None] * table.weight.detach())
    expected = 2 * torch.tensor([1.0, 2, 0, 1, 0], dtype=torch.float64).repeat_interleave(2)
    torch.testing.assert_close(objective.hvp(torch.ones(10, dtype=torch.float64)), expected, rtol=1e-6, atol=1e-8)


def test_checkpointing_is_explained_or_works():
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.net, self.reentrant = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()), reentrant

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x.requires_grad_(True), use_reentrant=self.reentrant)

    model = Checkpointed(False).double()
    _, loss, batches = nets.make("mlp")
    plain = Objective(model.net, loss, batches)
    v = vector(plain.dim)
    before = snapshot(model)
    assert relative(Objective(model, loss, batches).hvp(v), plain.hvp(v)) < 1e-10
    assert same(before["buffers"], snapshot(model)["buffers"])
    with pytest.raises(CannotRun, match="use_reentrant=False"):
        Objective(Checkpointed(True).double(), loss, batches).gradient()


def test_spectral_norm_leaves_its_vectors_alone():
    with private_random(1):
        model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    _, loss, batches = nets.make("mlp")
    before = snapshot(model)
    objective = Objective(model, loss, batches)
    u, v = vector(objective.dim, 1), vector(objective.dim, 2)
    assert float(u @ objective.hvp(v)) == pytest.approx(float(v @ objective.hvp(u)), rel=1e-9)
    assert objective.method == "autograd"
    after = snapshot(model)
    assert all(same(before[k], after[k]) for k in before)


class WeightNormByHand(nn.Module):
    def forward(self, length, direction):
        return length * direction / direction.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchs_own_weight_norm_is_right_whatever_its_double_backward_says(dtype):
    with private_random(1):
        model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).double()
    _, loss, batches = nets.make("mlp")
    inner = model.parametrizations.weight
    inner[0].forward = WeightNormByHand().forward
    dense = reference.dense_hessian(model, loss, batches)
    del inner[0].forward
    objective = Objective(model.to(dtype), loss, [(x.to(dtype), y) for x, y in batches])
    v = vector(objective.dim)
    assert relative(objective.hvp(v.to(dtype)).double(), dense @ v) < (1e-6 if dtype == torch.float64 else 1e-3)
    assert extreme_eigenvalues(objective).largest == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)


def test_compiled_models_are_measured_as_written():
    model, loss, batches = nets.make("mlp")
    objective = Objective(torch.compile(model, backend="eager"), loss, batches)
    assert objective.model is model
    v = vector(objective.dim)
    assert relative(objective.hvp(v), reference.dense_hessian(model, loss, batches) @ v) < 1e-10


def test_nothing_to_measure_is_said():
    with pytest.raises(CannotRun, match="no parameter"):
        Objective(nn.ReLU(), nets.cross_entropy, [None])
    with pytest.raises(CannotRun, match="no batch"):
        Objective(nn.Linear(1, 1), nets.cross_entropy, [])


def test_counts_what_it_spends():
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    objective.gradient()
    assert (objective.cost.forward, objective.cost.backward) == (2, 2)
    objective.hvp(vector(objective.dim))
    objective.hvp(vector(objective.dim))
    assert (objective.cost.forward, objective.cost.backward) == (4, 16)  # with the test of symmetry
