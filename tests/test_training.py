"""What is handed in is copied with everything that belongs to it, and afterwards is what it was."""

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as lrs

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random, random_fingerprint
from gradoscope.loop import advance
from gradoscope.training import Live, Training, make_optimizer, split
from tests.reference.training import data, everything, mlp, plain_loop, same

X, Y = data()


@pytest.fixture(autouse=True)
def _streams_stay():
    before = random_fingerprint()
    yield
    assert random_fingerprint() == before


class Warmup(SGD):
    """Keeps a counter, a tensor and a table by parameter in attributes of its own."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr, momentum=0.9)
        self.calls, self.scale = 0, torch.tensor(1.0)
        self.slow = {p: p.detach().clone() for g in self.param_groups for p in g["params"]}

    def step(self, closure=None):
        self.calls += 1
        self.scale = self.scale * 0.9
        for p, slow in self.slow.items():
            p.grad.mul_(self.scale).add_(p.detach() - slow, alpha=0.01)
            slow.lerp_(p.detach(), 0.1)
        return super().step(closure)


class Caching(nn.Module):
    """Keeps an activation with its graph, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.body = mlp(nn.BatchNorm1d(6), nn.Dropout(0.2))
        self.register_buffer("seen", torch.zeros(()))
        self.hidden = self.body(X)

    def forward(self, x):
        self.seen += 1
        self.hidden = self.body(x)
        return self.hidden


def weight_normed():
    net = mlp()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net[0])
    net(X).sum().backward()
    return net


def cached():
    with private_random(2):
        return Caching()


def warmed_up(net, optimizer, schedule=None, steps=3):
    """A training in progress: states, schedules and gradients are there."""
    plain_loop(net, optimizer, lambda i: (X, Y), F.cross_entropy, steps, schedule=schedule)


def training(net, optimizer, **options):
    return Training(model=net, optimizer=optimizer, **({"data": (X, Y), "loss_fn": F.cross_entropy, "batch_size": 8} | options))


SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: lrs.StepLR(o, 2, 0.5),
    "one cycle": lambda o: lrs.OneCycleLR(o, 0.3, total_steps=30),
    "lambda": lambda o: lrs.LambdaLR(o, lambda k: 1 / (1 + k)),
    "sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1, 3), lrs.CosineAnnealingLR(o, 9)], [4]),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0),
}
OPTIMIZERS = {
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "subclass": lambda p: Warmup(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3),
}
NETS = {"plain": lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.2)), "caching": cached, "weight norm": weight_normed}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("momentum", s) for s in SCHEDULES] + [("adam", "one cycle"), ("subclass", "step"), ("lbfgs", "none")]
)
def test_the_training_goes_on_from_where_it_stands_and_what_was_handed_in_stays(net, optimizer, schedule):
    def users(steps):
        model = NETS[net]()
        own = OPTIMIZERS[optimizer](model.parameters())
        plan = SCHEDULES[schedule](own)
        warmed_up(model, own, plan, steps)
        return model, own, plan

    model, own, plan = users(3)
    before = everything(model, own, plan)
    with Live.of(training(model, own, schedule=plan), seed=5) as live:
        trained, batches = live.model, live.batches
        advance(live, 0, 4)
        result = [p.detach().clone() for p in trained.parameters()], [b.clone() for b in trained.buffers()]
        rates = [g["lr"] for g in live.optimizer.param_groups]
        with pytest.raises(ZeroDivisionError):
            advance(live, 4, 2, [lambda *_: 1 / 0])
    same(before, everything(model, own, plan))

    # The user's own loop, from the same point on the same batches, ends at the same bits.
    model, own, plan = users(3)
    plain_loop(model, own, batches.batch, F.cross_entropy, 4, seed=5, schedule=plan)
    same(result, ([p.detach() for p in model.parameters()], list(model.buffers())))
    assert rates == [g["lr"] for g in own.param_groups]


@pytest.mark.parametrize("net", NETS)
def test_factories_leave_a_handed_in_model_alone(net):
    model = NETS[net]()
    before = everything(model)
    with Live.of(training(model, partial(Adam, lr=0.01), schedule=lambda o: lrs.LinearLR(o, 0.1))) as live:
        advance(live, 0, 3)
        assert any(not torch.equal(p, q) for p, q in zip(before["parameters"], live.model.parameters(), strict=True))
    same(before, everything(model))


@pytest.mark.parametrize("net", NETS)
def test_a_schedule_that_is_made_from_the_users_optimizer_does_not_change_it(net):
    model = NETS[net]()
    own = SGD(model.parameters(), lr=0.1, momentum=0.9)
    warmed_up(model, own)
    before = everything(model, own)
    with Live.of(training(model, own, schedule=lambda o: lrs.LinearLR(o, 0.1))) as live:
        assert live.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
        advance(live, 0, 3)
    same(before, everything(model, own))


@pytest.mark.parametrize("where", ["batch_loss", "penalty in batch_loss", "penalty in loss_fn"])
def test_a_loss_that_closes_over_the_model_trains_it_and_puts_it_back(where):
    def users():
        net = mlp(nn.BatchNorm1d(6))
        own = Adam(net.parameters(), lr=0.05)
        warmed_up(net, own)

        def penalty():
            return 0.1 * sum(p.square().sum() for p in net.parameters())

        losses = {
            "batch_loss": {"batch_loss": lambda _, b: F.cross_entropy(net(b[0]), b[1])},
            "penalty in batch_loss": {"batch_loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]) + penalty()},
            "penalty in loss_fn": {"loss_fn": lambda o, y: F.cross_entropy(o, y) + penalty()},
        }
        loss = losses[where]
        return net, own, Training(model=net, optimizer=own, data=(X, Y), batch_size=8, **loss), penalty

    net, own, recipe, _ = users()
    before = everything(net, own)
    with Live.of(recipe, seed=2) as live:
        batches = live.batches
        advance(live, 0, 4)
        result = [p.detach().clone() for p in live.model.parameters()]
    same(before, everything(net, own))
    net, own, recipe, penalty = users()

    def loss_fn(output, y):
        return F.cross_entropy(output, y) + (penalty() if "penalty" in where else 0.0)

    plain_loop(net, own, batches.batch, loss_fn, 4, seed=2)
    same(result, [p.detach() for p in net.parameters()])


def test_a_copy_is_trained_where_it_can_be():
    net = mlp()
    for loss in ({"loss_fn": F.cross_entropy}, {"batch_loss": lambda m, b: F.cross_entropy(m(b[0]), b[1])}):
        with Live.of(Training(model=net, optimizer=Adam(net.parameters()), data=(X, Y), **loss)) as live:
            assert live.model is not net
            assert live.optimizer.param_groups[0]["params"][0] is next(live.model.parameters())
    live = weakref.ref(live.model)
    gc.collect()


def test_factories_of_parameters_of_the_model_and_of_nothing():
    net = mlp()

    def by_model(model):
        return SGD([{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}], lr=0.1)

    def by_parameters(params, lr=0.2):
        return SGD(params, lr=lr)

    def by_anything(thing):
        return by_model(thing)  # takes the model, whatever its argument is called

    for factory, rates in ((by_model, [0.3, 0.1]), (by_parameters, [0.2]), (by_anything, [0.3, 0.1]), (partial(SGD, lr=0.4), [0.4])):
        assert [g["lr"] for g in make_optimizer(factory, net).param_groups] == rates
        with Live.of(training(net, factory)) as live:
            assert live.model is not net
            assert [g["lr"] for g in live.optimizer.param_groups] == rates
        with Live.of(training(mlp, factory)) as live:
            assert [g["lr"] for g in live.optimizer.param_groups] == rates
    assert make_optimizer(Adam, net).defaults["lr"] == 1e-3
    net[0].weight.requires_grad_(False)
    assert len(make_optimizer(by_parameters, net).param_groups[0]["params"]) == 3


def test_a_factory_of_nothing_is_over_the_very_model():
    net = mlp()
    before = everything(net)
    with Live.of(training(net, lambda: SGD(net.parameters(), lr=0.1)), seed=1) as live:
        batches = live.batches
        advance(live, 0, 3)
        result = [p.detach().clone() for p in live.model.parameters()]
    same(before, everything(net))
    plain_loop(net, SGD(net.parameters(), lr=0.1), batches.batch, F.cross_entropy, 3, seed=1)
    same(result, [p.detach() for p in net.parameters()])


@pytest.mark.parametrize(
    "factory", [lambda p: None, lambda a, b: SGD(a, lr=b), lambda p: SGD(p, lr=-1.0), lambda p: 1 / 0 if p is None else p[0].nothing]
)
def test_factories_that_make_no_optimizer_are_told(factory):
    with pytest.raises(CannotRun, match="optimizer"):
        Live.of(training(mlp, factory))


def test_several_groups_train_as_given():
    model, _ = mlp(), None
    own = SGD([{"params": model[2].parameters(), "lr": 0.0}, {"params": model[0].parameters(), "momentum": 0.5}], lr=0.1)
    with Live.of(training(model, own), seed=1) as live:
        advance(live, 0, 5)
        assert [n for n, _ in live.trainable()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
        trained, batches = live.model, live.batches
    assert torch.equal(trained[2].weight, model[2].weight)
    plain_loop(model, own, batches.batch, F.cross_entropy, 5, seed=1)
    same([p.detach() for p in trained.parameters()], [p.detach() for p in model.parameters()])


def test_same_seed_same_training_and_another_seed_another():
    ends = []
    for seed in (0, 0, 1):
        with Live.of(training(lambda: nn.Linear(4, 3), partial(SGD, lr=0.1)), seed=seed) as live:
            start = live.model.weight.detach().clone()
            advance(live, 0, 3)
            ends.append((start, live.model.weight.detach()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][0], ends[2][0])


def test_what_does_not_fit_together_is_told():
    net, other = mlp(), mlp()
    cases = {
        "not the model's": training(net, SGD(other.parameters(), lr=0.1)),
        "the model is|`model` is a function": training(mlp, SGD(net.parameters(), lr=0.1)),
        "bound to another optimizer": training(mlp, partial(SGD, lr=0.1), schedule=lrs.StepLR(SGD(net.parameters(), lr=0.1), 2)),
        "drives another optimizer": training(net, SGD(net.parameters(), lr=0.1), schedule=lrs.StepLR(SGD(net.parameters(), lr=0.1), 2)),
        "no parameters": training(nn.Tanh, partial(SGD, lr=0.1)),
        "returned a int": training(lambda: 3, partial(SGD, lr=0.1)),
        "no trainable": training(lambda: nn.Linear(4, 3).requires_grad_(False), partial(SGD, lr=0.1)),
    }
    before = everything(net)
    for message, recipe in cases.items():
        with pytest.raises(CannotRun, match=message):
            Live.of(recipe)
    same(before, everything(net))
    for options in ({"steps": 0}, {"steps": 1.5}, {"batch_size": 0}, {"accumulate": 0}, {"metric_mode": "up"}, {"batch_loss": max}):
        with pytest.raises(CannotRun):
            training(net, SGD(net.parameters(), lr=0.1), **options)
    for options in ({"model": 3}, {"optimizer": 3}):
        with pytest.raises(CannotRun):
            Training(**({"model": net, "optimizer": SGD, "data": (X, Y), "loss_fn": F.cross_entropy} | options))


def test_inputs_and_target_of_a_batch():
    inputs, target = split((X, X + 1, Y))
    assert len(inputs) == 2
    assert torch.equal(inputs[1], X + 1)
    assert target is Y
    for batch in (X, (X,), {"x": X}):
        with pytest.raises(CannotRun, match="batch_loss"):
            split(batch)


def test_a_metric_of_a_training_is_not_asked_for_its_model():
    live = Live.of(training(mlp, partial(SGD, lr=0.1), name="mine"))
    assert repr(live) == "Live('mine', 51 parameters, SGD, cpu)"
