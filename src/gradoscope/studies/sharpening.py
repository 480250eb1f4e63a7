"""Sharpening: full-batch descent at the edge of stability, and outliers of the spectrum with and without batch normalisation."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, exactly
from gradoscope.report import plots
from gradoscope.studies._sharpening import PARTS, STABLE
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Sharpening"]

RATES: dict[Scale, tuple[float, ...]] = {"quick": (0.04, 0.08, 0.1), "paper": (0.04, 0.06, 0.075, 0.08, 0.085, 0.1)}
LOOKS: dict[Scale, list[int]] = {"quick": [0, 100, 400], "paper": [0, 300, 1500]}
WHEN = ("at the start", "early", "at the end")
DASH = (0, (4, 3))


class Sharpening(Study):
    """The largest eigenvalue along training, and the spectrum around it."""

    name: ClassVar[str] = "sharpening"
    title: ClassVar[str] = "The edge of stability, and outliers of the Hessian's spectrum"
    source: ClassVar[str] = "Cohen, Kaur, Li, Kolter and Talwalkar 2021; Ghorbani, Krishnan and Xiao 2019"
    about: ClassVar[tuple[str, ...]] = (
        "On a quadratic, gradient descent with a step size eta diverges where eta times the largest eigenvalue of the Hessian is above 2. "
        "On networks that eigenvalue grows while training goes on (progressive sharpening), and where it comes to 2/eta it stays there: "
        "the loss no longer falls at every step, and yet it falls over many (Cohen et al.). Here: a tanh network 64-32-10 on 500 digits, "
        "half the squared error to the classes, full batches, a time eta t of 240 (400 at the step size of 0.1).",
        "This small network hardly sharpens, by a quarter or less, so only step sizes near 2 over the first eigenvalue reach the edge. The "
        "claim is therefore that runs which reach it hover there, and that no step goes uphill before.",
        "The second half repeats Ghorbani et al. on a ReLU network of four hidden layers, trained by SGD on the digits with and without "
        "batch normalisation: stochastic Lanczos quadrature gives the density of the spectrum, its extreme eigenvectors the share of the "
        "full gradient that lies in the ten largest. Their networks are residual networks on images; how much of it shows on a small "
        "network on digits is measured, not assumed. With batch normalisation the Hessian is that of the mode in which it is trained.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Step sizes for the edge; both kinds of networks for the spectra."""
        quick = scale == "quick"
        found = []
        for lr in RATES[scale]:
            time = 120.0 if quick else 400.0 if lr == 0.1 else 240.0
            values = {"part": "edge", "lr": lr, "time": time, "images": 200 if quick else 500, "hidden": 32, "look": 4.0}
            found.append(Setting(values, 5, 5, 9e-4 * time / lr * (0.5 if quick else 1)))
        common = {"part": "spectra", "images": 300 if quick else 1000, "hidden": 32 if quick else 64, "lr": 0.05, "batch": 64}
        found += [
            Setting(
                {**common, "normalised": normalised, "steps": LOOKS[scale][-1], "looks": LOOKS[scale], "products": 90},
                5,
                5,
                1.5 if quick else 8,
            )
            for normalised in (False, True)
        ]
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """A step size, or a kind of network."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Cohen et al.'s, conditional on reaching the edge, and Ghorbani et al.'s."""
        return [*_edge(scale), *_outliers(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """Sharpness and loss in time; densities; shares of the gradient."""
        return [
            Figure(
                "edge",
                "Step size times largest eigenvalue (top) and training loss (bottom) against the time eta t, one line per seed. Above the "
                "dashed line a quadratic diverges. Runs that come to it stay there, and their loss goes on falling.",
                lambda results: _draw_edge(results, scale),
            ),
            Figure(
                "spectra",
                "Density of the Hessian's eigenvalues relative to the largest, first seed, without (top) and with batch normalisation "
                "(bottom), by stochastic Lanczos quadrature. The bulk is at 0; what stands apart to the right are outliers.",
                lambda results: _draw_spectra(results, scale),
            ),
            Figure(
                "shares",
                "Left: share of the squared gradient that lies in the ten top eigenvectors; a random direction has a tenth of a percent. "
                "Right: the largest eigenvalue over the thirtieth. Dots are seeds.",
                lambda results: _draw_shares(results, scale),
            ),
        ]


def _edge(scale: Scale) -> list[Claim]:
    stated = "Cohen et al. 2021: the sharpness rises to 2/eta and hovers at or just above it"

    def reached(name: str) -> Callable[[Results], list[float]]:
        return lambda results: [float(row[name]) for row in results.rows.where(part="edge", reached=True)]

    def count(results: Results) -> float:
        return float(np.mean([row["reached"] for row in results.rows.where(part="edge") if row["lr"] == max(RATES[scale])]))

    return [
        Claim(
            "hovers",
            f"Runs whose eta lambda_max comes to {STABLE} hover at 2: the median over their last third.",
            stated,
            reached("median"),
            each(1.9, 2.1),
        ),
        Claim(
            "reached",
            f"That test had runs: at the step size of {max(RATES[scale])} share of seeds that come to {STABLE}.",
            "premise of the claim above",
            count,
            exactly(low=0.6),
        ),
        Claim(
            "below-the-edge",
            f"No step goes uphill while eta lambda_max is below {STABLE}: share of such steps.",
            "earlier measurement of this project",
            lambda results: results.rows.where(part="edge").column("uphill_calm"),
            each(high=0.0),
        ),
        Claim(
            "uphill-at-the-edge",
            "At the edge steps do go uphill: share in the last third.",
            "Cohen et al. 2021: non-monotone over short timescales",
            reached("uphill"),
            each(low=1e-3),
        ),
        Claim(
            "still-falling",
            "And the loss falls over long ones: mean loss of the last third over that of the first.",
            "Cohen et al. 2021: consistently decreasing over long timescales",
            reached("thirds"),
            each(high=0.8),
        ),
        Claim(
            "small-steps-do-not-reach-it",
            "At a step size of 0.04 the edge is not reached: the median of eta lambda_max.",
            "earlier measurement of this project: a step size of 0.06 or less never reaches 2",
            lambda results: results.rows.where(part="edge", lr=0.04).column("median"),
            each(high=STABLE),
        ),
        Claim(
            "sharpening",
            "At that step size it sharpens after its first fall: last third over the least of the first quarter.",
            "Cohen et al. 2021: progressive sharpening",
            lambda results: results.rows.where(part="edge", lr=0.04).column("rise"),
            each(low=1.0),
        ),
    ]


def _outliers(scale: Scale) -> list[Claim]:
    early, end = LOOKS[scale][1:]

    def column(name: str, step: int, normalised: bool) -> Callable[[Results], list[float]]:
        return lambda results: results.rows.where(part="spectra", step=step, normalised=normalised).column(name)

    def ratio(name: str, step: int) -> Callable[[Results], list[float]]:
        def measure(results: Results) -> list[float]:
            pairs = zip(column(name, step, False)(results), column(name, step, True)(results), strict=True)
            return [plain / normal for plain, normal in pairs]

        return measure

    stated = "Ghorbani et al. 2019"
    return [
        Claim(
            "residuals",
            "The ten top eigenvectors are known: the largest residual relative to the largest eigenvalue.",
            "premise",
            lambda results: results.rows.where(part="spectra").column("residual"),
            each(high=0.05),
        ),
        *(
            Claim(
                f"concentration-{word.replace(' ', '-')}",
                f"Without batch normalisation most of the gradient lies in the ten top eigenvectors {word} (step {step}): its share.",
                f"{stated}: gradient energy concentrates in the outliers' eigenspaces",
                column("share", step, False),
                each(low=0.5),
            )
            for word, step in (("early", early), ("at the end", end))
        ),
        *(
            Claim(
                f"less-with-normalisation-{word.replace(' ', '-')}",
                f"With batch normalisation less of it does {word} (step {step}): share without over share with.",
                f"{stated}: with batch normalisation almost absent",
                ratio("share", step),
                each(low=1.0),
            )
            for word, step in (("early", early), ("at the end", end))
        ),
        *(
            Claim(
                f"outliers-{word.replace(' ', '-')}",
                f"Outliers stand further apart without it {word} (step {step}): largest over thirtieth eigenvalue, without over with.",
                f"{stated}: outliers appear early in training without batch normalisation",
                ratio("outlier", step),
                each(low=1.0),
            )
            for word, step in (("early", early), ("at the end", end))
        ),
    ]


def _draw_edge(results: Results, scale: Scale) -> "Drawing":
    rates = RATES[scale]
    figure, axes = plots.new(2, len(rates), width=min(12.0, 3.0 * len(rates) + 0.6), height=4.6, sharex="col", sharey="row")
    for column, lr in enumerate(rates):
        table = results.curves.where(part="edge", lr=lr)
        for name, ax, color in (("sharpness", axes[0, column], plots.PALETTE[0]), ("loss", axes[1, column], plots.PALETTE[1])):
            x, ys = table.spread("time", name)
            plots.band(ax, x, ys, color=color, each=True)
        axes[0, column].axhline(2.0, color=plots.INK, linestyle=DASH, linewidth=1.0)
        axes[0, column].set_ylim(0, 3)
        axes[1, column].set_yscale("log")
        plots.label(axes[0, column], y="" if column else "step x lambda_max", title=f"step {lr:g}")
        plots.label(axes[1, column], x="time", y="" if column else "loss")
    return figure


def _draw_spectra(results: Results, scale: Scale) -> "Drawing":
    figure, axes = plots.new(2, 3, width=9.6, height=4.6, sharex=True, sharey=True)
    for line, normalised in enumerate((False, True)):
        table = results.rows.where(part="spectra", normalised=normalised)
        for column, step in enumerate(LOOKS[scale]):
            ax, row = axes[line, column], table.where(step=step)[0]
            x, density = results.array(f"density_{row['array']}", part="spectra", normalised=normalised).numpy()
            ax.fill_between(x, np.maximum(density, 1e-5), 1e-5, color=plots.PALETTE[line], alpha=0.35, linewidth=0)
            ax.plot(x, np.maximum(density, 1e-5), color=plots.PALETTE[line], linewidth=1.0)
            ax.set_yscale("log")
            ax.set_ylim(1e-4, 1e2)
            title = f"{'with' if normalised else 'without'}, {WHEN[column]}"
            plots.label(ax, x="eigenvalue / largest" if line else "", y="" if column else "density", title=title)
    return figure


def _draw_shares(results: Results, scale: Scale) -> "Drawing":
    figure, axes = plots.new(1, 2, width=8.8, height=3.3)
    for ax, name, text in zip(axes[0], ("share", "outlier"), ("share of the gradient", "largest / thirtieth eigenvalue"), strict=True):
        for normalised, word, color, marker in ((False, "without", plots.PALETTE[0], "o"), (True, "with", plots.PALETTE[1], "s")):
            table = results.rows.where(part="spectra", normalised=normalised)
            ys = np.array([table.where(step=step).column(name) for step in LOOKS[scale]]).T
            plots.points(ax, range(3), ys, label=f"{word} batch normalisation", color=color, marker=marker)
        ax.set_xticks(range(3), WHEN)
        plots.label(ax, y=text, legend=name == "share")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 1].set_yscale("log")
    return figure


STUDY = Sharpening()
