"""SGD on single examples: bit for bit the plain loop, whatever is kept and however examples are grouped."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.updates import single_examples
from gradoscope.updates.single_examples import WideHinge, replay

F64 = torch.float64


def data(seed, n, d, margin=0.1):
    random = torch.Generator().manual_seed(seed)
    w = torch.nn.functional.normalize(torch.randn(d, generator=random, dtype=F64), dim=0)
    x = torch.nn.functional.normalize(torch.randn(20 * n, d, generator=random, dtype=F64), dim=1)
    x = x[(x @ w).abs() > margin][:n]
    return x, torch.sign(x @ w)


def start(seed, k, d):
    w = torch.randn(2 * k, d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return w / w.norm()


def plain(weights, x, y, *, slope, v, eta, random=None):
    """Every example in turn, every margin from the weights."""
    net, updates, epochs = WideHinge(weights, slope=slope, v=v), [], 0
    while True:
        before, epochs = len(updates), epochs + 1
        order = range(len(x)) if random is None else torch.randperm(len(x), generator=random).tolist()
        for i in order:
            z = net.weights @ x[i]
            if float(y[i]) * float(net._output(z[None])) < 1:
                slopes = torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))
                net.weights.addr_((eta * v * float(y[i])) * net.signs * slopes, x[i])
                updates.append(i)
        if len(updates) == before:
            return net.weights, updates, epochs


@pytest.mark.parametrize("wide", [1, 10_000])  # always kept, never kept
@pytest.mark.parametrize(("k", "slope", "eta"), [(1, 0.5, 1.0), (20, 0.1, 0.3), (20, 1.0, 0.5)])
def test_it_is_the_plain_loop_bit_for_bit(monkeypatch, wide, k, slope, eta):
    monkeypatch.setattr(single_examples, "WIDE", wide)
    x, y = data(k, 60, 8)
    w, v = start(1, k, 8), 1 / math.sqrt(2 * k)
    for random in (None, 7):
        net = WideHinge(w, slope=slope, v=v)
        streams = [None if random is None else torch.Generator().manual_seed(random) for _ in range(2)]
        record = net.train(x, y, eta=eta, random=streams[0])
        weights, updates, epochs = plain(w, x, y, slope=slope, v=v, eta=eta, random=streams[1])
        assert record.updates == updates
        assert (record.epochs, record.converged) == (epochs, True)
        assert torch.equal(net.weights, weights)
        assert float((y * net(x)).min()) >= 1 - 1e-12
        assert torch.equal(replay(w, x, y, record.updates, eta=eta, slope=slope, v=v).weights, weights)


def test_kept_activations_stay_true_over_many_updates(monkeypatch):
    monkeypatch.setattr(single_examples, "WIDE", 1)
    x, y = data(3, 150, 12, margin=0.02)
    w = start(2, 5, 12)
    net = WideHinge(w, slope=0.1, v=0.3)
    record = net.train(x, y, eta=0.05, random=torch.Generator().manual_seed(0))
    assert len(record.updates) > 600  # more than the first room for them
    assert torch.equal(net.weights, plain(w, x, y, slope=0.1, v=0.3, eta=0.05, random=torch.Generator().manual_seed(0))[0])


def test_an_update_is_a_step_of_autograd():
    x, y = data(4, 5, 6)
    w = start(5, 3, 6).requires_grad_()
    z = torch.nn.functional.leaky_relu(x[2] @ w.T, 0.2)
    loss = torch.relu(1 - y[2] * 0.4 * (z[:3].sum() - z[3:].sum()))
    (gradient,) = torch.autograd.grad(loss, w)
    net = WideHinge(w.detach(), slope=0.2, v=0.4)
    assert net.visit(x[2], float(y[2]), 0.7) is not None
    torch.testing.assert_close(net.weights, w.detach() - 0.7 * gradient)


def test_recorded_progress_and_norms():
    x, y = data(6, 40, 5)
    along = start(9, 4, 5)
    net = WideHinge(start(8, 4, 5), slope=0.3, v=0.5)
    record = net.train(x, y, eta=0.2, along=along)
    assert record.progress[-1] == pytest.approx(float((net.weights * along).sum()))
    assert record.norms[-1] == pytest.approx(float(net.weights.square().sum()))
    assert len(record.norms) == len(record.progress) == len(record.updates)


def test_relus_that_are_off_do_not_move():
    x, y = torch.eye(3, dtype=F64), torch.ones(3, dtype=F64)
    net = WideHinge(-torch.ones(4, 3, dtype=F64), slope=0.0, v=1.0)
    record = net.train(x, y, eta=1.0, epochs=3)
    assert not record.converged  # every visit is an update of size zero
    assert torch.equal(net.weights, -torch.ones(4, 3, dtype=F64))


def test_wrong_lists_and_sizes():
    x, y = data(1, 10, 4)
    w = start(1, 2, 4)
    net = WideHinge(w, slope=0.5, v=0.5)
    record = net.train(x, y, eta=1.0)
    with pytest.raises(Usage, match="another training"):
        replay(w, x, y, record.updates + [record.updates[-1]] * 30, eta=1.0, slope=0.5, v=0.5)
    with pytest.raises(Usage, match="slope"):
        WideHinge(w, slope=1.5, v=1.0)
    with pytest.raises(Usage, match="2k"):
        WideHinge(w[:3], slope=0.5, v=1.0)
