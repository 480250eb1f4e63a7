"""ReLUs in the place of activations that saturate, with a start that fits them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradoscope import tree
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.remedies import Remedy
from gradoscope.remedies.rescale import WEIGHTED, rescale_layers
from gradoscope.training import Live, split

__all__ = ["ReluActivation"]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
SATURATING = {torch.sigmoid, torch.tanh, Tensor.sigmoid, Tensor.tanh, F.sigmoid, F.tanh, F.hardtanh, F.hardsigmoid, F.softsign}
SATURATING |= {torch.sigmoid_, torch.tanh_, Tensor.sigmoid_, Tensor.tanh_}


class ReluActivation(Remedy):
    r"""Replace sigmoid, tanh and their kind after linear, convolutional and normalisation layers by $\max(0,z)$, and draw the layers anew.

    Only what is applied to the output of such a layer is replaced: the gates of a cell are sums of two, and stay. So does what comes after
    the last layer: it belongs to the loss. The layers then start as under `Rescale`, and a ReLU, of slope 1 on half of its inputs, passes
    signal and gradient on at any depth.

    Cost: two forward passes, once; then a few microseconds per function call in each forward pass.

    Source: Glorot, Bordes and Bengio 2011; He, Zhang, Ren and Sun 2015.
    """

    name = "relu"
    explanation = "Activations that saturate become ReLUs, and every layer is drawn anew and scaled to unit variance on the data."
    from_checkpoint = False
    code = "# nn.ReLU() in the place of nn.Sigmoid() or nn.Tanh() between the layers, with nn.init.kaiming_normal_(layer.weight)"

    def prepare(self, live: Live) -> None:
        if live.training.loss_fn is None:
            raise GradoscopeError("the model is not called by a loss of output and target")
        inputs, _ = split(tree.to_device(live.batches.sample(256, "fresh")[0], live.device))
        swap = _Swap()
        last: list[nn.Module] = []
        layers = [m for m in live.model.modules() if isinstance(m, (*WEIGHTED, *NORMS))]
        handles = [m.register_forward_hook(lambda m, _i, _o: last.append(m)) for m in layers]
        try:
            with untouched(live.model, seed=0), torch.no_grad():
                live.model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        for module in layers:
            if last and module is not last[-1]:
                live.at_close(module.register_forward_hook(swap.mark).remove)
        live.at_close(live.model.register_forward_pre_hook(swap.enter).remove)
        live.at_close(live.model.register_forward_hook(swap.leave, always_call=True).remove)
        rescale_layers(live.model, *inputs, seed=live.seed)
        if not swap.met:
            raise GradoscopeError("no activation that saturates comes after a layer")


class _Swap:
    """Marks what layers put out, and replaces activations of what is marked while the model runs."""

    def __init__(self) -> None:
        self.met = 0
        self._modes: list[TorchFunctionMode] = []

    def mark(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            output._gradoscope_layer = True  # type: ignore[attr-defined]  # a mark that no operation hands on

    def enter(self, module: nn.Module, inputs: Any) -> None:
        mode = _Mode(self)
        mode.__enter__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._modes.append(mode)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch gives it no types


class _Mode(TorchFunctionMode):
    def __init__(self, swap: _Swap) -> None:
        super().__init__()
        self.swap = swap

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in SATURATING and args and getattr(args[0], "_gradoscope_layer", False):
            self.swap.met += 1
            return torch.relu(args[0])
        return func(*args, **(kwargs or {}))
