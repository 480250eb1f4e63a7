"""A small network with a symmetry, in the place of the model: it does not depend on the order of nodes, or on shifts."""

import torch
from torch import Tensor, nn

from gradoscope.errors import GradoscopeError
from gradoscope.guard import derive_seed, private_random, untouched
from gradoscope.remedies import Remedy
from gradoscope.structured.gpi import GPI
from gradoscope.structured.graphs import Graphs
from gradoscope.training import Live, split

__all__ = ["Equivariant", "OnRing", "Reordering", "Sliding"]

WIDTH = 64
RATE = 3e-3  # of Adam: a usual one for networks of this size
TOKENS = 256  # whole numbers below this are one-hot features of nodes


class Equivariant(Remedy):
    """Train a graph-permutation-invariant network on the same batches with the same loss, as many steps.

    Nodes are the entries of dimension 1, pairs those of dimensions 1 and 2 where the inputs have such. It answers in the form in which the
    model does: one answer per example, or one per node.

    Cost: n^2 small layers per example of n nodes.
    """

    name = "equivariant"
    explanation = "A network that does not depend on the order of the nodes is trained in the place of the model."
    from_checkpoint = False
    changes_capacity = True
    code = (
        "from gradoscope.structured.gpi import GPI\n"
        "from gradoscope.structured.graphs import Graphs\n"
        "layer = GPI.build(features, 0, outputs=out)  # layer(Graphs.full(x, x.new_zeros(*x.shape[:2], x.shape[1], 0))).nodes"
    )

    def prepare(self, live: Live) -> None:
        inputs, target = split(live.batches.sample(8, "fresh")[0])
        inputs = tuple(x.to(live.device) for x in inputs)
        with untouched(live.model, seed=0), torch.no_grad():
            answer = live.model(*inputs)
        if not isinstance(answer, Tensor) or not answer.is_floating_point():
            raise GradoscopeError("the model's answer is no real tensor, so no other network can give it")
        model, optimizer, schedule = live.model, live.optimizer, live.schedule
        with private_random(derive_seed(live.seed, 483)):
            live.model = self.network(inputs, answer, target).to(live.device)
        live.optimizer = torch.optim.Adam(live.model.parameters(), lr=RATE)
        live.schedule = None

        def put_back() -> None:
            live.model, live.optimizer, live.schedule = model, optimizer, schedule

        live.at_close(put_back)

    def network(self, inputs: tuple[Tensor, ...], answer: Tensor, target: Tensor) -> nn.Module:
        """The network that takes the model's place."""
        return Reordering(inputs, answer, target)


class Sliding(Equivariant):
    """Train a small circular convolutional network on the same batches with the same loss, as many steps: it does not depend on shifts.

    Cost: two convolutions of 64 filters per example.
    """

    name = "equivariant(shifts)"
    explanation = "A convolutional network that does not depend on where on the ring things stand is trained in the place of the model."
    code = "nn.Conv1d(channels, 64, 7, padding='same', padding_mode='circular')  # and the largest answer over all places"

    def network(self, inputs: tuple[Tensor, ...], answer: Tensor, target: Tensor) -> nn.Module:
        """The network that takes the model's place."""
        return OnRing(inputs[0], answer)


class OnRing(nn.Module):
    """Answers from rows, series or images whose ends are joined, the same wherever things stand.

    Args:
        inputs: example inputs, (N, n), (N, n, d) or (N, C, H, W).
        answer: example outputs, one for each example.
    """

    def __init__(self, inputs: Tensor, answer: Tensor) -> None:
        super().__init__()
        if not inputs.is_floating_point() or inputs.dim() not in (2, 3, 4):
            raise GradoscopeError(f"no small convolutional network is made for inputs of shape {tuple(inputs.shape)}")
        self.shape = answer.shape[1:]
        layer = nn.Conv2d if inputs.dim() == 4 else nn.Conv1d
        places = self.channels(inputs).shape[2:]
        size = min(7 if inputs.dim() < 4 else 5, *(p - (p + 1) % 2 for p in places))
        self.slide = nn.Sequential(
            layer(self.channels(inputs).shape[1], WIDTH, size, padding="same", padding_mode="circular"),
            nn.ReLU(),
            layer(WIDTH, WIDTH, 1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, answer[0].numel()))

    @staticmethod
    def channels(x: Tensor) -> Tensor:
        """The inputs with channels in dimension 1."""
        return x[:, None] if x.dim() == 2 else x.movedim(1, 2) if x.dim() == 3 else x

    def forward(self, x: Tensor) -> Tensor:
        """Answers in the form of the example outputs."""
        seen = self.slide(self.channels(x)).flatten(2)
        return self.head(torch.cat([seen.amax(2), seen.mean(2)], 1)).reshape(-1, *self.shape)  # type: ignore[no-any-return]  # a module's output


class Reordering(nn.Module):
    """Answers of a given form from sets, matrices or graphs, whatever the order of their nodes.

    Args:
        inputs: example inputs: (N, n), (N, n, d), (N, n, n) or (N, n, n, e), or nodes and edges.
        answer: example outputs: (N, ...) for each example, or (N, n, ...) or (N, C, n) for each node.
        target: example targets, which tell the two apart: classes of nodes have shape (N, n).
    """

    def __init__(self, inputs: tuple[Tensor, ...], answer: Tensor, target: Tensor) -> None:
        super().__init__()
        self.classes = int(max(int(inputs[0].max()) + 1, 2)) if not inputs[0].is_floating_point() else 0
        if self.classes > TOKENS:
            raise GradoscopeError(f"the inputs are whole numbers of more than {TOKENS} values")
        graphs = self.graphs(*inputs)
        n = graphs.nodes.shape[1]
        self.shape = answer.shape[1:]
        behind = target.dim() > 1 and answer.dim() == target.dim() + 1 and answer.shape[2:] == target.shape[1:]
        self.where = 2 if behind else 1 if answer.dim() > 1 and target.dim() > 1 and answer.shape[1] == target.shape[1] == n else None
        each = answer[0].numel() // (n if self.where is not None else 1)
        sizes = {"phi": [WIDTH], "alpha": [WIDTH], "rho": [WIDTH]}
        pooling = "sum" if n <= 16 else "mean"
        nodes, edges = graphs.nodes.shape[-1], graphs.edges.shape[-1]
        self.layer = GPI.build(nodes, edges, outputs=each if self.where is not None else None, pooling=pooling, **sizes)  # type: ignore[arg-type]  # a literal
        self.head = None if self.where is not None else nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, each))

    def graphs(self, *inputs: Tensor) -> Graphs:
        """The inputs as a batch of graphs."""
        nodes = inputs[0]
        if len(inputs) > 1 and inputs[1].dim() >= 3 and inputs[1].shape[1] == inputs[1].shape[2]:
            return Graphs.full(nodes.float(), _features(inputs[1], 3))
        if nodes.dim() >= 3 and nodes.shape[1] == nodes.shape[2]:
            return Graphs.full(nodes.new_ones(*nodes.shape[:2], 1, dtype=torch.float), _features(nodes, 3))
        if self.classes:
            nodes = nn.functional.one_hot(nodes.long(), self.classes)
        nodes = _features(nodes, 2)
        return Graphs.full(nodes, nodes.new_zeros(len(nodes), nodes.shape[1], nodes.shape[1], 0))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Answers in the form of the example outputs."""
        labels = self.layer(self.graphs(*inputs))
        if self.head is not None:
            return self.head(labels.graph).reshape(-1, *self.shape)  # type: ignore[no-any-return]  # a module's output
        nodes: Tensor = labels.nodes
        return nodes.movedim(1, self.where or 1).reshape(-1, *self.shape)


def _features(x: Tensor, dims: int) -> Tensor:
    """Everything behind the first `dims` dimensions as features; at least one."""
    return x.float().reshape(*x.shape[:dims], -1)
