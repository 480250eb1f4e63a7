"""Uphill steps: whether curvature or noise made them, and whether that can be told from a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gradoscope.claims import Claim, each
from gradoscope.report import plots
from gradoscope.studies._uphill import PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Uphill"]

SMALL, LARGE = 0.02, 0.19  # step sizes; the largest eigenvalue is 10, so that the edge of stability is at 0.2
SLIDES = "Goodfellow 2015 (Montreal slides)"
EVIDENCE = f"{SLIDES}, 'Conclusion': conditioning -> uphill steps + changing gHg, noise -> uphill steps + varying g"
NETWORKS = ("interpolation:relu", "interpolation:mp-dbm")
MYTH = f"{SLIDES}, 'The old myth of SGD convergence' and 'The new myth': SGD usually moves downhill"


class Uphill(Study):
    """The three terms of a step's expected change on quadratics, and the estimators that a run offers for them."""

    name: ClassVar[str] = "uphill"
    title: ClassVar[str] = "Uphill steps: curvature's doing or noise's"
    source: ClassVar[str] = f"{SLIDES}; McCandlish, Kaplan, Amodei and the OpenAI Dota Team 2018"
    about: ClassVar[tuple[str, ...]] = (
        "The slides name uphill steps as evidence of bad conditioning and of noise. To tell the two apart, the expected change of the loss "
        "in one step of SGD is split: -D, what the mean gradient gains; C, what the curvature along the mean gradient costs; and M, what "
        "the curvature costs along the noise. On quadratics the split is exact, and steps do on average what it says.",
        "Far from the minimum D is all. Where SGD has come to rest in its ball, D = C + M whatever the step size, so that the sum tells "
        "nothing of the cause; the parts do. At a step size of 0.02 nearly all of it is noise; at 0.19, just below 2 over the largest "
        "eigenvalue, most of it is curvature. As many steps go uphill there as downhill: that SGD usually moves downhill "
        "holds on its way, and not in the ball. On the loss of its own batch nearly every step goes downhill even there: "
        "uphill steps have to be counted on examples that did not make the step.",
        "All three terms can be estimated without bias from the gradients of some batches, and so can signal and noise. Where there "
        "is no signal its estimate is negative about half of the time, and a noise scale from it would be a number without a "
        "meaning: then none is given. The two batch sizes of McCandlish et al. are the same estimator. Parts of one finite data set that "
        "are drawn without replacement sum to zero at its minimum, where the estimate is negative always.",
        "That SGD may not encounter critical points is the slides' own picture, and depends on the model: a small classifier that fits all "
        "its examples does approach one, and its gradient falls by a factor of ten or more. A multi-prediction deep Boltzmann machine "
        "(and, at paper scale, an LSTM) goes down all along, and its gradient on a fixed set of examples is as large as before.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The same problems at both scales; more chains and repeats at the paper's."""
        quick = scale == "quick"
        base = {"d": 10, "condition": 10.0}
        common = {"part": "chains", **base, "start": 5.0, "steps": 400, "runs": 500 if quick else 5000}
        found = [Setting({**common, "eta": eta}, 5 if quick else 10, 5, 0.1 if quick else 1.0) for eta in (SMALL, LARGE)]
        repeats, flips = (200, 199) if quick else (1000, 999)
        values = {"part": "estimates", **base, "k": 32, "eta": 0.1, "signal": 0.2, "repeats": repeats, "flips": flips}
        found.append(Setting(values, 5 if quick else 10, 5, 0.4 if quick else 4.0))
        found.append(Setting({"part": "null", "d": 10, "k": 32, "repeats": repeats, "flips": flips}, 5 if quick else 10, 5, 0.2))
        networks = NETWORKS if quick else (*NETWORKS, "interpolation:lstm")
        for name in networks:
            values = {"part": "norms", "problem": name, "steps": 0, "looks": 25, "rows": 512}
            found.append(Setting(values, 5, 1, 25.0 if name == "interpolation:lstm" else 2.5))
        return [*found, Setting({"part": "parts", "d": 10, "k": 32, "rows": 512, "flips": flips}, 5 if quick else 10, 5, 0.01)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One part."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The split, its balance at rest, and what the estimators can tell."""
        return [*_split(), *_estimators(), *_norms(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """The three terms along a run, at two step sizes."""
        return [
            Figure(
                "terms",
                "The expected change of the loss in one step, split: D (gained by the mean gradient, drawn downwards), C (cost of "
                "curvature along it) and M (cost of curvature along the noise), from afar until SGD is at rest; one seed, mean over "
                "chains. Black: what the steps did. At rest the parts cancel at both step sizes, but for different reasons.",
                _draw_terms,
            ),
            Figure(
                "uphill",
                "The share of steps that go uphill, on the whole loss; line: median, shade: all seeds. Far away hardly any do, at rest "
                "about half.",
                _draw_uphill,
            ),
            Figure(
                "norms",
                "The source's picture: the mean norm of the batches' gradients since the last look (running), the norm of the gradient on "
                "512 examples (snapshot), and the loss, along trainings; line: median, shade: all seeds. The classifier comes near a "
                "critical point; the generative model's loss falls while its gradient does not.",
                _draw_norms,
            ),
        ]


def _column(name: str, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: [float(v) for v in results.rows.where(**where).column(name)]


def _split() -> list[Claim]:
    small, large = ({"part": "chains", "eta": eta} for eta in (SMALL, LARGE))

    def to_theory(results: Results) -> list[float]:
        return [row["share"] / row["theory"] for row in results.rows.where(part="chains")]

    return [
        Claim(
            "split",
            "On a quadratic a step changes the loss by -D + C + M on average: the largest distance along a run in standard errors.",
            "theorem",
            _column("z", part="chains"),
            each(high=4.5),
            why="Twenty looks a run: the largest of so many normal numbers is above 4.5 once in seven thousand runs.",
        ),
        Claim(
            "downhill-from-afar", "From afar D is at least five times C + M at the small step.", MYTH, _column("early", **small), each(5.0)
        ),
        Claim(
            "balance",
            "At rest D = C + M at either step size: their ratio.",
            "theorem: the mean loss is stationary",
            _column("balance", part="chains"),
            each(0.97, 1.03),
        ),
        Claim(
            "share-of-theory",
            "The share of C in C + M at rest is the one in closed form: their ratio.",
            "theorem",
            to_theory,
            each(0.95, 1.05),
        ),
        Claim("noise-made", "At the small step it is noise: C is at most a tenth.", EVIDENCE, _column("share", **small), each(high=0.1)),
        Claim(
            "curvature-made",
            "At the large step it is curvature: C is at least seven tenths.",
            EVIDENCE,
            _column("share", **large),
            each(low=0.7),
        ),
        Claim(
            "downhill-on-the-way",
            "On its way SGD moves downhill: share of uphill steps.",
            MYTH,
            _column("uphill_early", **small),
            each(high=0.05),
        ),
        Claim(
            "downhill-at-rest",
            "At rest SGD still usually moves downhill: at most a quarter of the steps go uphill.",
            MYTH,
            _column("uphill_late", **small),
            each(high=0.25),
            expected_to_fail=True,
            why="The loss is stationary there: it must rise as much as it falls.",
        ),
        Claim(
            "own-batch-misleads",
            "On the loss of the batch that made the step at most a twentieth of them go uphill even at rest.",
            "spec: own batch and independent examples are never to be mixed",
            _column("own_late", **small),
            each(high=0.05),
        ),
    ]


def _estimators() -> list[Claim]:
    names = {"signal": "|G|^2", "trace": "the trace of the noise", "D": "D", "C": "C", "M": "M"}
    stated = "McCandlish et al. 2018, appendix A"
    found = [
        Claim(
            f"unbiased-{name.lower()}",
            f"The estimate of {text} from 32 batches has no bias: its mean's distance from the truth in standard errors.",
            stated if name in ("signal", "trace") else "U-statistics over pairs of different batches",
            _column(f"z_{name}", part="estimates"),
            each(-4.0, 4.0),
        )
        for name, text in names.items()
    ]
    return [
        *found,
        Claim(
            "two-batch-sizes",
            "The form with two batch sizes is the same estimator: the largest difference.",
            stated,
            _column("two_batches", part="estimates"),
            each(high=1e-12),
        ),
        Claim(
            "test-level",
            "Without signal the sign-flip test at 5% says so in about 5% of the cases.",
            "exact where noise is symmetric",
            _column("rejected", part="null"),
            each(0.0, 0.115),
            why="Four standard deviations above 0.05 with 200 repeats.",
        ),
        Claim(
            "negative-signal",
            "Without signal U is negative in about half of the cases.",
            "an unbiased estimate of zero",
            _column("negative", part="null"),
            each(0.4, 0.75),
            why="Its law is skewed: the median lies below zero.",
        ),
        Claim(
            "no-noise-scale",
            "Then mostly no noise scale is named.",
            "one-sided 95% bound",
            _column("unbounded", part="null"),
            each(low=0.85),
        ),
        Claim(
            "parts-sum-to-zero",
            "At the minimum of a finite data set U of its K parts is -1/K of the trace: K times their ratio.",
            "theory: the parts sum to zero",
            _column("of_trace", part="parts"),
            each(-1 - 1e-6, -1 + 1e-6),
        ),
    ]


def _norms(scale: Scale) -> list[Claim]:
    stated = f"{SLIDES}, 'SGD may not encounter critical points'"

    def of(name: str, problem: str) -> Callable[[Results], list[float]]:
        return _column(name, part="norms", problem=f"interpolation:{problem}")

    texts = {"mp-dbm": "the multi-prediction Boltzmann machine"} | ({} if scale == "quick" else {"lstm": "the LSTM"})
    found = []
    for problem, text in texts.items():
        found += [
            Claim(
                f"falls-{problem}",
                f"The loss of {text} falls all along: Kendall's tau of its block means with the step.",
                stated,
                of("trend", problem),
                each(high=-0.5),
            ),
            Claim(
                f"no-critical-point-{problem}",
                "And yet the gradient at its parameters hardly falls: the last snapshot is at least half the first.",
                stated,
                of("kept", problem),
                each(low=0.5),
            ),
        ]
    return [
        *found,
        Claim(
            "critical-point-classifier",
            "A small ReLU classifier that fits all its examples does approach one: its snapshot falls to a tenth of its largest or less.",
            f"{stated}, as a statement about any network",
            of("of_largest", "relu"),
            each(high=0.1),
            why="The statement depends on the model: where every example can be fitted, all gradients vanish together.",
        ),
    ]


def _draw_norms(results: Results) -> "Drawing":
    problems = results.rows.where(part="norms").values("problem")
    figure, axes = plots.new(1, len(problems), width=3.8 * len(problems) + 0.5, height=3.4)
    for ax, problem in zip(axes[0], problems, strict=True):
        curves = results.curves.where(part="norms", problem=problem)
        for column, text, color in zip(("running", "snapshot", "loss"), NAMES, plots.PALETTE, strict=False):
            x, ys = curves.spread("step", column)
            plots.band(ax, x[1:], ys[:, 1:], label=text, color=color)
        ax.set_yscale("log")
        plots.label(ax, x="step", title=problem.partition(":")[2], legend=problem == problems[0])
    return figure


NAMES = ("gradient norm, running", "gradient norm, snapshot", "loss")


def _draw_terms(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.4, height=3.6)
    for ax, eta in zip(axes[0], (SMALL, LARGE), strict=True):
        table = results.curves.where(part="chains", eta=eta, seed=0)
        x = [step + 1 for step in table.column("step")]
        d, c, m, change = (table.column(name) for name in ("D", "C", "M", "change"))
        ax.fill_between(x, 0, [-v for v in d], color=plots.PALETTE[0], alpha=0.35, linewidth=0, label="-D, mean gradient")
        ax.fill_between(x, 0, c, color=plots.PALETTE[1], alpha=0.5, linewidth=0, label="C, curvature")
        ax.fill_between(x, c, [a + b for a, b in zip(c, m, strict=True)], color=plots.PALETTE[4], alpha=0.5, linewidth=0, label="M, noise")
        ax.plot(x, change, color=plots.INK, linewidth=1.2, label="what steps did")
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=0.01)
        plots.label(
            ax, x="step", y="change of the loss in one step" if eta == SMALL else "", title=f"step size {eta:g}", legend=eta == SMALL
        )
    return figure


def _draw_uphill(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.2, height=3.4)
    for eta, color in zip((SMALL, LARGE), plots.PALETTE, strict=False):
        x, ys = results.curves.where(part="chains", eta=eta).spread("step", "uphill")
        plots.band(axes[0, 0], x + 1, ys, label=f"step size {eta:g}", color=color)
    axes[0, 0].set_xscale("log")
    plots.reference(axes[0, 0], 0.5, "")
    plots.label(axes[0, 0], x="step", y="share of steps uphill", legend=True)
    return figure


STUDY = Uphill()
