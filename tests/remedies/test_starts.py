"""Other starts: drawn anew by rule or by the user's own function, and scaled on the data."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from gradoscope.guard import derive_seed, private_random
from gradoscope.loop import advance
from gradoscope.remedies.rescale import Rescale, rescalable, rescale_layers
from gradoscope.remedies.restart import Restart, redraw
from gradoscope.training import Live
from tests.reference.training import data, everything, mlp, same
from tests.remedies.nets import prepared, training


def same_distribution(a, b):
    return stats.ks_2samp(a.detach().flatten().numpy(), b.detach().flatten().numpy()).pvalue > 1e-3


def test_a_function_is_asked_for_the_new_start():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            nn.init.normal_(self.layer.weight, 5.0, 0.01)
            self.register_buffer("mask", torch.rand(3))

        def forward(self, x):
            return self.layer(x) * self.mask

    recipe = training(model=Odd)
    start, one, two, again = (prepared(recipe, *r).model for r in ((), (Restart(1),), (Restart(2),), (Restart(1),)))
    with private_random(derive_seed(3, 104, 1)):
        expected = Odd()
    same(dict(expected.state_dict()), dict(one.state_dict()))
    same(dict(again.state_dict()), dict(one.state_dict()))
    assert not torch.equal(one.layer.weight, two.layer.weight)
    assert not torch.equal(one.layer.weight, start.layer.weight)
    assert float(one.layer.weight.mean()) == pytest.approx(5, abs=0.02)


class Own(nn.Module):
    """A layer of the user's, reset by a method that writes past autograd, beside a parameter without any."""

    def __init__(self):
        super().__init__()
        self.weight, self.free = nn.Parameter(torch.empty(60, 50)), nn.Parameter(torch.empty(50, 60))
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.reset_parameters()
        nn.init.normal_(self.free, 2.0, 0.1)

    def reset_parameters(self):
        self.weight.data.uniform_(1, 2)


def kinds():
    with private_random(1):
        return {
            "linear": nn.Linear(50, 60),
            "convolution": nn.Conv2d(8, 16, 3),
            "lstm": nn.LSTM(20, 30, num_layers=2),
            "embedding": nn.Embedding(50, 40),
            "attention": nn.MultiheadAttention(40, 4),
            "batch norm": nn.BatchNorm1d(200),
            "own": Own(),
            "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(50, 60)),
        }


@pytest.mark.parametrize("name", kinds())
def test_parameters_are_drawn_from_the_distribution_of_a_fresh_module(name):
    model, fresh = kinds()[name], kinds()[name]
    with torch.no_grad():  # as after a training
        for q, p in model.named_parameters():
            if "free" not in q and "original0" not in q:
                p.mul_(1.5).add_(0.1)
        for b in model.buffers():
            b.add_(1)
    if name == "weight norm":
        fresh.load_state_dict(model.state_dict())  # whose parameters have no rule of their own: mean and size stay
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    with private_random(7):
        redraw(model)
    for key, p in model.named_parameters():
        expected = dict(fresh.named_parameters())[key]
        if p.numel() > 1:
            assert not torch.equal(p, before[key]), key
        if key == "scale":
            assert torch.equal(p, before[key])  # a single number has no distribution
        elif float(expected.std()) == 0:
            assert torch.equal(p, expected), key
        elif name == "weight norm" and key != "bias":
            assert float(p.mean()) == pytest.approx(float(before[key].mean()), abs=5 * float(before[key].std()) / math.sqrt(p.numel()))
            assert float(p.std()) == pytest.approx(float(before[key].std()), rel=5 / math.sqrt(p.numel()))
        elif name != "weight norm":
            assert same_distribution(p, expected), key
    if name == "batch norm":
        same(dict(fresh.state_dict()), dict(model.state_dict()))


def test_restarts_of_a_module_that_was_handed_in_leave_it_alone():
    net = mlp()
    before = everything(net)
    recipe = training(model=net)
    one, two, again = (prepared(recipe, Restart(k)).model for k in (1, 2, 1))
    assert not torch.equal(one[0].weight, two[0].weight)
    assert torch.equal(one[0].weight, again[0].weight)
    bound = 1 / math.sqrt(4)
    assert float(one[0].weight.abs().max()) <= bound
    same(before, everything(net))


# ---- Rescale --------------------------------------------------------------------------------------------------------


def outputs(model, *inputs):
    """The output of each layer that holds weights, as (units, everything else)."""
    seen = {}

    def hook(name, dim):
        def look(_module, _inputs, out):
            seen[name] = out.detach().clone().movedim(dim, 0).flatten(1)

        return look

    handles = [
        m.register_forward_hook(hook(n, -1 if isinstance(m, nn.Linear) else 1))
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return seen


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, bias=True):
        super().__init__()
        self.inside, self.rnn, self.head = nn.Linear(5, 6), kind(6, 16, num_layers=2, batch_first=True, bias=bias), nn.Linear(16, 7)

    def forward(self, x):
        return self.head(self.rnn(self.inside(x))[0])


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * 3 + 1


NETS = {
    "deep sigmoid": (lambda: nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(8, 8), nn.Sigmoid())], nn.Linear(8, 3)), (100, 8)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)), (20, 7, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)
        ),
        (30, 2, 6, 6),
    ),
    "lstm": (Recurrent, (20, 4, 5)),
    "gru": (lambda: Recurrent(nn.GRU), (20, 4, 5)),
    "rnn without bias": (lambda: Recurrent(nn.RNN, bias=False), (20, 4, 5)),
}


@pytest.mark.parametrize("name", NETS)
def test_every_layer_has_zero_mean_and_unit_variance_on_the_data(name):
    make, shape = NETS[name]
    with private_random(3):
        model = make()
    x = draw(*shape)
    rescale_layers(model, x)
    found = outputs(model, x)
    assert len(found) == len([m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)])
    for layer, out in found.items():
        assert out.mean(1).abs().max() < 1e-4, layer
        assert float((out - out.mean(1, keepdim=True)).square().mean()) == pytest.approx(1, rel=1e-4), layer
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "weight_hh" in key:
                for block in p.split(16):
                    assert torch.allclose(block @ block.T, torch.eye(16), atol=1e-5)
            elif "bias_ih" in key and name == "lstm":
                assert p.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32  # the forget gate is the second of four
            elif "rnn.bias" in key:
                assert not p.any()


def test_weights_are_drawn_from_the_seed_and_nothing_else_is_touched():
    def make():
        with private_random(3):
            return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    one, two, other, plain = make(), make(), make(), make()
    x = draw(50, 6)
    one.eval()
    for model, seed in ((one, 1), (two, 1), (other, 2)):
        with private_random(5):
            model(x).sum().backward()
        kept = [model[1].running_mean.clone(), model[0].weight.grad.clone(), [m.training for m in model.modules()]]
        hooks = everything(model)["hooks"]
        rescale_layers(model, x, seed=seed)
        same(kept, [model[1].running_mean, model[0].weight.grad, [m.training for m in model.modules()]])
        assert everything(model)["hooks"] == hooks
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(one[1].weight, plain[1].weight)
    assert stats.kstest((one[0].weight / one[0].weight.std()).detach().numpy().ravel(), "norm").pvalue > 1e-3


def test_layers_with_computed_weights_are_left_alone():
    with private_random(3):
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    before = model[0].weight.detach().clone()
    rescale_layers(model, data()[0])
    assert torch.equal(model[0].weight, before)
    assert float(outputs(model, data()[0])["2"].var(correction=0)) == pytest.approx(1, rel=1e-4)


def test_the_remedy_uses_the_data_of_the_training():
    def make():
        return nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(4, 4), nn.Sigmoid())], nn.Linear(4, 3))

    x, y = data(64)
    by_batch = {"loss_fn": None, "batch_loss": lambda m, b: F.cross_entropy(m(b[0]), b[1])}
    for options in ({}, by_batch):
        recipe = training(model=make, data=(x, y), **options)
        live = prepared(recipe, Rescale())
        assert float(outputs(live.model, x)["10"].square().mean()) == pytest.approx(1, rel=1e-3)
        gradients = []
        for model in (live.model, prepared(recipe).model):
            loss = F.cross_entropy(model(x), y)
            gradients.append(float(torch.autograd.grad(loss, model[0].weight)[0].norm()))
        assert gradients[0] > 30 * gradients[1]
        assert np.isfinite(advance(live, 0, 3))


def test_what_can_be_rescaled():
    with private_random(0):
        model = nn.ModuleDict(
            {"a": nn.Linear(2, 2), "r": nn.GRU(2, 2), "t": nn.Tanh(), "n": nn.LayerNorm(2), "m": nn.MultiheadAttention(4, 2)}
        )
    assert rescalable(model) == ["a", "r"]


def test_a_model_that_cannot_be_copied_is_put_back():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()
            self.last = self.body(data()[0])

        def forward(self, x):
            self.last = self.body(x)
            return self.last

    for remedy in (Rescale(), Restart(1)):
        net = Caching()
        before = everything(net)
        with Live.of(remedy(training(model=net))) as live:
            assert live.model is net
            remedy.prepare(live)
            advance(live, 0, 2)
        same(before, everything(net))
