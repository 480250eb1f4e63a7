"""What is known in closed form about the parity of parts that are each told right with some probability."""

__all__ = ["parity_accuracy"]


def parity_accuracy(single: float, k: int) -> float:
    r"""The accuracy $\frac12\bigl(1+(2a-1)^k\bigr)$ of the product of k signs, each right independently with probability a.

    The product is right where an even number of its factors is wrong. With the best possible a it is the best possible
    accuracy on tuples of independent parts.

    Args:
        single: a, in [0, 1].
        k: factors.

    Example:
        >>> [round(parity_accuracy(0.9, k), 4) for k in (1, 2, 3, 4)]
        [0.9, 0.82, 0.756, 0.7048]
    """
    return (1 + (2 * single - 1) ** k) / 2
