"""Does a model respect a symmetry? The defect of equivariance or invariance of anything that can be called, under a group of actions."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, private_random, untouched
from gradoscope.measurement import Cost, Measurement
from gradoscope.structured.graphs import Graphs

__all__ = [
    "Group",
    "equivariance_defect",
    "node_permutations",
    "permutations",
    "reflections",
    "rotations90",
    "scalings",
    "shifts",
    "sign_flips",
]


def _as_they_are(element: Any, outputs: Any) -> Any:
    return outputs


@dataclass(frozen=True)
class Group:
    """A group with its action on inputs and on outputs.

    Args:
        name: in words, e.g. "permutations of dimension 1".
        draw: `draw(inputs, generator)`, a random element other than the identity, for inputs of this shape.
        act: `act(element, inputs)`, the inputs moved by the element. It leaves what it is given as it is.
        act_on_output: `act_on_output(element, outputs)`; by default outputs stay as they are, which asks for invariance.

    Example:
        >>> turn = permutations(1)
        >>> turn.act(torch.tensor([2, 0, 1]), torch.tensor([[10, 20, 30]])).tolist()
        [[30, 10, 20]]
    """

    name: str
    draw: Callable[[Any, torch.Generator], Any]
    act: Callable[[Any, Any], Any]
    act_on_output: Callable[[Any, Any], Any] = _as_they_are


def equivariance_defect(
    function: Callable[[Any], Any],
    inputs: Any,
    group: Group,
    *,
    samples: int = 16,
    output_action: Callable[[Any, Any], Any] | None = None,
    model: nn.Module | None = None,
    mode: Literal["eval", "train"] = "eval",
    generator: torch.Generator | None = None,
) -> Measurement:
    r"""How far F is from $F(gx)=gF(x)$: $\sqrt{E\|F(gx)-gF(x)\|^2}\big/\sqrt{E\|F(x)-\bar F\|^2}$, with $\bar F$ the mean over examples.

    0 for an equivariant function (rounding remains), about $\sqrt2$ where $F(gx)$ has nothing in common with $gF(x)$. The standard error
    is that of a ratio of means over examples, with the variation over elements added. Parameters, buffers, gradients, modes and random
    streams are put back to the bit; masks of dropout are the same in all passes.

    Args:
        function: a module, or anything that takes inputs and gives outputs: tensors with a leading dimension of examples, or
            tuples, lists and dicts of them, whose entries count alike.
        inputs: at least two examples, in whatever form function and group take.
        group: what acts.
        samples: elements drawn.
        output_action: in the place of the group's own.
        model: the module behind `function`, where that is not a module itself, so that it can be left as it was.
        mode: in which mode modules run.
        generator: draws the elements; by default the same ones each time.

    Returns:
        The defect. Details: "worst", the largest defect of one element; "absolute", the largest $|F(gx)-gF(x)|$ of any entry; "per
        element", their defects; "eps", the precision of the outputs; "spread", the root mean square variation of F.

    Raises:
        CannotRun: for outputs without a common leading dimension of two or more examples, or of another shape after the action.

    Cost: samples + 1 forward passes.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 1.0]])
        >>> equivariance_defect(lambda x: x.sum(1), x, permutations(1)).value
        0.0
        >>> equivariance_defect(lambda x: x.cumsum(1), x, permutations(1, output_dim=1)).value > 0.1
        True
    """
    generator = torch.Generator().manual_seed(derive_seed(samples, 471)) if generator is None else generator
    move = group.act_on_output if output_action is None else output_action
    run = _Quiet(function, function if isinstance(function, nn.Module) else model, mode)
    outputs = run(inputs)
    rows = _rows(outputs)
    errors, absolute = [], 0.0
    for _ in range(samples):
        element = group.draw(inputs, generator)
        expected, found = _rows(move(element, outputs)), _rows(run(group.act(element, inputs)))
        if expected.shape != found.shape:
            raise CannotRun(f"F(gx) has shape {tuple(found.shape)} and gF(x) {tuple(expected.shape)}: the action on outputs does not fit.")
        errors.append((found - expected).square().mean(1))
        absolute = max(absolute, float((found - expected).abs().max()))
    eps = max(torch.finfo(t.dtype).eps for t in tree.leaves(outputs) if t.is_floating_point())
    details = {"group": group.name, "absolute": absolute, "eps": eps}
    return _measured(torch.stack(errors), (rows - rows.mean(0)).square().mean(1), details)


def _measured(cells: Tensor, varies: Tensor, details: dict[str, Any]) -> Measurement:
    """The measurement out of squared errors (elements, examples) and squared variations (examples)."""
    value, se = _ratio(cells, varies)
    spread, errors = float(varies.mean().sqrt()), cells.mean(1).sqrt().tolist()
    each = [error / spread if spread > 0 else 0.0 if error == 0 else math.inf for error in errors]
    details |= {"worst": max(each), "per element": each, "spread": spread}
    cost = Cost(len(cells) + 1, 0, cells.shape[1])
    return Measurement("equivariance_defect", value, se=se, n=cells.numel(), cost=cost, details=details)


def _ratio(cells: Tensor, varies: Tensor) -> tuple[float, float]:
    """The root of a ratio of means, of errors (elements, examples) to variations (examples), with its standard error."""
    top, bottom = float(cells.mean()), float(varies.mean())
    if top == 0 or bottom == 0:
        return (0.0 if top == 0 else math.inf), 0.0
    elements, examples = cells.shape
    square = top / bottom
    left = (cells.mean(0) - square * varies) / bottom
    variance = float(left.square().sum()) / (examples * (examples - 1))
    if elements > 1:
        variance += float(cells.mean(1).var()) / bottom**2 / elements
    return math.sqrt(square), math.sqrt(variance) / (2 * math.sqrt(square))


class _Quiet:
    """Runs a function so that nothing of it or of the module behind it changes."""

    def __init__(self, function: Callable[[Any], Any], model: nn.Module | None, mode: str) -> None:
        self.function, self.model, self.mode, self.no_grad = function, model, mode, True

    def __call__(self, inputs: Any) -> Any:
        if self.no_grad:
            try:
                return self._run(inputs, torch.no_grad())
            except RuntimeError as error:
                if "require grad" not in str(error):
                    raise
                self.no_grad = False  # a model that differentiates inside, as those of forces do
        return self._run(inputs, torch.enable_grad())

    def _run(self, inputs: Any, gradients: Any) -> Any:
        with ExitStack() as stack:
            seed = derive_seed(472)
            stack.enter_context(private_random(seed) if self.model is None else untouched(self.model, seed=seed))
            stack.enter_context(gradients)
            if self.model is not None:
                self.model.train(self.mode == "train")
            outputs = self.function(tree.copied(inputs))
        return tree.map_tensors(torch.Tensor.detach, outputs)


def _rows(outputs: Any) -> Tensor:
    """Outputs as numbers by example, float64, shape (N, everything else)."""
    found = [t for t in tree.leaves(outputs) if t.is_floating_point()]
    count = {len(t) if t.dim() else 0 for t in found}
    if len(count) != 1 or min(count) < 2:
        raise CannotRun(
            "the outputs must be real tensors with a common leading dimension of at least two examples; these have shapes "
            f"{[tuple(t.shape) for t in tree.leaves(outputs)]}."
        )
    return torch.cat([t.detach().double().reshape(len(t), -1) for t in found], 1)


def _first(inputs: Any) -> Tensor:
    found = next(tree.leaves(inputs), None)
    if found is None:
        raise CannotRun("this group acts on tensors, and tuples, lists and dicts of them; the inputs hold none.")
    return found


def _order(n: int, generator: torch.Generator) -> Tensor:
    """A permutation other than the identity, where there is one."""
    while True:
        order = torch.randperm(n, generator=generator)
        if n < 2 or bool((order != torch.arange(n)).any()):
            return order


def _both(name: str, draw: Any, act: Callable[[Any, Tensor, Any], Tensor], where: Any, output: Any) -> Group:
    """A group that acts on every tensor: `act(element, tensor, where)`, on outputs where `output` says where."""
    group = Group(name, draw, lambda element, inputs: tree.map_tensors(lambda t: act(element, t, where), inputs))
    if output is None:
        return group
    return replace(group, act_on_output=lambda element, outputs: tree.map_tensors(lambda t: act(element, t, output), outputs))


def permutations(dim: int, *, output_dim: int | None = None) -> Group:
    """All orders of the entries along a dimension: of the elements of a set, of points, of positions.

    Args:
        dim: of the inputs; dimension 0 is that of the examples.
        output_dim: of the outputs that are to move along; None where the outputs are to stay.
    """

    def act(order: Tensor, t: Tensor, where: int) -> Tensor:
        return t.index_select(where, order.to(t.device))

    return _both(
        f"permutations of dimension {dim}", lambda inputs, generator: _order(_first(inputs).shape[dim], generator), act, dim, output_dim
    )


def node_permutations(output: Literal["none", "nodes", "pairs"] = "nodes") -> Group:
    """Renaming the nodes of graphs: features of nodes, and of ordered pairs, move together.

    The inputs are `Graphs`, or a tuple of nodes (B, n, dn) and edges (B, n, n, de), and a mask (B, n) if there is one.

    Args:
        output: "nodes" for outputs (B, n, ...), "pairs" for outputs (B, n, n, ...), "none" for outputs that are to stay.
    """

    def draw(inputs: Any, generator: torch.Generator) -> Tensor:
        nodes = inputs.nodes if isinstance(inputs, Graphs) else inputs[0]
        return _order(nodes.shape[1], generator)

    def act(order: Tensor, inputs: Any) -> Any:
        if isinstance(inputs, Graphs):
            return inputs.permuted(order)
        order = order.to(inputs[0].device)
        moved = [inputs[0][:, order], inputs[1][:, order][:, :, order], *(mask[:, order] for mask in inputs[2:])]
        return tuple(moved)

    def of_output(order: Tensor, t: Tensor) -> Tensor:
        order = order.to(t.device)
        return t[:, order] if output == "nodes" else t[:, order][:, :, order]

    group = Group("permutations of the nodes", draw, act)
    if output == "none":
        return group
    return replace(group, act_on_output=lambda order, outputs: tree.map_tensors(lambda t: of_output(order, t), outputs))


def shifts(dims: Sequence[int], *, output_dims: Sequence[int] | None = None) -> Group:
    """Cyclic shifts along dimensions, as of images or series whose ends are joined.

    Args:
        dims: of the inputs.
        output_dims: of the outputs that are to move along by as many places; None where the outputs are to stay.
    """

    def draw(inputs: Any, generator: torch.Generator) -> tuple[int, ...]:
        sizes = [_first(inputs).shape[d] for d in dims]
        while True:
            by = tuple(int(torch.randint(n, (1,), generator=generator)) for n in sizes)
            if any(by) or all(n < 2 for n in sizes):
                return by

    def act(by: tuple[int, ...], t: Tensor, where: Sequence[int]) -> Tensor:
        return t.roll(by, tuple(where))

    return _both(f"shifts along dimensions {tuple(dims)}", draw, act, tuple(dims), None if output_dims is None else tuple(output_dims))


def reflections(dim: int, *, output_dim: int | None = None) -> Group:
    """The mirror image along a dimension: two elements, of which one is the identity.

    Args:
        dim: of the inputs.
        output_dim: of the outputs that are to be mirrored as well; None where the outputs are to stay.
    """

    def act(element: int, t: Tensor, where: int) -> Tensor:
        return t.flip(where) if element else t

    return _both(f"reflection of dimension {dim}", lambda inputs, generator: 1, act, dim, output_dim)


def rotations90(dims: tuple[int, int] = (-2, -1), *, output_dims: tuple[int, int] | None = None) -> Group:
    """Turns by 90, 180 and 270 degrees in the plane of two dimensions of one size.

    Args:
        dims: of the inputs.
        output_dims: of the outputs that are to turn as well; None where the outputs are to stay.
    """

    def draw(inputs: Any, generator: torch.Generator) -> int:
        shape = _first(inputs).shape
        if shape[dims[0]] != shape[dims[1]]:
            raise CannotRun(f"turns by 90 degrees need two dimensions of one size; these have sizes {shape[dims[0]]} and {shape[dims[1]]}.")
        return 1 + int(torch.randint(3, (1,), generator=generator))

    def act(turns: int, t: Tensor, where: tuple[int, int]) -> Tensor:
        return t.rot90(turns, where)

    return _both(f"turns by 90 degrees in dimensions {dims}", draw, act, dims, output_dims)


def sign_flips(dim: int | None = None, *, odd: bool = False) -> Group:
    """Changes of sign: of whole examples (x to -x), or of each entry along a dimension by itself.

    Args:
        dim: of the inputs, or None for all entries together.
        odd: whether the outputs are to change their sign too: with the inputs, or with the entries along the same dimension.
    """

    def draw(inputs: Any, generator: torch.Generator) -> Tensor:
        if dim is None:
            return -torch.ones(1)
        while True:
            signs = 1.0 - 2.0 * torch.randint(2, (_first(inputs).shape[dim],), generator=generator)
            if bool((signs < 0).any()):
                return signs

    def act(signs: Tensor, t: Tensor) -> Tensor:
        signs = signs.to(t)
        return t * signs if dim is None else (t.movedim(dim, -1) * signs).movedim(-1, dim)

    name = "change of sign" if dim is None else f"changes of sign along dimension {dim}"
    group = Group(name, draw, lambda signs, inputs: tree.map_tensors(lambda t: act(signs, t), inputs))
    return replace(group, act_on_output=group.act) if odd else group


def scalings(low: float = 0.5, high: float = 2.0, *, degree: float = 0.0) -> Group:
    """Positive factors, uniform in their logarithm.

    Args:
        low: the smallest factor.
        high: the largest factor.
        degree: outputs are to grow with this power of the factor; 0 where they are to stay.
    """

    def draw(inputs: Any, generator: torch.Generator) -> float:
        return math.exp(math.log(low) + (math.log(high) - math.log(low)) * float(torch.rand(1, generator=generator)))

    def act(factor: float, t: Tensor, power: float) -> Tensor:
        return t * factor**power if t.is_floating_point() else t

    return _both("positive factors", draw, act, 1.0, degree)
