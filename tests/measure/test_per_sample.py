"""Per-sample gradients from hooks equal a plain loop over the rows, for every kind of layer, and so do those of single rows."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random, random_fingerprint
from gradoscope.measure import _per_sample_layers as layers
from gradoscope.measure import per_sample as module
from gradoscope.measure.noise import noise_statistics
from gradoscope.measure.per_sample import per_sample
from gradoscope.objective import Objective

B, T = 5, 4


class Apply(nn.Module):
    """Layers and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Positions(nn.Module):
    """A transformer's front: tokens, positions that see no row, a parameter added to all rows, a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(7, 6, padding_idx=0), nn.Embedding(T, 6)
        self.start = nn.Parameter(torch.randn(1, T, 6))
        self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place(torch.arange(T)) + self.start
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v)).mean(1)


class TiedHead(nn.Module):
    """The table of the tokens is also the last layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(x))).mean(1)


class Own(nn.Module):
    """A matrix of a user's own module, beside layers that hooks see."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.matrix = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inside(x)) @ self.matrix


class Elsewhere(nn.Module):
    """A layer's weight that is used once more outside of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(torch.tanh(self.a(x)), self.a.weight))


def _vector() -> Tensor:
    return torch.randn(B, 6)


def _image(channels: int = 4) -> Tensor:
    return torch.randn(B, channels, 6, 6)


def _tokens() -> Tensor:
    return torch.randint(0, 7, (B, T))


def _conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(*args, **options), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], bool]] = {
    # name: model, input, whether hooks account for every parameter
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3, bias=False)), _vector, True),
    "sequence": (lambda: Apply(lambda m, x: m.a(x).tanh().mean(1), a=nn.Linear(6, 3)), lambda: torch.randn(B, T, 6), True),
    "long sequence": (lambda: Apply(lambda m, x: m.a(x).tanh().mean(1), a=nn.Linear(2, 3)), lambda: torch.randn(B, 40, 2), True),
    "time first": (
        lambda: Apply(lambda m, x: m.a(x.transpose(0, 1)).tanh().mean(0), a=nn.Linear(6, 3)),
        lambda: torch.randn(B, T, 6),
        True,
    ),
    "rows merged": (
        lambda: Apply(lambda m, x: m.a(x.flatten(0, 1)).tanh().unflatten(0, (-1, T)).mean(1), a=nn.Linear(6, 3)),
        lambda: torch.randn(B, T, 6),
        True,
    ),
    "layer twice": (lambda: Apply(lambda m, x: m.b(m.a(m.a(x).tanh())), a=nn.Linear(6, 6), b=nn.Linear(6, 3)), _vector, True),
    "transformer": (Positions, _tokens, True),
    "tied head": (TiedHead, _tokens, True),
    "conv": (lambda: _conv(4, 6, 3, stride=2, padding=1), _image, True),
    "conv groups": (lambda: _conv(4, 6, 3, groups=2, dilation=2, padding="same"), _image, True),
    "conv circular": (lambda: _conv(4, 6, 3, padding=1, padding_mode="circular", bias=False), _image, True),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(4, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        lambda: torch.randn(B, 4, 7),
        True,
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        lambda: torch.randn(B, 2, 3, 3, 3),
        True,
    ),
    "frames merged": (
        lambda: Apply(lambda m, x: m.a(x.flatten(0, 1)).tanh().mean((2, 3)).unflatten(0, (-1, 2)).mean(1), a=nn.Conv2d(2, 3, 3)),
        lambda: torch.randn(B, 2, 2, 5, 5),
        True,
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        _image,
        True,
    ),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), _vector, True),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        _image,
        True,
    ),
    "instance norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        _image,
        True,
    ),
    "layer and root norm": (
        lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        _vector,
        True,
    ),
    "reparametrised": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))),
        _vector,
        False,
    ),
    "own module": (Own, _vector, False),
    "used elsewhere": (Elsewhere, _vector, False),
    "lstm": (
        lambda: Apply(lambda m, x: m.b(m.a(x)[0][:, -1]), a=nn.LSTM(6, 4, batch_first=True), b=nn.Linear(4, 3)),
        lambda: torch.randn(B, T, 6),
        False,
    ),
    "attention": (
        lambda: Apply(lambda m, x: m.b(m.a(x, x, x)[0].mean(1)), a=nn.MultiheadAttention(6, 2, batch_first=True), b=nn.Linear(6, 3)),
        lambda: torch.randn(B, T, 6),
        False,
    ),
}


def mean_loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with private_random(3):
        build, draw, _ = CASES[name]
        model, x = build(), draw()
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
        model(x)  # lazy layers take their shape
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))  # scales that are not one
        y = torch.randint(0, 3, (B,))
    model = model.to(dtype)
    return model, (x.to(dtype) if x.is_floating_point() else x, y)


def loop(model: nn.Module, batch: Any, loss: Callable[..., Tensor] = mean_loss) -> list[list[Tensor]]:
    """The slow obvious way: one row after the other."""
    named = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(batch[1])):
        grads = torch.autograd.grad(loss(model, tuple(t[i : i + 1] for t in batch)), named, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(grads, named, strict=True)])
    return rows


def flat_rows(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["auto", "rows"])
def test_equals_a_loop_over_the_rows(name: str, way: Any) -> None:
    model, batch = make(name)
    objective = Objective(model, mean_loss, [batch], mode="eval")
    found = per_sample(objective, products=True, way=way)
    rows = loop(model.eval(), batch)
    expected = np.array([[float(g.square().sum()) for g in row] for row in rows])
    assert found.squares == pytest.approx(expected, rel=1e-9, abs=1e-16)
    whole = flat_rows(rows)
    assert found.products == pytest.approx((whole @ whole.T).numpy(), rel=1e-9, abs=1e-14)
    assert found.gradient_square == pytest.approx(float(whole.mean(0).square().sum()), rel=1e-9)
    if way == "auto":
        assert (set(found.hooked) == set(found.names)) == CASES[name][2], found
        assert found.hooked or name == "attention"


@pytest.mark.parametrize("name", ["mlp", "transformer", "conv", "batch norm", "group norm", "tied head"])
def test_float32_and_the_second_call(name: str) -> None:
    """The second call rests on what the first has proven, also after the parameters have moved."""
    model, batch = make(name, torch.float32)
    objective = Objective(model, mean_loss, [batch], mode="eval")
    for _ in range(2):
        exact = flat_rows(loop(model.double().eval(), (batch[0].double() if batch[0].is_floating_point() else batch[0], batch[1])))
        model.float()
        found = per_sample(objective, mean=True)
        assert found.norms == pytest.approx(exact.norm(dim=1).numpy(), rel=2e-5)
        assert found.gradient_square == pytest.approx(float(exact.mean(0).square().sum()), rel=1e-4)
        with torch.no_grad():
            next(model.parameters()).mul_(1.25)


def test_proof_is_made_once_and_again_for_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make("mlp")
    objective = Objective(model, mean_loss, [batch], mode="eval")
    calls: list[int] = []
    monkeypatch.setattr(module._Pass, "single", lambda self, *a, _own=module._Pass.single, **k: calls.append(1) or _own(self, *a, **k))
    per_sample(objective)
    per_sample(objective, mean=True)
    assert len(calls) == 1
    objective.batches[0] = (torch.cat([batch[0]] * 2), torch.cat([batch[1]] * 2))
    per_sample(objective)
    assert len(calls) == 2
    place = weakref.ref(objective)
    del objective
    assert place() is None


REDUCTIONS: dict[str, tuple[Callable[[Any, Any], Tensor], str]] = {
    "sum": (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), "sum"),
    "weights": (lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)), "weighs"),
    "several": (lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.3 * m(b[0]).square().mean(), ""),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_mean_of_the_rows_is_the_gradient_whatever_the_reduction(name: str) -> None:
    model, batch = make("mlp")
    loss, note = REDUCTIONS[name]
    objective = Objective(model, loss, [batch], mode="eval")
    found = per_sample(objective, products=True)
    assert found.gradient_square == pytest.approx(float(objective.gradient().square().sum()), rel=1e-9)
    assert note in found.method
    if name == "weights":  # the share of each row in the weighted mean
        share = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)[batch[1]]
        rows = flat_rows(loop(model, batch)) * (B * share / share.sum())[:, None]
    else:
        rows = flat_rows(loop(model, batch, loss)) * (B if name == "sum" else 1)
    assert found.norms == pytest.approx(rows.norm(dim=1).numpy(), rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "own module"])
def test_a_loss_that_couples_its_rows_is_refused(name: str) -> None:
    model, batch = make(name)

    def pairs(m: nn.Module, b: Any) -> Tensor:
        return (m(b[0]).softmax(1) @ m(b[0]).softmax(1).T).logsumexp(1).mean()

    with pytest.raises(CannotRun, match="couples its rows"):
        per_sample(Objective(model, pairs, [batch], mode="eval"))


def test_batch_statistics_are_held_fixed() -> None:
    model, batch = make("batch norm 1d")
    objective = Objective(model, mean_loss, [batch], mode="train")
    found = per_sample(objective)
    norm: Any = model[1]  # type: ignore[index]  # a Sequential, told as a Module
    hidden = model[0](batch[0])  # type: ignore[index]  # the same
    norm.running_mean, norm.running_var = hidden.mean(0).detach(), hidden.var(0).detach()
    assert found.norms == pytest.approx(flat_rows(loop(model.eval(), batch)).norm(dim=1).numpy(), rel=1e-9)
    assert "held fixed" in found.method


def test_dropout_masks_are_those_of_the_pass() -> None:
    with private_random(1):
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        batch = (torch.randn(B, 6, dtype=torch.float64), torch.randint(0, 3, (B,)))
    objective = Objective(model, mean_loss, [batch])
    found = per_sample(objective, products=True, seed=4)
    assert len(found.hooked) == 4
    again = per_sample(objective, products=True, seed=4)
    assert np.array_equal(found.squares, again.squares)
    assert found.products.mean() == pytest.approx(found.gradient_square)  # type: ignore[union-attr]  # products were asked for


def test_frozen_unused_and_checkpointed_layers() -> None:
    with private_random(2):
        model = Apply(
            lambda m, x: m.c(checkpoint(m.b, m.a(x).tanh(), use_reentrant=False).tanh()),
            **{k: nn.Linear(6, 6) for k in "abc"},
            spare=nn.Linear(2, 2),
        ).double()
        batch = (torch.randn(B, 6, dtype=torch.float64), torch.randint(0, 3, (B,)))
    model.a.weight.requires_grad_(False)  # type: ignore[union-attr, operator]  # a layer of this net
    found = per_sample(Objective(model, mean_loss, [batch]))
    assert "a.weight" not in found.names
    assert dict(zip(found.names, found.squares.sum(0), strict=True))["spare.weight"] == 0
    assert set(found.hooked) == set(found.names)
    assert found.norms == pytest.approx(flat_rows(loop(model, batch)).norm(dim=1).numpy(), rel=1e-9)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ["mlp", "sequence", "long sequence", "conv", "tied head"]
    expected = [per_sample(Objective(*_with_loss(name), mode="eval"), products=True) for name in cases]
    monkeypatch.setattr(layers, "CHUNK", 40)
    for name, before in zip(cases, expected, strict=True):
        after = per_sample(Objective(*_with_loss(name), mode="eval"), products=True)
        assert after.squares == pytest.approx(before.squares, rel=1e-10)
        assert after.products == pytest.approx(before.products, rel=1e-9, abs=1e-15)


def _with_loss(name: str) -> tuple[nn.Module, Callable[..., Tensor], list[Any]]:
    model, batch = make(name)
    return model, mean_loss, [batch]


def test_noise_statistics_of_rows_are_those_of_their_gradients() -> None:
    model, batch = make("mlp")
    found = per_sample(Objective(model, mean_loss, [batch]), products=True)
    rows = flat_rows(loop(model, batch))
    expected, ours = noise_statistics(rows, 1, seed=2), found.noise(seed=2)
    assert vars(ours) == pytest.approx(vars(expected), rel=1e-8)
    short = found.norm_statistics()
    assert short.trace == pytest.approx(expected.trace)
    assert short.signal == pytest.approx(expected.signal)
    assert short.norm_test == pytest.approx(math.sqrt(expected.trace / B) / float(rows.mean(0).norm()))
    measured = found.to_measurement(step=3)
    assert measured.value == pytest.approx(float(rows.square().sum(1).mean().sqrt()))


def test_what_was_not_asked_for_is_said() -> None:
    model, batch = make("mlp")
    found = per_sample(Objective(model, mean_loss, [batch]))
    with pytest.raises(Usage, match="mean=True"):
        found.norm_statistics()
    with pytest.raises(Usage, match="products=True"):
        found.noise()
    with pytest.raises(Usage, match="rows"):
        per_sample(Objective(model, mean_loss, [batch]), way="fast")  # type: ignore[arg-type]  # a mistake
    with pytest.raises(CannotRun, match="first dimension"):
        per_sample(Objective(model, lambda m, b: m(b["x"]).mean(), [{"x": batch[0], "scale": torch.tensor(2.0)}]))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model, batch = make("batch norm 1d")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream, hooks = random_fingerprint(), [len(m._forward_hooks) for m in model.modules()]

    def loss(m: nn.Module, b: Any) -> Tensor:
        value = mean_loss(m, b)
        if fails and len(b[0]) == 1:
            raise ValueError("a single row")
        return value

    objective = Objective(model, loss, [batch])
    if fails:
        with pytest.raises(ValueError, match="single row"):
            per_sample(objective)
    else:
        per_sample(objective, products=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert model.training
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert stream == random_fingerprint()
