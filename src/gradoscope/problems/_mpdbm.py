"""A deep Boltzmann machine trained to predict any of its observed units from any others: mean-field sweeps as a recurrent network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MultiPrediction", "prediction_losses"]


class MultiPrediction(nn.Module):
    r"""Pixels v, two layers of hidden units and a label y, all in one Boltzmann machine; units that are not observed are inferred.

    $$-E=v^\top W_1h_1+h_1^\top W_2h_2+h_2^\top W_3y+a^\top v+b_1^\top h_1+b_2^\top h_2+c^\top y$$

    The graph is bipartite: h1 and y on one side, v and h2 on the other. A sweep of mean field updates one side and then the other,
    and starts from the biases: $h_1\leftarrow\sigma(W_1^\top v+W_2h_2+b_1)$, $y\leftarrow\mathrm{softmax}(W_3^\top h_2+c)$, then
    $v\leftarrow\sigma(W_1h_1+a)$, $h_2\leftarrow\sigma(W_2^\top h_1+W_3y+b_2)$; observed units stay what they are. For each example a
    set S of observed units is drawn, and $-\sum_{i\notin S}\log q_i(v_i)$ is differentiated through all sweeps. Written out, the sweeps
    are a recurrent network, with one set of weights in all its steps.

    Args:
        pixels: visible units; grey values count as probabilities.
        hidden: units of the two hidden layers.
        classes: of the label.
        sweeps: of mean field.
        marginals: the mean of each pixel, at whose log-odds the pixels' biases start; None starts them at 0. Shape (pixels,).
        std: of the normal weights at the start.

    Source: Goodfellow, Mirza, Courville and Bengio 2013, Multi-prediction deep Boltzmann machines; the equations are ours.
    """

    def __init__(
        self,
        pixels: int,
        hidden: tuple[int, int] = (60, 40),
        classes: int = 10,
        *,
        sweeps: int = 5,
        marginals: Tensor | None = None,
        std: float = 0.1,
    ) -> None:
        super().__init__()
        first, second = hidden
        self.sweeps = sweeps
        self.w1 = nn.Parameter(std * torch.randn(pixels, first))
        self.w2 = nn.Parameter(std * torch.randn(first, second))
        self.w3 = nn.Parameter(std * torch.randn(second, classes))
        self.a = nn.Parameter(torch.zeros(pixels) if marginals is None else torch.logit(marginals.clone(), eps=0.01))
        self.b1, self.b2 = nn.Parameter(torch.zeros(first)), nn.Parameter(torch.zeros(second))
        self.c = nn.Parameter(torch.zeros(classes))

    def infer(self, v: Tensor, y: Tensor, seen_v: Tensor, seen_y: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of pixels and of the label after the sweeps.

        Args:
            v: grey values, shape (n, pixels).
            y: one-hot labels, shape (n, classes).
            seen_v: 1 where a pixel is observed, shape (n, pixels).
            seen_y: 1 where the label is, shape (n, 1).
        """
        hidden_v, hidden_y = 1 - seen_v, 1 - seen_y
        given_v, given_y = seen_v * v, seen_y * y
        now_v = given_v + hidden_v * torch.sigmoid(self.a)
        h2 = torch.sigmoid(self.b2).expand(len(v), -1)
        logits_v, logits_y = self.a.expand_as(v), self.c.expand_as(y)
        for _ in range(self.sweeps):
            h1 = torch.sigmoid(now_v @ self.w1 + h2 @ self.w2.T + self.b1)
            logits_y = h2 @ self.w3 + self.c
            now_y = given_y + hidden_y * torch.softmax(logits_y, dim=1)
            logits_v = h1 @ self.w1.T + self.a
            now_v = given_v + hidden_v * torch.sigmoid(logits_v)
            h2 = torch.sigmoid(h1 @ self.w2 + now_y @ self.w3.T + self.b2)
        return logits_v, logits_y

    def forward(self, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of pixels and label, and what was observed, for a set that is drawn here: every unit with probability 1/2.

        The draw is from the global stream, which training seeds by the step, and plots by the batch: the same sets at every point.
        """
        seen = (torch.rand(len(v), v.shape[1] + 1, device=v.device) < 0.5).to(v.dtype)
        given = F.one_hot(y, len(self.c)).to(v.dtype)
        return (*self.infer(v, given, seen[:, :-1], seen[:, -1:]), seen)


def prediction_losses(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    r"""$-\sum_{i\notin S}\log q_i$ of each example, in nats, shape (n,).

    Args:
        output: logits of pixels, of the label, and 1 where a unit is observed, shape (n, pixels + 1), the label last.
        target: grey values, and the label last, shape (n, pixels + 1).
    """
    logits_v, logits_y, seen = output
    of_pixels = F.binary_cross_entropy_with_logits(logits_v, target[:, :-1], reduction="none")
    of_label = F.cross_entropy(logits_y, target[:, -1].long(), reduction="none")
    return ((1 - seen[:, :-1]) * of_pixels).sum(1) + (1 - seen[:, -1]) * of_label
