"""Polyak averaging: an optimizer that keeps the average of its iterates, and lends it to the model for an evaluation."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["PolyakAveraging"]


class PolyakAveraging(Optimizer):
    r"""Any optimizer, with the average $\bar\theta(t)=\frac1{t-s}\sum_{u=s+1}^t\theta(u)$ of what its steps reached, kept beside it.

    The steps are those of the optimizer inside, bit for bit. Inside `with optimizer.averaged():` the model has the average; afterwards
    it has the same bits as before. Before any iterate was counted the average is the parameters themselves. Buffers, such as the
    running statistics of batch normalisation, are not averaged. `torch.optim.swa_utils.AveragedModel` keeps a second model instead, and
    is told by the loop when to count; its default is the same plain average.

    Args:
        optimizer: the optimizer inside; schedulers may take either of the two.
        start: s, how many steps to let pass before the first iterate counts (tail averaging).

    Raises:
        ValueError: for a start that is no whole number of at least 0, or something else than an optimizer inside.

    Cost: two passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = PolyakAveraging(torch.optim.SGD([x], lr=1.0))
        >>> for g in (1.0, -2.0):
        ...     x.grad = torch.tensor([g])
        ...     optimizer.step()
        >>> with optimizer.averaged():
        ...     print(x.item())
        1.0
        >>> x.item()
        2.0

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """

    optimizer: Optimizer
    start: int
    steps: int
    averages: list[Tensor]
    counts: list[int]

    def __new__(cls, optimizer: Any = None, start: int = 0) -> Self:
        """An optimizer that cannot step without a closure is wrapped into one that says so too."""
        closure = inspect.signature(type(optimizer).step).parameters.get("closure") if isinstance(optimizer, Optimizer) else None
        needs = closure is not None and closure.default is closure.empty
        kind: type[Self] = _WithClosure if needs and cls is PolyakAveraging else cls  # type: ignore[assignment]
        return super().__new__(kind)

    def __init__(self, optimizer: Optimizer, start: int = 0) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"PolyakAveraging: expected a torch.optim.Optimizer inside, got {type(optimizer).__name__}.")
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ValueError(f"PolyakAveraging: start must be a whole number of at least 0, got {start!r}.")
        # Groups and state are those of the optimizer inside, hence no call of Optimizer.__init__, which would make its own.
        self.__setstate__({"optimizer": optimizer, "start": start, "steps": 0, "averages": [], "counts": []})
        self._warned_capturable_if_run_uncaptured = True

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("optimizer", "start", "steps", "averages", "counts")}

    def __repr__(self) -> str:
        return f"PolyakAveraging({self.optimizer!r}, start={self.start})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the optimizer inside."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the optimizer inside."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the optimizer inside."""
        defaults: dict[str, Any] = self.optimizer.defaults
        return defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside; its average starts with the next step that counts."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As any optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimizer inside, and the average with it.

        Args:
            closure: for the optimizer inside.

        Returns:
            What the optimizer inside returned.
        """
        loss = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.steps += 1
        if self.steps > self.start:
            self._count()
        return loss

    @torch.no_grad()
    def _count(self) -> None:
        for i, p in enumerate(self._parameters()):
            if i == len(self.averages):
                self.averages.append(torch.zeros_like(p, requires_grad=False))
                self.counts.append(0)
            self.counts[i] += 1
            self.averages[i] += (p - self.averages[i]) / self.counts[i]

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are their averages inside, and what they were before, bit for bit, afterwards."""
        kept = [(p, p.detach().clone()) for p in self._parameters()]
        try:
            with torch.no_grad():
                for (p, _), average in zip(kept, self.averages, strict=False):
                    p.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for p, value in kept:
                    p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer inside, with the averages under "polyak"."""
        own = {"steps": self.steps, "start": self.start, "counts": list(self.counts), "averages": [a.clone() for a in self.averages]}
        return {**self.optimizer.state_dict(), "polyak": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`, bit for bit.

        Raises:
            ValueError: where it has no averages, or those of other parameters.
        """
        own = state_dict.get("polyak")
        if own is None:
            raise ValueError('PolyakAveraging: the state has no "polyak" entry: it is that of another optimizer.')
        parameters = list(self._parameters())
        if any(a.shape != p.shape for a, p in zip(own["averages"], parameters, strict=False)) or len(own["averages"]) > len(parameters):
            raise ValueError("PolyakAveraging: the averages in this state are those of other parameters.")
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "polyak"})
        self.steps, self.start, self.counts = own["steps"], own["start"], list(own["counts"])
        self.averages = [a.detach().to(p, copy=True) for a, p in zip(own["averages"], parameters, strict=False)]


class _WithClosure(PolyakAveraging):
    """Around an optimizer whose step needs a closure; loops ask for it by the signature."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """One step of the optimizer inside, and the average with it."""
        return super().step(closure)
