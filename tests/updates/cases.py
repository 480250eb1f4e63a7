"""What the tests of update rules share: a smooth convex problem, and the lecture's formulas written out by hand in numpy."""

import math

import numpy as np
import torch

A = torch.tensor([[3.0, 1.0, 0.2], [1.0, 2.0, -0.3], [0.2, -0.3, 0.6]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
START = torch.tensor([2.0, -1.5, 1.0], dtype=torch.float64)
STEPS = 60


def loss_of(x):
    """A quadratic with a smooth non-quadratic part."""
    return 0.5 * x @ A @ x - B @ x + torch.log(torch.cosh(x)).sum()


def slope(x):
    """Its gradient, in numpy."""
    return A.numpy() @ x - B.numpy() + np.tanh(x)


def trajectory(make, steps=STEPS, *, before_step=None):
    """The iterates of an optimizer of one parameter, shape (steps + 1, 3)."""
    x = START.clone().requires_grad_()
    optimizer = make([x])

    def closure():
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    found = [x.detach().clone()]
    for t in range(1, steps + 1):
        if before_step is not None:
            before_step(optimizer, t)
        optimizer.step(closure)
        found.append(x.detach().clone())
    return torch.stack(found).numpy()


def by_hand(rule, steps=STEPS, **h):
    """The lecture's formulas, one line each."""
    x, found = START.numpy().copy(), [START.numpy().copy()]
    m, v = np.zeros(3), np.zeros(3)
    for t in range(1, steps + 1):
        if rule == "sgd":
            x = x - h["lr"] * slope(x)
        elif rule == "momentum":
            m = h["alpha"] * m - (1 - h["alpha"]) * slope(x)
            x = x + h["lr"] * m / (1 - h["alpha"] ** t)
        elif rule == "nesterov-a":
            v = h["alpha"] * v - h["lr"] * slope(x + h["alpha"] * v)
            x = x + v
        elif rule == "nesterov-b":
            hat = m / (1 - h["alpha"] ** (t - 1)) if t > 1 else m
            m = h["alpha"] * m - (1 - h["alpha"]) * slope(x + h["lr"] * h["alpha"] * hat)
            x = x + h["lr"] * m / (1 - h["alpha"] ** t)
        elif rule == "adagrad":
            g = slope(x)
            v = v + g**2
            x = x - h["lr"] / (h["delta"] + np.sqrt(v)) * g
        elif rule == "rmsprop":
            g = slope(x)
            v = h["rho"] * v + g**2
            x = x - h["lr"] / (h["delta"] + np.sqrt(v)) * g
        elif rule == "adam":
            g = slope(x)
            m = h["beta1"] * m + (1 - h["beta1"]) * g
            v = h["beta2"] * v + (1 - h["beta2"]) * g**2
            x = x - h["lr"] * (m / (1 - h["beta1"] ** t)) / (np.sqrt(v / (1 - h["beta2"] ** t)) + h["eps"])
        else:
            raise AssertionError(rule)
        found.append(x.copy())
    return np.array(found)


def saddle(x):
    """5x^2 - y^2 + y^4/4: a saddle at the origin, minima of -1 at y = +-sqrt 2 (Dauphin et al., figure 2; the last term confines)."""
    return 5 * x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


def monkey(x):
    """x^3 - 3xy^2 + r^4/10: a monkey saddle at the origin, minima at r = 7.5."""
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x[0] ** 2 + x[1] ** 2) ** 2 / 10


MONKEY_MINIMUM = -(7.5**3) + 7.5**4 / 10
assert math.isclose(MONKEY_MINIMUM, -105.46875)
