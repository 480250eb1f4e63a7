"""Leaving no trace: everything that code inside the guard may disturb is as it was, also after an exception."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.guard import (
    capture_random,
    derive_seed,
    math_attention,
    private_random,
    random_fingerprint,
    restore_random,
    second_order_kernels,
    seed_all,
    untouched,
)
from tests.reference.training import everything, same


class Mistake(Exception):
    pass


def streams():
    """What each global stream gives next; the streams stay where they are."""
    state = capture_random()
    drawn = [*torch.rand(3).tolist(), *np.random.rand(3), random.random(), random.gauss(0, 1), np.random.randn()]
    restore_random(state)
    return drawn


def net():
    with private_random(1):
        model = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)
        )
        model(torch.randn(5, 3)).sum().backward()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[0].bias.grad = None
    return model


def disturb(model):
    """Everything that a forward pass, a backward pass and rude user code may do."""
    model.train()
    torch.rand(3), np.random.rand(3), random.random()
    model.requires_grad_(True)
    model(torch.randn(5, 3)).square().sum().backward()
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[4].bias.data.add_(1)
        model[4].weight.data = model[4].weight.data * 3
        model[1].running_mean.fill_(7)
    model[1].running_var = torch.full((4,), 9.0)
    model[0].bias.grad = torch.ones(4)
    model[0].weight.grad.zero_()
    model[4].bias.grad = None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_everything_is_put_back(fails, seed):
    model = net()
    before, drawn, storage = everything(model), streams(), [p.data_ptr() for p in model.parameters()]
    with suppress(Mistake), untouched(model, seed=seed):
        disturb(model)
        if fails:
            raise Mistake
    same(before, everything(model))
    assert streams() == drawn
    assert [p.data_ptr() for p in model.parameters()] == storage


def test_version_counters_stay_where_nothing_was_written():
    model = net()
    loss = model.train()(torch.ones(5, 3)).square().sum()  # a user's own graph, made before
    versions = [p._version for p in model.parameters()]
    with untouched(model):
        model.eval()(torch.ones(5, 3)).sum().backward()
    assert [p._version for p in model.parameters()] == versions
    loss.backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_and_gradients_that_are_not_finite(value):
    model = nn.Linear(2, 1)
    model.weight.data[0, 0] = value
    model.weight.grad = torch.tensor([[value, 1.0]])
    before, version = everything(model), model.weight._version
    with untouched(model):
        model.weight.grad.add_(1)
    same(before, everything(model))
    assert model.weight._version == version
    with untouched(model), torch.no_grad():
        model.weight.fill_(0)
    same(before, everything(model))


def test_sparse_gradients_are_put_back():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 3])).sum().backward()
    grad, dense = table.weight.grad, table.weight.grad.to_dense().clone()
    with untouched(table):
        table.weight.grad = None
        table(torch.tensor([2])).sum().backward()
    assert table.weight.grad is grad
    with untouched(table):
        table(torch.tensor([2])).sum().backward()
    assert torch.equal(table.weight.grad.to_dense(), dense)


def test_shared_buffers_stay_shared():
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.running_mean = one.running_mean
    model = nn.Sequential(one, two)
    with untouched(model):
        assert one.running_mean is two.running_mean
        model(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert one.running_mean is two.running_mean
    assert not one.running_mean.any()


def test_autocast_is_off_inside_and_on_again():
    model = nn.Linear(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with untouched(model):
            assert model(torch.ones(1, 2)).dtype == torch.float32
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16


def test_masks_are_replayed_by_the_seed():
    model, x = nn.Dropout(0.5), torch.ones(1000)

    def masked(seed):
        with untouched(model, seed=seed):
            return model(x)

    assert torch.equal(masked(1), masked(1))
    assert not torch.equal(masked(1), masked(2))


def test_private_streams():
    drawn = streams()
    with private_random(5):
        inside = streams()
        assert inside != drawn
        with private_random(6):
            assert streams() != inside
        assert streams() == inside
    assert streams() == drawn
    with private_random():
        assert streams() == drawn
        seed_all(5)
        assert streams() == inside
    assert streams() == drawn
    with pytest.raises(Mistake), private_random(5):
        raise Mistake
    assert streams() == drawn


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), lambda: torch.randperm(3), np.random.rand, np.random.randn, random.random, lambda: random.gauss(0, 1)]
)
def test_the_fingerprint_tells_any_draw(draw):
    with private_random(8):
        first = random_fingerprint()
        assert random_fingerprint() == first
        draw()
        second = random_fingerprint()
        draw()
        assert len({first, second, random_fingerprint()}) == 3


def test_seeds_are_63_bits_and_do_not_collide():
    seeds = {derive_seed(a, b, c) for a in range(20) for b in range(20) for c in range(-10, 10)}
    assert len(seeds) == 20 * 20 * 20
    assert all(0 <= s < 2**63 for s in seeds)
    assert len({derive_seed(*[0] * n) for n in range(6)}) == 6
    bits = np.array([[derive_seed(0, k) >> i & 1 for i in range(63)] for k in range(1000)])
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(1000)  # each bit is a fair coin
    torch.Generator().manual_seed(max(seeds))


def test_kernels_that_can_be_differentiated_twice():
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    attention = nn.functional.scaled_dot_product_attention
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    with math_attention():
        out = attention(q, q, q)
        grad = torch.autograd.grad(out.square().sum(), q, create_graph=True)[0]
        assert torch.autograd.grad(grad.square().sum(), q)[0].isfinite().all()
    assert torch.allclose(out, (q @ q.transpose(-1, -2) / 8**0.5).softmax(-1) @ q, atol=1e-5)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()) == flags
    cudnn = torch.backends.cudnn.enabled
    with second_order_kernels(nn.LSTM(2, 2)):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == cudnn
    with second_order_kernels(nn.Conv1d(1, 1, 1)):
        assert torch.backends.cudnn.enabled == cudnn
