"""Which symmetries a set of examples has: groups that act on its inputs, and whether its law stays the same under them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from gradoscope.guard import derive_seed
from gradoscope.measure.symmetry import Group, node_permutations, permutations, reflections, rotations90, shifts, sign_flips
from gradoscope.measurement import Measurement

__all__ = ["law_under", "natural_groups"]

COORDINATES = 64  # entries of the inputs, and as many products of two, whose means are compared
ANSWERS = 8  # entries of the targets
CLASSES = 64  # whole numbers of more values than this are told apart by size alone
CHUNKS = 8  # elements of the group that are tried on the examples


def natural_groups(inputs: Any, target: Any) -> list[list[Group]]:
    """The groups that act on inputs of this shape, in families: the first group of one that fits speaks for those after it.

    - rows of entries (N, n) or of vectors (N, n, d): all orders, cyclic shifts, the mirror image; of blocks of entries too;
    - matrices (N, n, n): both dimensions together, as of a graph's edges;
    - images (N, C, H, W): shifts, turns by 90 degrees, mirror images;
    - nodes (N, n, d) with edges (N, n, n, e): renaming the nodes;
    - real inputs: the change of sign.

    With and without the targets moving along, where their shape allows it.

    Args:
        inputs: one tensor, or a tuple of tensors.
        target: a tensor, with examples first.
    """
    if not isinstance(target, Tensor):
        return []
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(p, Tensor) and p.dim() >= 2 and len(p) == len(target) for p in parts):
        return []
    if len(parts) > 1:
        return [f for f in (list(_of_graphs(parts, target)), list(_orders(parts, target))) if f][:1]
    x = parts[0]
    moving = _moving(x.shape[1], target)
    families = [[g for out in moving for g in _along(x, out)]] if x.dim() < 4 else []
    if x.dim() >= 3 and x.shape[1] == x.shape[2]:
        families.append([_both_ways(out) for out in moving])
    if x.dim() == 4:
        square = [rotations90()] if x.shape[2] == x.shape[3] else []
        families += [[shifts((2, 3))], square, [reflections(3)], [reflections(2)]]
    if x.dim() == 2:
        families.append([permutations(1), *_blocks(x.shape[1])])
    if x.is_floating_point():
        families.append([sign_flips(), *([sign_flips(odd=True)] if target.is_floating_point() else [])])
    return [f for f in families if f]


def _moving(n: int, target: Tensor) -> list[int | None]:
    """Where the targets move along: in dimension 1 if it has as many entries, or not at all."""
    return [1, None] if target.dim() >= 2 and target.shape[1] == n else [None]


def _along(x: Tensor, out: int | None) -> list[Group]:
    if x.shape[1] < 2:
        return []
    if x.shape[1] == 2:
        return [reflections(1, output_dim=out)]
    return [permutations(1, output_dim=out), shifts((1,), output_dims=None if out is None else (out,)), reflections(1, output_dim=out)]


def _orders(parts: tuple[Tensor, ...], target: Tensor) -> Iterator[Group]:
    n = parts[0].shape[1]
    if n > 2 and all(p.shape[1] == n for p in parts):
        yield from (permutations(1, output_dim=out) for out in _moving(n, target))


def _of_graphs(parts: tuple[Tensor, ...], target: Tensor) -> Iterator[Group]:
    nodes, edges, *rest = parts
    n = nodes.shape[1]
    if n < 3 or nodes.dim() != 3 or edges.dim() < 3 or edges.shape[1:3] != (n, n) or not all(m.shape[1:] == (n,) for m in rest):
        return
    if target.dim() >= 3 and target.shape[1:3] == (n, n):
        yield node_permutations("pairs")
    if target.dim() >= 2 and target.shape[1] == n:
        yield node_permutations("nodes")
    yield node_permutations("none")


def _both_ways(out: int | None) -> Group:
    """Orders of the rows and the columns of a matrix at once."""
    rows = permutations(1, output_dim=out)
    both = permutations(2)
    return replace(rows, name="permutations of dimensions 1 and 2 together", act=lambda o, x: both.act(o, rows.act(o, x)))


def _blocks(width: int) -> Iterator[Group]:
    """Orders of n blocks of a row's entries, of more than one entry each: blocks that stand side by side, or that are interleaved."""
    for n in range(3, width // 2 + 1):
        if width % n == 0:
            yield _block(width, n, (n, width // n), 1)
            yield _block(width, n, (width // n, n), 2)


def _block(width: int, n: int, shape: tuple[int, int], dim: int) -> Group:
    order = permutations(dim)

    def act(element: Any, x: Tensor) -> Tensor:
        return order.act(element, x.reshape(-1, *shape)).reshape(-1, width)  # type: ignore[no-any-return]  # a tensor moved is a tensor

    def draw(x: Tensor, generator: torch.Generator) -> Any:
        return order.draw(x.reshape(-1, *shape), generator)

    kind = "side by side" if dim == 1 else "interleaved"
    return Group(f"permutations of {n} blocks of {width // n} entries, {kind}", draw, act)


def law_under(inputs: Any, target: Tensor, group: Group, *, seed: int = 0) -> Measurement:
    r"""Whether examples and moved examples have one law: $\max_f|\overline{f(gx,gy)-f(x,y)}|/\mathrm{se}$ over features f.

    Features are entries of x, products of two entries, and products of entries of x and of y, at random places. Under one law each
    mean difference is zero. The p-value is that of the largest by Bonferroni. Each eighth of the rows is moved by an element of its own.

    Args:
        inputs: one tensor or a tuple of tensors, N rows each, N >= 64.
        target: N rows; whole numbers are told apart as classes.
        group: what acts on both.
        seed: of the elements and the places.

    Cost: no pass.

    Example:
        >>> x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
        >>> law_under(x, x.sum(1), permutations(1)).p > 0.01, law_under(x, x[:, 0], permutations(1)).p < 1e-6
        (True, True)
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 481))
    read = _features(inputs, target, generator)
    before, rows = read(inputs, target), torch.arange(len(target)).chunk(CHUNKS)
    differences = []
    for part in rows:
        piece = tuple(x[part] for x in inputs) if isinstance(inputs, tuple) else inputs[part]
        element = group.draw(piece, generator)
        differences.append(read(group.act(element, piece), group.act_on_output(element, target[part])) - before[part])
    d = torch.cat(differences)
    se = d.std(0) / math.sqrt(len(d))
    z = torch.where(se > 0, d.mean(0).abs() / se.clamp_min(1e-300), torch.where(d.mean(0) == 0, 0.0, math.inf))
    largest = float(z.max()) if z.numel() else 0.0
    p = min(1.0, z.numel() * 2 * float(stats.norm.sf(largest)))
    return Measurement("law_under", largest, n=len(d), p=p, details={"group": group.name, "features": z.numel()})


def _features(inputs: Any, target: Tensor, generator: torch.Generator) -> Callable[[Any, Tensor], Tensor]:
    """A function of examples to numbers, shape (N, features), float64; places and scales are those of the examples given here."""
    x, y = _flat(inputs), _answers(target)

    def places(width: int, count: int) -> Tensor:
        return torch.randint(width, (count,), generator=generator)

    entries, first, second = (places(x.shape[1], COORDINATES) for _ in range(3))
    # Half of the products are of neighbours: what is near in a row or a series belongs together most.
    second[: COORDINATES // 2] = (first[: COORDINATES // 2] + 1 + places(2, COORDINATES // 2)) % x.shape[1]
    mixed, answers = places(x.shape[1], COORDINATES), places(y.shape[1], COORDINATES)
    mean, spread = y.mean(0), x.std().clamp_min(1e-12)

    def read(inputs: Any, target: Tensor) -> Tensor:
        x, y = _flat(inputs) / spread, _answers(target, like=target_classes) - mean
        return torch.cat([x[:, entries], x[:, first] * x[:, second], x[:, mixed] * y[:, answers]], 1)

    target_classes = y.shape[1]
    return read


def _flat(inputs: Any) -> Tensor:
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    return torch.cat([p.double().reshape(len(p), -1) for p in parts], 1)


def _answers(target: Tensor, like: int | None = None) -> Tensor:
    """Targets as numbers by example: classes as zeros and ones."""
    if not target.is_floating_point() and target.dim() == 1 and int(target.max()) < CLASSES:
        width = int(target.max()) + 1 if like is None else like
        return torch.nn.functional.one_hot(target.long(), width).double()
    return target.double().reshape(len(target), -1)
