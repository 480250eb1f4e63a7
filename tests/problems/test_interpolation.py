"""The networks whose paths are drawn, against slow loops: maxout, bounded columns, adversarial examples, mean field, grammar, MNIST."""

import gzip
import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.landscape.points import subject
from gradoscope.loop import advance
from gradoscope.problems import all_problems, find
from gradoscope.problems._grammar import ALPHABET, GRAMMAR, entropy, sequences, text
from gradoscope.problems._maxout import Adversarial, BoundedSGD, Maxout, both, fast_gradient_sign, growing_momentum
from gradoscope.problems._mnist import images
from gradoscope.problems._mpdbm import MultiPrediction, prediction_losses
from gradoscope.training import Live

VARIANTS = ("maxout", "relu", "tanh", "sigmoid", "adversarial", "convnet", "lstm", "mp-dbm", "factored")


def test_a_maxout_unit_is_the_largest_of_its_pieces():
    with private_random(0):
        layer = Maxout(4, 3, 2).double()
        x = torch.randn(5, 4, dtype=torch.float64)
    out = layer(x).detach()
    weight, bias = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    for n in range(5):
        for unit in range(3):
            pieces = []
            for piece in range(2):
                row = unit * 2 + piece
                pieces.append(sum(weight[row][k] * float(x[n, k]) for k in range(4)) + bias[row])
            assert float(out[n, unit]) == pytest.approx(max(pieces), rel=1e-12)


def test_the_recipes_start_is_uniform_and_small():
    with private_random(0):
        layer = Maxout(200, 50, 4, width=0.005)
    weights = layer.linear.weight.detach()
    assert float(weights.abs().max()) <= 0.005
    assert float(weights.std()) == pytest.approx(0.005 / 3**0.5, rel=0.02)
    assert not layer.linear.bias.any()


def test_columns_are_bounded_after_a_step_of_sgd_and_biases_are_not():
    with private_random(1):
        layer, plain = nn.Linear(6, 4), nn.Linear(6, 4)
    plain.load_state_dict(layer.state_dict())
    optimizers = BoundedSGD(layer.parameters(), lr=3.0, momentum=0.5, bound=1.5), torch.optim.SGD(plain.parameters(), lr=3.0, momentum=0.5)
    x = torch.linspace(-1, 2, 24).view(4, 6)
    for net, optimizer in zip((layer, plain), optimizers, strict=True):
        net(x).square().sum().backward()
        optimizer.step()
    assert float(plain.weight.norm(dim=1).max()) > 1.5
    for mine, theirs in zip(layer.weight, plain.weight, strict=True):
        norm = math.sqrt(sum(float(v) ** 2 for v in theirs))
        assert torch.allclose(mine, theirs * min(1.0, 1.5 / norm), rtol=1e-5)
    assert torch.equal(layer.bias, plain.bias)


def test_momentum_grows_and_stays_and_the_step_size_shrinks():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
    schedule = growing_momentum(0.5, 0.7, 10, shrink=1.01)(optimizer)
    seen = []
    for _ in range(14):
        parameter.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
        seen.append((optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["lr"]))
    assert seen[4] == pytest.approx((0.6, 0.1 / 1.01**5))
    assert seen[13] == pytest.approx((0.7, 0.1 / 1.01**14))


def test_adversarial_images_follow_the_sign_of_finite_differences():
    with private_random(2):
        net = nn.Sequential(Maxout(5, 4, 3), nn.Linear(4, 3)).double()
        x = torch.randn(6, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    moved = fast_gradient_sign(net, x, y, 0.25)
    with torch.no_grad():
        for n in range(6):
            for k in range(5):
                step = torch.zeros_like(x[n : n + 1])
                step[0, k] = 1e-6
                up, down = (float(nn.functional.cross_entropy(net(x[n : n + 1] + s), y[n : n + 1])) for s in (step, -step))
                assert abs(up - down) > 1e-11
                assert float(moved[n, k] - x[n, k]) == pytest.approx(0.25 * np.sign(up - down), rel=1e-9)
        assert float(nn.functional.cross_entropy(net(moved), y)) > float(nn.functional.cross_entropy(net(x), y))


def test_adversarial_loss_is_the_mean_of_both_and_sends_no_gradient_through_the_examples():
    with private_random(3):
        net = nn.Sequential(Maxout(5, 4, 2), nn.Linear(4, 3)).double()
        x = torch.randn(7, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model = Adversarial(net, 0.1)
    loss = both(model(x, y), y)
    given = fast_gradient_sign(net, x, y, 0.1)
    expected = 0.5 * nn.functional.cross_entropy(net(x), y) + 0.5 * nn.functional.cross_entropy(net(given), y)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    mine, theirs = (torch.autograd.grad(v, list(net.parameters())) for v in (loss, expected))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(mine, theirs, strict=True))
    with torch.no_grad():  # evaluation differentiates inside all the same
        assert float(both(model(x, y), y)) == pytest.approx(float(expected), rel=1e-12)


def _sigmoid(a):
    return 1 / (1 + math.exp(-a))


def _mean_field(model, v, y, seen_v, seen_y):
    """One example by loops over units: the loss of what is not seen."""
    w1, w2, w3 = (w.tolist() for w in (model.w1, model.w2, model.w3))
    a, b1, b2, c = (b.tolist() for b in (model.a, model.b1, model.b2, model.c))
    now_v = [x if s else _sigmoid(b) for x, s, b in zip(v, seen_v, a, strict=True)]
    h2 = [_sigmoid(b) for b in b2]
    for _ in range(model.sweeps):
        h1 = [
            _sigmoid(b1[j] + sum(now_v[i] * w1[i][j] for i in range(len(v))) + sum(w2[j][k] * h2[k] for k in range(len(h2))))
            for j in range(len(b1))
        ]
        scores = [c[m] + sum(h2[k] * w3[k][m] for k in range(len(h2))) for m in range(len(y))]
        total = sum(math.exp(s) for s in scores)
        q_y = [math.exp(s) / total for s in scores]
        now_y = list(y) if seen_y else q_y
        q_v = [_sigmoid(a[i] + sum(w1[i][j] * h1[j] for j in range(len(h1)))) for i in range(len(v))]
        now_v = [x if s else q for x, s, q in zip(v, seen_v, q_v, strict=True)]
        h2 = [
            _sigmoid(b2[k] + sum(h1[j] * w2[j][k] for j in range(len(h1))) + sum(w3[k][m] * now_y[m] for m in range(len(y))))
            for k in range(len(b2))
        ]
    loss = -sum(x * math.log(q) + (1 - x) * math.log(1 - q) for x, q, s in zip(v, q_v, seen_v, strict=True) if not s)
    return loss - (0 if seen_y else sum(t * math.log(q) for t, q in zip(y, q_y, strict=True)))


def test_mean_field_is_that_of_loops_over_units():
    with private_random(4):
        model = MultiPrediction(6, (4, 3), 3, sweeps=4, marginals=torch.linspace(0.1, 0.9, 6), std=0.8).double()
        for bias in (model.b1, model.b2, model.c):
            nn.init.normal_(bias)
        v, seen = torch.rand(8, 6).double(), (torch.rand(8, 7) < 0.5).double()
    y = nn.functional.one_hot(torch.arange(8) % 3, 3).double()
    losses = prediction_losses((*model.infer(v, y, seen[:, :-1], seen[:, -1:]), seen), torch.column_stack([v, y.argmax(1)]))
    for n in range(8):
        expected = _mean_field(model, v[n].tolist(), y[n].tolist(), seen[n, :-1].tolist(), float(seen[n, -1]))
        assert float(losses[n]) == pytest.approx(expected, rel=1e-10)


def test_gradients_go_through_all_sweeps():
    with private_random(5):
        model = MultiPrediction(5, (3, 2), 3, sweeps=3, std=0.7).double()
        v, seen = torch.rand(4, 5).double(), (torch.rand(4, 6) < 0.5).double()
    y = nn.functional.one_hot(torch.arange(4) % 3, 3).double()

    def loss():
        return prediction_losses((*model.infer(v, y, seen[:, :-1], seen[:, -1:]), seen), torch.column_stack([v, y.argmax(1)])).mean()

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            kept = p.flatten()[0].item()
            values = []
            for step in (1e-6, -1e-6):
                p.view(-1)[0] = kept + step
                values.append(float(loss()))
            p.view(-1)[0] = kept
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(g.flatten()[0]), rel=1e-5, abs=1e-9)


def test_masks_are_the_same_at_every_point_and_new_at_every_step():
    training = find("interpolation:mp-dbm,steps=3")
    with Live.of(training, seed=1) as live:
        objective = subject(live, rows=50).train
        assert objective.loss() == objective.loss()
        batch = live.batches.batch(0)
        with private_random(7):
            first, second = (float(live.loss(batch).detach()) for _ in range(2))
        assert first != second


def _all_sentences(symbol):
    """Every expansion of a symbol with its probability."""
    alternatives = GRAMMAR.get(symbol)
    if alternatives is None:
        return {symbol: 1.0}
    found = {}
    for alternative in alternatives:
        words = [("", 1.0)]
        for word in alternative.split(" "):
            words = [(f"{a} {b}" if a else b, p * q) for a, p in words for b, q in _all_sentences(word).items()]
        for sentence, p in words:
            found[sentence] = found.get(sentence, 0.0) + p / len(alternatives)
    return found


def test_the_grammars_entropy_is_that_of_its_sentences():
    # clauses factor: it is enough to list the parts of a sentence, which are independent given its form
    parts = {word: _all_sentences(word) for word in ("THING", "ACTS", "WHERE", "QUESTION")}
    bits = {word: -sum(p * math.log(p) for p in table.values()) for word, table in parts.items()}
    length = {word: sum(p * len(s) for s, p in table.items()) for word, table in parts.items()}
    choices = math.log(len(GRAMMAR["SENTENCE"]))
    characters = 0.0
    for form in GRAMMAR["SENTENCE"]:
        words = form.split(" ")
        choices += sum(bits.get(w, 0.0) for w in words) / len(GRAMMAR["SENTENCE"])
        characters += (sum(length.get(w, len(w)) for w in words) + len(words) - 1) / len(GRAMMAR["SENTENCE"])
    assert entropy() == pytest.approx(choices / characters, rel=1e-9)
    assert math.isclose(sum(parts["WHERE"].values()), 1.0)


def test_sequences_are_pieces_of_one_text_and_targets_are_the_next_characters():
    x, y = sequences(np.random.default_rng(3), 7, 12)
    whole = "".join(ALPHABET[i] for i in x.flatten().tolist())
    assert whole == text(np.random.default_rng(3), 84)
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_where_the_user_has_it(tmp_path, monkeypatch, packed):
    folder = tmp_path / "mnist"
    folder.mkdir()
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2) * 10
    labels = np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
    for name, array in (("train-images-idx3-ubyte", pixels), ("train-labels-idx1-ubyte", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        raw = head + array.tobytes()
        (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(raw) if packed else raw)
    monkeypatch.setenv("GRADOSCOPE_DATA", str(tmp_path))
    (x, y), _ = images("mnist", 0, train=4)
    assert torch.allclose(x, torch.from_numpy(pixels[:4].reshape(4, 4) / 255).float())
    assert y.tolist() == [3, 1, 4, 1]


def test_missing_or_broken_mnist_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADOSCOPE_DATA", raising=False)
    with pytest.raises(Usage, match="GRADOSCOPE_DATA"):
        find("interpolation:maxout,data=mnist")
    with pytest.raises(Usage, match="digits or mnist"):
        find("interpolation:relu,data=letters")
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (folder / name).write_bytes(bytes([0, 0, 8, 1]) + (9).to_bytes(4, "big") + b"abc")
    monkeypatch.setenv("GRADOSCOPE_DATA", str(tmp_path))
    with pytest.raises(Usage, match="cut off"):
        images("mnist", 0)


def test_the_product_starts_where_it_says_and_conserves_differences_of_squares():
    training = find("interpolation:factored,layers=5,low=0.5,high=1.0,across=0.8,lr=0.001,steps=200")
    with Live.of(training, seed=3) as live:
        start = torch.stack([p.detach().flatten()[0] for p in live.model.parameters()]).double()
        advance(live, 0, 200)
        end = torch.stack([p.detach().flatten()[0] for p in live.model.parameters()]).double()
    assert float(start[0]) == pytest.approx(-0.8 * float(start[1:].min()), rel=1e-6)
    assert 0.5 <= float(start[1:].min()) <= float(start[1:].max()) <= 1.0
    change = end**2 - start**2
    assert float(change.abs().min()) > 0.005
    assert float(change.max() - change.min()) < 0.01 * float(change.abs().max())
    for bad in ("layers=1", "low=0.9", "across=1.0"):
        with pytest.raises(Usage, match="product needs"):
            find(f"interpolation:factored,{bad}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_the_catalogue_and_falls(train, variant):
    assert all_problems()[f"interpolation:{variant}"].obstacle == "healthy"
    training = find(f"interpolation:{variant}")
    steps = {"sigmoid": 400, "factored": 300}.get(variant, 120)
    losses = train(training, steps=steps).losses
    floor = {"lstm": entropy(), "mp-dbm": 0.5 * losses[0]}.get(variant, 0.0)
    assert np.mean(losses[-10:]) - floor < 0.75 * (np.mean(losses[:3]) - floor)
    assert np.mean(losses[-10:]) > floor


def test_sizes_of_the_source_are_options():
    training = find("interpolation:maxout,units=240,pieces=5,width=0.005,momentum_start=0.5,momentum=0.7,dropout=0.2,epochs=2")
    assert training.steps == 2 * (1347 // 100)
    with Live.of(training, seed=0) as live:
        layers = [m for m in live.model if isinstance(m, Maxout)]
        assert [(m.units, m.pieces) for m in layers] == [(240, 5), (240, 5)]
        assert live.model[0].p == 0.2
        advance(live, 0, 3)
        assert live.optimizer.param_groups[0]["momentum"] == pytest.approx(0.5 + 3 * 0.2 / 125_000)
