"""What the lecture states about data, budgets and momentum; and how the study's claims read its results."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from gradoscope.claims import Claim, confidently, each, mean, share
from gradoscope.studies._sgd_data import BUDGETS, SIZES
from gradoscope.studies._sgd_nets import NETS, RATES
from gradoscope.study import Results, Table

__all__ = ["SLIDE", "best_rate", "column", "data_claims", "gains", "one", "part", "ratio", "within"]

SLIDE = "lecture 6, section 2"


def part(results: Results, name: str, **more: object) -> Table:
    """The rows of a part."""
    return results.rows.where(part=name, **more)


def column(name: str, what: str, **more: object) -> Callable[[Results], list[float]]:
    """One number per seed."""
    return lambda results: [float(v) for v in part(results, name, **more).column(what)]


def one(name: str, what: str) -> Callable[[Results], float]:
    """A number that has no seeds."""

    def measure(results: Results) -> float:
        value = part(results, name)[0][what]
        return math.nan if value is None else float(value)

    return measure


def ratio(name: str, what: str, above: Mapping[str, object], below: Mapping[str, object]) -> Callable[[Results], list[float]]:
    """One number of a part over another one, seed by seed."""
    return lambda r: [a / b for a, b in zip(part(r, name, **above).column(what), part(r, name, **below).column(what), strict=True)]


def within(row_above: str, row_below: str, name: str) -> Callable[[Results], list[float]]:
    """One column over another one, seed by seed."""
    return lambda r: [row[row_above] / row[row_below] for row in part(r, name)]


def best_rate(rows: Table, without: int | None) -> float:
    """The rate with the lowest mean log loss over all seeds but one; what is not finite counts as very bad."""
    found = {}
    for rate in RATES:
        losses = [row["loss"] for row in rows.where(rate=rate) if row["seed"] != without]
        found[rate] = float(np.mean([math.log(v) if math.isfinite(v) and v > 0 else 100.0 for v in losses])) if losses else math.inf
    best: float = min(found, key=lambda rate: found[rate])
    return best


def _loss(results: Results, net: str, method: str, seed: int) -> float:
    rows = part(results, "methods", net=net, method=method)
    return float(rows.where(seed=seed, rate=best_rate(rows, seed))[0]["loss"])


def gains(results: Results, net: str, method: str, than: str = "SGD") -> list[float]:
    """By how much the log of the final loss is lower than another method's, each at the rate that is best on the other seeds."""
    seeds = part(results, "methods", net=net, method=method).values("seed")
    return [math.log(_loss(results, net, than, s) / _loss(results, net, method, s)) for s in seeds]


def _pooled(method: str, than: str) -> Callable[[Results], list[float]]:
    return lambda r: [float(np.mean(v)) for v in zip(*(gains(r, net, method, than) for net in NETS), strict=True)]


def _data() -> list[Claim]:
    order = f"{SLIDE}, epochs: permutation typically works better in practice; no permutation, danger of unlearning"
    return [
        Claim(
            "shuffling",
            "After 60 epochs shuffled examples leave at most a tenth of the gap that draws with replacement leave.",
            order,
            column("orders", "ratio"),
            each(low=10),
        ),
        Claim(
            "fixed-order",
            "One fixed random order is worse than a new one each epoch.",
            order,
            within("gap_1", "gap_0", "orders"),
            each(low=1.0),
        ),
        Claim(
            "fixed-beats-replacement",
            "One fixed random order is better than draws with replacement.",
            order,
            within("gap_2", "gap_1", "orders"),
            each(low=1.0),
        ),
        Claim(
            "classes-swing",
            "Class after class, the loss swings at least five times as far within an epoch as when shuffled.",
            order,
            within("swing_sorted", "swing_shuffled", "classes"),
            each(low=5),
        ),
        Claim(
            "unlearning",
            "The class that came first has at least five times the loss at the epoch's end that it had right after its turn.",
            order,
            within("zero_end_sorted", "zero_after_sorted", "classes"),
            each(low=5),
        ),
        Claim(
            "no-unlearning-shuffled",
            "Shuffled, that class's loss at the end is within a factor of 1.5 of the one at the same step.",
            order,
            within("zero_end_shuffled", "zero_after_shuffled", "classes"),
            mean(1 / 1.5, 1.5),
        ),
        Claim(
            "surrogate-end",
            "On noisy labels the held-out negative log-likelihood ends at 1.5 times its minimum or more.",
            f"{SLIDE.replace('section 2', 'section 1')}: we should not overfit the training data",
            column("early", "loss_ratio"),
            mean(low=1.5),
        ),
        Claim(
            "surrogate-error",
            "The held-out error ends at least 0.05 above its minimum.",
            "the same",
            column("early", "error_rise"),
            mean(low=0.05),
        ),
        Claim(
            "surrogate-fits",
            "The noisy labels are fitted: training loss at most 0.05.",
            "the same",
            column("early", "train_end"),
            each(high=0.05),
        ),
        Claim(
            "stops-differ",
            "The epochs at which the likelihood and the error are best differ.",
            "loss function may only be a surrogate: we should not overfit the loss function",
            _apart,
            share(low=0.8, among=(1, math.inf)),
        ),
        Claim(
            "adagrad-regret",
            "AdaGrad's regret is at most sqrt 2 D sum_i |g_i| at every step of every run.",
            f"{SLIDE}, AdaGrad: regret bounds for convex objectives",
            column("adagrad", "ratio"),
            each(high=1.0),
        ),
        Claim(
            "adagrad-bound-smaller",
            "On sparse inputs that bound is smaller than the one of a single rate for all coordinates.",
            "Duchi, Hazan and Singer 2011",
            column("adagrad", "gain"),
            each(low=1.0),
            why="By Cauchy and Schwarz it can never be larger.",
        ),
    ]


def _apart(results: Results) -> list[float]:
    return [abs(row["loss_epoch"] - row["error_epoch"]) for row in part(results, "early")]


def _best(results: Results, budget: int) -> list[tuple[float, int]]:
    """The best excess of GD and the number of examples that gives it, by seed."""
    rows = part(results, "budget", method="GD", budget=budget)
    return [min((row["excess"], row["n"]) for row in group) for _, group in rows.groups("seed")]


def _budget() -> list[Claim]:
    slide = f"{SLIDE.replace('section 2', 'section 1')}, large scale learning: favour cheap over expensive (Bousquet and Bottou)"

    def grows(results: Results) -> list[float]:
        chosen = np.array([[n for _, n in _best(results, b)] for b in BUDGETS])
        return [float(v) for v in (np.diff(chosen, axis=0) >= 0).all(0) * chosen[-1] / chosen[0]]

    def all_data(results: Results) -> list[float]:
        rows = part(results, "budget", method="GD", budget=BUDGETS[-1], n=SIZES[-1]).column("excess")
        return [row / best for row, (best, _) in zip(rows, _best(results, BUDGETS[-1]), strict=True)]

    def one_pass(results: Results) -> list[float]:
        found = []
        for b in BUDGETS:
            rows = part(results, "budget", method="SGD, tail average", budget=b).column("excess")
            found.append([row / best for row, (best, _) in zip(rows, _best(results, b), strict=True)])
        return [float(v) for v in np.max(found, axis=0)]

    def last(results: Results) -> list[float]:
        table = part(results, "budget", budget=BUDGETS[-1])
        methods = (table.where(method=m).column("excess") for m in ("SGD, last iterate", "SGD, tail average"))
        return [a / b for a, b in zip(*methods, strict=True)]

    return [
        Claim(
            "budget-grows",
            "The number of examples that is best for GD never falls with the budget, and grows at least fourfold.",
            slide,
            grows,
            each(low=4),
        ),
        Claim(
            "budget-all-data",
            "GD on all 20,000 examples is at least ten times worse than on the best part of them.",
            slide,
            all_data,
            each(low=10),
        ),
        Claim(
            "budget-sgd",
            "One pass of SGD with a tail average beats GD on the best number of examples, at every budget.",
            slide,
            one_pass,
            each(high=1.0),
        ),
        Claim(
            "budget-average",
            "At a constant step that is owed to the average: the last iterate is ten times worse at least.",
            slide,
            last,
            each(low=10),
        ),
    ]


def _methods() -> list[Claim]:
    momentum, nesterov = f"{SLIDE}: accumulate the gradient over several updates", f"{SLIDE}, Nesterov momentum: better in practice"
    saturating = next(net for net in NETS if net.startswith("sigmoid"))
    why = (
        "With the bias corrected its first steps are whole ones, ten times as long as those of the other reading, and it looks ahead by as "
        "much: it stands no larger rates than SGD, and this network wants large ones."
    )

    def gain(net: str, method: str, than: str) -> Callable[[Results], list[float]]:
        return lambda r: gains(r, net, method, than)

    found = []
    for net in NETS:
        says = f"Nesterov's rule in Sutskever's reading ends below SGD on {net}: the log of the ratio of losses is above zero."
        found.append(Claim(f"nesterov-a-{net.split()[0].lower()}", says, nesterov, gain(net, "NesterovA", "SGD"), confidently(low=0.0)))
    says = "It ends below plain momentum too, on the mean of the three networks."
    found.append(Claim("nesterov-a-momentum", says, nesterov, _pooled("NesterovA", "Momentum"), confidently(low=0.0)))
    says = "Momentum ends below SGD on the mean of the three networks."
    found.append(Claim("momentum", says, momentum, _pooled("Momentum", "SGD"), mean(low=0.0), why="The gain is small: see its interval."))
    says = "Nesterov's rule in the literal reading ends below SGD on the mean of the three networks."
    found.append(Claim("nesterov-b", says, nesterov, _pooled("NesterovB", "SGD"), mean(low=0.0)))
    for than, word in (("SGD", "sgd"), ("Momentum", "momentum")):
        says = f"In the literal reading it ends below {than} on {saturating}."
        measure = gain(saturating, "NesterovB", than)
        found.append(Claim(f"nesterov-b-sigmoid-{word}", says, nesterov, measure, confidently(low=0.0), expected_to_fail=True, why=why))
    return found


def data_claims() -> list[Claim]:
    """The claims of this file."""
    return [*_data(), *_budget(), *_methods()]
