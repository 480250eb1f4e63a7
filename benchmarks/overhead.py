"""What Gradoscope costs: watching, and a diagnosis, as ratios to the plain training. `python benchmarks/overhead.py`."""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradoscope.guard import private_random
from gradoscope.watch import watch


@dataclass(frozen=True)
class Work:
    """One training to time: its model, the shape of a batch, and how many steps make a run of a second or two."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 49, 10)),
    )


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


WORKS = (
    Work("MLP 784-512-512-10, batch 128", lambda: mlp(784, 512, 512, 10), (128, 784), 300),
    Work("small CNN 28x28, batch 64", cnn, (64, 1, 28, 28), 120),
    Work("tiny MLP 8-16-2, batch 16", lambda: mlp(8, 16, 2), (16, 8), 6000),
)


def batches(shape: tuple[int, ...], classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of one data set of 20 batches, in a new order each time."""
    x, y = torch.randn(20 * shape[0], *shape[1:]), torch.randint(0, classes, (20 * shape[0],))
    while True:
        for index in torch.randperm(len(x)).split(shape[0]):
            yield x[index], y[index]


def train(work: Work, budget: float | None) -> tuple[float, float, int]:
    """Process seconds of one training, the overhead that the watch itself tells, and the number of recorded steps."""
    with private_random(0), ExitStack() as stack:
        model, criterion = work.model(), nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        source = batches(work.shape, 2 if "tiny" in work.name else 10)
        for _ in range(10):  # what is only paid once per process is no part of either side
            step(model, optimizer, criterion, *next(source))
        started = time.process_time()
        watched = None if budget is None else stack.enter_context(watch(model, optimizer, criterion, budget=budget))
        for _ in range(work.steps):
            step(model, optimizer, criterion, *next(source))
        spent = time.process_time() - started
        return (spent, 0.0, 0) if watched is None else (spent, watched.overhead, len(watched.records))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()


def watching(repeats: int, budget: float) -> list[dict[str, object]]:
    """Interleaved pairs of plain and watched trainings; the ratio is the median over the pairs."""
    rows: list[dict[str, object]] = []
    for work in WORKS:
        train(work, budget)
        pairs = []
        for i in range(repeats):
            # The side that goes first changes, so that a machine that slows down favours neither.
            order: list[float | None] = [None, budget] if i % 2 else [budget, None]
            found = {b: train(work, b) for b in order}
            pairs.append((found[None][0], *found[budget]))
        ratios = [watched / plain for plain, watched, _, _ in pairs]
        rows.append(
            {
                "training": work.name,
                "steps": work.steps,
                "step_ms": 1e3 * statistics.median(p[0] for p in pairs) / work.steps,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)] if repeats > 1 else ratios,
                "own_account": 1 + statistics.median(p[2] for p in pairs),
                "recorded": statistics.median(p[3] for p in pairs),
            }
        )
    return rows


def diagnosing(targets: list[str]) -> list[dict[str, object]]:
    """The cost of a whole diagnosis, against the plain training that it diagnoses."""
    from gradoscope.diagnose import diagnose
    from gradoscope.loop import advance
    from gradoscope.problems import find
    from gradoscope.training import Live

    rows: list[dict[str, object]] = []
    for target in targets:
        training = find(target)
        with Live.of(training) as live:
            started = time.process_time()
            advance(live, 0, training.steps)
            plain = time.process_time() - started
        started = time.process_time()
        without = diagnose(find(target), counterfactuals=False)
        measured = time.process_time() - started
        started = time.process_time()
        found = diagnose(find(target))
        spent = time.process_time() - started
        row = {"training": target, "plain_s": plain, "diagnosis_s": spent, "ratio": spent / plain, "measuring_only": measured / plain}
        rows.append(row | {"verdict": found.verdict, "verdict_measuring_only": without.verdict})
    return rows


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    columns = list(rows[0])
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="pairs of a plain and a watched training")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--targets", nargs="*", default=["digits:healthy", "digits:deep-sigmoid", "linear-network:saddle"])
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # process time then means the same on both sides
    results = {"watching": watching(options.repeats, options.budget)}
    show(f"Watching at --budget {options.budget:g}: process time as a ratio to the same training unwatched", results["watching"])
    if options.targets:
        results["diagnosing"] = diagnosing(options.targets)
        show("Diagnosing: process time as a ratio to one plain run of the training", results["diagnosing"])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results | {"torch": torch.__version__, "threads": 1}, file, indent=2)


if __name__ == "__main__":
    main()
