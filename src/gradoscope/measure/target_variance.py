"""How much the gradient differs from target to target: over every parity of d bits, exactly, and over sampled ones for large d."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed
from gradoscope.measure._walsh import Coding, cube, mask_sizes, walsh_hadamard
from gradoscope.measurement import Cost, Measurement

__all__ = [
    "SampledVariance",
    "TargetVariance",
    "cube",
    "half_squared",
    "hinge",
    "logistic",
    "mask_sizes",
    "sampled_target_variance",
    "target_variance",
    "walsh_hadamard",
]

Loss = Callable[[Tensor, Tensor], Tensor]
MEMORY = 1 << 30  # bytes of per-example gradients that are held at once
ROWS = 1 << 25  # bytes of them that are computed at once: larger pieces leave the cache


def half_squared(output: Tensor, target: Tensor) -> Tensor:
    r"""$\frac12(\hat y-y)^2$ of each example."""
    return (output - target).square() / 2


def hinge(output: Tensor, target: Tensor) -> Tensor:
    r"""$\max(0,1-\hat yy)$ of each example."""
    return torch.relu(1 - output * target)


def logistic(output: Tensor, target: Tensor) -> Tensor:
    r"""$\log(1+e^{-\hat yy})$ of each example."""
    return nn.functional.softplus(-output * target)


@dataclass(frozen=True)
class TargetVariance:
    r"""The gradients of all $2^d$ parities at one point, up to what they have in common.

    Args:
        d: bits.
        variance: $E_h|\nabla F_h-E_{h'}\nabla F_{h'}|^2$, from the transform.
        closed: the same from one pass over the cube, without a transform, by Parseval's identity.
        size: $G(w)^2=E_x|\partial_wp_w(x)|^2$.
        weighted: $E_x|b(p)\,\partial_wp|^2$, b half the difference of the loss's slopes for y = 1 and y = -1.
        spectrum: $|E_x[h_v(x)\,b\,\partial_wp]|^2$ of each parity v, shape (2^d,).
        distances: $|\nabla F_v-E_{h'}\nabla F_{h'}|^2$ of each parity, shape (2^d,).
        mean_gradient: the mean of the gradient over all targets, shape (P,).
        gradients: the gradient of each target, shape (2^d, P), where it was asked for.
        cost: passes spent.
    """

    d: int
    variance: float
    closed: float
    size: float
    weighted: float
    spectrum: Tensor = field(repr=False)
    distances: Tensor = field(repr=False)
    mean_gradient: Tensor = field(repr=False)
    gradients: Tensor | None = field(default=None, repr=False)
    cost: Cost = field(default_factory=Cost, repr=False)

    @property
    def bound(self) -> float:
        r"""$G(w)^2/2^d$: no less than the variance for the half squared loss and for 1-Lipschitz $r(\hat yy)$."""
        return self.size / (1 << self.d)

    @property
    def ratio(self) -> float:
        """The variance over its bound; NaN where the network does not depend on its parameters."""
        return self.variance / self.bound if self.bound > 0 else math.nan

    @property
    def parseval(self) -> float:
        r"""The relative error of $E_h|E_x[h\,b\,\partial p]|^2=E_x|b\,\partial p|^2/2^d$."""
        expected = self.weighted / (1 << self.d)
        return abs(float(self.spectrum.mean()) - expected) / expected if expected > 0 else 0.0

    def by_size(self) -> Tensor:
        """The mean of the spectrum over the parities of k bits, over the bound, k = 0 ... d; shape (d + 1,)."""
        sizes = mask_sizes(self.d)
        total = torch.zeros(self.d + 1, dtype=torch.float64).index_add_(0, sizes, self.spectrum)
        return total / torch.bincount(sizes, minlength=self.d + 1) / self.bound

    def carried_by(self, most: int) -> float:
        """The share of the sum of the spectrum that parities of at most this many bits have."""
        return float(self.spectrum[mask_sizes(self.d) <= most].sum() / self.spectrum.sum())

    def typical(self) -> float:
        """The median of the spectrum over the bound: what a parity has that is not among the few easy ones."""
        return float(self.spectrum.median()) / self.bound

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The ratio to the bound as a measurement; exact, so without a standard error."""
        details = {"variance": self.variance, "bound": self.bound, "typical": self.typical()}
        return Measurement(
            "target_variance", self.ratio, n=(1 << self.d), step=step, method="Walsh-Hadamard transform", cost=self.cost, details=details
        )


@dataclass(frozen=True)
class SampledVariance:
    r"""An estimate of the variance over parities from drawn targets and drawn examples.

    Args:
        d: bits.
        variance: unbiased estimate of what parities of `sizes` bits contribute to the variance over all $2^d$.
        se: its standard error, over independent batches of examples and targets.
        closed: unbiased estimate of the whole variance by Parseval's identity.
        closed_se: its standard error.
        size: estimate of $G(w)^2$.
        by_size: the mean of $|E_x[h_v\,b\,\partial p]|^2$ over parities of each of the sizes.
        by_size_se: the standard errors.
        cost: passes spent.
    """

    d: int
    variance: float
    se: float
    closed: float
    closed_se: float
    size: float
    by_size: dict[int, float]
    by_size_se: dict[int, float]
    cost: Cost = field(default_factory=Cost, repr=False)

    @property
    def bound(self) -> float:
        """As for `TargetVariance`."""
        return self.size / (1 << self.d)

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The ratio to the bound as a measurement."""
        return Measurement(
            "target_variance", self.variance / self.bound, se=self.se / self.bound, step=step, method="sampled targets", cost=self.cost,
            details={"variance": self.variance, "bound": self.bound, "by_size": self.by_size},
        )  # fmt: skip


def target_variance(
    model: nn.Module, d: int, *, loss: Loss = half_squared, inputs: Coding | Tensor = "signs", keep: bool = False, memory: int = MEMORY
) -> TargetVariance:
    r"""The variance of the gradient over all $2^d$ parities as targets, exactly.

    For targets $h\in\{-1,1\}$ the slope of any loss by the output is $a(p)+b(p)h$ with $b=\frac12(\ell'(p,1)-\ell'(p,-1))$, so
    $$\nabla F_h=E_x[a\,\partial p]+E_x[h\,b\,\partial p],\qquad
    \mathrm{Var}=\frac1{2^d}\Big(E_x|b\,\partial p|^2-\frac{|b\,\partial p|^2(x_0)}{2^d}\Big),$$
    where $x_0$ is the point at which every parity is 1. The second term of the gradient is, for all parities at once, the
    Walsh-Hadamard transform of each coordinate over the cube; the variance is taken from it, and `closed` from the formula.
    Parameters are float64 copies, in evaluation mode, where they stand: at the start, or anywhere along a training.

    Args:
        model: any network with one number as output for each row.
        d: bits; the cube has 2^d rows.
        loss: `loss(output, target)` of each example; `half_squared`, `hinge`, `logistic` or another.
        inputs: what the network reads: the cube as signs or bits, or a tensor (2^d, ...) of its own, row i for the bits of i.
        keep: whether to keep every target's gradient, 2^d P numbers.
        memory: bytes of per-example gradients to hold at once; beyond it, coordinates are taken in turns.

    Raises:
        CannotRun: where the output is not one number per row, no parameter can be trained, or the inputs are not 2^d rows.

    Cost: 2^d forward and backward passes of one example per turn, and O(d 2^d P) for the transform.

    Example:
        >>> found = target_variance(nn.Linear(6, 1), 6)  # the gradient is (x, 1), whatever the weights: 7 targets have any signal
        >>> round(found.variance * 64, 6), round(found.closed * 64, 6), round(found.size, 6)
        (6.890625, 6.890625, 7.0)
        >>> int((found.spectrum > 1e-12).sum())
        7

    Source: Shalev-Shwartz, Shamir & Shammah (2017), Failures of Gradient-Based Deep Learning, equation 2 and theorem 1.
    """
    points = cube(d, inputs) if isinstance(inputs, str) else inputs.double()
    if len(points) != 2**d:
        raise CannotRun(f"all inputs of d={d} bits are {2**d} rows, got {len(points)}.")
    network = _Network(model, loss)
    common, factor = network.slopes(points)
    count, total = 2**d, network.total
    width = max(1, memory // (16 * count))  # the transform writes a second copy
    sums = torch.zeros(3, dtype=torch.float64)  # of |dp|^2, |b dp|^2, and |b dp|^2 at x_0
    spectrum, distances = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    means, kept, turns = [], [], 0
    for rows in network.columns(points, width):
        turns += 1
        shared = common @ rows / count
        plain = torch.linalg.vector_norm(rows, dim=1).square()
        square = plain * factor.square()
        sums += torch.stack([plain.mean(), square.mean(), square[0]])
        rows *= factor[:, None]  # in place from here on: these are the largest tensors
        signals = walsh_hadamard(rows).div_(count)
        mean = signals.mean(0)
        means.append(shared + mean)
        if keep:
            kept.append(signals + shared)
        spectrum += torch.linalg.vector_norm(signals, dim=1).square()
        distances += torch.linalg.vector_norm(signals.sub_(mean), dim=1).square()
    size, weighted, at_start = (float(s) for s in sums)
    return TargetVariance(
        d, float(distances.mean()), (weighted - at_start / count) / count, size, weighted, spectrum, distances, torch.cat(means),
        torch.cat(kept, dim=1) if keep else None, Cost(turns * count, turns * count, turns * count * min(1, total)),
    )  # fmt: skip


def sampled_target_variance(
    model: nn.Module,
    d: int,
    *,
    loss: Loss = half_squared,
    coding: Coding = "signs",
    sizes: tuple[int, ...] | None = None,
    per_size: int = 64,
    examples: int = 2048,
    batches: int = 8,
    seed: int = 0,
) -> SampledVariance:
    r"""The variance over parities from drawn targets and drawn examples, for a d whose cube is too large.

    A plain draw of targets would hardly ever meet the few small parities that carry the variance, so targets are drawn for each
    size k by itself and weighted by $\binom dk/2^d$. Of n examples, $(|\sum_ih_ig_i|^2-\sum_i|g_i|^2)/(n(n-1))$ with $g=b\,\partial p$
    is an unbiased estimate of $|E[hg]|^2$. Batches are independent of each other, and the standard errors are theirs.
    The noise of one estimate is about $G^2/n$: what a large parity contributes, $2^{-d}G^2$ and less, cannot be told from zero
    for large d, what those of 0, 1 and 2 bits contribute can. `closed` needs one pass over the examples and has no such limit.

    Args:
        model: any network of d inputs with one number as output.
        d: bits.
        loss: as in `target_variance`.
        coding: what the network reads.
        sizes: which numbers of bits; None for all.
        per_size: targets drawn per size and batch; sizes with no more than that many parities are taken whole.
        examples: n.
        batches: at least 2.
        seed: what examples and targets are drawn from.

    Raises:
        CannotRun: for fewer than 2 batches or examples, or an output that is not one number per row.

    Cost: `batches * examples` forward and backward passes of one example.

    Example:
        >>> found = sampled_target_variance(nn.Linear(30, 1), 30, sizes=(0, 1))  # all signal is there: 31 parities with 1 each
        >>> abs(found.variance - found.closed) < 4 * found.se, round(found.closed * 2**30, 4)
        (True, 31.0)
    """
    if batches < 2 or examples < 2:
        raise CannotRun(f"standard errors need at least 2 batches of at least 2 examples, got {batches} and {examples}.")
    network = _Network(model, loss)
    which = tuple(range(d + 1)) if sizes is None else sizes
    random = torch.Generator().manual_seed(derive_seed(seed, 811))
    start = torch.ones(1, d, dtype=torch.float64) * (coding == "signs")
    first = network.weighted(start)[0].square().sum() / 2**d
    found, squares, plain = [], [], []
    for _ in range(batches):
        bits = torch.randint(0, 2, (examples, d), generator=random).double()
        masks = [_draw_masks(d, k, per_size, random) for k in which]
        each, square, size = network.signals(bits, bits if coding == "bits" else 1 - 2 * bits, torch.cat(masks))
        found.append(torch.stack([part.mean() for part in torch.split(each, [len(m) for m in masks])]))
        squares.append(square)
        plain.append(size)
    table = torch.stack(found)  # batch, size
    weights = torch.tensor([math.comb(d, k) / 2**d for k in which], dtype=torch.float64)
    totals, closed = table @ weights - first / 2**d, (torch.stack(squares) - first) / 2**d
    error = table.std(0) / math.sqrt(batches)
    return SampledVariance(
        d, float(totals.mean()), float(totals.std()) / math.sqrt(batches), float(closed.mean()),
        float(closed.std()) / math.sqrt(batches), float(torch.stack(plain).mean()),
        dict(zip(which, table.mean(0).tolist(), strict=True)), dict(zip(which, error.tolist(), strict=True)),
        Cost(batches * examples, batches * examples, batches * examples),
    )  # fmt: skip


def _draw_masks(d: int, size: int, most: int, random: torch.Generator) -> Tensor:
    """Masks of this many bits as float64 rows: all of them where there are no more than `most`, else drawn independently."""
    if math.comb(d, size) <= most:
        chosen = torch.combinations(torch.arange(d), size) if size else torch.zeros(1, 0, dtype=torch.long)
    else:
        chosen = torch.rand(most, d, generator=random).argsort(1)[:, :size]
    return torch.zeros(len(chosen), d, dtype=torch.float64).scatter_(1, chosen, 1.0)


class _Network:
    """A float64 copy of a model with gradients of single examples, and the slopes of a loss for targets of +-1."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = copy.deepcopy(model).double().eval(), loss
        self.parameters = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        self.fixed = {n: p.detach() for n, p in (*self.model.named_parameters(), *self.model.named_buffers()) if n not in self.parameters}
        self.total = sum(p.numel() for p in self.parameters.values())
        if not self.total:
            raise CannotRun("the gradient's variance needs a model with parameters that can be trained; this one has none.")

    def slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of each row: half the sum and half the difference of the loss's slopes for y = 1 and y = -1."""
        with torch.no_grad():
            output = torch.cat([self.model(part) for part in torch.split(points, 4096)])
        if output.numel() != len(points):
            raise CannotRun(f"the network must give one number for each row, got an output of shape {tuple(output.shape)}.")
        p = output.reshape(-1).requires_grad_()
        up, down = (torch.autograd.grad(self.loss(p, torch.full_like(p, y)).sum(), p)[0] for y in (1.0, -1.0))
        return (up + down) / 2, (up - down) / 2

    def columns(self, points: Tensor, width: int) -> Iterator[Tensor]:
        """Gradients of the output at every row, (N, C) at a time for at most `width` parameters, in the model's order."""
        for names in self._groups(width):
            size = sum(self.parameters[n].numel() for n in names)
            step = max(1, ROWS // (8 * size))
            for start in range(0, size, width):
                stop = min(start + width, size)
                out = torch.empty(len(points), stop - start, dtype=torch.float64)
                for part, rows in zip(torch.split(points, step), torch.split(out, step), strict=True):
                    rows.copy_(self._rows(part, names)[:, start:stop])
                yield out

    def weighted(self, points: Tensor) -> Tensor:
        """b(p) dp of each row, shape (N, P)."""
        return self._rows(points, list(self.parameters)) * self.slopes(points)[1][:, None]

    def signals(self, bits: Tensor, points: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unbiased |E[h b dp]|^2 of each mask, and the means of |b dp|^2 and |dp|^2, from n drawn rows."""
        n, factor = len(points), self.slopes(points)[1]
        sums = torch.zeros(len(masks), self.total, dtype=torch.float64)
        square, plain = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        step = max(1, ROWS // (8 * self.total))
        for start in range(0, n, step):
            piece = slice(start, start + step)
            rows = self._rows(points[piece], list(self.parameters))
            plain += rows.square().sum()
            rows = rows * factor[piece, None]
            square += rows.square().sum()
            sums += (1 - 2 * (masks @ bits[piece].T % 2)) @ rows
        return (sums.square().sum(1) - square) / (n * (n - 1)), square / n, plain / n

    def _groups(self, width: int) -> Iterator[list[str]]:
        """Whole parameters whose sizes add up to at most `width`; one that is larger stands alone."""
        group: list[str] = []
        for name, p in self.parameters.items():
            if group and sum(self.parameters[n].numel() for n in group) + p.numel() > width:
                yield group
                group = []
            group.append(name)
        yield group

    def _rows(self, points: Tensor, names: list[str]) -> Tensor:
        """d output / d parameters of each row, (n, P): all rows at once where every operation can, else one by one."""
        chosen = {n: self.parameters[n] for n in names}
        rest = {**self.fixed, **{n: p for n, p in self.parameters.items() if n not in chosen}}

        def output(some: dict[str, Tensor], x: Tensor) -> Tensor:
            result: Tensor = functional_call(self.model, {**rest, **some}, (x[None],))
            return result.reshape(())

        try:
            found = vmap(grad(output), in_dims=(None, 0))(chosen, points)
            return torch.cat([found[n].reshape(len(points), -1) for n in names], dim=1)
        except RuntimeError:  # an operation without a batching rule, as in recurrent layers
            singles = [grad(output)(chosen, x) for x in points]
            return torch.stack([torch.cat([s[n].reshape(-1) for n in names]) for s in singles])
