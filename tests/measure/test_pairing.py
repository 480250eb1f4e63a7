"""What does not fit between loss, output and targets is found; what fits is left in peace."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.measure.pairing import INVERSES, last_activation, mismatches

N, C = 16, 4


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(*shape: int) -> Tensor:
    return torch.randn(*(shape or (N, C)), generator=stream()).requires_grad_()


CLASSES = torch.arange(N) % C
BITS = (torch.arange(N) % 2).float()[:, None]
ONE_HOT = F.one_hot(CLASSES, C).float()


def nll(p: Tensor, t: Tensor) -> Tensor:
    return -p[torch.arange(len(p)), t].mean()


WRONG = {
    "softmax into cross-entropy": (F.cross_entropy, lambda z: z.softmax(1), CLASSES, "softmax"),
    "with label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), lambda z: z.softmax(1), CLASSES, "softmax"),
    "with class weights": (nn.CrossEntropyLoss(weight=torch.arange(1.0, C + 1)), lambda z: z.softmax(1), CLASSES, "softmax"),
    "of one-hot targets": (F.cross_entropy, lambda z: z.softmax(1), ONE_HOT, "softmax"),
    "sigmoid into cross-entropy": (F.cross_entropy, lambda z: z.sigmoid(), CLASSES, "sigmoid"),
    "tanh into cross-entropy": (F.cross_entropy, lambda z: z.tanh(), CLASSES, "tanh"),
    "relu into cross-entropy": (F.cross_entropy, lambda z: z.relu(), CLASSES, "relu"),
    "sigmoid into logits": (F.binary_cross_entropy_with_logits, lambda z: z[:, :1].sigmoid(), BITS, "sigmoid"),
    "scores into nll": (F.nll_loss, lambda z: z * 1, CLASSES, "none"),
    "probabilities into nll": (F.nll_loss, lambda z: z.softmax(1), CLASSES, "softmax"),
    "nll by hand": (nll, lambda z: z * 1, CLASSES, "none"),
    "squared softmax": (F.mse_loss, lambda z: z.softmax(1), ONE_HOT, "softmax"),
    "squared sigmoid": (F.mse_loss, lambda z: z[:, :1].sigmoid(), BITS, "sigmoid"),
    "relu for negative targets": (F.mse_loss, lambda z: z.relu(), torch.randn(N, C, generator=stream(1)), "relu"),
    "tanh for large targets": (F.l1_loss, lambda z: z.tanh(), 5 * torch.randn(N, C, generator=stream(1)), "tanh"),
    "columns against rows": (lambda p, t: (p - t).square().mean(), lambda z: z[:, :1], torch.randn(N, generator=stream(1)), "none"),
}
RIGHT = {
    "cross-entropy of scores": (F.cross_entropy, lambda z: z * 1, CLASSES),
    "of log-probabilities": (F.cross_entropy, lambda z: z.log_softmax(1), CLASSES),
    "nll of log-probabilities": (F.nll_loss, lambda z: z.log_softmax(1), CLASSES),
    "nll of the log of probabilities": (F.nll_loss, lambda z: z.softmax(1).log(), CLASSES),
    "binary cross-entropy": (F.binary_cross_entropy, lambda z: z[:, :1].sigmoid(), BITS),
    "with logits": (F.binary_cross_entropy_with_logits, lambda z: z[:, :1], BITS),
    "regression": (F.mse_loss, lambda z: z * 1, torch.randn(N, C, generator=stream(1))),
    "regression of a range that is reached": (F.mse_loss, lambda z: z.sigmoid(), torch.rand(N, C, generator=stream(1)) * 0.98 + 0.01),
    "relu for counts": (F.mse_loss, lambda z: z.relu(), torch.randint(0, 9, (N, C), generator=stream(1)).float()),
    "flat targets of a flat output": (F.mse_loss, lambda z: z[:, 0], torch.randn(N, generator=stream(1))),
    "hinge of tanh": (lambda p, t: (1 - p * t).relu().mean(), lambda z: z[:, :1].tanh(), 2 * BITS - 1),
    "tokens": (
        lambda p, t: F.cross_entropy(p.flatten(0, 1), t.flatten()),
        lambda z: z[:, None, :].repeat(1, 2, 1),
        CLASSES[:, None].repeat(1, 2),
    ),
    "segmentation": (F.cross_entropy, lambda z: z[:, :, None].repeat(1, 1, 3), CLASSES[:, None].repeat(1, 3)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_found(name: str) -> None:
    loss_fn, last, target, activation = WRONG[name]
    found = mismatches(loss_fn, last(scores()), target)
    assert found
    assert found[0].activation == activation
    compile(found[0].code, "code", "exec") if not found[0].code.startswith("return") else compile(
        f"def f(self, x):\n    {found[0].code}", "code", "exec"
    )


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_is_left_in_peace(name: str) -> None:
    loss_fn, last, target = RIGHT[name]
    assert mismatches(loss_fn, last(scores()), target) == []


def test_both_losses_are_the_same_one_of_the_same_prediction() -> None:
    """Where a softmax or a sigmoid makes probabilities, the fitting loss of them is the repaired loss of the scores."""
    z = scores()
    for name in ("probabilities into nll", "squared softmax"):
        loss_fn, last, target, _ = WRONG[name]
        found = mismatches(loss_fn, last(z), target)[0]
        torch.testing.assert_close(found.fitting(last(z), target), found.repaired(z, target))
    loss_fn, last, target, _ = WRONG["squared sigmoid"]
    found = mismatches(loss_fn, last(z), target)[0]
    torch.testing.assert_close(found.fitting(last(z), target), found.repaired(z[:, :1], target))
    for name in ("softmax into cross-entropy", "sigmoid into logits", "tanh for large targets"):  # one loss, of two outputs
        loss_fn, last, target, _ = WRONG[name]
        found = mismatches(loss_fn, last(z), target)[0]
        assert found.fitting is loss_fn
        assert found.repaired is loss_fn


def test_inverses_invert() -> None:
    z = scores().detach()
    torch.testing.assert_close(INVERSES["sigmoid"](z.sigmoid()), z)
    torch.testing.assert_close(INVERSES["tanh"](z.tanh()), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(INVERSES["softmax"](z.softmax(1)).softmax(1), z.softmax(1))


def test_the_last_activation_is_seen_through_changes_of_shape() -> None:
    z = scores()
    assert last_activation(z.sigmoid().squeeze().reshape(-1).unsqueeze(0).t()) == "sigmoid"
    assert last_activation(z.sigmoid() * 2) == "none"
    assert last_activation(z.detach()) == "none"


def test_losses_that_refuse_other_outputs_are_no_mismatch() -> None:
    def picky(p: Tensor, t: Tensor) -> Tensor:
        if float(p.detach().min()) < 0:
            raise ValueError("negative")
        return p.mean()

    assert mismatches(picky, scores().softmax(1), CLASSES) == []
    assert mismatches(F.cross_entropy, scores(), "words") == []


def test_shares_of_a_purse_are_no_answer_to_their_returns() -> None:
    """A softmax spreads one unit over assets, and the loss is minus what they pay: returns are negative too, and nothing is wrong."""
    g = torch.Generator().manual_seed(0)
    returns = torch.randn(64, 5, generator=g)
    shares = torch.randn(64, 5, generator=g, requires_grad=True).softmax(1)
    assert mismatches(lambda p, r: -(p * r).sum(1).mean(), shares, returns) == []
    assert [m.activation for m in mismatches(torch.nn.functional.mse_loss, shares, returns)] == ["softmax"]
