"""Stochastic gradient descent: rates, averaging, schedules, orders, batches, budgets, early stopping, momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.studies import _sgd, _sgd_claims, _sgd_data, _sgd_figures, _sgd_nets
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "StochasticGradient"]

PARTS = {
    "rates": _sgd.rates,
    "transient": _sgd.transient,
    "ball": _sgd.ball,
    "afar": _sgd.afar,
    "stall": _sgd.stall,
    "curvature": _sgd.curvature,
    "batches": _sgd.batch_sizes,
    "network batches": _sgd_nets.network_batches,
    "orders": _sgd_data.orders,
    "classes": _sgd_data.classes_in_turn,
    "budget": _sgd_data.budget,
    "early": _sgd_data.early,
    "adagrad": _sgd_data.adagrad,
    "methods": _sgd_nets.methods,
}
BATCHES = (1, 4, 16, 64, 256, 1024)


class StochasticGradient(Study):
    """What a lecture says of SGD, each statement on the smallest problem that shows it."""

    name = "sgd"
    title = "Stochastic gradient descent: what the step size, the order, the batch and the average do"
    source = "Perraudin and Hofmann 2018 (ETH), lecture 6, section 2; Goodfellow 2015, the slide on fluctuating curvature"
    about = _sgd_claims.ABOUT

    def grid(self, scale: Scale) -> list[Setting]:
        """Streams of least squares, finite data, and networks."""
        quick = scale == "quick"
        seeds = 5 if quick else 10

        def part(name: str, cost: float, count: int = seeds, **values: Any) -> Setting:
            return Setting({"part": name, **values}, count, 5, cost)

        settings = [
            part("rates", 1.5 if quick else 5.0, steps=30_000 if quick else 100_000, runs=200),
            part("transient", 1.5, 0, steps=100_000),
            part("ball", 0.15 if quick else 0.8, steps=4_000 if quick else 20_000, runs=200),
            part("afar", 0.3 if quick else 1.0, steps=30_000 if quick else 100_000, runs=200),
            part("stall", 0.15, steps=20_000, runs=200),
            part("curvature", 0.1, draws=30, steps=200),
            part("batches", 0.3, 0, d=20, kappa=100, largest=14),
            part("orders", 0.3 if quick else 0.4, n=256, runs=20 if quick else 40, epochs=60),
            part("classes", 0.2, rate=0.02, batch=16, epochs=10),
            part("budget", 1.0 if quick else 1.6, runs=10 if quick else 20),
            part("early", 0.5 if quick else 1.0, rate=0.2, epochs=150 if quick else 300),
            part("adagrad", 0.4 if quick else 2.0, d=50, runs=20, steps=2_000 if quick else 10_000),
        ]
        settings += [part("network batches", 0.3, batch=b, most=5_000) for b in BATCHES]
        for net in _sgd_nets.NETS:
            for method in _sgd_nets.METHODS:
                values = {"part": "methods", "net": net, "method": method, "steps": 150 if quick else 300}
                settings.append(Setting(values, 8 if quick else 10, 8 if quick else 5, 0.4 if quick else 0.8))
        return settings

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One part of the study with a block of seeds."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The lecture's statements, with the numbers that theory gives."""
        return _sgd_claims.claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """One figure for each question."""
        return _sgd_figures.figures(scale)


STUDY = StochasticGradient()
