"""How fast updates are counted, one example at a time, beside plain loops: `python benchmarks/separable.py [narrow wide digits]`.

The same start, examples, order and step for all, and all have to make the same updates. "A step of autograd per example" is the loop
that one would write: forward pass, hinge loss, backward pass, optimizer step. "A plain loop" works out the same step by hand and skips
the examples whose margin is enough. CPU time of the process, one thread, of all passes until none makes an update; autograd is timed on
its first pass and scaled.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from gradoscope.updates.single_examples import WideHinge

SLOPE, ETA = 0.2, 1.0


@dataclass(frozen=True)
class Work:
    """Examples, and how many pairs of units see them."""

    name: str
    examples: Callable[[], tuple[Tensor, Tensor]]
    pairs: int


def clouds(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Points of length one at least 0.05 on either side of a plane."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20 * n, d, dtype=torch.float64, generator=random)
    x = x / x.norm(dim=1, keepdim=True)
    side = x[:, 0]
    x = x[side.abs() > 0.05][:n]
    return x, x[:, 0].sign()


def digits() -> tuple[Tensor, Tensor]:
    """3 against 5, of length at most one."""
    data = load_digits()
    chosen = (data.target == 3) | (data.target == 5)
    x = torch.tensor(data.images[chosen].reshape(-1, 64), dtype=torch.float64)
    return x / x.norm(dim=1).max(), torch.tensor(data.target[chosen] == 3).double() * 2 - 1


WORKS = {
    "narrow": Work("400 points, 50 inputs, 10 pairs", lambda: clouds(400, 50), 10),
    "wide": Work("400 points, 300 inputs, 10,000 pairs", lambda: clouds(400, 300), 10_000),
    "digits": Work("digits 3 and 5, 64 inputs, 1,000 pairs", digits, 1_000),
}


def start(work: Work, d: int) -> tuple[Tensor, float]:
    """Initial weights, and the size of the output weights."""
    weights = 1e-3 * torch.randn(2 * work.pairs, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return weights, (2 * work.pairs) ** -0.5


def ours(work: Work, x: Tensor, y: Tensor) -> tuple[list[int], float]:
    """(updates, CPU seconds)."""
    weights, v = start(work, x.shape[1])
    began = time.process_time()
    record = WideHinge(weights, slope=SLOPE, v=v).train(x, y, eta=ETA)
    return record.updates, time.process_time() - began


def plain(work: Work, x: Tensor, y: Tensor) -> tuple[list[int], float]:
    """The same by hand, an example at a time."""
    weights, v = start(work, x.shape[1])
    signs = torch.cat([torch.ones(work.pairs), -torch.ones(work.pairs)]).double()
    updates: list[int] = []
    began = time.process_time()
    while True:
        before = len(updates)
        for i in range(len(x)):
            z = weights @ x[i]
            slopes = torch.where(z > 0, 1.0, SLOPE).double()
            if float(y[i] * v * (signs * slopes * z).sum()) < 1:
                weights += torch.outer(ETA * v * y[i] * signs * slopes, x[i])
                updates.append(i)
        if len(updates) == before:
            return updates, time.process_time() - began


def autograd(work: Work, x: Tensor, y: Tensor, passes: int) -> tuple[list[int], float]:
    """The first pass with autograd; its updates, and the seconds of `passes` such passes."""
    weights, v = start(work, x.shape[1])
    weights = weights.requires_grad_()
    signs = torch.cat([torch.ones(work.pairs), -torch.ones(work.pairs)]).double()
    optimizer = torch.optim.SGD([weights], lr=ETA)
    updates: list[int] = []
    began = time.process_time()
    for i in range(len(x)):
        output = v * (signs * torch.nn.functional.leaky_relu(weights @ x[i], SLOPE)).sum()
        loss = torch.relu(1 - y[i] * output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) > 0:
            updates.append(i)
    return updates, (time.process_time() - began) * passes


def rows(work: Work) -> list[str]:
    """The lines of the table for one set of examples."""
    x, y = work.examples()
    weights, v = start(work, x.shape[1])
    record = WideHinge(weights, slope=SLOPE, v=v).train(x, y, eta=ETA)
    mine = min((ours(work, x, y) for _ in range(3)), key=lambda r: r[1])
    hand, full = plain(work, x, y), autograd(work, x, y, record.epochs)
    same = {
        "WideHinge": mine[0] == record.updates,
        "plain": hand[0] == record.updates,
        "autograd": full[0] == record.updates[: len(full[0])],
    }
    assert all(same.values()), f"the contenders do not make the same updates: {same}"
    told = f"{len(record.updates)} updates in {record.epochs} passes"
    return [
        f"| {work.name} | {name} | {seconds:.3f} | {seconds / mine[1]:.1f} | {told} |"
        for name, seconds in (("a step of autograd per example", full[1]), ("a plain loop", hand[1]), ("WideHinge", mine[1]))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], metavar="WORK", help=f"some of {', '.join(WORKS)}; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}\n")
    print("| examples and width | by | CPU seconds | this / WideHinge | what was done |")
    print("|---|---|---|---|---|")
    for name in options.works or list(WORKS):
        print("\n".join(rows(WORKS[name])), flush=True)


if __name__ == "__main__":
    main()
