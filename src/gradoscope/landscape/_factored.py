r"""Layers that see the raw data: their response to every direction is computed once, and combined for each point.

A linear layer or a convolution is linear in its own parameters. Where its input is the same at every point, its output there is
$z(c)=z_0+\sum_i c_i z_i$, with $z_i$ the response of the layer that has the i-th direction as its parameters.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.landscape._passes import Passes, Refused

__all__ = ["Responses", "find", "settle"]

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SMALLEST = 8  # inputs of one output number, below which combining costs as much as computing
MEMORY = 1 << 29  # bytes that all responses together may take


class _Call(NamedTuple):
    """What a layer was given: the tensor with its version, a copy of its values, and the bytes of the answer."""

    given: Tensor
    version: int
    value: Tensor
    size: int

    def is_same(self, x: Tensor) -> bool:
        """Whether x is the very memory that was given before, unwritten since: then nothing has to be read."""
        known = self.given
        return (
            x.data_ptr() == known.data_ptr()
            and x._version == known._version == self.version
            and x.shape == known.shape
            and x.stride() == known.stride()
        )


class Responses:
    """Layers with fixed inputs, which within this context answer from their responses; use it within a `Passes` context.

    Args:
        passes: the model at its points.
        calls: for each layer and batch the inputs at every call.
    """

    def __init__(self, passes: Passes, calls: dict[nn.Module, dict[int, list["_Call"]]]) -> None:
        self.layers = list(calls)
        self._passes = passes
        with torch.no_grad():
            self._calls = {(m, k): found for m, by_batch in calls.items() for k, found in by_batch.items()}
            self._sums = {key: [call.value.sum() for call in found] for key, found in self._calls.items()}
            self._responses = {(m, k): [self._respond(m, call.value) for call in found] for (m, k), found in self._calls.items()}
        self._memory = {key: [torch.empty_like(r[0]) for r in found] for key, found in self._responses.items()}
        self._lent = {t.untyped_storage().data_ptr() for found in self._memory.values() for t in found}
        self._bases: dict[tuple[nn.Module, int], list[Tensor]] = {}
        self._slow: tuple[float, ...] | None = None
        self._point: Any = ()
        self._k, self._fast = 0, 0
        self._stacked: Tensor | None = None
        self._counts: dict[nn.Module, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for m in self.layers:
            m.__dict__["forward"] = self._answer(m)
            self._stack.callback(m.__dict__.pop, "forward", None)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def parameters(self) -> list[Tensor]:
        """The parameters of these layers that the objective moves."""
        own = {id(p) for m in self.layers for p in m.parameters(recurse=False)}
        return [p for p in self._passes.objective.parameters if id(p) in own]

    def _respond(self, module: nn.Module, x: Tensor) -> Tensor:
        """The outputs of a layer with the origin and then each direction as its parameters, shape (1 + k, ...)."""
        passes, own = self._passes, [p for p in module.parameters(recurse=False)]
        kept = [p.data for p in own]
        answers = []
        try:
            for i in range(1 + len(passes.directions)):
                for p, mine in zip(own, kept, strict=True):
                    part = passes.part(p, i)
                    p.data = part if part is not None else mine if i == 0 else torch.zeros_like(mine)
                answers.append(type(module).forward(module, x))
        finally:
            for p, mine in zip(own, kept, strict=True):
                p.data = mine
        return torch.stack(answers)

    def move(self, point: Sequence[float], fast: int) -> None:
        """Say at which point the next passes are: all but the `fast` coordinate are combined once for as long as they stay."""
        slow = (*point[:fast], *point[fast + 1 :])
        if slow != self._slow or fast != self._fast:
            self._slow, self._fast = slow, fast
            self._bases = {key: [_combine(r, point, fast) for r in calls] for key, calls in self._responses.items()}
        self._point = point

    def begin(self, k: int, points: Tensor | None = None) -> None:
        """Before a pass over batch k; `points` are coordinates (k,) that are stacked by vmap, instead of those of `move`."""
        self._k, self._stacked = k, points
        self._counts = dict.fromkeys(self.layers, 0)

    def released(self, output: Any) -> Any:
        """An output of the model that the next pass does not write to."""
        if not any(t.untyped_storage().data_ptr() in self._lent for t in tree.leaves(output)):
            return output
        return tree.copied(output)

    def _answer(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            n, key = self._counts[module], (module, self._k)
            self._counts[module] = n + 1
            sums = self._sums[key]
            if n >= len(sums) or not (self._calls[key][n].is_same(x) or torch.equal(x.sum(), sums[n])):
                raise Refused("the input of a layer that seemed to see the raw data is not the same at all points")
            response: Tensor = self._responses[key][n]
            if self._stacked is not None:
                moved: Tensor = torch.tensordot(self._stacked.to(response.dtype), response[1:], dims=1)
                return response[0] + moved
            memory: Tensor = self._memory[key][n]
            return torch.add(self._bases[key][n], response[1 + self._fast], alpha=self._point[self._fast], out=memory)

        return forward


def _combine(response: Tensor, point: Sequence[float], fast: int) -> Tensor:
    base = response[0]
    for i, c in enumerate(point):
        if i != fast and c != 0:
            base = torch.add(base, response[1 + i], alpha=c)
    return base


def _candidates(passes: Passes) -> list[nn.Module]:
    """Layers of a known kind, unaltered, with parameters of their own that move."""
    held = {id(p) for p in passes.objective.parameters}
    found = []
    for m in passes.model.modules():
        weight = m._parameters.get("weight")
        plain = type(m) in KINDS and "forward" not in m.__dict__ and weight is not None and weight[0].numel() >= SMALLEST
        if plain and any(id(p) in held for p in m.parameters(recurse=False)):
            found.append(m)
    return found


def find(passes: Passes, probes: Sequence[Sequence[float]]) -> Responses | None:
    """The layers whose inputs are no function of the parameters, with their responses; None where there are none.

    Such an input needs no gradient in a pass that could give one, and is the same to the bit at two points. What slips through
    that (a detached constant that jumps elsewhere) is found by `Responses`, which looks at the sum of the input at every pass, and by
    the comparison of results with those of a plain pass.

    Args:
        passes: the model at its points, within its context.
        probes: two points.

    Cost: two passes over all batches, and k + 1 evaluations of the layers on them.
    """
    calls: dict[nn.Module, dict[int, list[_Call]]] = {m: {} for m in _candidates(passes)}
    memory, per_point = 0, 2 + len(passes.directions)
    for k in range(len(passes.objective.batches)):
        if not calls:
            return None
        first, second = (_calls(passes, list(calls), k, point) for point in probes)
        for m in list(calls):
            pairs = list(zip(first[m], second[m], strict=False))
            same = len(first[m]) == len(second[m]) > 0
            if same and all(a is not None and b is not None and torch.equal(a.value, b.value) for a, b in pairs):
                calls[m][k] = [a for a in first[m] if a is not None]
                memory += per_point * sum(a.size for a in calls[m][k])
            else:
                del calls[m]
    return Responses(passes, calls) if calls and memory <= MEMORY else None


def _calls(passes: Passes, modules: Sequence[nn.Module], k: int, point: Sequence[float]) -> dict[nn.Module, list[_Call | None]]:
    """The inputs of layers in a pass, with the bytes of the output; None for an input that depends on parameters."""
    seen: dict[nn.Module, list[_Call | None]] = {m: [] for m in modules}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        fixed = len(inputs) == 1 and isinstance(inputs[0], Tensor) and not inputs[0].requires_grad
        x = inputs[0] if fixed else output
        seen[module].append(_Call(x, x._version, x.clone(), output.numel() * output.element_size()) if fixed else None)

    with ExitStack() as stack:
        for m in modules:
            stack.callback(m.register_forward_hook(keep).remove)
        stack.enter_context(torch.enable_grad())
        passes.move(point)
        passes.loss(k)
    return seen


def settle(passes: Passes, responses: Responses, probe: Sequence[float]) -> None:
    """Stop setting the parameters of these layers at each point, unless something else reads them (a tied layer, a penalty).

    With NaN in their place the losses must stay the same to the bit. Within the context of the responses.

    Cost: two passes over all batches; one more for each parameter where something reads one.
    """

    def losses() -> list[float] | None:
        passes.move(probe)
        responses.move(probe, passes.fast)
        found = []
        for k in range(len(passes.objective.batches)):
            responses.begin(k)
            try:
                found.append(float(passes.loss(k)))
            except Exception:  # code that reads a NaN and objects to it
                return None
        return found

    plain, own = losses(), responses.parameters()
    passes.lend(own)
    if losses() != plain:
        unread = []
        for p in own:
            passes.lend([p])
            if losses() == plain:
                unread.append(p)
        passes.lend(unread)
