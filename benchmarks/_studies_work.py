"""What `studies.py` measures: one training by a plain PyTorch loop and by the study, step for step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.study import Setting, Study

Steps = Callable[[int], None]
Batches = Iterator[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """One training to time.

    Args:
        name: the row's name.
        seeds: how many are stacked.
        plain: makes a function that trains one seed for a number of steps.
        stacked: makes a function that trains all seeds for a number of steps.
        steps: per repeat, a multiple of those whose examples the study draws at once.
        most: the share of the plain loop's cost that is promised, or None.
        prepare: what one seed of the plain loop and all seeds of the study's run compute from the data before the first step, if anything.
        total: the steps of the study's training, over which that is spread.
    """

    name: str
    seeds: int
    plain: Callable[[], Steps]
    stacked: Callable[[], Steps]
    steps: int = 300
    most: float | None = None
    prepare: tuple[Callable[[], Any], Callable[[], Any]] | None = None
    total: int = 1


def loop(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, batches: Batches) -> Steps:
    """The plain PyTorch loop that people write."""

    def run(steps: int) -> None:
        for _ in range(steps):
            x, y = next(batches)
            optimizer.zero_grad()
            loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def source(study: Study, **wanted: Any) -> tuple[dict[str, Any], range]:
    """The first setting of a study at the source's size with these values, and the seeds of one of its blocks."""

    def fits(setting: Setting) -> bool:
        return all(setting.values.get(name) == value for name, value in wanted.items())

    found = next(setting for setting in study.grid("paper") if fits(setting))
    return dict(found.values), range(found.block)


def spent(run: Callable[..., Any], *arguments: Any) -> float:
    """CPU seconds of the process."""
    begin = time.process_time()
    run(*arguments)
    return time.process_time() - begin


def measure(work: Work, repeats: int) -> dict[str, Any]:
    """CPU milliseconds per step and seed of both, the fastest of the repeats, which take turns.

    What a run needs before its first step (data to float32, a network) is taken off, and what `Work.prepare` names is spread over
    the steps of the study's training.
    """
    both = (work.plain(), work.stacked())
    for run in both:  # the first steps allocate memory and choose kernels
        run(min(work.steps, 20))
    times, idle, before = [[float("inf"), float("inf")] for _ in range(3)]
    for _ in range(repeats):
        for i, run in enumerate(both):
            idle[i] = min(idle[i], spent(run, 0))
            times[i] = min(times[i], spent(run, work.steps))
            before[i] = min(before[i], spent(work.prepare[i])) if work.prepare else 0.0
    one, many = (((t - i) / work.steps + b / work.total) * 1e3 for t, i, b in zip(times, idle, before, strict=True))
    many /= work.seeds
    return {"name": work.name, "seeds": work.seeds, "plain_ms": one, "stacked_ms": many, "ratio": one / many, "promised": work.most}
