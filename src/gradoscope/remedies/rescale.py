"""A start whose signal neither fades nor grows: each layer is drawn anew and scaled to unit variance on real data."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.guard import derive_seed, untouched
from gradoscope.remedies import Remedy
from gradoscope.training import Live, split

__all__ = ["Rescale", "rescalable"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rescalable(model: nn.Module) -> list[str]:
    """The names of the layers that `Rescale` can draw anew."""
    return [n for n, m in model.named_modules() if isinstance(m, (*WEIGHTED, nn.RNNBase)) and not n.endswith("out_proj")]


class Rescale(Remedy):
    r"""Draw linear, convolutional and recurrent layers anew, scaled and centred on one batch of the training's data.

    In the order in which the layers run, $W_{ij}\sim N(0,1)$ is scaled, and the bias set, so that the layer's output
    has zero mean and unit variance over the batch; recurrent layers get orthogonal recurrent weights and, in an LSTM,
    a forget bias of one.

    Cost: one forward pass, once.

    Source: Mishkin and Matas 2016, All you need is a good init (the scaling); the centring is ours, and makes it fit
    activations that are not odd.
    """

    name = "rescale"
    explanation = "Every layer is drawn anew and scaled so that its output has zero mean and unit variance on the data."
    from_checkpoint = False
    code = (
        "# before training: zero mean and unit variance after every layer, on one batch\n"
        "from gradoscope.remedies.rescale import rescale_layers\n"
        "rescale_layers(model, inputs)"
    )

    def prepare(self, live: Live) -> None:
        rows = live.batches.sample(256, "fresh")[0]
        batch = tree.to_device(rows, live.device)
        seed = derive_seed(live.seed, 103)

        def run() -> None:
            if live.training.loss_fn is not None:
                live.model(*split(batch)[0])
            else:
                live.training.loss(live.model, batch)

        _rescale(live.model, run, seed)


def rescale_layers(model: nn.Module, *inputs: Any, seed: int = 0) -> None:
    """Apply `Rescale` to a model of your own, in place.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.Sigmoid(), torch.nn.Linear(50, 1))
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> rescale_layers(model, x)
        >>> round(float(model(x).std(correction=0).detach()), 3)
        1.0
    """
    _rescale(model, lambda: model(*inputs), seed)


def _rescale(model: nn.Module, run: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    new: dict[nn.Parameter, Tensor] = {}

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if id(module) in done or not isinstance(output, Tensor):
            return output
        done.add(id(module))
        weight, bias = module.weight, getattr(module, "bias", None)
        if not isinstance(weight, nn.Parameter):  # computed from other parameters, as under weight normalisation
            return output
        fresh = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight) / math.sqrt(max(1, weight[0].numel()))
        weight.data.copy_(fresh)
        if isinstance(bias, nn.Parameter):
            bias.data.zero_()
        out = module.forward(*inputs)
        unit_dim = 1 if isinstance(module, WEIGHTED[1:]) else out.dim() - 1
        others = [d for d in range(out.dim()) if d != unit_dim]
        mean = out.mean(others)
        spread = float((out - out.mean(others, keepdim=True)).square().mean().sqrt())
        if spread > 1e-12 and math.isfinite(spread):
            weight.data.div_(spread)
            if isinstance(bias, nn.Parameter):
                bias.data.copy_(-mean / spread)
        new[weight] = weight.data.clone()
        if isinstance(bias, nn.Parameter):
            new[bias] = bias.data.clone()
        return module.forward(*inputs)

    weighted = [m for n, m in model.named_modules() if isinstance(m, WEIGHTED) and not n.endswith("out_proj")]
    # Before all other hooks: what they see of a layer is what it gives now.
    handles = [m.register_forward_hook(hook, prepend=True) for m in weighted]
    try:
        with torch.no_grad():  # first, as the layers after them are scaled to what they give
            for module in model.modules():
                if isinstance(module, nn.RNNBase):
                    _recurrent(module, generator)
        with untouched(model, seed=seed), torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for p, value in new.items():
            p.copy_(value)


def _recurrent(module: nn.RNNBase, generator: torch.Generator) -> None:
    size = module.hidden_size
    for name, p in module.named_parameters():
        if name.startswith("weight_hh"):
            for block in torch.split(p, size):
                q, r = torch.linalg.qr(torch.randn(size, block.shape[1], generator=generator).double())
                block.copy_((q * r.diagonal().sign()).to(block))
        elif name.startswith("weight_ih"):
            p.copy_((torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[1])).to(p))
        elif name.startswith("bias"):
            p.zero_()
            if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                p[size : 2 * size] = 1.0
