r"""Known layers as special cases of the GPI form: Deep Sets, message passing, mean field and loopy belief propagation.

Each is a `GPI`, or a composition of them, so all that is said of the form holds for them: padding, order, repetition.
"""

import torch
from torch import Tensor

from gradoscope.structured.gpi import GPI, Composed, Layer
from gradoscope.structured.graphs import Graphs

__all__ = ["BeliefPropagation", "DeepSets", "MeanField", "MessagePassing"]


class DeepSets(GPI):
    r"""A function of a set: $y_i=\rho\big(z_i,\sum_j\alpha(z_j)\big)$, the form without pairs.

    Args:
        element: $\alpha$, a layer on the features of an element.
        decide: $\rho$, called as `decide(z_i, G)`; a function of G alone is invariant. None where the sum itself is wanted.

    Example:
        >>> layer = DeepSets(lambda z: z, lambda z, g: z - g / 2)
        >>> layer(Graphs.full(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2, 2, 0))).nodes.flatten().tolist()
        [-1.0, 1.0]

    Source: Zaheer et al. (2017), "Deep sets".
    """

    def __init__(self, element: Layer, decide: Layer | None) -> None:
        super().__init__(_nothing_of_pairs, self._alpha, None if decide is None else self._rho)
        self.element, self.decide = element, decide

    def _alpha(self, z: Tensor, s: Tensor) -> Tensor:
        return self.element(z)

    def _rho(self, z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        assert self.decide is not None
        outputs = self.decide(z, g)
        return outputs.expand(*z.shape[:-1], outputs.shape[-1])


class MessagePassing(GPI):
    r"""One step of message passing: $m_i=\sum_{j\in N(i)}M(h_i,e_{ij},h_j)$, $h_i'=U(h_i,m_i)$.

    Args:
        message: M, called as phi: `message(h_i, e_ij, h_j)`.
        update: U, called as `update(h_i, m_i)`.
        adjacency: which feature of a pair is 1 where there is an edge and 0 elsewhere; None where all pairs have one.

    Example:
        >>> step = MessagePassing(lambda h_i, e, h_j: h_j, lambda h, m: h + m, adjacency=0)
        >>> path = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> step(Graphs.full(torch.tensor([[[1.0], [10.0], [100.0]]]), path[None, ..., None])).nodes.flatten().tolist()
        [11.0, 111.0, 110.0]

    Source: Gilmer et al. (2017), "Neural message passing for quantum chemistry".
    """

    def __init__(self, message: Layer, update: Layer, *, adjacency: int | None = None) -> None:
        super().__init__(self._phi, _nothing, self._rho)
        self.message, self.update, self.adjacency = message, update, adjacency

    def _rho(self, z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        return self.update(z, s)

    def _phi(self, z_i: Tensor, z_ij: Tensor, z_j: Tensor) -> Tensor:
        messages = self.message(z_i, z_ij, z_j)
        return messages if self.adjacency is None else messages * z_ij[..., self.adjacency, None]


class MeanField(GPI):
    r"""One parallel step of mean field for a pairwise conditional random field of variables with K states.

    For $\log p(x)=\sum_i\theta_i(x_i)+\sum_{i<j}\theta_{ij}(x_i,x_j)+\text{const}$ the step is
    $q_i'(x)\propto\exp\big(\theta_i(x)+\sum_{j\ne i}\sum_{x'}\theta_{ij}(x,x')q_j(x')\big)$. Nodes carry $(\theta_i,q_i)$, ordered pairs
    $\theta_{ij}$ by rows, with $\theta_{ji}=\theta_{ij}^\top$; pairs without a factor carry zeros. The outputs are $(\theta_i,q_i')$,
    so `Composed([MeanField(K)], times=T)` makes T steps.

    Args:
        states: K.

    Example:
        >>> graphs = MeanField.graphs(torch.zeros(1, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 2, 2, 2, 2))
        >>> [round(v, 4) for v in MeanField(2)(graphs).nodes[0, 0].tolist()]
        [0.0, 0.0, 0.6225, 0.3775]
    """

    def __init__(self, states: int) -> None:
        super().__init__(self._phi, _nothing, self._rho)
        self.states = states

    def _phi(self, z_i: Tensor, z_ij: Tensor, z_j: Tensor) -> Tensor:
        k = self.states
        return (z_ij.reshape(*z_ij.shape[:-1], k, k) * z_j[..., None, k:]).sum(-1)

    def _rho(self, z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        theta = z[..., : self.states]
        return torch.cat([theta, (theta + s).softmax(-1)], -1)

    @staticmethod
    def graphs(unary: Tensor, pairwise: Tensor, mask: Tensor | None = None) -> Graphs:
        """A field as graphs, started at uniform q.

        Args:
            unary: theta_i, shape (B, n, K).
            pairwise: theta_ij, shape (B, n, n, K, K).
            mask: which variables there are, shape (B, n); None for all.
        """
        nodes = torch.cat([unary, torch.full_like(unary, 1 / unary.shape[-1])], -1)
        graphs = Graphs.full(nodes, pairwise.flatten(-2))
        return graphs if mask is None else Graphs(graphs.nodes, graphs.edges, mask)


class BeliefPropagation(Composed):
    r"""Steps of loopy belief propagation (sum-product) for the same field, in logarithms, all messages at once.

    $$m_{i\to j}'(x_j)=\log\sum_{x_i}\exp\Big(\theta_i(x_i)+\theta_{ij}(x_i,x_j)+\sum_{k\ne i,j}m_{k\to i}(x_i)\Big)-\text{const}$$

    A step is two GPI maps: the first sums what arrives at each node into its belief $b_i=\theta_i+\sum_km_{k\to i}$, the second makes
    new messages of both directions from $b_i$, $b_j$ and what the pair carries, $(\theta_{ij},m_{j\to i},m_{i\to j})$. On trees the
    beliefs are exact after as many steps as the longest path has edges.

    Args:
        states: K.
        times: how many steps.

    Example:
        >>> unary, pairwise = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.eye(2).expand(1, 2, 2, 2, 2)
        >>> [round(v, 4) for v in BeliefPropagation(2, times=2).marginals(BeliefPropagation.graphs(unary, pairwise))[0, 1].tolist()]
        [0.3932, 0.6068]

    Source: Pearl (1988); Wainwright and Jordan (2008), section 4.
    """

    def __init__(self, states: int, *, times: int = 1) -> None:
        collect = GPI(self._arriving, _nothing, self._believe)
        send = GPI(self._arriving, _nothing, rho_pair=self._send)
        super().__init__([collect, send], times=times)
        self.states = states

    def _arriving(self, z_i: Tensor, z_ij: Tensor, z_j: Tensor) -> Tensor:
        k = self.states
        return z_ij[..., k * k : k * k + k]

    def _believe(self, z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        theta = z[..., : self.states]
        return torch.cat([theta, theta + s], -1)

    def _send(self, z_i: Tensor, z_ij: Tensor, z_j: Tensor, g: Tensor) -> Tensor:
        k = self.states
        theta = z_ij[..., : k * k].reshape(*z_ij.shape[:-1], k, k)
        arriving, leaving = z_ij[..., k * k : k * k + k], z_ij[..., k * k + k :]
        outward = torch.logsumexp(theta + (z_i[..., k:] - arriving)[..., :, None], -2)
        inward = torch.logsumexp(theta + (z_j[..., k:] - leaving)[..., None, :], -1)
        return torch.cat([z_ij[..., : k * k], inward.log_softmax(-1), outward.log_softmax(-1)], -1)

    @staticmethod
    def graphs(unary: Tensor, pairwise: Tensor, mask: Tensor | None = None) -> Graphs:
        """A field as graphs, started at messages of zero; arguments as of `MeanField.graphs`."""
        nodes = torch.cat([unary, unary], -1)
        messages = unary.new_zeros(*pairwise.shape[:-2], 2 * unary.shape[-1])
        graphs = Graphs.full(nodes, torch.cat([pairwise.flatten(-2), messages], -1))
        return graphs if mask is None else Graphs(graphs.nodes, graphs.edges, mask)

    def marginals(self, graphs: Graphs) -> Tensor:
        """The beliefs after all steps as probabilities, shape (B, n, K)."""
        beliefs = self.layers[0](graphs.replaced(edges=self(graphs)[-1].pairs)).nodes
        return torch.softmax(beliefs[..., self.states :], -1) * graphs.mask[..., None]


# Functions by name and no closures: a layer with these can be copied and pickled.
def _nothing(z: Tensor, s: Tensor) -> Tensor:
    return s[..., :0]


def _nothing_of_pairs(z_i: Tensor, z_ij: Tensor, z_j: Tensor) -> Tensor:
    return z_i[..., :0]
