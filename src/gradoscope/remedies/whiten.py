"""Whitened inputs: the layers that see the data get them uncorrelated and of one size, by a change of their weights alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope import tree
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.remedies import Remedy
from gradoscope.theory.whitening import Whitening, patches, whitening
from gradoscope.training import Live, split

__all__ = ["Whiten", "Whitened", "first_layers", "whiten_inputs", "whitenable"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WIDEST = 2048  # columns of a layer's weight: the root of a larger covariance costs more than it is worth
AT_ONCE = 1 << 22  # numbers of patches that are held at a time


class Whiten(Remedy):
    r"""Whiten what the first linear and convolutional layers see: $W x = W' T (x-\mu)+\ldots$ with $T=\sqrt{\lambda_{\max}}\,C^{-1/2}$.

    C is the covariance of the layer's inputs, for a convolution of its patches ($k\cdot k\cdot$ channels numbers), from the training's
    data; without a bias the plain second moment. W' is trained in place of W, and starts where the network computes the same as
    before: nothing but the geometry changes. The largest eigenvalue is kept, so that the step size fits as it did.

    For a linear map of the inputs under a squared loss the Hessian's condition number becomes 1, up to the error of C's estimate. Deeper
    layers and what comes after them are left as they are.

    Cost: one forward pass over `rows` examples and m^3 multiplications, once; then, per step, m multiplications per weight.

    Args:
        rows: examples to estimate C from.
        floor: directions with less than this share of the largest eigenvalue are left alone.

    Source: Shalev-Shwartz, Shamir and Shammah 2017, section 4 (preconditioned convolution); Le Cun et al. 1998, Efficient BackProp.
    """

    name = "whiten"
    explanation = "The inputs of the first layers are whitened: uncorrelated, and all of one size."
    from_checkpoint = False
    code = (
        "# before training: the first layers see whitened inputs; afterwards their weights are plain ones again\n"
        "from gradoscope.remedies.whiten import whiten_inputs\n"
        "whitened = whiten_inputs(model, inputs)  # inputs: some thousand examples of the training data\n"
        "...  # train\n"
        "whitened.fold()"
    )

    def __init__(self, rows: int = 4096, floor: float = 1e-10) -> None:
        self.rows, self.floor = rows, floor

    def prepare(self, live: Live) -> None:
        whitened = _whiten(live.model, _runner(live, self.rows), self.floor)
        if not whitened.layers:
            raise GradoscopeError("no linear or convolutional layer sees the data before any other weights do")
        live.at_close(whitened.remove)


def whitenable(live: Live) -> bool:
    """Whether any layer of a training's model sees the data before other weights do."""
    return bool(first_layers(live.model, _runner(live, 8)))


def _runner(live: Live, rows: int) -> Callable[[], None]:
    """A call of the model on so many fresh examples."""
    batches = [tree.to_device(part, live.device) for part in live.batches.sample(rows, "fresh")]

    def run() -> None:
        for batch in batches:
            if live.training.loss_fn is not None:
                live.model(*split(batch)[0])
            else:
                live.training.loss(live.model, batch)

    return run


@dataclass(frozen=True)
class Whitened:
    """The layers of a model that were whitened.

    Attributes:
        layers: by name.
    """

    layers: dict[str, nn.Module]

    def fold(self) -> None:
        """Turn the whitened weights into the plain ones that compute the same, $W=W'T$, and forget the whitening."""
        with torch.no_grad():
            for layer in self.layers.values():
                weight, bias = effective(layer)
                layer.weight.copy_(weight)  # type: ignore[operator]
                if isinstance(layer.bias, nn.Parameter) and bias is not None:
                    layer.bias.copy_(bias)
        self.remove()

    def remove(self) -> None:
        """Forget the whitening and leave the weights as they stand."""
        for layer in self.layers.values():
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop("_whitening", None)


def whiten_inputs(model: nn.Module, *inputs: Any, floor: float = 1e-10) -> Whitened:
    """Apply `Whiten` to a model of your own, in place, before its training; `fold()` what it returns afterwards.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[10.0, 9.9], [0.0, 0.1]])
        >>> before = model(x)
        >>> whitened = whiten_inputs(model, x)
        >>> list(whitened.layers), bool(torch.allclose(model(x), before, atol=1e-4))
        ([''], True)
    """
    return _whiten(model, lambda: model(*inputs), floor)


def first_layers(model: nn.Module, run: Callable[[], Any]) -> dict[str, nn.Module]:
    """The layers that can be whitened, by name: linear or convolutional, and fed with data that no weights have touched.

    Args:
        model: the module.
        run: calls it on data. What a layer is fed with needs a gradient as soon as trainable weights came before.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> list(first_layers(model, lambda: model(torch.ones(5, 2, 2))))
        ['1']
    """
    first: dict[str, nn.Module] = {}
    later: set[str] = set()

    def look(name: str, layer: nn.Module, x: Tensor) -> None:
        if x.requires_grad:
            later.add(name)
        else:
            first.setdefault(name, layer)

    with _looking(model, look), untouched(model, seed=0), torch.enable_grad():
        run()
    return {name: layer for name, layer in first.items() if name not in later}


def effective(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    r"""The plain weight $W=W'T$ and bias $b=b'-W\mu$ that a whitened layer computes with."""
    t: Whitening = layer._whitening  # type: ignore[assignment]
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    plain = (weight.flatten(1) @ t.matrix.to(weight)).reshape(weight.shape)
    return plain, bias - plain.flatten(1) @ t.mean.to(weight) if isinstance(bias, Tensor) else None


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    weight, bias = effective(layer)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)  # type: ignore[operator, no-any-return]


@contextmanager
def _looking(model: nn.Module, look: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Call `look(name, layer, input)` whenever a layer that could be whitened runs."""
    shared = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    handles = []
    for name, layer in model.named_modules():
        fits = isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1)
        weight = getattr(layer, "weight", None)
        # A weight that is computed from others, or serves two layers, has no inputs of its own; a forward of its own may do anything.
        if (
            not fits
            or "forward" in layer.__dict__
            or not isinstance(weight, nn.Parameter)
            or shared.count(id(weight)) > 1
            or weight[0].numel() > WIDEST
        ):
            continue

        def hook(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            if isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
                look(name, module, inputs[0])

        handles.append(layer.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Sums over all patches that a layer saw."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, layer: nn.Module, x: Tensor) -> None:
        examples = x.detach() if isinstance(layer, nn.Linear) or x.dim() > len(layer.kernel_size) + 1 else x.detach()[None]  # type: ignore[arg-type]
        first = patches(layer, examples[:1])
        for part in torch.split(examples, max(1, AT_ONCE // max(1, first.numel()))):
            rows = patches(layer, part).double()
            self.count += len(rows)
            self.total = self.total.to(rows) + rows.sum(0)
            self.products = self.products.to(rows) + rows.T @ rows


def _whiten(model: nn.Module, run: Callable[[], Any], floor: float) -> Whitened:
    layers = first_layers(model, run)
    seen = {name: _Moments() for name in layers}

    def look(name: str, layer: nn.Module, x: Tensor) -> None:
        if name in seen:
            seen[name].add(layer, x)

    with _looking(model, look), untouched(model, seed=0), torch.no_grad():
        run()
    with torch.no_grad():
        for name, layer in layers.items():
            s = seen[name]
            biased = isinstance(layer.bias, nn.Parameter)
            found = whitening(s.products / s.count, s.total / s.count if biased else None, floor=floor)
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            plain = weight.flatten(1).double()
            if isinstance(layer.bias, nn.Parameter):
                layer.bias.add_((plain @ found.mean).to(weight))
            weight.copy_((plain @ found.inverse).reshape(weight.shape).to(weight))
            layer._whitening = found  # type: ignore[assignment]
            layer.forward = MethodType(_forward, layer)
    return Whitened(layers)
