"""Tuples of lines: how they are drawn, and that decomposition trains where the tuple's label alone does not."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.lines import LineNet, TupleNet, draw_lines, start_weights, tuple_labels
from gradoscope.training import Live


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(angle, length, row, column, size, law):
    """The pixels of one line, point by point."""
    image = torch.zeros(size, size, dtype=torch.uint8)
    if law == "text":
        parts = math.ceil(length)
        along = [length * (i / parts - 0.5) for i in range(parts + 1)]
    else:
        along = [sign * i for i in range(int(length // 2)) for sign in (-1, 1)]
    for t in along:
        y, x = row + t * math.sin(angle), column + t * math.cos(angle)
        y, x = (round(y), round(x)) if law == "text" else (math.trunc(y), math.trunc(x))
        if 0 <= y < size and 0 <= x < size:
            image[y, x] = 1
    return image


@pytest.mark.parametrize("size", [12, 28])
@pytest.mark.parametrize("law", ["text", "code"])
def test_images_against_lines_drawn_point_by_point(law, size):
    lines = draw_lines(generator(), 400, size, law)
    different = 0
    for i in range(400):
        drawn = by_hand(float(lines.angle[i]), float(lines.length[i]), *lines.centre[i].tolist(), size, law)
        different += int((drawn != lines.images[i]).sum())
    assert different <= 2  # a point may lie on the border of two pixels up to float32
    assert ((lines.angle < math.pi / 2) == (lines.labels > 0)).all()


def test_laws_of_the_numbers():
    lines = draw_lines(generator(), 20000)
    assert 5 <= float(lines.length.min()) < 5.01
    assert 22.99 < float(lines.length.max()) <= 23
    assert 26.99 < float(lines.centre.max()) <= 27
    assert float(draw_lines(generator(), 20000, law="code").centre.max()) > 27.5
    assert abs(float(lines.labels.mean())) < 4 / math.sqrt(20000)
    # the authors' lines are shorter: 2 floor(l / 2) - 1 points instead of ceil(l) + 1
    assert draw_lines(generator(), 5000, law="code").images.sum() < 0.9 * draw_lines(generator(), 5000).images.sum()


def test_lines_slope_as_their_label_says():
    lines = draw_lines(generator(1), 500)
    for image, label in zip(lines.images, lines.labels.tolist(), strict=True):
        rows, columns = image.nonzero().double().T
        covariance = float(((rows - rows.mean()) * (columns - columns.mean())).sum())
        assert covariance * label > -1e-9


def test_targets_of_both_laws():
    parts = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    for law in ("text", "code"):
        assert tuple_labels(parts, law).tolist() == [-1, -1]
    even = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert tuple_labels(even).tolist() == [1, -1]
    # -1 + 2 (number of upward lines mod 2)
    assert tuple_labels(even, "code").tolist() == [-1, 1]


def test_sizes_and_start():
    net = TupleNet(3, LineNet())
    shapes = [tuple(p.shape) for p in net.parameters()]
    weights = [s for s in shapes if len(s) > 1]
    assert weights == [(16, 1, 5, 5), (16, 16, 5, 5), (50, 784), (100, 50), (1, 100), (100, 3), (1, 100)]
    for start, stds in {"code": (28**-0.5, 0.25), "fan-in": (0.2, 0.05)}.items():
        start_weights(net, 28, start, generator())
        for layer, std in zip(net.first.convolutions, stds, strict=True):
            assert float(layer.weight.detach().abs().max()) <= 2 * std
            assert float(layer.weight.double().std()) == pytest.approx(0.8796 * std, rel=0.15)
            assert not layer.bias.any()


def test_whole_network_is_its_parts():
    net = TupleNet(2, LineNet(12, (4,), (8, 16)), parts=True)
    images = draw_lines(generator(), 6, 12).images.view(3, 2, 12, 12)
    output = net(images)
    assert output.shape == (3, 3)
    for i in range(3):
        scores = torch.stack([net.first(images[i, j : j + 1])[0] for j in range(2)])
        whole = net.second(torch.sigmoid(scores))[0]
        assert torch.allclose(output[i], torch.cat([whole[None], scores]), atol=1e-6)


def test_decomposition_learns_and_end_to_end_does_not(train):
    options = "size=12,channels=8,hidden=32,lr=0.003,steps=160"
    whole, parts = train(find(f"lines:end-to-end,{options}")), train(find(f"lines:decomposed,{options}"))
    accuracies = []
    for trained in (whole, parts):
        training = trained.live.training
        x, y = training.data(generator(3), 1500)
        with torch.no_grad():
            accuracies.append(training.metric(trained.live.model(x), y))
            single = float(training.intermediate(trained.live.model, (x, y)))
        assert (single < 0.4) == (trained is parts)
    assert abs(accuracies[0] - 0.5) < 0.06
    assert accuracies[1] > 0.7


def test_intermediate_loss_is_the_hinge_of_single_images():
    training = find("lines:end-to-end,size=12,k=2")
    live = Live.of(training)
    x, (target, parts) = training.data(generator(), 20)
    assert x.shape == (20, 2, 12, 12)
    assert torch.equal(target, parts[:, 0] * parts[:, 1])
    expected = sum(max(0.0, 1 - float(live.model.first(x[i, j : j + 1])) * float(parts[i, j])) for i in range(20) for j in range(2)) / 40
    assert float(training.intermediate(live.model, (x, (target, parts)))) == pytest.approx(expected, rel=1e-5)
    decomposed = find("lines:decomposed,size=12,k=2")
    output = Live.of(decomposed).model(x)
    primary = sum(max(0.0, 1 - float(s) * float(t)) for s, t in zip(output[:, 0], target, strict=True)) / 20
    single = sum(max(0.0, 1 - float(s) * float(t)) for s, t in zip(output[:, 1:].flatten(), parts.flatten(), strict=True)) / 40
    assert float(decomposed.loss_fn(output, (target, parts))) == pytest.approx(primary + single, rel=1e-5)


def test_bad_options():
    with pytest.raises(Usage, match="size >= 12"):
        find("lines:end-to-end,size=8")
    with pytest.raises(Usage, match="law=text or law=code"):
        find("lines:decomposed,law=book")
    with pytest.raises(Usage, match="'text' or 'code'"):
        draw_lines(generator(), 3, law="book")
