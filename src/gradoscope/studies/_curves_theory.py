"""What the study of curves computes without a training to follow: spectra, theorem 3, estimates of a whitening, the landscape."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems._curves import draw_breakpoints, windows
from gradoscope.stacked import generator, numpy_generator
from gradoscope.studies._curves_train import KEY, OPTIMUM, Curves, slopes_of
from gradoscope.theory import curves as theory
from gradoscope.theory.whitening import whitening

__all__ = ["estimates", "landscape", "monte_carlo", "spectra", "theorem", "whole_map"]

Row = dict[str, Any]
DENSE = 200  # points up to which the Jacobi-scaled matrix of the linear problem is computed: float64 resolves its condition number
SCALED = (0.5, 0.99, 1.0, 1.5, 1.99, 2.01)
REACH = (0.01, 0.03, 0.1, 0.3, 1.0)  # lengths of steps along a direction of negative curvature


def spectra(sizes: tuple[int, ...]) -> list[Row]:
    """Condition numbers per size and problem: plain, over their power of n, Jacobi-scaled, whitened; and the smallest eigenvalue."""
    rows: list[Row] = []
    for n in sizes:
        plain = theory.integrator_condition(n)
        w = theory.integrator(n)
        scaled = theory.jacobi_condition(w @ w.T) if n <= DENSE else math.nan
        # The Hessian of the half squared error is lambda WW', lambda = 1/n for three breakpoints by the paper's law.
        smallest = float(np.linalg.svd(w, compute_uv=False)[-1] ** 2) / n if n <= DENSE else math.nan
        rows.append({"problem": "linear", "n": n, "condition": plain, "ratio": plain / n**4, "jacobi": scaled, "smallest": smallest})
        for law in ("paper", "code"):
            c = theory.filter_moment(n, law)
            plain = theory.filter_condition(n, law)
            t = whitening(torch.from_numpy(c), scale="unit").matrix.numpy()
            values = np.linalg.eigvalsh(2 * c)
            rows.append(
                {
                    "problem": f"filter, {law} law",
                    "n": n,
                    "condition": plain,
                    "ratio": plain / n**3,
                    "jacobi": theory.jacobi_condition(c),
                    "whitened": theory.spectral_condition(t @ c @ t),
                    "smallest": float(values[0]),
                    "descent": theory.descent_steps(2 * c, -OPTIMUM, tolerance=0.01, rate=1 / values[-1]) if n <= DENSE else math.nan,
                }
            )
    return rows


def theorem(n: int, small: int, steps: int) -> tuple[list[Row], list[Row]]:
    """Theorem 3: the closed form against literal steps, its two thresholds, and its lower bound.

    Args:
        n: points of the closed form; its horizon is $\\sigma_{max}^2/(2\\sigma_{min}^2)$ steps.
        small: points of the literal recursion, which is run to its end.
        steps: of the literal recursion.

    Returns:
        (one row per step size and convention of the loss, distances against t)
    """
    rows, lines = [], []
    horizon = int(theory.integrator_condition(n) / 2) - 1
    unit = theory.second_difference(small)
    start = float(np.linalg.norm(unit, 2))
    for loss in ("half", "plain"):
        for scaled in SCALED if loss == "half" else (0.99, 1.01):
            end = theory.recursion(small, steps, scaled, loss)
            closed = theory.expected_iterate(small, steps, scaled, loss)
            rows.append(
                {
                    "loss": loss,
                    "scaled": scaled,
                    "contraction": theory.contraction(n, scaled, loss),
                    "at_horizon": min(theory.distance(n, horizon, scaled, loss), 1e9),
                    "literal": float(np.linalg.norm(end - unit, 2)) / start,
                    "difference": float(np.linalg.norm(end - closed, 2) / np.linalg.norm(closed, 2)),
                }
            )
            for t in np.unique(np.geomspace(1, 20 * horizon, 80).round()):
                far = theory.distance(n, int(t), scaled, loss)
                lines.append({"loss": loss, "scaled": scaled, "t": float(t), "distance": min(far, 1e9), "horizon": horizon})
    return rows, lines


def monte_carlo(seed: int, *, n: int, runs: int, batch: int, steps: int, scaled: float) -> list[Row]:
    r"""Real runs of SGD against lemma 2: the mean of U over independent runs beside $E\,U_t$, entry by entry.

    U enters as V = U W, whose step is $V\leftarrow V-\eta(V-I)\hat P\,W^\top W$ with $\hat P$ the batch's mean of $pp^\top$.

    Returns:
        One row per time: the norm of E U_t and of U, the relative error of the mean, and the largest |z| of its entries.
    """
    random = numpy_generator(seed, KEY, 5)
    w, unit = theory.integrator(n), np.eye(n)
    products = w.T @ w
    k = 3
    rate = scaled / (k / (3 * n) * np.linalg.eigvalsh(products)[-1])
    chosen = np.array([[i in s for i in range(n)] for s in combinations(range(n), k)], dtype=float)
    v, rows = np.zeros((runs, n, n)), []
    looks = {1, steps // 100, steps // 10, steps // 3, steps}
    for t in range(1, steps + 1):
        p = chosen[random.integers(0, len(chosen), (runs, batch))] * random.uniform(-1, 1, (runs, batch, n))
        second = np.matmul(p.transpose(0, 2, 1), p) / batch
        v = v - rate * ((v - unit) @ second) @ products
        if t in looks:
            u = v @ theory.second_difference(n)
            expected = theory.expected_iterate(n, t, scaled)
            error = u.mean(0) - expected
            spread = u.std(0, ddof=1) / np.sqrt(runs)
            rows.append(
                {
                    "t": t,
                    "norm": float(np.linalg.norm(expected, 2)),
                    "goal": float(np.linalg.norm(theory.second_difference(n), 2)),
                    "error": float(np.linalg.norm(error, 2) / np.linalg.norm(expected, 2)),
                    "z": float((np.abs(error) / spread).max()),
                }
            )
    return rows


def estimates(seed: int, n: int, counts: tuple[int, ...]) -> list[Row]:
    r"""What is left of ill-conditioning after a whitening that was estimated from N curves, on the whole law (paper's).

    For the n x n map $\hat C^{-1/2}C\,\hat C^{-1/2}$ has the eigenvalues of $\lambda\hat P^{-1}$, whatever W: inf until every place has had
    breakpoints enough. For the filter C is 3x3.
    """
    c = theory.filter_moment(n, "paper", "extended")
    w = torch.from_numpy(theory.integrator(n))
    rows = []
    p = draw_breakpoints(max(counts), n, 3, generator(seed, KEY, 6, n))
    for count in counts:
        part = p[:count]
        x = windows(part @ w.T).reshape(-1, 3)
        t = whitening((x.T @ x / len(x)), scale="unit").matrix.numpy()
        full = theory.spectral_condition((part.T @ part / count).numpy())
        rows.append({"curves": count, "map": full, "filter": theory.spectral_condition(t @ c @ t)})
    return rows


def whole_map(data: Curves, seed: int, *, curves: int, steps: int, batch: int, rate: float) -> list[float]:
    r"""SGD on $\frac12\lVert Uf-p\rVert^2$ with inputs under the full n x n whitening, float64: the relative validation loss per step.

    Args:
        data: of the seed.
        seed: whose batches to draw.
        curves: how many of the training curves the whitening is estimated from.
        steps: how many.
        batch: curves per step.
        rate: step size; the population's curvature is 1.
    """
    part = data.f[:curves]
    t = whitening(part.T @ part / len(part), scale="unit").matrix
    x, x_validation = data.f @ t, data.f_validation @ t
    v = torch.zeros_like(t)
    random = numpy_generator(seed, KEY, 7)
    goal = float(data.p_validation.square().sum(1).mean())
    losses = []
    for _ in range(steps):
        losses.append(float((x_validation @ v - data.p_validation).square().sum(1).mean()) / goal)
        index = torch.from_numpy(random.integers(0, len(x), batch))
        v = v - rate / batch * x[index].T @ (x[index] @ v - data.p[index])
    return losses


def landscape(model: nn.Module, f: Tensor) -> Row:
    """Where an autoencoder stands, in float64 on a probe: the gradient, both ends of the Hessian, what a way out of a saddle would gain.

    Returns:
        "gradient": |g|; "largest" and "smallest": ends of the Hessian; "residual": how near an eigenvalue is to the smallest;
        "saddle_gain": the largest share of the loss that a step of up
        to 1 along the direction of most negative curvature, either way, takes off; "kinks": the relative error of the decoded curves'
        second differences.
    """
    model = model.double()
    objective = Objective(model, lambda m, b: F.mse_loss(m(b), b), [f])
    spectrum = extreme_eigenvalues(objective, tolerance=1e-2, max_products=80)
    here, start = objective.loss(), objective.theta()
    v = spectrum.bottom_vectors[0]
    around = [float(objective.at(start + sign * length * v).mean()) for length in REACH for sign in (-1, 1)]
    with torch.no_grad():
        kinks = (slopes_of(model(f)) - slopes_of(f)).square().sum() / slopes_of(f).square().sum()
    return {
        "probe_loss": here,
        "gradient": float(objective.gradient().norm()),
        "largest": spectrum.largest,
        "smallest": spectrum.smallest,
        "residual": float(spectrum.bottom_residuals[0]),
        "saddle_gain": 1 - min(around) / here,
        "kinks": float(kinks),
    }
