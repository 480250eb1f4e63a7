"""What a training eats: `batch(i)`, a pure function of the seed and i, so that every fork sees the same data."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, private_generators, private_random, random_fingerprint, reachable_generators

__all__ = ["Batches", "FunctionBatches", "RecordedBatches", "TensorBatches", "make_batches"]

# Streams of one seed that must not overlap: the batches of the training, the probes, the validation.
STREAMS = {"train": 0, "probe": 1, "validation": 2, "fresh": 3}
SMALL = 1024  # tensors with at most this many rows are used whole where no batch size is given
DEFAULT_BATCH = 128
EPOCH_BYTES = 4 << 30


class Batches(Protocol):
    """A source of batches that can be asked for any of them, in any order, any number of times."""

    @property
    def batch_size(self) -> int | None:
        """Rows per batch, None where they cannot be counted."""

    @property
    def size(self) -> int | None:
        """Rows of a finite data set, None where data are sampled afresh or rows cannot be counted."""

    @property
    def per_epoch(self) -> int | None:
        """Batches before the data repeat, None where they never do."""

    def batch(self, i: int) -> Any:
        """The batch of step i."""

    def sample(self, n: int, stream: str) -> list[Any]:
        """About n rows, as a list of batches, independent of the order in which the training sees them."""


class TensorBatches:
    """Batches of a tree of tensors in memory: a new permutation each epoch, drawn from (seed, epoch)."""

    def __init__(self, data: Any, batch_size: int | None, seed: int, *, shuffle: bool = True) -> None:
        n = tree.rows(data)
        if n is None:
            shapes = [tuple(t.shape) for t in tree.leaves(data)]
            raise CannotRun(
                f"`data` must be tensors with the same number of rows, but their shapes are {shapes}. "
                "Give them one common first dimension, or pass a DataLoader."
            )
        if n == 0:
            raise CannotRun("`data` has no rows: expected at least one example. Check the filter or path that made it.")
        self.data, self.size, self.seed = data, n, seed
        if batch_size is None:
            batch_size = n if n <= SMALL else DEFAULT_BATCH
        self.batch_size = min(batch_size, n)
        # As a DataLoader with drop_last: a smaller last batch would make the steps unequal.
        self.per_epoch = n // self.batch_size
        self.shuffle = shuffle and self.batch_size < n
        self._epoch, self._order = -1, torch.arange(n)

    def batch(self, i: int) -> Any:
        if self.batch_size == self.size:
            return self.data
        epoch, k = divmod(i, self.per_epoch)
        if self.shuffle and epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, STREAMS["train"], epoch))
            self._order, self._epoch = torch.randperm(self.size, generator=generator), epoch
        return tree.take(self.data, self._order[k * self.batch_size : (k + 1) * self.batch_size])

    def sample(self, n: int, stream: str) -> list[Any]:
        if n >= self.size:
            index = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, STREAMS[stream]))
            index = torch.randperm(self.size, generator=generator)[:n]
        return [tree.take(self.data, index)]


class FunctionBatches:
    """Batches sampled afresh by `function(generator, batch_size)`, each with a generator of its own."""

    size = None
    per_epoch = None

    def __init__(self, function: Callable[[torch.Generator, int], Any], batch_size: int | None, seed: int) -> None:
        self.function, self.seed = function, seed
        self.batch_size = batch_size or DEFAULT_BATCH
        self._uses_global: bool | None = None  # whether the function draws from the global streams; seen at its first call
        self._own = reachable_generators(function)

    def _draw(self, n: int, *keys: int, private: bool = False) -> Any:
        seed = derive_seed(self.seed, *keys)
        generator = torch.Generator().manual_seed(seed)
        if self._uses_global is False and not private and not self._own:
            return self.function(generator, n)
        # A function that ignores its generator is repeatable all the same.
        with private_random(seed), private_generators(self._own, seed):
            before = random_fingerprint()
            drawn = self.function(generator, n)
            self._uses_global = self._uses_global or random_fingerprint() != before
            return drawn

    def batch(self, i: int) -> Any:
        return self._draw(self.batch_size, STREAMS["train"], i)

    def sample(self, n: int, stream: str) -> list[Any]:
        # The training's loop keeps the global streams itself; a sample is drawn outside of it too.
        return [self._draw(n, STREAMS[stream], private=True)]


class RecordedBatches:
    """Batches of a loader, recorded as they come: augmented data are tensors here, not indices.

    The loader is read under a private random state that is seeded by (seed, epoch), generators of its own included; epochs
    beyond the first are read again, so that shuffling and augmentation go on. At most `limit` bytes are kept; an epoch
    that no longer fits is read again when it is asked for, which the seeding makes equal to the first reading. Of an epoch
    that has more than `most` batches, or of 4 GiB, the first ones stand for it: an endless loader has an end.
    """

    def __init__(self, loader: Iterable[Any], seed: int, *, limit: int = 1 << 30, most: int | None = None) -> None:
        self.loader, self.seed, self.limit, self.most = loader, seed, limit, most
        self.whole = True
        self._epochs: dict[int, list[Any]] = {}
        first = self._epoch(0)
        if not first:
            raise CannotRun(
                "the data loader is empty: expected at least one batch, got none. "
                "Check the length of the dataset, and `drop_last=True` with a batch larger than the data."
            )
        self.per_epoch: int | None = len(first)
        counts = [tree.rows(b) for b in first]
        self.batch_size = counts[0]
        known = [c for c in counts if c is not None]
        self.size: int | None = sum(known) if len(known) == len(counts) and self.whole else None

    def _read(self) -> list[Any]:
        batches: list[Any] = []
        used = 0
        for batch in self.loader:
            if used > EPOCH_BYTES or len(batches) == self.most:
                self.whole = False
                break
            batches.append(tree.map_tensors(torch.Tensor.detach, batch))
            used += _bytes(batch)
        return batches

    def _epoch(self, epoch: int) -> list[Any]:
        if epoch not in self._epochs:
            seed = derive_seed(self.seed, STREAMS["train"], epoch)
            with private_random(seed), private_generators(reachable_generators(self.loader), seed):
                batches = self._read()
            if epoch and not batches:
                raise CannotRun(
                    "the data can be read only once: the second pass gave no batch. "
                    "Pass a list of the batches, a DataLoader over a dataset that can be read again, "
                    "or a function of (generator, batch size)."
                )
            used = sum(_bytes(b) for kept in self._epochs.values() for b in kept)
            while self._epochs and used + sum(_bytes(b) for b in batches) > self.limit:
                used -= sum(_bytes(b) for b in self._epochs.pop(next(iter(self._epochs))))
            self._epochs[epoch] = batches
        return self._epochs[epoch]

    def batch(self, i: int) -> Any:
        assert self.per_epoch is not None
        epoch, k = divmod(i, self.per_epoch)
        batches = self._epoch(epoch)
        return batches[k % len(batches)]

    def sample(self, n: int, stream: str) -> list[Any]:
        batches, got = [], 0
        for b in self._epoch(0):
            batches.append(b)
            got += tree.rows(b) or 1
            if got >= n:
                break
        return batches


def _bytes(batch: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree.leaves(batch))


def _as_tensors(data: Any) -> Any:
    """Numpy arrays become tensors, a TensorDataset its tensors."""
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data)
    if isinstance(data, torch.utils.data.TensorDataset):
        return data.tensors
    if isinstance(data, dict):
        return {key: _as_tensors(value) for key, value in data.items()}
    if isinstance(data, (tuple, list)) and data and all(isinstance(d, (Tensor, np.ndarray)) for d in data):
        return tuple(_as_tensors(d) for d in data)
    return data


def make_batches(data: Any, batch_size: int | None, seed: int, *, shuffle: bool = True, most: int | None = None) -> Batches:
    """Wrap whatever a user hands over as data.

    Args:
        data: tensors (or numpy arrays, a TensorDataset, a dict of tensors), a map-style dataset, a DataLoader or any
            collection of batches that can be read more than once, or a function of (torch.Generator, batch size).
        batch_size: rows per batch where `data` does not say; None takes tensors of up to 1,024 rows whole, else 128.
        seed: what the order of the data, and fresh samples, are drawn from.
        most: how many batches of a loader's epoch are read at most; an endless one needs such a bound.
        shuffle: whether tensors and datasets are read in a new order each epoch.

    Raises:
        CannotRun: where the data are empty, of unequal length, or can be read only once.
    """
    data = _as_tensors(data)
    if isinstance(data, Tensor) or (
        isinstance(data, (tuple, dict)) and data and all(isinstance(t, Tensor) for t in (data.values() if isinstance(data, dict) else data))
    ):
        return TensorBatches(data, batch_size, seed, shuffle=shuffle)
    if isinstance(data, DataLoader):
        return RecordedBatches(data, seed, most=most)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return RecordedBatches(DataLoader(data, batch_size or DEFAULT_BATCH, shuffle=shuffle, collate_fn=default_collate), seed, most=most)
    if callable(data):
        return FunctionBatches(data, batch_size, seed)
    if hasattr(data, "__next__"):
        raise CannotRun(
            f"`data` is a {type(data).__name__}, which can be read only once, and every fork must read it again. "
            "Pass list(...) of it, a DataLoader, or a function of (generator, batch size)."
        )
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        if isinstance(data, Sequence) and len(data) == 0:
            raise CannotRun("`data` is empty: expected at least one batch, got none.")
        return RecordedBatches(data, seed, most=most)
    raise CannotRun(
        f"`data` is a {type(data).__name__}; expected tensors, a dataset, a DataLoader, a list of batches, "
        "or a function of (generator, batch size)."
    )
