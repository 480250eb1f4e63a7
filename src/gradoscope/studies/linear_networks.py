"""Linear networks: a product of weights, the saddle of two factors, modes that are learnt in turn, and where all minima lie."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gradoscope.claims import Claim
from gradoscope.studies import _linear_networks_claims, _linear_networks_figures
from gradoscope.studies._linear_networks import PARTS
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "LinearNetworks"]

SIGMAS, TANH, SATURATED = [3.0, 2.0, 1.2, 0.6], [0.75, 0.5, 0.3], [7.5, 5.0, 3.0]
CRITICAL = [3.0, 2.0, 1.0]


class LinearNetworks(Study):
    """Eight exact or nearly exact experiments on products of weights and of matrices."""

    name: ClassVar[str] = "linear_networks"
    title: ClassVar[str] = "Linear networks: saddles, plateaus and modes in closed form"
    source: ClassVar[str] = (
        "Goodfellow 2015, Montreal deep learning summer school; Perraudin and Hofmann 2018, Deep Learning lecture 6 (ETH), least squares; "
        "Saxe, McClelland and Ganguli 2014; Baldi and Hornik 1989"
    )
    about: ClassVar[tuple[str, ...]] = (
        "A product of five weights has a derivative of the fourth power: it vanishes where weights are small, explodes where they are "
        "large, and a step that every weight takes for itself does something else to the product. Taylor's first order misses it "
        "altogether, and only the fifth is exact, as the slides say.",
        "Two factors a and b with the loss (sigma - ab)^2 are the smallest landscape with a saddle. The origin is the only one; the axis "
        "a = -b leads into it, everything else flows to the hyperbola ab = sigma along a^2 - b^2 = const, and u = ab obeys an equation of "
        "its own. The lecture's loss has no 1/2: times are half of those in Saxe's form, and u grows as e^(4 sigma t).",
        "A two-layer linear network is one such pair for each singular value of the input-output correlation, once its modes are "
        "decoupled: strong modes are learnt first, each along the same curve. From a random start modes compete until they are; how much, "
        "depends on the size of the start, and at a variance of 0.01 even the order may change. A tanh network keeps order and times as "
        "long as its units do not saturate.",
        "The lecture's gradient in the transformed coordinates misses a factor of 1/2 on the right: half the gradient by U'Q is U' times "
        "half the gradient by Q.",
        "Every set of modes is a critical point, only the strongest ones are a minimum, and it is global. That all the minima form a "
        "connected manifold, as the slides say, is true where the hidden layer is wider than the rank: an explicit path is computed "
        "for random pairs. Where it is as wide as the rank there are two parts, told apart by the sign of a determinant, and every path "
        "between them crosses a loss of the smallest singular value squared: for two factors, the two branches of a hyperbola.",
        "Depth multiplies the time to learn from a fixed small strength, and delays by a bounded factor only from a strength of order "
        "one. Times are those of gradient flow in the lecture's convention; steps are in units of the largest stable step.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The same sizes at both scales, as they take seconds; ten seeds at the paper's."""
        seeds, rows = 5 if scale == "quick" else 10, 64
        found = [Setting({"part": "taylor"}, 0, 1, 0.1)]
        found += [
            Setting({"part": "factor", "sigma": 1.0, "lr": 1e-4, "steps": 40_000, "every": 400}, 6 if scale == "quick" else 10, 10, 0.4)
        ]
        found += [Setting({"part": "single", "sigmas": SIGMAS, "rows": rows, "lr": 0.05, "steps": 60}, seeds, 10, 0.02)]
        found += [
            Setting({"part": "modes", "sigmas": SIGMAS, "rows": rows, "lr": lr, "u0": 1e-3, "time": 4.0}, seeds, 5, 2e-4 / lr)
            for lr in (1e-2, 3e-3, 1e-3, 3e-4)
        ]
        common = {"part": "small", "rows": rows, "width": 8}
        found += [
            Setting({**common, "sigmas": SIGMAS, "lr": 1e-3, "variance": variance, "steps": 9000, "tanh": False}, seeds, 5, 0.5)
            for variance in (1e-6, 1e-4, 1e-2)
        ]
        found += [
            Setting({**common, "sigmas": sigmas, "lr": lr, "variance": 1e-4, "steps": 1600, "tanh": True}, seeds, 5, 0.2)
            for sigmas, lr in ((TANH, 0.01), (SATURATED, 0.001))
        ]
        found += [Setting({"part": "critical", "sigmas": CRITICAL, "width": 2}, 0, 1, 0.1)]
        found += [Setting({"part": "minima", "sigmas": CRITICAL, "width": width, "points": 25}, 10, 10, 0.03) for width in (3, 4, 6)]
        return [*found, Setting({"part": "depth", "sigma": 1.0}, 0, 1, 0.3)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One of the experiments."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The sources' statements, with corrections where they need some."""
        return _linear_networks_claims.claims()

    def figures(self, scale: Scale) -> list[Figure]:
        """Taylor's orders, the phase portrait, modes, competition, critical points, paths between minima, depth."""
        return _linear_networks_figures.figures()


STUDY = LinearNetworks()
