"""Batches of any shape: walked, cut and joined."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gradoscope import tree


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Graph:
    """A batch object of another library: it moves itself, and no tree is seen in it."""

    def __init__(self) -> None:
        self.moved_to: list[torch.device] = []

    def to(self, device: torch.device) -> "Graph":
        self.moved_to.append(device)
        return self

    def clone(self) -> "Graph":
        return self


X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
BATCHES = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "y": Y},
    "ordered dict": OrderedDict(x=X, y=Y),
    "named tuple": Pair(X, Y),
    "nested": ({"x": X, "more": [X, (Y,)]}, Y),
    "with other things": {"x": X, "name": "a", "n": 3, "none": None},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_rows_can_be_taken_apart_and_put_together(batch):
    assert tree.rows(batch) == 6
    first, second = tree.take(batch, slice(0, 2)), tree.take(batch, torch.tensor([2, 3, 4, 5]))
    assert (tree.rows(first), tree.rows(second)) == (2, 4)
    whole = tree.concatenate([first, second])
    for a, b in zip(tree.leaves(batch), tree.leaves(whole), strict=True):
        assert torch.equal(a, b)
    assert tree.rows(tree.map_tensors(torch.Tensor.double, batch)) == 6
    assert all(t.dtype == torch.float64 for t in tree.leaves(tree.map_tensors(torch.Tensor.double, batch)))


def test_what_is_no_tensor_stays():
    batch = tree.map_tensors(lambda t: t + 1, {"x": X, "name": "a", "n": 3, "none": None, "pair": Pair(X, Y)})
    assert (batch["name"], batch["n"], batch["none"]) == ("a", 3, None)
    assert type(batch["pair"]) is Pair
    assert torch.equal(batch["pair"].y, Y + 1)


@pytest.mark.parametrize("batch", [(X, Y[:5]), torch.tensor(1.0), (X, torch.tensor(1.0)), (), {}, "text", None])
def test_rows_that_do_not_exist(batch):
    assert tree.rows(batch) is None


def test_objects_that_move_themselves():
    device = torch.device("cpu")
    graph = Graph()
    assert tree.to_device(graph, device) is graph
    tree.to_device({"graph": graph, "pair": (graph, Y)}, device)  # wherever they stand
    assert graph.moved_to == [device] * 3
    assert tree.map_tensors(torch.Tensor.double, graph) is graph
    assert tree.to_device((X, "a", None), torch.device("meta"))[0].device.type == "meta"
