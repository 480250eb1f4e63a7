"""How fast a surface is evaluated, beside a plain loop and the published tools: `python benchmarks/landscape.py [mlp small cnn lstm]`.

Same model, data, directions and points for all (loss-landscapes draws its own directions). CPU time of the process, one thread; the
contenders take turns, so that a busy machine slows all alike. Of the repeats the fastest counts, and the ratio is the median of the
ratios within a turn. loss-landscapes is timed where it can be imported (`pip install --no-deps --target DIR loss-landscapes==3.0.6`,
`PYTHONPATH=DIR`); the inner loop of Li et al.'s scripts, which are no package, is written here.
"""

import argparse
import importlib
import importlib.util
import itertools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradoscope.guard import private_random
from gradoscope.landscape import directions
from gradoscope.landscape.planes import surface
from gradoscope.landscape.points import evaluate
from gradoscope.objective import Objective

SIDE = 51  # points along each side of a surface
PAGE = Path(__file__).resolve().parents[1] / "docs" / "landscape-speed.md"


@dataclass(frozen=True)
class Work:
    """A network with its examples, and how many points along each side a turn times."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    side: int
    steps: int


class Recurrent(nn.Module):
    """An LSTM that reads 20 steps, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), act()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)),
    )


WORKS = {
    "mlp": Work("MLP 784-512-512-10, 256 examples", lambda: mlp(784, 512, 512, 10), (256, 784), 10, 21, 50),
    "small": Work("MLP 8-16-2 (tanh), 64 examples", lambda: mlp(8, 16, 2, act=nn.Tanh), (64, 8), 2, 51, 100),
    "digits": Work("MLP 64-128-128-10, 256 examples", lambda: mlp(64, 128, 128, 10), (256, 64), 10, 21, 50),
    "cnn": Work("CNN, 3x32x32, 5x5 convolution first, 64 examples", cnn, (64, 3, 32, 32), 10, 11, 30),
    "lstm": Work("LSTM 16-64, 20 steps, 64 examples", Recurrent, (64, 20, 16), 10, 13, 30),
}


class Scene:
    """A network after some steps of training, so that the point is not its start, with two directions."""

    def __init__(self, work: Work) -> None:
        with private_random(0):
            self.model = work.make()
            self.x = torch.randn(*work.shape)
            truth = torch.randn(self.x[0].numel(), work.classes)
            self.y = (self.x.flatten(1) @ truth + 5 * torch.randn(len(self.x), work.classes)).argmax(1)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for _ in range(work.steps):
            optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            optimizer.step()
        optimizer.zero_grad()
        self.model.eval()
        self.objective = Objective(self.model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(self.x, self.y)], mode="eval")
        self.origin = self.objective.theta()
        self.directions = directions.random(self.objective, torch.Generator().manual_seed(7))

    def split(self, vector: Tensor) -> list[Tensor]:
        return [t.clone() for t in self.objective.split(vector)]


def grid(side: int) -> np.ndarray:
    axis = np.linspace(-1, 1, side)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


def plain(scene: Scene, points: np.ndarray) -> np.ndarray:
    """What a user writes by hand: copy parameters in, forward, next point."""
    own, base = list(scene.model.parameters()), scene.split(scene.origin)
    first, second = (scene.split(d) for d in scene.directions)
    losses = []
    with torch.no_grad():
        for s, t in points.tolist():
            for p, w, u, v in zip(own, base, first, second, strict=True):
                p.copy_(w + s * u + t * v)
            losses.append(F.cross_entropy(scene.model(scene.x), scene.y).item())
        for p, w in zip(own, base, strict=True):
            p.copy_(w)
    return np.array(losses)


def li(scene: Scene, points: np.ndarray) -> np.ndarray:
    """The inner loop of Li et al.'s scripts: set all weights, then loss and correct answers over a loader of batches of 128."""
    own, base = list(scene.model.parameters()), scene.split(scene.origin)
    first, second = (scene.split(d) for d in scene.directions)
    loader = DataLoader(TensorDataset(scene.x, scene.y), batch_size=128)
    ready = list(loader)
    losses = []
    for s, t in points.tolist():
        changes = [u * s + v * t for u, v in zip(first, second, strict=True)]
        for p, w, change in zip(own, base, changes, strict=True):
            p.data = w + change
        total, correct = 0.0, 0
        with torch.no_grad():
            for x, y in ready:
                output = scene.model(x)
                total += F.cross_entropy(output, y).item() * len(x)
                correct += int((output.argmax(1) == y).sum())
        losses.append(total / len(scene.x))
    for p, w in zip(own, base, strict=True):
        p.data = w
    return np.array(losses)


def published(scene: Scene, side: int) -> None:
    """loss-landscapes' random plane of side x side points, with filter normalisation and directions of its own."""
    tool, metrics = (importlib.import_module(name) for name in ("loss_landscapes", "loss_landscapes.metrics"))
    metric = metrics.Loss(nn.CrossEntropyLoss(), scene.x, scene.y)
    with private_random(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool.random_plane(scene.model, metric, distance=1, steps=side, normalization="filter", deepcopy_model=True)


def spent(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@dataclass(frozen=True)
class Row:
    """CPU milliseconds per point, the ratio to the plain loop, and a remark."""

    work: str
    contender: str
    milliseconds: float
    ratio: float
    note: str


def exact(name: str, repeats: int) -> list[Row]:
    """Exact points against the plain loop and the peers."""
    work = WORKS[name]
    scene, points = Scene(work), grid(work.side)
    reference = plain(scene, points)
    found = evaluate(scene.objective, scene.origin, scene.directions, points)
    contenders: dict[str, Callable[[], object]] = {
        "plain loop": lambda: plain(scene, points),
        "inner loop of Li et al.": lambda: li(scene, points),
        "loss-landscapes 3.0.6": lambda: published(scene, work.side),
        "gradoscope": lambda: evaluate(scene.objective, scene.origin, scene.directions, points),
    }
    if importlib.util.find_spec("loss_landscapes") is None:
        del contenders["loss-landscapes 3.0.6"]
    times: dict[str, list[float]] = {c: [] for c in contenders}
    for _ in range(repeats):
        for contender, call in contenders.items():
            times[contender].append(1e3 * spent(call) / len(points))

    def error(losses: np.ndarray) -> str:
        return f"error {np.abs(losses - reference).max() / np.ptp(reference):.0e}"

    notes = {
        "plain loop": "reference",
        "inner loop of Li et al.": error(li(scene, points)),
        "loss-landscapes 3.0.6": "directions of its own; every second row displaced",
        "gradoscope": f"{found.method}; with standard errors; {error(found.loss)}",
    }
    base = times["plain loop"]
    return [Row(work.name, c, min(t), statistics.median(b / a for a, b in zip(t, base, strict=True)), notes[c]) for c, t in times.items()]


def interpolated(name: str, repeats: int, tolerance: float = 1e-3) -> list[Row]:
    """A coarse surface of 51 x 51 points against the plain loop, whose points are timed on a part of them; the error against all."""
    work = WORKS[name]
    scene, part = Scene(work), grid(work.side)
    all_points = surface(scene.objective, scene.origin, scene.directions, points=SIDE)
    made = surface(scene.objective, scene.origin, scene.directions, points=SIDE, coarse=True, tolerance=tolerance)
    true = np.abs(made.loss - all_points.loss).max() / np.ptp(all_points.loss)
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(spent(lambda: plain(scene, part)) / len(part))
        ours.append(
            spent(lambda: surface(scene.objective, scene.origin, scene.directions, points=SIDE, coarse=True, tolerance=tolerance)) / SIDE**2
        )
    note = f"{len(made.evaluated)} of {SIDE**2} points; error {true:.1e}, estimated as at most {made.error:.1e}"
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    said = "" if made.met else " (not met, and said so)"
    return [Row(work.name, f"gradoscope, coarse at {tolerance:g}{said}", 1e3 * min(ours), ratio, note)]


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| network | evaluated by | CPU ms per point | points per second | plain loop / this | remark |", "|---|---|---|---|---|---|"]
    for r in rows:
        speed = f"{1e3 / r.milliseconds:,.0f}"
        lines.append(f"| {r.work} | {r.contender} | {r.milliseconds:.3g} | {speed} | {r.ratio:.1f} | {r.note} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, torch and load."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{cpu or platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"


PAGE_START = """# How fast a landscape is evaluated

`python benchmarks/landscape.py` evaluates the same points of the same networks on the same examples in several ways. Measured is the CPU
time of the process with one thread, everything included (setting parameters, the comparison with a plain pass, standard errors over
the examples). The contenders take turns, so that a busy machine slows all alike; the time is that of the fastest turn, the ratio the
median over the turns. Errors are the largest over the surface, as a share of its range.

"""

PAGE_END = """

How to read it:

- **Factored**: a linear or convolutional layer that sees the raw data is linear in its own parameters. Its responses to the origin and to
  both directions are computed once and combined at each point. What is left is the rest of the network: where most of the work is in
  the first layer that pays most. Of the first network's multiplications 60% are in its first layer: the plain loop does 2.5 times as
  many, and on an idle machine, where both run at the speed of the matrix products, no exact way gains more than that.
- **Stacked**: the points of a chunk go through the network as one, which pays where a pass consists of overhead. Where it is work, it
  gains nothing, and counted operations decide against it.
- **Loop**: recurrent layers cannot be stacked by `torch.func.vmap`. What is left to gain is the setting of parameters: one addition per
  point in memory that is used again. A pass itself costs what it costs.
- **Coarse**: cubic splines on a nested grid. The error is looked at between the nodes, in the cells where the next coarser grid was worst;
  an estimate from a few random points was found to be several times too small. Times are per point of the whole surface; the plain
  loop is timed on a part of it. On surfaces of untrained ReLU networks, and of very narrow ones, the tolerance of 1e-3 is often not
  met with the points that may be spent; the surface then says so, with its error.
- **loss-landscapes 3.0.6** evaluates every second row one step further than the others (on a linear loss the differences between rows
  alternate), draws directions from a uniform law that is not centred, and leaves `requires_grad` off unless asked to copy the model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], metavar="WORK", help=f"some of {', '.join(WORKS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-page", action="store_true", help="print the table and leave docs/landscape-speed.md as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    before, began, rows = machine(), time.process_time(), []
    for name in options.works or WORKS:
        rows += exact(name, options.repeats)
        if name in ("mlp", "small", "digits"):
            rows += interpolated(name, options.repeats)
        print(table(rows[-1:]) if len(rows) == 1 else "\n".join(table(rows).splitlines()[-5:]), flush=True)
    told = f"The table is one run of {time.process_time() - began:.0f} CPU seconds: {before} before it and {os.getloadavg()[0]:.1f} after."
    print(f"\n{told}\n\n{table(rows)}")
    if not options.no_page:
        PAGE.write_text(PAGE_START + told + "\n\n" + table(rows) + PAGE_END)


if __name__ == "__main__":
    main()
