"""The digits do what their construction demands."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from gradoscope.problems import find
from gradoscope.problems._data import digits
from gradoscope.training import Live


def test_split_is_normalised_and_disjoint():
    (x, y), (xv, yv) = digits(seed=3)
    assert x.shape == (1347, 64)
    assert xv.shape == (450, 64)
    assert abs(float(x.double().mean())) < 1e-6
    assert float(x.double().std()) == pytest.approx(1, abs=1e-6)
    # undo the scaling: the two parts together are scikit-learn's images, each once
    back = torch.cat([x, xv]).double()
    back = ((back - back.min()) / (back.max() - back.min()) * 16).round().int()
    rows = sorted((*r, int(t)) for r, t in zip(back.tolist(), torch.cat([y, yv]), strict=True))
    bunch = load_digits()
    assert rows == sorted((*map(int, r), int(t)) for r, t in zip(bunch.data, bunch.target, strict=True))


def test_same_seed_same_training_and_the_global_stream_does_not_move(train):
    before = torch.get_rng_state()
    runs = [train(find("digits:healthy", seed=s), seed=s, steps=20) for s in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses != runs[2].losses


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_healthy_learns_without_overfitting(train, seed):
    training = find("digits:healthy", seed=seed)
    early, late = train(training, seed=seed, steps=300), train(training, seed=seed)
    assert late.on(training.data)[0] < 0.05
    loss, accuracy = late.on(training.validation)
    assert accuracy > 0.95
    assert loss < early.on(training.validation)[0] + 0.02


def test_step_sizes_are_exact_multiples_and_do_what_they_say(train):
    rate = {n: Live.of(find(f"digits:{n}")).optimizer.param_groups[0]["lr"] for n in ("healthy", "tiny-step", "huge-step")}
    assert rate["tiny-step"] == pytest.approx(1e-4 * rate["healthy"])
    assert rate["huge-step"] == pytest.approx(1e2 * rate["healthy"])
    tiny = train(find("digits:tiny-step"))
    assert abs(tiny.losses[0] - math.log(10)) < 0.1
    assert abs(tiny.on(tiny.live.training.data)[0] - math.log(10)) < 0.1
    huge = train(find("digits:huge-step"))
    assert not huge.losses[-1] <= math.log(10)


def test_deep_sigmoid_stays_at_chance_for_want_of_gradient(train):
    training = find("digits:deep-sigmoid")
    live = Live.of(training)
    live.loss(live.training.data).backward()
    norms = [float(m.weight.grad.norm()) for m in live.model if isinstance(m, torch.nn.Linear)]
    assert len(norms) == 9
    assert norms[0] < 1e-3 * norms[-1]
    loss, _ = train(training).on(training.data)
    assert abs(loss - math.log(10)) < 0.02


def test_dead_relu_is_off_on_all_data_and_keeps_the_layers_below_from_moving(train):
    training = find("digits:dead-relu")
    start = [p.clone() for p in Live.of(training).model.parameters()]
    trained = train(training, steps=100)
    x = torch.cat([training.data[0], training.validation[0]])
    assert not trained.live.model[:4](x).any()
    moved = [not torch.equal(p, q) for p, q in zip(start, trained.live.model.parameters(), strict=True)]
    assert moved == [False, False, False, False, False, True]


def test_memorise_fits_sixty_images_and_fails_on_others(train):
    training = find("digits:memorise")
    early, late = train(training, steps=30), train(training)
    assert len(training.data[0]) == 60
    assert late.on(training.data)[0] < 1e-3
    assert late.on(training.validation)[0] > 0.8
    assert late.on(training.validation)[0] > early.on(training.validation)[0]
