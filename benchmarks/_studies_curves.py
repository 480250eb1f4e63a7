"""The rows of `studies.py` for the study of curves."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _studies_work import Batches, Steps, Work, loop, source
from gradoscope.problems._curves import Windows, autoencoder_network, windows
from gradoscope.stacked import generator, start_like_source
from gradoscope.studies import _curves_train
from gradoscope.studies.curves import STUDY as CURVES
from gradoscope.theory.whitening import whitening

__all__ = ["autoencoder", "filtered_curves", "linear_curves"]


def _picks(batch: int, *data: Tensor) -> Batches:
    """Rows of the first and of the last tensor, with replacement."""
    random = generator(0, 2)
    while True:
        index = torch.randint(0, len(data[0]), (batch,), generator=random)
        yield data[0][index], data[-1][index]


def _album(values: dict[str, Any], seeds: range) -> list[_curves_train.Curves]:
    return [_curves_train.curves(values["law"], s, values["n"], values["k"], values["curves"]) for s in seeds]


def linear_curves() -> Work:
    """Approach (a): one linear map from curves to changes of slope."""
    values, seeds = source(CURVES, part="linear", lr=1e-4)
    data, n = _album(values, seeds), values["n"]

    def plain() -> Steps:
        model = nn.Linear(n, n, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"])
        batches = _picks(values["batch"], data[0].f.float(), data[0].p.float())
        return loop(model, lambda y, p: (y - p).square().sum(1).mean(), optimizer, batches)

    def run(steps: int) -> None:
        options = {"lr": values["lr"], "batch": values["batch"]}
        _curves_train.train_linear(data, seeds, **options, steps=steps, look=lambda *_: None, tick=lambda _: None)

    return Work("curves, linear map", len(seeds), plain, lambda: run, steps=500)


def filtered_curves(*, whitened: bool) -> Work:
    """Approaches (b) and (c): a filter of three taps, on windows as they are or whitened; the study has nine numbers per curve for them."""
    values, seeds = source(CURVES, part="filter", whitened=whitened, optimizer="adam")
    data = _album(values, seeds)

    def root() -> Tensor:
        x = windows(data[0].f).reshape(-1, 3)
        return whitening(x.T @ x / len(x), scale="unit").matrix

    def plain() -> Steps:
        single: nn.Module = nn.Linear(3, 1, bias=False) if whitened else nn.Conv1d(1, 1, 3, bias=False)
        model = nn.Sequential(Windows(root().float()) if whitened else nn.ConstantPad1d((2, 0), 0.0), single)
        nn.init.zeros_(next(single.parameters()))
        f, p = data[0].f.float(), data[0].p.float()
        pairs = (f, p[:, :, None]) if whitened else (f[:, None], p[:, None])
        return loop(model, F.mse_loss, torch.optim.Adam(model.parameters(), lr=values["lr"]), _picks(values["batch"], *pairs))

    def numbers() -> tuple[np.ndarray, np.ndarray]:
        stats = np.stack([_curves_train.statistics(d) for d in data])
        return stats, _curves_train.filter_maps(stats, whitened)

    def stacked() -> Steps:
        stats, maps = numbers()

        def run(steps: int) -> None:
            rule = _curves_train.Rule("adam", np.full((len(seeds), 1), values["lr"]))
            _curves_train.train_filter(stats, seeds, rule, steps=steps, batch=values["batch"], maps=maps)

        return run

    name = "curves, whitened convolution" if whitened else "curves, convolution"
    prepare = (root if whitened else lambda: None, numbers)
    return Work(name, len(seeds), plain, stacked, steps=1000, prepare=prepare, total=values["steps"])


def autoencoder() -> Work:
    """Approach (d): the source's autoencoder of curves."""
    values, seeds = source(CURVES, part="autoencoder", width=1.0, depth=0)
    data = _album(values, seeds)

    def plain() -> Steps:
        model = start_like_source(autoencoder_network(values["n"], values["k"]), generator(0, 4))
        f = data[0].f.float()
        return loop(model, F.mse_loss, torch.optim.Adam(model.parameters(), lr=values["lr"]), _picks(values["batch"], f))

    def run(steps: int) -> None:
        options = {name: values[name] for name in ("lr", "batch", "width", "depth", "k")}
        _curves_train.train_autoencoder(data, seeds, **options, steps=steps, look=lambda *_: None, tick=lambda _: None)

    return Work("curves, autoencoder", len(seeds), plain, lambda: run, steps=200)
