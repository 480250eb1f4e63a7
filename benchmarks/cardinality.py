"""What a projection on a number of labels costs: exact, by Dykstra's rounds, row by row. `python benchmarks/cardinality.py`."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gradoscope.structured.projections import dykstra, project_sum

Project = Callable[[Tensor, Tensor], Tensor]


def by_row(y: Tensor, z: Tensor) -> Tensor:
    """The exact projection in a loop over rows."""
    return torch.stack([project_sum(row, total) for row, total in zip(y, z, strict=True)])


WAYS: dict[str, tuple[str, Project]] = {
    "exact": ("exact, batched, implicit gradient", project_sum),
    "rounds2": ("Dykstra, 2 rounds (as published: no projection)", lambda y, z: dykstra(y, z, 2)),
    "rounds50": ("Dykstra, 50 rounds, autograd through all", lambda y, z: dykstra(y, z, 50)),
    "rows": ("exact, row by row", by_row),
}


def problem(rows: int, labels: int) -> tuple[Tensor, Tensor]:
    """Points and sums with gradients, float32."""
    random = torch.Generator().manual_seed(0)
    y, z = torch.randn(rows, labels, generator=random), 1 + 2 * torch.rand(rows, generator=random)
    return y.requires_grad_(), z.requires_grad_()


def once(way: str, rows: int, labels: int) -> tuple[float, float]:
    """Seconds of the process forward, and backward."""
    y, z = problem(rows, labels)
    began = time.process_time()
    loss = (WAYS[way][1](y, z) ** 2).sum()
    between = time.process_time()
    torch.autograd.grad(loss, (y, z))
    return between - began, time.process_time() - between


def highest() -> float:
    """The largest memory of this process so far, MB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(way: str, rows: int, labels: int) -> float:
    """MB by which one pass raises the largest memory of a process that did a small one before; called in a process of its own."""
    once(way, 2, labels)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew: a child inherits its parent's
    before = highest()
    once(way, rows, labels)
    return highest() - before


def kept(way: str, rows: int, labels: int) -> float:
    """MB that autograd keeps for the way back, each storage counted once."""
    storages: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    y, z = problem(rows, labels)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        u = WAYS[way][1](y, z)
    return sum(storages.values()) / 2**20 if u.requires_grad else 0.0


def measured(way: str, rows: int, labels: int, repeats: int) -> dict[str, float]:
    """Median milliseconds and peak memory."""
    once(way, rows, labels)
    times = [once(way, rows, labels) for _ in range(repeats)]
    command = [sys.executable, __file__, "--peak", way, "--rows", str(rows), "--labels", str(labels)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    y, z = problem(rows, labels)
    error = float((WAYS[way][1](y.double(), z.double()) - project_sum(y.double(), z.double())).abs().max().detach())
    forward, backward = (1000 * statistics.median(t[k] for t in times) for k in (0, 1))
    return {"forward_ms": forward, "backward_ms": backward, "kept_mb": kept(way, rows, labels), "peak_mb": float(told), "error": error}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=159)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        sys.stdout.write(f"{peak(args.peak, args.rows, args.labels):.1f}\n")
        return
    table = {way: measured(way, args.rows, args.labels, args.repeats) for way in WAYS}
    if args.json:
        sys.stdout.write(json.dumps(table) + "\n")
        return
    sys.stdout.write(f"{args.rows} rows of {args.labels} labels, float32, one thread\n\n")
    sys.stdout.write("| way | forward | backward | kept for it | peak memory | largest error |\n|---|---|---|---|---|---|\n")
    for way, row in table.items():
        times = f"{row['forward_ms']:.1f} ms | {row['backward_ms']:.1f} ms"
        sys.stdout.write(f"| {WAYS[way][0]} | {times} | {row['kept_mb']:.1f} MB | {row['peak_mb']:.1f} MB | {row['error']:.1e} |\n")


if __name__ == "__main__":
    main()
