"""Whitening: uncorrelated inputs, and patches that multiply as the layer does."""

import pytest
import torch
from torch import nn

from gradoscope.guard import private_random
from gradoscope.theory.whitening import patches, whitening


@pytest.fixture(autouse=True)
def _stream():
    with private_random(0):
        yield


@pytest.mark.parametrize("centre", [False, True])
def test_whitened_rows_are_uncorrelated_and_of_one_size(centre: bool):
    x = torch.randn(500, 4).double() @ torch.randn(4, 4).double() * torch.tensor([1, 10, 100, 1000.0]) + 3
    moment, mean = x.T @ x / 500, x.mean(0) if centre else None
    for scale in ("unit", "largest"):
        t = whitening(moment, mean, scale=scale)
        z = (x - t.mean) @ t.matrix
        cov = z.T @ z / 500
        size = float(torch.linalg.eigvalsh(moment if mean is None else moment - torch.outer(mean, mean))[-1]) if scale == "largest" else 1.0
        assert torch.allclose(cov / size, torch.eye(4).double(), atol=1e-8)
        assert torch.allclose(t.matrix @ t.inverse, torch.eye(4).double(), atol=1e-8)
        assert t.left == 0


def test_directions_without_data_are_left_alone():
    t = whitening(torch.diag(torch.tensor([4.0, 1.0, 0.0])), scale="unit")
    assert (t.left, t.condition) == (1, float("inf"))
    assert t.matrix.diagonal().tolist() == [0.5, 1.0, 1.0]
    assert whitening(torch.zeros(2, 2)).matrix.tolist() == [[1, 0], [0, 1]]


LAYERS = {
    "linear": (nn.Linear(5, 3), (7, 5)),
    "linear of sequences": (nn.Linear(5, 3), (7, 2, 5)),
    "1d": (nn.Conv1d(2, 3, 3, padding=2, stride=2), (4, 2, 11)),
    "2d": (nn.Conv2d(3, 4, (3, 2), padding=(1, 0), stride=(2, 1), dilation=(1, 2)), (4, 3, 9, 8)),
    "circular": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (2, 1, 5, 6)),
    "same": (nn.Conv1d(1, 1, 5, padding="same"), (3, 1, 9)),
    "3d": (nn.Conv3d(1, 2, 2), (2, 1, 4, 3, 5)),
    "one example": (nn.Conv1d(1, 1, 3), (1, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weights_are_the_layers_output(name: str):
    layer, shape = LAYERS[name]
    x = torch.randn(*shape)
    rows = patches(layer, x) @ layer.weight.flatten(1).T + layer.bias
    out = layer(x)
    if not isinstance(layer, nn.Linear):
        out = (out if out.dim() == len(layer.kernel_size) + 2 else out[None]).movedim(1, -1)
    assert torch.allclose(rows, out.reshape(rows.shape), atol=1e-5)
