"""Stocks: two estimators of one gradient, one of which is k times as noisy (F5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.claims import Claim
from gradoscope.problems.stocks import best_stock, returns, start
from gradoscope.stacked import generator
from gradoscope.studies._stocks import KEY, landscape, watched
from gradoscope.studies._stocks_claims import claims, corrected_steps
from gradoscope.studies._stocks_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study
from gradoscope.theory.estimators import softmax_moments

__all__ = ["STUDY", "Stocks"]

BOTH = ("end-to-end", "decomposed")
SECONDS = 1.3e-6  # per step and stock, roughly


def _training(estimator: str, k: int, lr: float = 0.1, steps: int = 2500, *, eps: float = 1e-5, bias: bool = True) -> Setting:
    values: dict[str, Any] = {"part": "train", "estimator": estimator, "k": k, "lr": lr, "steps": steps, "eps": eps, "bias": bias}
    failing = estimator == "end-to-end" and k >= 500 and lr == 0.1 and eps == 1e-5 and bias
    values |= {"d": 1000, "batch": 100, "every": 100 if steps <= 2500 else 250, "surface": failing}
    return Setting(values, 5, 5 if k <= 100 else 1, cost=steps * (1e-4 + SECONDS * k))


class Stocks(Study):
    """The source's experiment, its mechanism, and the same with the step size chosen for each estimator."""

    name = "stocks"
    title = "Stocks: the noise of an end-to-end gradient"
    source = "Shalev-Shwartz, Shamir and Shammah 2017, extended version (arXiv 1703.07950), section 3.2 and figure 4"
    about = (
        "A portfolio N(x) = softmax(Wx + b) over k stocks is chosen for each of d states x of the market. In state x stock y(x) always "
        "rises, each other rises or falls with probability 1/2. One can learn from the return of the whole portfolio (end-to-end), or "
        "from the holding of the stock that one ought to have bought (decomposed). Both gradients have the same expectation; what "
        "differs is their noise.",
        "The theory is right, and nearly exact: over the returns, the second moment of the end-to-end estimator is the sum over all "
        "stocks of what the decomposed one has for one stock, k times as much where all holdings are alike.",
        "The experiment shows less than it seems to. At the source's step size of 0.1 the two are level for the first 500 steps. Then "
        "end-to-end training does not become slow, it stops: for most states the holdings have run into a few wrong stocks, the best "
        "stock's share p has become tiny, and every gradient is in proportion to p. What is gained in the end is the share of the "
        "states whose largest holding is right.",
        "Noise alone does not do that. The bias is shared by all states, and it is through the bias that the noise reaches them "
        "together. The gradient of a state's own logits is about 1/(batch k) = 1e-5, as large as Adam's epsilon, which slows them down; "
        "that of the bias is far larger, so that the bias runs at full speed and sends all states after the same few stocks. Take the bias "
        "away (one-hot states do not need it), or set epsilon to 1e-8, and the same end-to-end training at the same step size "
        "finds the best stock of every state. So does a step size of 0.02 with 6,000 steps.",
        "Decomposition has the better gradient at no cost, and is the safe way. That end-to-end training cannot close the gap, "
        "and that the gap grows with k for the estimator's sake, does not hold: the gap is one of optimizer settings, "
        "under which the noisier estimator breaks first.",
        "No minimum and no saddle is involved. The derivative of the expected loss by the best stock's logit is -p(1-p)/d, which is "
        "strictly negative at all finite weights: there is no critical point at all. From where the failing runs end, a straight line "
        "leads down to the optimum without a single rise.",
        "Adam is TensorFlow's, as in the source: epsilon is added to the uncorrected root of the second moment. Losses are exact "
        "expectations over all states and returns, not samples.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The source's own setting; the quick scale leaves out k = 2,000 and most step sizes."""
        everywhere = (10, 100, 500, 1000, 2000)
        found = [Setting({"part": "moments", "k": k, "d": 1000}, 5, cost=0.1) for k in everywhere]
        found.append(Setting({"part": "expectation", "k": 10, "d": 20}, 5, cost=0.2))
        found.append(Setting({"part": "expectation", "k": 1000, "d": 20}, 5, cost=0.2))
        for k in everywhere if scale == "paper" else (10, 1000):
            found += [_training(estimator, k) for estimator in BOTH]
        for k in (1000, 2000) if scale == "paper" else (1000,):
            steps = corrected_steps(scale)
            found.append(_training("end-to-end", k, steps=steps, bias=False))
            found += [_training(estimator, k, steps=steps, eps=1e-8) for estimator in (BOTH if k == 1000 else BOTH[:1])]
            found.append(_training("end-to-end", k, 0.02, 6000))
        if scale == "paper":
            found += [_training(estimator, 1000, lr) for lr in (0.01, 0.02, 0.03, 0.3) for estimator in BOTH]
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting: the estimators' moments, their expectations, or a training."""
        part = {"moments": _moments, "expectation": _expectation, "train": _train}[values["part"]]
        return part(values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the source, with corrections."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Figure 4 of the extended version, and what it does not show."""
        return figures(scale)


def _moments(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Both estimators' moments at the start, exact over states and returns."""
    d, k = values["d"], values["k"]
    rows = []
    for seed in seeds:
        table = start(d, k, generator(seed, KEY, 2, k)).double()
        both = softmax_moments(table, best_stock(d, k, generator(seed, KEY, 1, k)))
        rows.append({"seed": seed, "variance_ratio": both.variance_ratio / k, "moment_ratio": both.second_moment_ratio / k})
    return Result(rows)


def _expectation(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""How far the mean of the end-to-end gradient over returns is from the decomposed gradient, by autograd in float64.

    Over all $2^{k-1}$ returns where that can be listed; else over antithetic pairs, whose mean is that of all.
    """
    d, k = values["d"], values["k"]
    rows = []
    for seed in seeds:
        weights = start(d, k, generator(seed, KEY, 2, k)).double().requires_grad_()
        bias = torch.zeros(k, dtype=torch.float64, requires_grad=True)
        best = best_stock(d, k, generator(seed, KEY, 1, k))

        def gradient(z: Tensor, weights: Tensor = weights, bias: Tensor = bias) -> Tensor:
            loss = -(torch.softmax(weights + bias, 1) * z).sum(1).mean()
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [weights, bias])])

        own = torch.nn.functional.one_hot(best, k).double()
        decomposed = gradient(own)
        total, count = torch.zeros_like(decomposed), 0
        for z in _all_returns(best, k) if k <= 12 else _pairs(best, k, seed):
            total, count = total + gradient(z), count + 1
        rows.append({"seed": seed, "difference": float((total / count - decomposed).norm() / decomposed.norm()), "returns": count})
    return Result(rows)


def _all_returns(best: Tensor, k: int) -> list[Tensor]:
    """Every vector of the k - 1 other returns, the same for all states; shapes (d, k)."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * (k - 1))
    column = torch.arange(k)[None]
    # the other stocks in order, with the best one taken out
    place = (column - (column > best[:, None]).long()).clamp(max=k - 2)
    return [torch.where(column == best[:, None], 1.0, row[place]) for row in signs]


def _pairs(best: Tensor, k: int, seed: int) -> list[Tensor]:
    """Ten random days, each with its opposite in all but the best stocks."""
    found: list[Tensor] = []
    random = generator(seed, KEY, 5)
    for _ in range(10):
        z = returns(best, k, random).double()
        found += [z, (-z).scatter(1, best[:, None], 1.0)]
    return found


def _train(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """A training of each seed, its looks, and for the source's end-to-end runs the surface at start and end."""
    stocks, looks, at, seconds = watched(values, seeds, context.tick)
    result = Result(timings={"ms_per_step_and_seed": 1e3 * seconds / values["steps"] / len(seeds)})
    for i, seed in enumerate(seeds):
        for step, look in zip(at, looks, strict=True):
            result.curves.append({"seed": seed, "step": step, **look[i]})
        row = {"seed": seed, **looks[-1][i]}
        for step in (500, 1000):
            if step in at:
                row[f"loss_{step}"] = looks[at.index(step)][i]["loss"]
        if values["surface"]:
            weights = stocks.weights.detach().view(len(seeds), values["d"], -1)[i]
            found = landscape(weights, stocks.bias.detach()[i], stocks.best[i])
            first = landscape(
                start(values["d"], values["k"], generator(seed, KEY, 2, values["k"])), torch.zeros(values["k"]), stocks.best[i]
            )
            row |= found | {"gradient_at_start": first["gradient"]}
        result.rows.append(row)
    return result


STUDY = Stocks()
