"""A small study for the engine's tests: quick, deterministic, with arrays, curves and a claim that is known to be wrong."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure as Drawing

from gradoscope.claims import Claim, each, mean
from gradoscope.report import plots
from gradoscope.stacked import numpy_generator
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study


class Averages(Study):
    """Averages of n normal numbers.

    Args:
        diary: a file to which each unit that runs adds a line.
        once: the first unit that finds this file missing makes it and kills its own process.
        pause: seconds that each unit sleeps.
    """

    name = "averages"
    title = "Averages of noise"
    source = "Bernoulli 1713"
    about = ("The average of many numbers lies near the mean.", "That of few does not: <b>no markup</b>.")

    def __init__(self, diary: Path | None = None, once: Path | None = None, pause: float = 0.0) -> None:
        self.diary, self.once, self.pause = diary, once, pause

    def grid(self, scale: Scale) -> list[Setting]:
        sizes = (10, 100) if scale == "quick" else (10, 100, 1000)
        return [*(Setting({"n": n}, seeds=6, block=3) for n in sizes), Setting({"n": 1, "exact": True}, seeds=0)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        if self.diary is not None:
            with self.diary.open("a") as file:
                file.write(f"{values} {seeds}\n")
        if self.once is not None and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        if not seeds:
            return Result([{"mean": 0.0}])
        draws = [torch.from_numpy(numpy_generator(s, 7, values["n"]).normal(size=values["n"])) for s in seeds]
        rows = [{"seed": s, "mean": float(x.mean()), "missing": float("nan")} for s, x in zip(seeds, draws, strict=True)]
        curves = [{"seed": s, "step": i, "mean": float(x[: i + 1].mean())} for s, x in zip(seeds, draws, strict=True) for i in range(3)]
        return Result(rows, curves, {"draws": torch.stack(draws)}, {"draw": 0.25})

    def claims(self, scale: Scale) -> list[Claim]:
        def large(results: Results) -> list[float]:
            return results.rows.where(n=100).column("mean")

        return [
            Claim("near", "The mean of 100 is near zero.", "page 1", large, mean(-0.2, 0.2)),
            Claim("one", "The mean of 100 is at least one.", "page 2", large, each(low=1), expected_to_fail=True, why="It is zero."),
        ]

    def figures(self, scale: Scale) -> list[Figure]:
        def draw(results: Results) -> Drawing:
            figure, axes = plots.new()
            plots.points(axes[0, 0], [1, 2, 3], [c.column("mean") for _, c in results.curves.where(n=10).groups("seed")])
            plots.reference(axes[0, 0], float(results.array("draws", n=10).mean()), "mean")
            return figure

        return [Figure("means", "Each dot is a seed.", draw)]
