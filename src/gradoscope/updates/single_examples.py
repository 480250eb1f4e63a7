"""SGD on one example at a time for a wide layer with fixed output weights and the hinge loss, with its updates counted exactly."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["Record", "WideHinge", "replay"]

CACHE = 48_000_000  # numbers: the activations of all examples are kept up to this many
BLOCK = 1_000_000  # activations that are looked at together, at most
WIDE = 200  # inputs from which on it pays to keep activations
SAFE = 1e-6  # relative: a margin that is further from 1 in the cache is on that side in exact order as well


@dataclass
class Record:
    """What one training did.

    Attributes:
        updates: the index of the example of each update, in order.
        epochs: passes over the examples, the last one without an update where it converged.
        converged: whether a whole pass made no update: every margin is at least 1.
        progress: after each update the inner product of the weights with `along`, where that was given.
        norms: after each update the squared norm of the weights, where `along` was given.
    """

    updates: list[int] = field(default_factory=list)
    epochs: int = 0
    converged: bool = False
    progress: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


class WideHinge:
    r"""$f(x)=v\big(\sum_{i\le k}\sigma(w_i\cdot x)-\sum_{i\le k}\sigma(u_i\cdot x)\big)$, $\sigma(z)=\max(z,az)$; the first layer learns.

    A step on (x, y) with $yf(x)\ge1$ changes nothing. Any other adds $\eta vy\,\sigma'(w_i\cdot x)\,x$ to each w_i and takes the same with
    u_i away: an outer product. So the activations of an example change by one number per unit and update, and `train` applies to
    an example all updates since it was last seen with one product of matrices: $2knT$ multiplications for T updates instead of
    $2knd$ for every epoch, and no Python between the examples that need no update. Where the cached margin does not decide by far,
    the margin is computed anew from the weights, and every update is: the result is that of the plain loop, bit for bit.

    Args:
        weights: the rows $w_1..w_k,u_1..u_k$, float64, shape (2k, d); copied.
        slope: a in [0, 1]; at 0 the slope is a.
        v: size of the output weights, positive.

    Raises:
        Usage: for a slope outside [0, 1], an odd number of rows, or v <= 0.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> net = WideHinge(torch.zeros(2, 2, dtype=torch.float64), slope=0.5, v=1.0)
        >>> record = net.train(x, torch.ones(2, dtype=torch.float64), eta=0.1)
        >>> len(record.updates), record.converged, bool((net(x) >= 1).all())
        (18, True, True)
    """

    def __init__(self, weights: Tensor, *, slope: float, v: float) -> None:
        if not 0 <= slope <= 1 or v <= 0 or weights.dim() != 2 or len(weights) % 2:
            raise Usage(
                f"a wide hinge network needs (2k, d) weights, a slope in [0, 1] and v > 0, got {tuple(weights.shape)}, {slope}, {v}."
            )
        self.weights, self.slope, self.v = weights.clone(), slope, v
        k = len(weights) // 2
        self.signs = torch.cat([weights.new_ones(k), -weights.new_ones(k)])

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of examples (n, d); shape (n,)."""
        return self._output(x @ self.weights.T)

    def _output(self, z: Tensor) -> Tensor:
        """From activations (n, 2k)."""
        k = len(self.weights) // 2
        positive = torch.relu(z)
        if self.slope == 0:
            return self.v * (positive[:, :k].sum(1) - positive[:, k:].sum(1))
        total = (1 - self.slope) * (positive[:, :k].sum(1) - positive[:, k:].sum(1))
        return self.v * (total + self.slope * (z[:, :k].sum(1) - z[:, k:].sum(1)))

    def _slopes(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, self.slope))

    def visit(self, x: Tensor, y: float, eta: float) -> Tensor | None:
        """One step on one example of shape (d,): the change of each row along x, shape (2k,), or None where the margin is enough."""
        z = self.weights @ x
        if y * float(self._output(z[None])) >= 1:
            return None
        change = (eta * self.v * y) * self.signs * self._slopes(z)
        self.weights.addr_(change, x)
        return change

    def train(
        self,
        x: Tensor,
        y: Tensor,
        *,
        eta: float,
        epochs: int = 10_000,
        random: torch.Generator | None = None,
        along: Tensor | None = None,
    ) -> Record:
        r"""Pass over the examples until a whole pass makes no update.

        Args:
            x: examples, float64, shape (n, d).
            y: +1 or -1, shape (n,).
            eta: step size.
            epochs: at most so many passes.
            random: a new order is drawn from it for each pass; None keeps the order of the rows.
            along: W*, shape (2k, d), whose inner product with the weights is recorded after each update, with their norm.

        Cost: 4kdT multiplications for T updates; for the activations 2knT, or 2knd for each pass where that is less or where the
        activations of all examples do not fit into memory.
        """
        record, n = Record(), len(x)
        seen = _Activations(self, x)
        size, most = 8, max(8, BLOCK // len(self.weights))
        for _ in range(epochs):
            record.epochs += 1
            before = len(record.updates)
            order = torch.arange(n) if random is None else torch.randperm(n, generator=random)
            at = 0
            while at < n:
                block, count = order[at : at + size], len(record.updates)
                for index, change in self._block(seen, block, y, eta):
                    seen.record(index, change)
                    record.updates.append(index)
                    if along is not None:
                        record.progress.append(float((self.weights * along).sum()))
                        record.norms.append(float(self.weights.square().sum()))
                at += len(block)
                size = min(2 * size, most) if len(record.updates) == count else max(1, size // 4)  # the result does not depend on it
            if len(record.updates) == before:
                record.converged = True
                break
        return record

    def _block(self, seen: "_Activations", block: Tensor, y: Tensor, eta: float) -> Iterator[tuple[int, Tensor]]:
        """The updates that a run of examples makes, in order."""
        if len(block) == 1 and seen.kept is None:
            index = int(block)
            change = self.visit(seen.x[index], float(y[index]), eta)
            if change is not None:
                yield index, change
            return
        z, rows = seen.of(block)
        at, labels, when = 0, y[block], torch.full((len(block),), seen.count)
        while at < len(block):
            outputs = self._output(z[at:])
            doubtful = (labels[at:] * outputs < 1 + SAFE * (1 + outputs.abs())).nonzero()
            changed = False
            for offset in doubtful[:, 0].tolist():
                index = int(block[at + offset])
                change = self.visit(seen.x[index], float(y[index]), eta)
                if change is not None:
                    yield index, change
                    at += offset
                    # its own activations change as well; those of examples before it are brought up to date when they come again
                    z[at:].addr_(rows[at:] @ seen.x[index], change)
                    when[at:] = seen.count
                    at += 1
                    changed = True
                    break
            if not changed:
                break
        seen.keep(block, z, when)


class _Activations:
    """The activations of all examples, each as of the update at which it was last seen."""

    def __init__(self, net: WideHinge, x: Tensor) -> None:
        self.net, self.x = net, x
        keep = x.shape[1] >= WIDE and len(x) * len(net.weights) <= CACHE
        self.kept = x @ net.weights.T if keep else None
        self.when = torch.zeros(len(x), dtype=torch.long)  # how many updates an example has seen
        self.indices: list[int] = []
        self.changes = x.new_empty(256 if keep else 0, len(net.weights))
        self.dropped = 0  # updates that every example has seen

    @property
    def count(self) -> int:
        """Updates so far."""
        return self.dropped + len(self.indices)

    def record(self, index: int, change: Tensor) -> None:
        """One more update."""
        if self.kept is None:
            return
        if len(self.indices) == len(self.changes):
            self._make_room()
        self.changes[len(self.indices)] = change
        self.indices.append(index)

    def _make_room(self) -> None:
        """Forget what all have seen; twice the room where that is little."""
        done = int(self.when.min()) - self.dropped
        rest = self.changes[done:].clone()
        if 2 * done < len(self.changes):
            self.changes = self.changes.new_empty(2 * len(self.changes), self.changes.shape[1])
        self.changes[: len(rest)] = rest
        self.indices, self.dropped = self.indices[done:], self.dropped + done

    def of(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """The activations of a run of examples now, shape (B, 2k), and the examples, shape (B, d)."""
        rows = self.x[block]
        if self.kept is None:
            return rows @ self.net.weights.T, rows
        units, d = self.net.weights.shape
        when = self.when[block]
        first, last = int(when.min()) - self.dropped, len(self.indices)
        if (last - first) * (units + d) > units * d:  # so many updates cost more than a fresh start
            return rows @ self.net.weights.T, rows
        z = self.kept[block]
        if first < last:
            products = rows @ self.x[torch.tensor(self.indices[first:])].T
            products *= torch.arange(first, last) + self.dropped >= when[:, None]
            z.addmm_(products, self.changes[first:last])
        return z, rows

    def keep(self, block: Tensor, z: Tensor, when: Tensor) -> None:
        """Put them back, with how many updates each has seen."""
        if self.kept is not None:
            self.kept[block], self.when[block] = z, when


def replay(weights: Tensor, x: Tensor, y: Tensor, updates: list[int], *, eta: float, slope: float, v: float) -> WideHinge:
    """The network that the recorded examples alone make of these initial weights: the same as `train`'s, bit for bit.

    The network is thereby a function of the start and of the list of examples, which is what a compression bound rests on.

    Args:
        weights: where the training started.
        x: examples, shape (n, d).
        y: labels.
        updates: `Record.updates`.
        eta: step size.
        slope: of the activation.
        v: size of the output weights.

    Raises:
        Usage: where a listed example makes no update, so that the list cannot be that of such a training.

    Cost: 4kd multiplications per update.

    Example:
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        >>> start = torch.tensor([[0.1, 0.2, -0.3], [0.3, -0.1, 0.2]], dtype=torch.float64)
        >>> net = WideHinge(start, slope=0.1, v=0.5)
        >>> record = net.train(x, y, eta=0.5)
        >>> bool(torch.equal(replay(start, x, y, record.updates, eta=0.5, slope=0.1, v=0.5).weights, net.weights))
        True
    """
    net = WideHinge(weights, slope=slope, v=v)
    for index in updates:
        if net.visit(x[index], float(y[index]), eta) is None:
            raise Usage(f"example {index} makes no update where the list has one: it belongs to another training.")
    return net
