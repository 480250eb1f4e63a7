"""What a study's training costs per step and seed beside a plain PyTorch loop: `python benchmarks/studies.py [stocks flat ...]`.

Both do the same work: the same network, loss, optimizer and batch, new examples at each step. The plain loop trains one seed with
PyTorch's modules and optimizers, the study's run as many seeds as the study has in a block. CPU time of the process, one thread,
the two in turns, so that a busy machine slows both alike; of the repeats the fastest counts. A family adds a row with a function that
returns a `Work`, and an entry in `WORKS`.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _studies_curves import autoencoder, filtered_curves, linear_curves
from _studies_work import Batches, Loss, Steps, Work, loop, measure, source
from gradoscope.problems.lines import draw_lines, tuple_labels
from gradoscope.problems.parity import bulk_parity, hidden_subset, network
from gradoscope.problems.recurrent import Recurrent, adding
from gradoscope.problems.steps import Smooth, classifier, relu_network, thresholds
from gradoscope.problems.stocks import best_stock, returns, start
from gradoscope.stacked import bulk, fit, generator, hinge, stack, start_like_source
from gradoscope.studies import _flat, _recurrent
from gradoscope.studies._lines import CHUNK, Run, make_net
from gradoscope.studies._stocks import BETAS, Stocks
from gradoscope.studies.flat import STUDY as FLAT
from gradoscope.studies.lines import STUDY as LINES
from gradoscope.studies.parity import STUDY as PARITY
from gradoscope.studies.recurrent import STUDY as RECURRENT
from gradoscope.studies.stocks import STUDY as STOCKS

BATCH = 128


def parity(d: int) -> Work:
    """Figure 1's training at d bits."""
    _, seeds = source(PARITY, part="curve", d=d)

    def begin(seed: int) -> nn.Module:
        return start_like_source(network(d, 10 * d), generator(seed, 1))

    def fresh() -> Batches:
        index, random = hidden_subset(d, 0).nonzero().squeeze(-1), generator(0, 2)
        while True:
            x = torch.randint(0, 2, (BATCH, d), generator=random).float() * 2 - 1
            yield x, x[:, index].prod(dim=1, keepdim=True)

    def plain() -> Steps:
        model = begin(0)
        return loop(model, lambda score, y: torch.relu(1 - y * score).mean(), torch.optim.SGD(model.parameters(), lr=0.01), fresh())

    def stacked() -> Steps:
        model = stack([begin(seed) for seed in seeds])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        batches = bulk(seeds, [bulk_parity(hidden_subset(d, seed), BATCH) for seed in seeds], 3)
        return lambda steps: fit(model, optimizer, batches, hinge, steps)

    return Work(f"parity d={d}", len(seeds), plain, stacked, most={5: 1 / 10, 20: 1 / 4}.get(d))


class _Rows(nn.Module):
    """W x + b for one-hot x given by the places of their ones."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.table, self.bias = nn.Embedding(d, k), nn.Parameter(torch.zeros(k))

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (n,); the logits (n, k)."""
        return torch.as_tensor(self.table(x) + self.bias)


def stocks(k: int, estimator: str, *, tuned: bool = False) -> Work:
    """Figure 4's portfolios; the plain loop has one-hot states and a linear layer, the tuned one an embedding and the fused Adam."""
    values, seeds = source(STOCKS, part="train", k=k, estimator=estimator, lr=0.1, eps=1e-5, bias=True)
    d, batch = values["d"], values["batch"]
    best = best_stock(d, k, generator(0, 1))

    def fresh() -> Batches:
        random = generator(0, 2)
        while True:
            states = torch.randint(0, d, (batch,), generator=random)
            x = states if tuned else F.one_hot(states, d).float()
            yield x, returns(best[states], k, random) if estimator == "end-to-end" else best[states][:, None]

    def loss(share: Tensor, y: Tensor) -> Tensor:
        return -(share * y).sum(1).mean() if estimator == "end-to-end" else -share.gather(1, y).mean()

    def plain() -> Steps:
        layer: nn.Module = _Rows(d, k) if tuned else nn.Linear(d, k)
        with torch.no_grad():
            table = start(d, k, generator(0, 3))
            for parameter in layer.parameters():
                parameter.copy_(torch.zeros(k) if parameter.dim() == 1 else table if tuned else table.T)
        model = nn.Sequential(layer, nn.Softmax(dim=1))
        optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"], betas=BETAS, eps=values["eps"], fused=tuned or None)
        return loop(model, loss, optimizer, fresh())

    def stacked() -> Steps:
        portfolios = Stocks(values, seeds)

        def run(steps: int) -> None:
            for _ in range(steps):
                portfolios.step()

        return run

    name = f"stocks k={k:,}, {estimator}" + (", plain loop with embedding and fused Adam" if tuned else "")
    return Work(name, len(seeds), plain, stacked, steps=100 if k == 1000 else 500)


class _RoundDown(nn.Module):
    """The staircase with the identity as its derivative."""

    def __init__(self, levels: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.levels, self.offset = levels, offset

    def forward(self, r: Tensor) -> Tensor:
        """The level below each number."""
        value = self.levels[torch.bucketize(r.detach() - self.offset, self.levels[1:], right=True)] + self.offset
        return r + (value - r).detach()


def flat(approach: str) -> Work:
    """Figure 7's four ways to learn a staircase."""
    values, seeds = source(FLAT, part="train", approach=approach, std=0.01)
    d, batch, levels = values["d"], values["batch"], thresholds(_flat.LAW)
    one = _flat.Target.of((0,), d, values["std"])
    direction, offset = one.direction[0], one.offset[0, 0, 0]

    def fresh() -> Batches:
        random = generator(0, 3)
        while True:
            x = torch.randn(batch, d, generator=random) * values["std"]
            index = torch.bucketize(x @ direction, levels[1:], right=True)
            yield x, index if approach == "multi-class" else (levels[index] + offset)[:, None]

    def plain() -> Steps:
        if approach in ("end-to-end", "multi-class"):
            model = relu_network(d) if approach == "end-to-end" else classifier(d, len(levels))
        else:
            model = nn.Sequential(nn.Linear(d, 1), Smooth(_flat.LAW, offset) if approach == "smooth" else _RoundDown(levels, offset))
        start_like_source(model, generator(0, 2))
        loss: Loss = F.cross_entropy if approach == "multi-class" else F.mse_loss
        return loop(model, loss, _flat.adam(model, _flat.LR[approach]), fresh())

    def stacked() -> Steps:
        target = _flat.Target.of(seeds, d, values["std"])
        model = _flat.network(approach, target, values["sharpness"])
        optimizer, batches = _flat.adam(model, _flat.LR[approach]), _flat.batches(target, batch)
        return lambda steps: fit(model, optimizer, batches, lambda m, x, index: _flat.losses(approach, target, m, x, index), steps)

    return Work(f"flat activations, {approach}", len(seeds), plain, stacked, steps=160)


def lines(k: int) -> Work:
    """Figure 3's tuples of k line images end to end; the study has the first convolution by a table of windows, and one seed at a time."""
    values, seeds = source(LINES, approach="end-to-end", law="text", k=k)
    values |= {"every": 10**9, "test": 10}  # no looks
    size, batch = values["size"], values["batch"]

    def fresh() -> Batches:
        random = generator(0, 2)
        while True:
            drawn = draw_lines(random, batch * k, size, values["law"])
            yield drawn.images.view(batch, k, size, size), tuple_labels(drawn.labels.view(batch, k))

    def plain() -> Steps:
        model = make_net(values, 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"], betas=(0.9, 0.99), eps=1e-5)
        return loop(model, lambda score, y: torch.relu(1 - y * score).mean(), optimizer, fresh())

    def stacked() -> Steps:
        run = Run(values, 0)
        return lambda steps: run.advance(run.step + steps, "end-to-end")

    return Work(f"lines k={k}, end-to-end", len(seeds), plain, stacked, steps=CHUNK)


class _Lstm(nn.Module):
    """PyTorch's LSTM with a linear answer after the last step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.reader, self.answer = nn.LSTM(2, hidden, batch_first=True), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (n, T, 2) to answers (n, 1)."""
        return torch.as_tensor(self.answer(self.reader(x)[0][:, -1]))


def recurrent(*, written: bool) -> Work:
    """The LSTM on the adding problem at T = 50; the plain loop has PyTorch's, or one written step by step, as sharper gates need it."""
    values, seeds = source(RECURRENT, cell="lstm", T=50)

    def fresh() -> Batches:
        random = generator(0, 2)
        while True:
            yield adding(random, values["batch"], values["T"])

    def plain() -> Steps:
        model: nn.Module = Recurrent("lstm", values["hidden"], [generator(0, 1)]) if written else _Lstm(values["hidden"])
        return loop(model, F.mse_loss, torch.optim.Adam(model.parameters(), lr=values["lr"]), fresh())

    def stacked() -> Steps:
        model = _recurrent.networks(values, seeds)
        optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"])
        batches = bulk(seeds, _recurrent._draw(values["T"], values["batch"]), _recurrent.KEY, 2, chunk=20)
        return lambda steps: fit(model, optimizer, batches, _recurrent._losses, steps)

    name = "recurrent, LSTM T=50, plain loop " + ("with a cell in Python" if written else "with nn.LSTM")
    return Work(name, len(seeds), plain, stacked, steps=40)


WORKS: dict[str, Callable[[], Work]] = {
    **{f"parity-{d}": partial(parity, d) for d in (5, 10, 15, 20, 30)},
    **{f"stocks-{k}-{estimator}": partial(stocks, k, estimator) for k in (10, 1000) for estimator in ("end-to-end", "decomposed")},
    "stocks-1000-tuned": partial(stocks, 1000, "end-to-end", tuned=True),
    "curves-linear": linear_curves,
    "curves-convolution": partial(filtered_curves, whitened=False),
    "curves-whitened": partial(filtered_curves, whitened=True),
    "curves-autoencoder": autoencoder,
    **{f"flat-{approach}": partial(flat, approach) for approach in ("smooth", "end-to-end", "multi-class", "forward-only")},
    **{f"lines-{k}": partial(lines, k) for k in (1, 3)},
    "recurrent-lstm": partial(recurrent, written=False),
    "recurrent-written": partial(recurrent, written=True),
}


def machine() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines_ = path.read_text().splitlines() if path.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines_ if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def chosen(names: list[str]) -> list[str]:
    """The rows meant by names of rows or families, all by none."""
    unknown = [name for name in names if not any(row == name or row.startswith(f"{name}-") for row in WORKS)]
    if unknown:
        raise SystemExit(f"there is no row or family {', '.join(unknown)}; there are: {', '.join(WORKS)}.")
    return [row for row in WORKS if not names or any(row == name or row.startswith(f"{name}-") for name in names)]


def main() -> None:
    """Print the table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="rows or families to measure, e.g. parity-20 or stocks; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a table in Markdown, which is the default")
    form.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = chosen(options.rows)
    torch.set_num_threads(1)
    load = [os.getloadavg()[0]]
    rows = [measure(WORKS[name](), options.repeats) for name in names]
    load.append(os.getloadavg()[0])
    if options.json:
        print(json.dumps({"machine": machine(), "torch": torch.__version__, "load": load, "rows": rows}, indent=1))
        return
    print("| training | seeds stacked | plain loop, CPU ms per step | study's run, CPU ms per step and seed | plain / study's | promised |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        promised = f"at least {1 / r['promised']:.0f}" if r["promised"] else ""
        ratio = f"{r['ratio']:.1f}" if r["ratio"] >= 1.1 else f"{r['ratio']:.2f}, not faster"
        print(f"| {r['name']} | {r['seeds']} | {r['plain_ms']:.3f} | {r['stacked_ms']:.4f} | {ratio} | {promised} |")
    print(f"\n{machine()}, one thread, torch {torch.__version__}, load {load[0]:.1f} before and {load[1]:.1f} after.")


if __name__ == "__main__":
    main()
