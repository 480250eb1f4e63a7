import copy
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import gradoscope.measure.information as information
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, private_random
from gradoscope.measure.information import batch_information, target_information
from tests.reference import statistics as reference


def data(seed, n=40, d=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randn(n, 1, generator=generator, dtype=dtype)


def mlp(seed=0, d=6, dtype=torch.float64, dropout=0.0):
    with private_random(seed):
        return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).to(dtype)


def orders(n, permutations, seed=0):
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    return [torch.randperm(n, generator=generator) for _ in range(permutations)]


@pytest.mark.parametrize("limit", [1 << 28, 0])
def test_equals_the_definition_with_a_whole_pass_per_permutation(monkeypatch, limit):
    monkeypatch.setattr(information, "KEEP", limit)
    model, (x, y) = mlp(), data(1)
    test = target_information(model, F.mse_loss, (x,), y, list(model.named_parameters()), permutations=21)
    true = reference.gradient_of(model, lambda: F.mse_loss(model(x), y))
    permuted = np.stack([reference.gradient_of(model, lambda o=o: F.mse_loss(model(x), y[o])) for o in orders(40, 21)])
    statistic, null, p = reference.permutation_test(true, permuted)
    assert test.statistic == pytest.approx(statistic, rel=1e-9)
    assert test.null == pytest.approx(null, rel=1e-9)
    assert test.p_value == pytest.approx(p)
    assert test.relative == pytest.approx(statistic / math.sqrt(np.mean(null**2)))
    whole = batch_information(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), (x, y), list(model.parameters()), permutations=21)
    assert whole.null == pytest.approx(null, rel=1e-9)
    assert whole.p_value == pytest.approx(p)
    assert test.method != whole.method


@pytest.mark.parametrize("normalise", ["none", "layer"])
def test_p_is_uniform_where_targets_are_independent_of_inputs(normalise):
    ps = []
    for i in range(200):
        x, y = data(i, n=16, d=3)
        with private_random(i):
            model = nn.Linear(3, 1, dtype=torch.float64)
        ps.append(
            target_information(model, F.mse_loss, (x,), y, list(model.parameters()), permutations=39, seed=i, normalise=normalise).p_value
        )
    assert stats.kstest(ps, "uniform").pvalue > 1e-3
    assert np.mean(np.array(ps) <= 0.05) < 0.1


def test_targets_that_depend_on_inputs_are_found():
    model, (x, noise) = mlp(), data(2)
    test = target_information(model, F.mse_loss, (x,), 3 * x[:, :1] + 0.3 * noise, list(model.parameters()))
    assert test.p_value == 0.005
    assert test.relative > 1.5
    measured = test.to_measurement(step=7)
    assert (measured.p, measured.step, measured.n) == (0.005, 7, 199)


def test_what_does_not_depend_on_the_pairing_does_not_count():
    """An offset of the targets gives a large gradient, but the same one for all permutations."""
    model, (x, y) = mlp(), data(3)
    plain, offset = (target_information(model, F.mse_loss, (x,), y + c, list(model.parameters())) for c in (0.0, 100.0))
    assert offset.p_value == plain.p_value
    assert offset.statistic == pytest.approx(plain.statistic, rel=1e-6)


def test_one_large_layer_does_not_drown_the_others():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.quiet = nn.Linear(3, 1, bias=False, dtype=torch.float64), nn.Linear(3, 1, bias=False, dtype=torch.float64)

        def forward(self, a, b):
            return torch.cat([1e3 * self.loud(a), self.quiet(b)], dim=1)

    x, y = data(4, n=60, d=6)
    target = torch.cat([y, x[:, 3:4]], dim=1)  # only the quiet layer's inputs tell anything
    with private_random(0):
        model = Two()
    arguments = (model, F.mse_loss, (x[:, :3], x[:, 3:]), target, list(model.named_parameters()))
    assert target_information(*arguments).p_value > 0.05
    by_layer = target_information(*arguments, normalise="layer")
    assert by_layer.p_value == 0.005
    assert by_layer.layers["quiet.weight"] > 3 > by_layer.layers["loud.weight"]


def test_equal_gradients_for_all_permutations_are_told():
    model, (x, _) = mlp(dtype=torch.float32), data(5, dtype=torch.float32)
    constant = target_information(model, F.mse_loss, (x,), torch.ones(40, 1), list(model.parameters()))
    assert (constant.p_value, constant.relative) == (1.0, 0.0)
    assert "same for all permutations" in constant.note
    blocked = nn.Sequential(model[0], nn.Threshold(1e9, 0.0))
    assert target_information(blocked, F.mse_loss, (x,), torch.cat([x, x], dim=1)[:, :8], list(blocked.parameters())).p_value == 1.0
    frozen = target_information(nn.Identity(), F.mse_loss, (x,), x.flip(0), [nn.Parameter(torch.ones(1))])
    assert frozen.p_value == 1.0
    assert "does not depend" in frozen.note


def test_a_gradient_that_is_not_finite_gives_no_verdict():
    model, (x, y) = mlp(), data(6)
    test = target_information(model, lambda o, t: (o - t).square().mean() * math.inf, (x,), y, list(model.parameters()))
    assert math.isnan(test.p_value)
    assert "not finite" in test.note


def test_a_loss_that_couples_targets_and_parameters_directly_is_seen():
    """Targets that act past the output: the short way through the output would miss them."""

    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.prototype = nn.Linear(3, 1, dtype=torch.float64), nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            return self.body(x)

    with private_random(0):
        model = Prototypes()
    x, _ = data(7, d=3)
    y = x[:, 0]

    def loss(output, target):
        return output.square().mean() + ((x @ model.prototype) - target).square().mean()

    test = target_information(model, loss, (x,), y, list(model.named_parameters()))
    assert test.method == "one forward pass, gradients of the whole loss"
    assert test.p_value == 0.005
    assert set(test.layers) == {"prototype"}


def test_outputs_that_are_no_tensor_and_operations_without_batched_backward():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad):
            return torch.from_numpy((2 * ctx.saved_tensors[0] * grad).detach().numpy())

    class Net(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.body, self.wrap = nn.Linear(6, 1, dtype=torch.float64), wrap

        def forward(self, x):
            out = Square.apply(self.body(x))
            return {"logits": out} if self.wrap else out

    x, y = data(8)
    with private_random(0):
        plain, wrapped = Net(False), Net(True)
    wrapped.load_state_dict(plain.state_dict())
    a = target_information(plain, F.mse_loss, (x,), y, list(plain.parameters()), permutations=19)
    b = target_information(wrapped, lambda o, t: F.mse_loss(o["logits"], t), (x,), y, list(wrapped.parameters()), permutations=19)
    assert a.null == pytest.approx(b.null, rel=1e-9)
    assert a.p_value == b.p_value


def test_batches_of_any_structure_and_masks_that_are_fixed():
    model, (x, y) = mlp(dropout=0.5), data(9)
    batch = {"in": [x], "note": "text", "y": y}
    tree_test = batch_information(model, lambda m, b: F.mse_loss(m(b["in"][0]), b["y"]), batch, list(model.parameters()), permutations=19)
    plain = target_information(model, F.mse_loss, (x,), y, list(model.parameters()), permutations=19)
    assert tree_test.null == pytest.approx(plain.null, rel=1e-9)


def test_bad_targets_are_refused():
    model, (x, y) = mlp(), data(10)
    with pytest.raises(CannotRun, match="rows to permute"):
        target_information(model, F.mse_loss, (x[:1],), y[:1], list(model.parameters()))
    with pytest.raises(CannotRun, match="inputs and targets"):
        batch_information(model, lambda m, b: m(b).sum(), x, list(model.parameters()))
    with pytest.raises(CannotRun, match="requires_grad"):
        target_information(model, F.mse_loss, (x,), y, [p.detach() for p in model.parameters()])
    with pytest.raises(ValueError, match="at least 2 permutations"):
        target_information(model, F.mse_loss, (x,), y, list(model.parameters()), permutations=1)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    with private_random(0):
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    x, y = data(11, dtype=torch.float32)
    F.mse_loss(copy.deepcopy(model)(x), y)
    model(x).sum().backward()
    model[1].eval()
    entered = []

    @contextmanager
    def context():
        entered.append(1)
        yield

    def loss(output, target):
        if fails and len(entered) and not torch.equal(target, y):
            raise RuntimeError("user code")
        torch.rand(3)
        return F.mse_loss(output, target)

    before = reference.snapshot(model)
    try:
        target_information(model, loss, (x,), y, list(model.parameters()), permutations=5, context=context)
    except RuntimeError:
        assert fails
    assert entered
    assert reference.same(before, reference.snapshot(model))
