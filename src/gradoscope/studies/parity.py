"""F1, parities: small ones are learnt, large ones are not, and neither minima nor saddles nor the network are to blame."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.studies import _parity_claims as claims
from gradoscope.studies import _parity_exact as exact
from gradoscope.studies import _parity_figures as figures
from gradoscope.studies import _parity_training as training
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "Parity"]

COST = {5: 2.0e-5, 10: 3.5e-5, 15: 5.5e-5, 20: 8e-5, 30: 1.3e-4}  # seconds per step and seed at one layer of width 10 d


def _trained(part: str, d: int, steps: int, lr: float, *, seeds: int = 5, inputs: str = "signs", size: int = 0, **shape: int) -> Setting:
    values: dict[str, Any] = {"part": part, "d": d, "steps": steps, "lr": lr, "inputs": inputs, "size": size, "width": 10, "depth": 1}
    values |= shape
    width, depth = values["width"] / 10, values["depth"]
    dear = COST[d] * (width + (depth - 1) * width**2 * d / 5)
    look = 0.4 * width * depth**2 if d >= training.CHANCE_D and size == 0 else 0.05
    return Setting(values, seeds=seeds, block=seeds, cost=steps * dear + look)


class Parity(Study):
    """Figure 1 and everything around it."""

    name = "parity"
    title = "Parities: a function the network can express and no gradient can find"
    source = "Shalev-Shwartz, Shamir and Shammah 2017, Failures of Gradient-Based Deep Learning, section 2.1, figure 1, lemma 3"
    about = (
        "The label of a vector of d random bits is the parity of a hidden subset S of them: +1 if an even number of the bits in S is"
        " set, -1 otherwise. One layer of 10 d ReLU units can express every such function. It is trained by plain gradient descent on"
        " the hinge loss with 128 fresh examples at each step, so that it cannot overfit. Does it find the subset?",
        "For d = 5 and 10 it does, for d = 30 it does not, as the source says. The figure leaves two things out. First, the step size"
        " of 0.01 is ten to thirty times too small: at d = 20, where some runs succeed and others stay at chance, a step of 0.3 or 1"
        " succeeds with nearly every subset. Only at d = 30 does no step size help. Second, the number of bits in the subset matters as"
        " much as d: of 30 bits, a few are found, and eight are not. The size of the subset is therefore a column of every table.",
        "What keeps the loss at 1 is neither a bad minimum nor a saddle. From the end of each failing run there is a path, made of the"
        " weights of that very network, along which the loss does not rise and at whose end it is 0. The most negative curvature that"
        " some examples show is mostly gone on others, and a step along it leads nowhere below 1. The landscape is flat, and the gradient"
        " is nearly the same whichever subset is hidden: its variance over all subsets is about 2^-30 of its size, for wider and deeper"
        " networks too.",
        "Lemma 3 builds a network that computes a parity. As printed it answers wrongly at every point that has no bit of S set, which"
        " are 2^(d-|S|) of the 2^d; one more group of three units mends it. The text has bits of 0 and 1, the authors' code has signs of"
        " -1 and +1: both are run.",
        "The full parity, known in advance, is learnt by an LSTM that reads words of all lengths up to d bits; from words of d bits"
        " alone the same LSTM stays at chance. And the hidden subset is easy to find without gradients: elimination over GF(2) needs"
        " about d + 10 examples. Search without gradients and without algebra is no remedy: all wrong subsets score the same 1/2, so"
        " that a genetic algorithm is no better than drawing subsets at random, and given examples in place of exact scores it follows"
        " their noise and gets stuck. On the cosine in the plane, where a good region shows from nearby, Bayesian optimisation does well.",
        "A statistical-query oracle answers with an expectation, to a tolerance: it may give the mean over all targets wherever that is"
        " near enough. Gradient descent from its answers takes the same path for every target until one of the answers has to differ;"
        " the difference shrinks like 2^(-d/2), so that for a fixed tolerance there is a d from which on nothing at all is learnt.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Figure 1, sweeps of step size, subset size, shape and coding, and the parts without training."""
        return _quick() if scale == "quick" else _paper()

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One part of the study."""
        parts = {
            "lemma": exact.run_lemma,
            "elimination": exact.run_elimination,
            "search": exact.run_search,
            "oracle": exact.run_oracle,
            "cosine": exact.run_cosine,
            "reader": training.train_reader,
        }
        return parts.get(values["part"], training.train)(values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """See `_parity_claims`."""
        return claims.claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """See `_parity_figures`."""
        return figures.figures(scale)


def _quick() -> list[Setting]:
    curve = [(5, 1500, 0.1), (10, 6000, 0.1), (30, 2000, 0.1)]
    settings = [_trained("curve", d, steps, lr, seeds=10) for d, steps, lr in curve]
    settings += [_trained("rate", 15, 4000, lr) for lr in (0.01, 0.1, 0.3)]
    settings += [_trained("sparse", 30, 2500, 0.1, size=size) for size in (2, 3, 8)]
    settings += [_trained("shape", 30, steps, 0.01, width=w, depth=k) for w, k, steps in ((40, 1, 300), (10, 2, 150))]
    settings += [_trained("coding", d, 2500, 0.1, inputs="bits") for d in (5,)]
    settings += [_reader(20, 500, True), _reader(20, 200, False)]
    oracle = ((4, 0.0, 200), (4, 0.3, 40), (6, 0.3, 60), (8, 0.3, 60))
    settings += _exact(most=8, searches=50, weights={10: 1200, 30: 300}, oracle=oracle)
    return settings


def _paper() -> list[Setting]:
    settings = [_trained("curve", d, 50_000, 0.01, seeds=20 if d == 5 else 10) for d in (5, 10, 15, 20, 30)]
    settings += [_trained("rate", d, 30_000, lr) for d in (15, 20, 30) for lr in (0.03, 0.1, 0.3, 1.0)]
    settings += [_trained("sparse", 30, 20_000, lr, size=size) for lr in (0.01, 0.1) for size in (2, 3, 4, 6, 8)]
    shapes = ((40, 1, 30_000), (160, 1, 3_000), (10, 2, 10_000), (10, 4, 4_000))
    settings += [_trained("shape", 30, steps, 0.01, width=w, depth=k) for w, k, steps in shapes]
    settings += [_trained("coding", d, 50_000, 0.01, inputs="bits") for d in (5, 10, 20, 30)]
    settings += [_reader(30, 2000, True), _reader(30, 2000, False)]
    oracle = tuple((d, t, 400 if d <= 6 else 60) for d in (4, 6, 8, 10) for t in (0.0, 0.03, 0.1, 0.3))
    settings += _exact(most=10, searches=200, weights={10: 20_000, 30: 3000}, oracle=oracle)
    return settings


def _reader(d: int, steps: int, mixed: bool) -> Setting:
    values = {"part": "reader", "d": d, "steps": steps, "lr": 0.01, "hidden": 16, "mixed": mixed}
    return Setting(values, seeds=5, block=5, cost=steps * (2.2e-3 if mixed else 4.4e-3))


def _exact(*, most: int, searches: int, weights: Mapping[int, int], oracle: Sequence[tuple[int, float, int]]) -> list[Setting]:
    settings = [Setting({"part": "lemma", "d": d}, seeds=0, cost=0.1) for d in range(4, most + 1, 2)]
    settings += [Setting({"part": "elimination", "d": d, "extra": 10}, seeds=100, block=100, cost=1e-3) for d in (10, 30, 100)]
    for method in ("exhaustive", "random", "genetic", "genetic, examples", "genetic, bits right"):
        values: dict[str, Any] = {"part": "search", "d": 10, "budget": 20_000, "method": method}
        seeds = searches if "examples" in method else 2 * searches
        settings.append(Setting(values, seeds=seeds, block=seeds, cost=0.03 if "examples" in method else 1e-3))
    for d, budget in weights.items():
        for method in ("climbing", "gradient"):
            values = {"part": "search", "d": d, "budget": budget, "method": method, "lr": 0.3}
            settings.append(Setting(values, seeds=5, block=5, cost=budget * (2e-4 if d == 10 else 1.2e-3)))
    for d, tolerance, steps in oracle:
        values = {"part": "oracle", "d": d, "tolerance": tolerance, "mask_tolerance": 0.25, "lr": 0.3, "steps": steps}
        settings.append(Setting(values, seeds=5, block=5, cost=0.05 + steps * 2e-3 * 2 ** (d / 2 - 2)))
    settings.append(Setting({"part": "cosine", "centre": 2.0, "bound": 8.0, "budget": 60}, seeds=10, block=10, cost=0.3))
    return settings


STUDY = Parity()
