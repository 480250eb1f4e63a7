"""One forward pass with hooks, and what its graph says: from which slopes the gradients of single rows follow in full."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.measure._per_sample_layers import Given, Piece, by_rows, covered, joined, pieces
from gradoscope.objective import REENTRANT, Objective

__all__ = ["Recorder", "Recording", "Shapes", "Single", "couples"]


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and the place in the graph at which the slope of its output is found."""

    layer: nn.Module
    inputs: Tensor
    edge: GradientEdge
    shape: torch.Size


class Recorder:
    """Forward hooks on the layers that formulas cover; they keep inputs and change nothing.

    Args:
        model: whose layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Call] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record the calls inside, and only them: a checkpointed layer runs again in the backward pass."""
        self.calls = []
        layers = [m for m in self.model.modules() if covered(m) and any(p is not None and p.requires_grad for p in m._parameters.values())]
        handles = [m.register_forward_hook(self._called, prepend=True) for m in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _called(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor) or not output.requires_grad:
            return
        # The edge, and not the tensor: what follows may write into the output in place.
        self.calls.append(Call(layer, args[0].detach(), get_gradient_edge(output), output.shape))


class Recording:
    """One forward pass with hooks: which parameters they account for in full, given the slopes at the layers' outputs."""

    def __init__(self, objective: Objective, k: int, count: int) -> None:
        self.objective, self.batch, self.count, self.note = objective, objective.batches[k], count, ""
        self.parts: dict[int, list[Piece]] = {}
        self._row = count // 2
        self._places = {id(p): i for i, p in enumerate(objective.parameters)}
        self._recorder = Recorder(objective.model)
        before = torch.get_rng_state()
        with self._recorder.on():
            self.loss = objective._loss(objective.model, self.batch).reshape(())
        self.random = not torch.equal(before, torch.get_rng_state())
        self.calls = self._recorder.calls
        self.stamp = (objective.mode, count, tuple((id(c.layer), c.inputs.shape, c.shape) for c in self.calls))

    def trace(self, roots: Sequence[Tensor]) -> None:
        """Find out who uses what on the way from the parameters to `roots`."""
        self._graph = Graph(roots)
        self.spread = [(i, p) for i, p in enumerate(self.objective.parameters) if self._graph.meets_rows(p)]
        self._caught = [Caught(self._graph, c.edge.node) for c in self.calls]
        self._caught_leaves = {i: Caught(self._graph, self._graph.leaf(p)) for i, p in self.spread}

    def single(self, *, gradients: bool, output: bool = False) -> "Single":
        """One row by itself: the shapes that one sample has in each call, and its gradient or its output."""
        objective, seen = self.objective, list[Tensor]()
        hook = objective.model.register_forward_hook(lambda _m, _i, o: seen.extend(tree.leaves(o))) if output else None
        with self._recorder.on():
            try:
                loss = objective._loss(objective.model, tree.take(self.batch, slice(self._row, self._row + 1))).reshape(())
            except Exception:  # whatever a user's model objects to in a single row: then no shape is known
                return Single([], None, [])
            finally:
                if hook is not None:
                    hook.remove()
        shapes = [(id(c.layer), c.inputs.shape, c.shape) for c in self._recorder.calls]
        if not gradients or not loss.requires_grad or not torch.isfinite(loss):
            return Single(shapes, None, seen)
        return Single(shapes, objective._differentiate(loss, create_graph=False), seen)

    def collect(self, found: Sequence[Tensor | None], shapes: Sequence["Shapes"]) -> None:
        """Make the pieces from the slopes at the calls' outputs; keep the parameters that they account for in full."""
        count, uses = self.count, dict[int, int]()
        self.parts = {}
        for n, (call, slope) in enumerate(zip(self.calls, found, strict=True)):
            if slope is not None and len(shapes) == len(self.calls):
                self._add(call, slope, shapes[n], self._caught[n].slope, uses)
        for i, p in self.spread:
            caught = self._caught_leaves[i].slope
            if caught is not None and caught.numel() == count * p.numel() and len(caught) == count:
                self.parts.setdefault(i, []).append(Given(caught.reshape(count, -1)))
                uses[i] = uses.get(i, 0) + 1
        # What the graph uses elsewhere as well, or what no hook saw, is not accounted for.
        self.parts = {i: g for i, g in self.parts.items() if uses[i] == self._graph.uses(self.objective.parameters[i])}
        for i, p in enumerate(self.objective.parameters):
            if not self._graph.uses(p):
                self.parts[i] = [Given(p.new_zeros(count, 1))]

    def of_row(self, i: int) -> Tensor:
        """The gradient of the compared row by parameter i."""
        return joined(self.parts[i]).whole(slice(self._row, self._row + 1))[0]

    def _add(self, call: Call, slope: Tensor, single: "Shapes", broadcast: Tensor | None, uses: dict[int, int]) -> None:
        """Keep the pieces of one call, if the rows can be told apart in it."""
        if single[0] != id(call.layer):
            return
        inputs, slopes = by_rows(call.inputs, single[1], self.count), by_rows(slope, single[2], self.count)
        if slopes is None and broadcast is not None and call.shape == single[2] and broadcast.numel() == self.count * slope.numel():
            # A layer that sees no row, such as one for positions: what adds its output to the rows' is asked instead.
            inputs = call.inputs.expand(self.count, 1, *call.inputs.shape)
            slopes = broadcast.reshape(self.count, 1, *slope.shape)
        if inputs is None or slopes is None:
            return
        found = pieces(call.layer, inputs, slopes, single=call.inputs.dim())
        for name, piece in (found or {}).items():
            place = self._places.get(id(call.layer._parameters[name]))
            if place is not None:
                self.parts.setdefault(place, []).append(piece)
                uses[place] = uses.get(place, 0) + 1

    def apart(self, ours: Callable[[int], Tensor], theirs: Sequence[Tensor | None], *, scaled: bool) -> tuple[list[int], float]:
        """The parameters whose gradients are not those of autograd, up to one common factor where they are `scaled`; and the factor."""
        pairs = {}
        for i in self.parts:
            p, found = self.objective.parameters[i], theirs[i]
            wanted = p.new_zeros(p.numel()) if found is None else found.to_dense().reshape(-1) if found.is_sparse else found.reshape(-1)
            pairs[i] = (ours(i).to(p.dtype).expand(p.numel()), wanted)
        inner = sum(float(torch.dot(x, y)) for x, y in pairs.values())
        size = sum(float(torch.linalg.vector_norm(y)) ** 2 for _, y in pairs.values())
        factor = inner / size if scaled and size > 0 else 1.0
        norms = {i: float(torch.linalg.vector_norm(x)) for i, (x, _) in pairs.items()}
        scale = math.hypot(*norms.values())
        away = {i: float(torch.linalg.vector_norm(torch.sub(x, y, alpha=factor))) for i, (x, y) in pairs.items()}
        return [i for i in pairs if not away[i] <= self.tolerance * max(norms[i], 1e-3 * scale)], factor

    @property
    def tolerance(self) -> float:
        """How far two ways to the same gradient may be apart by rounding."""
        epsilon = max(torch.finfo(p.dtype).eps for p in self.objective.parameters)
        return 3e-2 if epsilon > 1e-6 else 1e-3 if epsilon > 1e-12 else 1e-8

    def drop(self, wrong: Sequence[int]) -> None:
        """Give up some parameters."""
        for i in wrong:
            del self.parts[i]


def couples(slopes: Tensor, output: Tensor, row: int) -> bool:
    """Whether the slope of a loss at one row's output depends on other rows' outputs; `slopes` has its graph."""
    if not slopes.requires_grad:
        return False
    # At random weights: the slopes of a cross entropy add up to zero, whatever the others do.
    weights = torch.randn(slopes[row].shape, generator=torch.Generator().manual_seed(0)).to(slopes)
    found = torch.autograd.grad((slopes[row] * weights).sum(), output, retain_graph=True)[0]
    own = found[row].clone()
    found[row] = 0
    return float(found.norm()) > 1e-4 * float(own.norm())


Shapes = tuple[int, torch.Size, torch.Size]  # a layer, and the shapes of its input and output for one row


@dataclass
class Single:
    shapes: list[Shapes]
    gradients: tuple[Tensor | None, ...] | None
    outputs: list[Tensor]


class Graph:
    """Who uses what in the graph of a loss, or of outputs."""

    def __init__(self, roots: Sequence[Tensor]) -> None:
        self.users: dict[Any, list[Any]] = {}
        self._leaves: dict[int, Any] = {}
        ahead: list[Any] = [t.grad_fn for t in roots]
        seen = set(ahead)
        while ahead:
            node = ahead.pop()
            if node is not None and node.name() == "CheckpointFunctionBackward":
                raise CannotRun(REENTRANT)
            variable = getattr(node, "variable", None)
            if variable is not None:
                self._leaves[id(variable)] = node
            for following, _ in node.next_functions if node is not None else ():
                if following is not None:
                    self.users.setdefault(following, []).append(node)
                    if following not in seen:
                        seen.add(following)
                        ahead.append(following)

    def leaf(self, p: Tensor) -> Any:
        return self._leaves.get(id(p))

    def uses(self, p: Tensor) -> int:
        """In how many places the graph uses a parameter."""
        return len(self.users.get(self.leaf(p), ()))

    def adder(self, node: Any) -> Any:
        """The one place at which an output is added to, or repeated for, all rows; None where there is no such place."""
        while node is not None:
            users = self.users.get(node, ())
            if len(users) != 1:
                return None
            node = users[0]
            if node.name() == "ExpandBackward0" or (node.name() == "AddBackward0" and node._saved_alpha == 1):
                return node
            if node.name() not in ("UnsqueezeBackward0", "ViewBackward0"):
                return None
        return None

    def meets_rows(self, p: Tensor) -> bool:
        """Whether a parameter is itself added to, or repeated for, all rows."""
        leaf = self.leaf(p)
        return leaf is not None and self.adder(leaf) is not None


class Caught:
    """The slope that arrives where an output is added to the rows; `slope` is None as long as none did."""

    def __init__(self, graph: Graph, node: Any) -> None:
        self.slope: Tensor | None = None
        adder = graph.adder(node) if node is not None else None
        if adder is not None:
            adder.register_prehook(self._keep)

    def _keep(self, slopes: tuple[Tensor | None, ...]) -> None:
        self.slope = slopes[0]
