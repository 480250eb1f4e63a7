"""`batch(i)` is a pure function of the seed and i, and reading a user's data moves none of the user's random streams."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from gradoscope import tree
from gradoscope.batches import FunctionBatches, RecordedBatches, TensorBatches, make_batches
from gradoscope.errors import CannotRun
from gradoscope.guard import random_fingerprint
from tests.reference.training import same

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10)


class Augmented(Dataset):
    """Ten rows, each with new noise whenever it is read: from the global streams and from generators of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.numpy = np.random.default_rng(5)
        self.transforms = [random.Random(5)]
        self.old = np.random.RandomState(5)
        self.reads = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int):
        self.reads += 1
        noise = torch.rand(2) + np.random.rand() + random.random() + torch.rand(2, generator=self.generator)
        return (X[i] + noise + self.numpy.random() + self.transforms[0].random() + self.old.rand()).float(), Y[i]

    def own(self):
        states = self.numpy.bit_generator.state, self.transforms[0].getstate(), self.old.get_state()
        return self.generator.get_state().tolist(), str(states)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[i] + torch.rand(()), Y[i]) for i in range(10)])


def own_generator():
    return torch.Generator().manual_seed(9)


def weighted(generator):
    return WeightedRandomSampler(torch.linspace(0.1, 1, 10), 10, generator=generator)


def sampled(generator):
    return DataLoader(Augmented(), batch_sampler=BatchSampler(RandomSampler(range(10), generator=generator), 3, False))


LOADERS = {
    "shuffle": lambda g: DataLoader(Augmented(), 3, shuffle=True),
    "own generator": lambda g: DataLoader(Augmented(), 3, shuffle=True, generator=g),
    "sampler": lambda g: DataLoader(Augmented(), 3, sampler=weighted(g)),
    "batch sampler": sampled,
    "subset": lambda g: DataLoader(torch.utils.data.Subset(Augmented(), list(range(10))), 3, shuffle=True, generator=g),
    "stream": lambda g: DataLoader(Stream(), 3),
}
SOURCES = {
    "tensors": lambda: make_batches((X, Y), 3, 7),
    "tensors in order": lambda: make_batches((X, Y), 3, 7, shuffle=False),
    "whole": lambda: make_batches((X, Y), None, 7),
    "numpy": lambda: make_batches((X.numpy(), Y.numpy()), 4, 7),
    "dict": lambda: make_batches({"x": X, "y": Y}, 4, 7),
    "tensor dataset": lambda: make_batches(TensorDataset(X, Y), 3, 7),
    "dataset": lambda: make_batches(Augmented(), 3, 7),
    "list": lambda: make_batches([(X, Y), (X + 1, Y)], None, 7),
    "function": lambda: make_batches(lambda g, n: torch.randn(n, 2, generator=g), 3, 7),
    "function of the global streams": lambda: make_batches(lambda g, n: torch.randn(n, 2) + np.random.rand() + random.random(), 3, 7),
} | {f"loader, {k}": lambda make=make: make_batches(make(own_generator()), None, 7) for k, make in LOADERS.items()}


@pytest.fixture(autouse=True)
def _streams_stay():
    before = random_fingerprint()
    yield
    assert random_fingerprint() == before


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_a_batch_does_not_depend_on_what_was_asked_before(make):
    source, order = make(), [0, 1, 2, 3, 4, 5, 6, 7, 8]
    first = {i: source.batch(i) for i in order}
    probe = source.sample(4, "probe")
    with_noise = torch.rand(3, generator=torch.Generator())
    assert with_noise.numel() == 3
    for again in (source, make()):
        for i in [*reversed(order), 4, 4, 0]:
            same(first[i], again.batch(i))
        same(probe, again.sample(4, "probe"))


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_reading_a_loader_moves_no_generator_of_the_user(make):
    generator = own_generator()
    loader = make(generator)
    dataset = getattr(loader.dataset, "dataset", loader.dataset)
    before, state = dataset.own() if isinstance(dataset, Augmented) else None, generator.get_state()
    batches = RecordedBatches(loader, 3)
    for i in (0, 9, 4):
        batches.batch(i)
    assert torch.equal(generator.get_state(), state)
    if before is not None:
        assert dataset.own() == before


@pytest.mark.parametrize("kind", ["shuffle", "own generator", "sampler", "batch sampler", "subset"])
def test_epochs_of_a_loader_differ_in_order_and_augmentation(kind):
    batches = RecordedBatches(LOADERS[kind](own_generator()), 3)
    assert (batches.per_epoch, batches.batch_size, batches.size) == (4, 3, 10)
    epochs = [[batches.batch(4 * e + k) for k in range(4)] for e in range(3)]
    orders = [torch.cat([y for _, y in epoch]).tolist() for epoch in epochs]
    if kind != "sampler":
        assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    noise = [{int(y): float((x - X[y]).mean()) for xs, ys in epoch for x, y in zip(xs, ys, strict=True)} for epoch in epochs]
    shared = set(noise[0]) & set(noise[1])
    assert all(noise[0][k] != noise[1][k] for k in shared)
    other = RecordedBatches(LOADERS[kind](own_generator()), 4)
    assert not torch.equal(other.batch(0)[0], batches.batch(0)[0])


def test_a_loader_is_read_once_per_epoch_and_again_where_memory_is_short():
    dataset = Augmented()
    plenty = RecordedBatches(DataLoader(dataset, 5, shuffle=True), 3)
    expected = [plenty.batch(i) for i in range(6)]
    [plenty.batch(i) for i in range(6)]
    assert dataset.reads == 30
    dataset.reads = 0
    short = RecordedBatches(DataLoader(dataset, 5, shuffle=True), 3, limit=1)
    same(expected, [short.batch(i) for i in range(6)])
    same(expected[:2], [short.batch(i) for i in range(2)])
    assert dataset.reads == 40


def test_a_failing_dataset_leaves_the_generator_alone():
    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise OSError("no such image")

    generator = own_generator()
    state = generator.get_state()
    with pytest.raises(OSError, match="no such image"):
        RecordedBatches(DataLoader(Broken(), 2, shuffle=True, generator=generator), 0)
    assert torch.equal(generator.get_state(), state)


def test_tensors_come_as_permutations():
    batches = TensorBatches((X, Y), 3, seed=1)
    assert (batches.per_epoch, batches.batch_size, batches.size) == (3, 3, 10)
    epochs = [torch.cat([batches.batch(3 * e + k)[1] for k in range(3)]).tolist() for e in range(40)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(e) for e in epochs}) == 40
    counts = np.bincount(np.ravel(epochs), minlength=10)  # each row is left out of one epoch in ten
    assert counts.min() > 25
    for x, y in (batches.batch(k) for k in range(6)):
        assert torch.equal(x, X[y])
    assert TensorBatches((X, Y), 3, seed=2).batch(0)[1].tolist() != batches.batch(0)[1].tolist()
    plain = TensorBatches((X, Y), 3, seed=1, shuffle=False)
    assert [plain.batch(i)[1].tolist() for i in (0, 2, 3)] == [[0, 1, 2], [6, 7, 8], [0, 1, 2]]


def test_whole_and_default_batches():
    assert TensorBatches((X, Y), None, 0).batch(5)[1].tolist() == Y.tolist()
    assert TensorBatches((X, Y), 99, 0).batch_size == 10
    many = torch.zeros(1025, 1)
    assert (TensorBatches(many[:1024], None, 0).batch_size, TensorBatches(many, None, 0).batch_size) == (1024, 128)
    assert make_batches(lambda g, n: torch.zeros(n), None, 0).batch(0).shape == (128,)


@pytest.mark.parametrize("stream", ["probe", "validation", "fresh"])
def test_samples_are_rows_of_the_data_and_fresh_where_they_can_be(stream):
    batches = TensorBatches((X, Y), 3, seed=1)
    (x, y), *_ = batches.sample(6, stream)
    assert torch.equal(x, X[y])
    assert len(set(y.tolist())) == 6
    assert sorted(batches.sample(50, stream)[0][1].tolist()) == list(range(10))
    function = FunctionBatches(lambda g, n: torch.randn(n, generator=g), 4, 1)
    streams = [function.sample(4, s)[0] for s in ("probe", "validation", "fresh")] + [function.batch(i) for i in range(3)]
    assert len({tuple(s.tolist()) for s in streams}) == 6
    loader = RecordedBatches(DataLoader(TensorDataset(X, Y), 3, shuffle=True), 0)
    assert [tree.rows(b) for b in loader.sample(5, stream)] == [3, 3]
    assert sum(tree.rows(b) for b in loader.sample(99, stream)) == 10


def test_a_function_that_draws_from_the_global_streams_only_at_times():
    calls = []

    def function(generator, n):
        calls.append(n)
        return torch.rand(n) if len(calls) > 2 else torch.rand(n, generator=generator)

    batches = FunctionBatches(function, 4, 0)
    batches.batch(0)
    before = random_fingerprint()
    for _ in range(4):
        batches.sample(4, "probe")
    assert random_fingerprint() == before


GENERATOR = np.random.default_rng(1)


def test_a_function_with_a_generator_of_its_own_is_repeatable_too():
    before = str(GENERATOR.bit_generator.state)
    batches = FunctionBatches(lambda g, n: torch.from_numpy(GENERATOR.random(n)), 4, 0)
    first = [batches.batch(i) for i in range(3)]
    assert not torch.equal(first[0], first[1])
    same(first[::-1], [batches.batch(i) for i in (2, 1, 0)])
    assert str(GENERATOR.bit_generator.state) == before


def test_what_a_training_writes_into_a_batch_does_not_stay():
    from gradoscope.loop import advance
    from gradoscope.probe import Probe
    from gradoscope.training import Live, Training

    def rude(model, batch):
        x, y = batch
        x.mul_(2).sub_(1)  # normalises its input in place
        return torch.nn.functional.cross_entropy(model(x), y % 3)

    for data in ((X.clone(), Y), [(X[:5].clone(), Y[:5]), (X[5:].clone(), Y[5:])]):
        training = Training(
            model=lambda: torch.nn.Linear(2, 3), optimizer=lambda p: torch.optim.SGD(p, lr=0.01), data=data, batch_loss=rude, steps=4
        )
        live = Live.of(training)
        probe = Probe(live, live.batches.sample(10, "probe"), "train")
        before = probe.losses(live)
        advance(live, 0, 4)
        live = Live.of(training)
        assert np.array_equal(probe.losses(live), before)
        rows = data[0] if isinstance(data, tuple) else torch.cat([x for x, _ in data])
        assert torch.equal(rows, X)


@pytest.mark.parametrize("data", [[], (), iter([(X, Y)]), 3, "text", None, DataLoader(TensorDataset(X, Y), 64, drop_last=True)])
def test_what_cannot_be_read_is_refused(data):
    with pytest.raises(CannotRun):
        make_batches(data, None, 0)
