"""How fast a GPI layer runs on batches of graphs, beside one graph at a time: `python benchmarks/structured.py [equal mixed wide]`.

The same layer, weights and graphs for all; a turn is one forward and one backward pass over all graphs, CPU time of the process, one
thread. The contenders take turns, so that a busy machine slows all alike; of the repeats the fastest counts, and the ratio is the
median of the ratios within a turn. "One graph at a time, nodes in a loop" is how code for one graph is often written, with layers on
concatenations of features. All have to give the same loss and gradients: the table says by how much they differ in double precision;
the times are those of single precision.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradoscope.structured.gpi import GPI
from gradoscope.structured.graphs import Graphs, buckets, collate, padding_cost

Single = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Work:
    """Graphs of these sizes, features of a node and of a pair, and the width of the layer."""

    name: str
    sizes: tuple[int, ...]
    nodes: int
    edges: int
    width: int
    outputs: int


def mixed(count: int, low: int, high: int) -> tuple[int, ...]:
    """Sizes of which small ones are common and large ones rare, as in sets of scene graphs."""
    draw = torch.rand(count, generator=torch.Generator().manual_seed(1))
    return tuple((low + (high - low) * draw**3).round().long().tolist())


WORKS = {
    "equal": Work("64 graphs of 10 nodes, few features", (10,) * 64, 3, 1, 48, 10),
    "mixed": Work("100 graphs of 2 to 20 nodes, few features", mixed(100, 2, 20), 3, 1, 48, 10),
    "wide": Work("60 graphs of 2 to 20 nodes, 104 features of a node, 71 of a pair", mixed(60, 2, 20), 104, 71, 100, 100),
}


class Scene:
    """Graphs and a layer with outputs of nodes and of pairs."""

    def __init__(self, work: Work, dtype: torch.dtype = torch.float32) -> None:
        random = torch.Generator().manual_seed(0)
        self.graphs: list[Single] = [
            (torch.randn(n, work.nodes, generator=random).to(dtype), torch.randn(n, n, work.edges, generator=random).to(dtype))
            for n in work.sizes
        ]
        widths = {"phi": [work.width], "alpha": [work.width], "rho": [work.width], "rho_pair": [work.width]}
        outputs = {"outputs": work.outputs, "pair_outputs": work.outputs}
        self.layer = GPI.build(work.nodes, work.edges, **widths, **outputs, generator=random).to(dtype)
        self.batches = buckets(work.sizes, 16)
        self.waste = padding_cost(work.sizes, self.batches)
        self.waste_of_one = padding_cost(work.sizes, [torch.arange(len(work.sizes))])

    def loss(self, graphs: Graphs) -> Tensor:
        labels = self.layer(graphs)
        return labels.nodes.square().sum() + labels.pairs.square().sum()


def in_buckets(scene: Scene) -> list[Tensor]:
    return [scene.loss(collate([scene.graphs[i] for i in batch.tolist()])) for batch in scene.batches]


def in_one(scene: Scene) -> list[Tensor]:
    return [scene.loss(collate(scene.graphs))]


def one_by_one(scene: Scene) -> list[Tensor]:
    return [scene.loss(Graphs.full(z[None], e[None])) for z, e in scene.graphs]


def whole(layer: nn.Module, *parts: Tensor) -> Tensor:
    """A layer on parts, called on their concatenation."""
    joined = torch.cat(parts)
    return layer.rest(nn.functional.linear(joined, layer.first.weight, layer.first.bias))


def in_loops(scene: Scene) -> list[Tensor]:
    layer, losses = scene.layer, []
    for z, e in scene.graphs:
        n = len(z)
        sums = []
        for i in range(n):
            messages = [whole(layer.phi, z[i], e[i, j], z[j]) for j in range(n) if j != i]
            sums.append(torch.stack(messages).sum(0) if messages else z.new_zeros(layer.alpha.first.sizes[1]))
        g = torch.stack([whole(layer.alpha, z[i], sums[i]) for i in range(n)]).sum(0)
        nodes = [whole(layer.rho, z[i], sums[i], g).square().sum() for i in range(n)]
        pairs = [whole(layer.rho_pair, z[i], e[i, j], z[j], g).square().sum() for i in range(n) for j in range(n) if i != j]
        losses.append(torch.stack(nodes + pairs).sum())
    return losses


CONTENDERS: dict[str, Callable[[Scene], list[Tensor]]] = {
    "one graph at a time, nodes in a loop": in_loops,
    "one graph at a time, batched within": one_by_one,
    "one batch, padded to the largest": in_one,
    "batches by size": in_buckets,
}


def turn(contender: Callable[[Scene], list[Tensor]], scene: Scene) -> tuple[float, float, list[Tensor]]:
    """(CPU seconds, loss, gradients) of one pass forward and back over all graphs."""
    scene.layer.zero_grad(set_to_none=True)
    began = time.process_time()
    total = torch.stack(contender(scene)).sum()
    total.backward()
    spent = time.process_time() - began
    return spent, float(total.detach()), [p.grad.clone() for p in scene.layer.parameters() if p.grad is not None]


def rows(work: Work, repeats: int) -> list[str]:
    """The lines of the table for one kind of graphs."""
    scene = Scene(work)
    exact = Scene(work, torch.float64)
    found = {name: turn(contender, exact) for name, contender in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, contender in CONTENDERS.items():
            times[name].append(turn(contender, scene)[0])
    first = next(iter(CONTENDERS))
    lines = []
    for name, spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], spent, strict=True))
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(found[name][2], found[first][2], strict=True))
        apart = max(apart, abs(found[name][1] / found[first][1] - 1))
        note = {"one batch, padded to the largest": f"{scene.waste_of_one:.2f}", "batches by size": f"{scene.waste:.2f}"}.get(name, "1.00")
        lines.append(f"| {work.name} | {name} | {1e3 * min(spent):.1f} | {ratio:.1f} | {note} | {apart:.0e} |")
    return lines


def machine() -> str:
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, one thread"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], metavar="WORK", help=f"some of {', '.join(WORKS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine() + "\n")
    print("| graphs | how | CPU ms, forward and back | loop / this | pairs worked on per pair | relative difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.works or WORKS:
        print("\n".join(rows(WORKS[name], options.repeats)), flush=True)


if __name__ == "__main__":
    main()
