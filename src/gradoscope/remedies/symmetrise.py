"""Symmetrised data: every batch is moved by random elements of a group that leaves the problem as it is."""

from typing import Any

import torch

from gradoscope import tree
from gradoscope.batches import Batches
from gradoscope.guard import derive_seed
from gradoscope.measure.symmetry import Group
from gradoscope.remedies import Remedy
from gradoscope.training import Live, split

__all__ = ["Moved", "Symmetrise"]

CHUNKS = 8  # parts of a batch, each moved by an element of its own


class Symmetrise(Remedy):
    """Train on moved examples: x and y become gx and gy, for g drawn afresh for each eighth of each batch.

    Args:
        group: what acts on inputs and, by its action on outputs, on targets.
    """

    from_checkpoint = False

    def __init__(self, group: Group) -> None:
        self.group = group
        self.name = f"symmetrise({group.name})"
        self.explanation = f"Every batch is moved by random {group.name}, and the targets as they must."
        self.code = "# augmentation: move each batch by a random element of the group, e.g. x = x[:, torch.randperm(x.shape[1])]"

    def prepare(self, live: Live) -> None:
        live.batches = Moved(live.batches, self.group, live.seed)


class Moved:
    """Batches moved by elements that are a pure function of the seed and the step; samples are as they were."""

    def __init__(self, batches: Batches, group: Group, seed: int) -> None:
        self.batches, self.group, self.seed = batches, group, seed
        self.batch_size, self.size, self.per_epoch = batches.batch_size, batches.size, batches.per_epoch
        self._stay: float | None = None

    def batch(self, i: int) -> Any:
        """The batch of step i, moved."""
        inputs, target = split(self.batches.batch(i))
        whole = (*inputs, target)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 482, i))
        rows = torch.arange(len(target)).chunk(CHUNKS)
        return tree.concatenate([self._move(tree.take(whole, part), generator) for part in rows])

    def sample(self, n: int, stream: str) -> list[Any]:
        """As of the batches themselves."""
        return self.batches.sample(n, stream)

    def _move(self, part: tuple[Any, ...], generator: torch.Generator) -> tuple[Any, ...]:
        inputs = part[0] if len(part) == 2 else part[:-1]
        if self._stay is None:
            self._stay = _share_of_identity(self.group, inputs)
        if float(torch.rand(1, generator=generator)) < self._stay:
            return part
        element = self.group.draw(inputs, generator)
        moved = self.group.act(element, inputs)
        return (*(moved if isinstance(moved, tuple) else (moved,)), self.group.act_on_output(element, part[-1]))


def _share_of_identity(group: Group, inputs: Any) -> float:
    """One over the number of elements, counted among 16 that are drawn: `draw` leaves the identity out."""
    generator = torch.Generator().manual_seed(0)
    return 1 / (1 + len({repr(group.draw(inputs, generator)) for _ in range(16)}))
