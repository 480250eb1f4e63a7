"""What a study's training costs per step and seed, stacked, beside a plain PyTorch loop. `python benchmarks/studies.py`.

Both do the same work: the same network, loss, optimizer and batch, fresh examples at each step. CPU time of the process, one thread,
the two in turns, so that a busy machine slows both alike; of the repeats the fastest counts. A family adds a row with a function that
returns a `Work`, and an entry in `WORKS`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.problems.parity import bulk_parity, hidden_subset, network
from gradoscope.stacked import bulk, fit, generator, hinge, stack, start_like_source
from gradoscope.studies.parity import STUDY as PARITY

Steps = Callable[[int], None]
BATCH = 128


@dataclass(frozen=True)
class Work:
    """One training to time.

    Args:
        name: the row's name.
        seeds: how many are stacked.
        plain: makes a function that trains one seed for a number of steps.
        stacked: makes a function that trains all seeds for a number of steps.
        steps: per repeat.
        most: the share of the plain loop's cost that is promised, or None.
    """

    name: str
    seeds: int
    plain: Callable[[], Steps]
    stacked: Callable[[], Steps]
    steps: int = 300
    most: float | None = None


def loop(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: Iterator[Any]) -> Steps:
    """The plain PyTorch loop that people write."""

    def run(steps: int) -> None:
        for _ in range(steps):
            x, y = next(batches)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    return run


def parity(d: int) -> Work:
    """Figure 1's training at d bits, as many seeds stacked as the study has in a block."""
    seeds = range(next(s.block for s in PARITY.grid("paper") if s.values["part"] == "curve" and s.values["d"] == d))

    def start(seed: int) -> nn.Module:
        return start_like_source(network(d, 10 * d), generator(seed, 1))

    def fresh() -> Iterator[tuple[Tensor, Tensor]]:
        index, random = hidden_subset(d, 0).nonzero().squeeze(-1), generator(0, 2)
        while True:
            x = torch.randint(0, 2, (BATCH, d), generator=random).float() * 2 - 1
            yield x, x[:, index].prod(dim=1, keepdim=True)

    def plain() -> Steps:
        model = start(0)
        return loop(model, lambda score, y: torch.relu(1 - y * score).mean(), torch.optim.SGD(model.parameters(), lr=0.01), fresh())

    def stacked() -> Steps:
        model = stack([start(seed) for seed in seeds])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        batches = bulk(seeds, [bulk_parity(hidden_subset(d, seed), BATCH) for seed in seeds], 3)
        return lambda steps: fit(model, optimizer, batches, hinge, steps)

    return Work(f"parity d={d}", len(seeds), plain, stacked, most={5: 1 / 10, 20: 1 / 4}.get(d))


WORKS: dict[str, Callable[[], Work]] = {f"parity-{d}": lambda d=d: parity(d) for d in (5, 10, 15, 20, 30)}


def measure(work: Work, repeats: int) -> dict[str, Any]:
    """CPU milliseconds per step and seed of both, the fastest of the repeats, which take turns."""
    plain, stacked = work.plain(), work.stacked()
    times: tuple[list[float], list[float]] = ([], [])
    for run in (plain, stacked):  # the first steps allocate memory and choose kernels
        run(20)
    for _ in range(repeats):
        for run, row, share in ((plain, times[0], 1), (stacked, times[1], work.seeds)):
            begin = time.process_time()
            run(work.steps)
            row.append((time.process_time() - begin) / work.steps / share * 1e3)
    one, many = min(times[0]), min(times[1])
    return {"name": work.name, "seeds": work.seeds, "plain_ms": one, "stacked_ms": many, "ratio": one / many, "promised": work.most}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=list(WORKS), help="rows to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(WORKS[name](), options.repeats) for name in options.only or WORKS]
    if options.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print("| training | seeds stacked | plain loop, CPU ms per step | stacked, CPU ms per step and seed | plain / stacked | promised |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        promised = f"at least {1 / r['promised']:.0f}" if r["promised"] else ""
        print(f"| {r['name']} | {r['seeds']} | {r['plain_ms']:.3f} | {r['stacked_ms']:.4f} | {r['ratio']:.1f} | {promised} |")


if __name__ == "__main__":
    main()
