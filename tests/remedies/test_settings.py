"""Remedies that change a setting do just what changing it by hand does, to the last bit."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from gradoscope.loop import advance
from gradoscope.remedies import Remedy
from gradoscope.remedies.clip import Clip
from gradoscope.remedies.larger_batch import LargerBatch
from gradoscope.remedies.line_search import LineSearch
from gradoscope.remedies.more_data import MoreData
from gradoscope.remedies.newton import KrylovNewton
from gradoscope.remedies.perturb import Perturb
from gradoscope.remedies.rescale import Rescale
from gradoscope.remedies.restart import Restart
from gradoscope.remedies.step_size import StepSize
from gradoscope.remedies.unblock import Unblock
from gradoscope.remedies.unfreeze import Unfreeze, frozen
from gradoscope.remedies.weight_decay import WeightDecay
from tests.reference.training import data, mlp
from tests.remedies.nets import equal, prepared, trained, training

EVERY = [
    Remedy(),
    StepSize(10),
    StepSize(0.1),
    LargerBatch(4),
    Clip(0.5),
    WeightDecay(0.01),
    Unfreeze(),
    MoreData(data(6)),
    Restart(1),
    Rescale(),
    Perturb(0.1),
    Unblock(),
    Unblock(saturating=True),
    LineSearch("gradient"),
    LineSearch("negative_curvature"),
    KrylovNewton(),
]


@pytest.mark.parametrize("remedy", EVERY, ids=repr)
def test_every_remedy_explains_itself_and_gives_code_that_parses(remedy):
    assert remedy.explanation.endswith(".")
    compile(remedy.code, "code", "exec")
    assert repr(remedy) == remedy.name
    recipe = training()
    changed = remedy(recipe)
    assert changed.changes == (remedy,)
    assert recipe.changes == ()


def test_names_are_different():
    assert len({r.name for r in EVERY}) == len(EVERY)


OPTIMIZERS = {
    "sgd": lambda lr: lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda lr: lambda p: torch.optim.Adam(p, lr=lr),
    "lbfgs": lambda lr: lambda p: torch.optim.LBFGS(p, lr=lr, max_iter=2),
    "groups": lambda lr: lambda p: torch.optim.SGD([{"params": p[:1], "lr": 4 * lr}, {"params": p[1:]}], lr=lr),
}
SCHEDULES = {
    "none": lambda factor: None,
    "step": lambda factor: lambda o: lrs.StepLR(o, 2, 0.5),
    "lambda": lambda factor: lambda o: lrs.LambdaLR(o, lambda k: 0.5**k),
    "one cycle": lambda factor: lambda o: lrs.OneCycleLR(o, 0.5 * factor, total_steps=10),
    "plateau": lambda factor: lambda o: lrs.ReduceLROnPlateau(o, patience=0, threshold=0.5),
}


@pytest.mark.parametrize("factor", [4.0, 0.25])
@pytest.mark.parametrize(("optimizer", "schedule"), [(o, "none") for o in OPTIMIZERS] + [("sgd", s) for s in SCHEDULES])
def test_step_size_is_every_rate_times_the_factor(optimizer, schedule, factor):
    def recipe(by):  # factors that are powers of two round nothing
        return training(optimizer=OPTIMIZERS[optimizer](0.03125 * by), schedule=SCHEDULES[schedule](by))

    assert equal(trained(recipe(1), StepSize(factor)), trained(recipe(factor)))
    assert not equal(trained(recipe(1)), trained(recipe(factor)))
    live = prepared(recipe(1), StepSize(factor))
    rates = [g["lr"] for g in live.optimizer.param_groups]
    assert rates == [g["lr"] for g in prepared(recipe(1)).optimizer.param_groups]  # the settings themselves stay


@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_larger_batch_is_the_accumulated_gradient(times):
    assert equal(trained(training(), LargerBatch(times)), trained(training(accumulate=times)))


def test_clipping_is_the_trainings_own():
    assert equal(trained(training(), Clip(0.05)), trained(training(clip_norm=0.05)))
    assert not equal(trained(training(), Clip(0.05)), trained(training()))
    live = prepared(training(), Clip(0.05))
    advance(live, 0, 1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in live.model.parameters()])
    assert float(norm) == pytest.approx(0.05, rel=1e-4)


def test_weight_decay_is_that_of_matrices():
    def by_hand(p):
        return torch.optim.SGD(
            [{"params": [q for q in p if q.dim() > 1], "weight_decay": 0.25}, {"params": [q for q in p if q.dim() < 2]}], lr=0.125
        )

    plain = training(optimizer=lambda p: torch.optim.SGD(p, lr=0.125))
    assert equal(trained(plain, WeightDecay(0.25)), trained(training(optimizer=by_hand)))


class TestUnfreeze:
    @staticmethod
    def part(by):
        """A training of which something is frozen, and the same one without."""

        def model():
            net = mlp()
            if by == "requires_grad":
                net[0].requires_grad_(False)
            return net

        def optimizer(net):
            if by == "left out":
                return torch.optim.SGD(net[2].parameters(), lr=0.125, momentum=0.5)
            if by == "rate 0":
                groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}]
                return torch.optim.SGD(groups, lr=0.125, momentum=0.5)
            return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.125, momentum=0.5)

        return {"model": model, "optimizer": lambda model: optimizer(model)}

    @pytest.mark.parametrize("schedule", [*SCHEDULES, "sequential", "cosine", "lambdas"])
    @pytest.mark.parametrize("by", ["requires_grad", "left out", "rate 0"])
    def test_all_parameters_train_as_if_nothing_had_been_frozen(self, by, schedule):
        def lambdas(o):
            return lrs.LambdaLR(o, [lambda k: 0.0, lambda k: 0.5**k][-len(o.param_groups) :])

        more = {
            "sequential": lambda o: lrs.SequentialLR(o, [lrs.LambdaLR(o, lambda k: 0.5), lrs.ExponentialLR(o, 0.5)], [2]),
            "cosine": lambda o: lrs.CosineAnnealingLR(o, 8),
            "lambdas": lambdas,
        }
        plan = more.get(schedule) or SCHEDULES[schedule](1)
        recipe = training(**self.part(by), schedule=plan)
        if by == "rate 0" and schedule == "one cycle":
            return  # OneCycleLR gives every group a rate: nothing is frozen
        live = prepared(recipe)
        assert set(frozen(live)) == {"0.weight", "0.bias"}
        assert set(frozen(live).values()) == {
            {"requires_grad": "requires_grad=False", "left out": "not in the optimizer", "rate 0": "learning rate 0"}[by]
        }
        assert not frozen(prepared(recipe, Unfreeze()))
        whole = training(optimizer=lambda p: torch.optim.SGD(p, lr=0.125, momentum=0.5), schedule=plan)
        assert equal(trained(recipe, Unfreeze()), trained(whole))
        assert not equal(trained(recipe), trained(whole))

    @pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.LBFGS])
    def test_other_optimizers(self, optimizer):
        recipe = training(optimizer=lambda model: optimizer(model[2].parameters(), lr=0.1))
        live = prepared(recipe, Unfreeze())
        before = [p.detach().clone() for p in live.model.parameters()]
        advance(live, 0, 3)
        assert not any(torch.equal(p, q) for p, q in zip(before, live.model.parameters(), strict=True))

    def test_nothing_is_frozen_in_a_plain_training(self):
        assert frozen(prepared(training())) == {}
        assert equal(trained(training(), Unfreeze()), trained(training()))


class TestMoreData:
    extra = data(12, seed=9)

    def test_the_extra_examples_join_and_batches_keep_their_size(self):
        live = prepared(training(), MoreData(self.extra))
        assert (live.batches.size, live.batches.batch_size, live.batches.per_epoch) == (36, 6, 6)
        x = torch.cat([live.batches.batch(i)[0] for i in range(6)])
        expected = torch.cat([data()[0], self.extra[0]])
        assert torch.equal(x.sort(0).values, expected.sort(0).values)
        assert equal(
            trained(training(), MoreData(self.extra)),
            trained(training(data=tuple(torch.cat(p) for p in zip(data(), self.extra, strict=True)))),
        )

    def test_whole_batches_stay_whole_and_an_order_stays(self):
        assert prepared(training(batch_size=None), MoreData(self.extra)).batches.batch_size == 36
        live = prepared(training(shuffle=False), MoreData(self.extra))
        assert torch.equal(live.batches.batch(4)[0], self.extra[0][:6])


class TestPerturb:
    def test_the_noise_has_the_share_asked_for(self):
        def net():
            return nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 3, bias=False))

        recipe = training(model=net, data=(torch.ones(4, 100), torch.zeros(4, dtype=torch.long)))
        before, after = prepared(recipe).model, prepared(recipe, Perturb(0.5)).model
        for p, q in zip(before.parameters(), after.parameters(), strict=True):
            noise = q - p
            share = float((noise.square().mean().sqrt() / p.square().mean().sqrt()).detach())
            assert share == pytest.approx(0.5, abs=4 * 0.5 / (2 * p.numel()) ** 0.5)
            assert abs(float(noise.mean())) < 4 * float(noise.std()) / p.numel() ** 0.5
        again = prepared(recipe, Perturb(0.5)).model
        assert torch.equal(again[0].weight, after[0].weight)

    def test_frozen_parameters_stay(self):
        recipe = training(optimizer=lambda model: torch.optim.SGD(model[2].parameters(), lr=0.1))
        before, after = prepared(recipe).model, prepared(recipe, Perturb(0.5)).model
        assert torch.equal(before[0].weight, after[0].weight)
        assert not torch.equal(before[2].weight, after[2].weight)


def test_remedies_add_up():
    both = trained(training(), StepSize(2), LargerBatch(2))
    by_hand = trained(training(optimizer=lambda p: torch.optim.SGD(p, lr=0.25, momentum=0.5), accumulate=2))
    assert equal(both, by_hand)
