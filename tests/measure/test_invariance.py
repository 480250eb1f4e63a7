"""Which groups are tried on inputs of which shape, and whether examples have one law under them."""

import pytest
import torch
from torch import Tensor

from gradoscope.measure.invariance import law_under, natural_groups
from gradoscope.measure.symmetry import node_permutations, permutations, reflections, shifts, sign_flips


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("inputs", "target", "first"),
    [
        (random(8, 5), random(8), ["permutations of dimension 1", "permutations of dimension 1", "change of sign"]),
        (random(8, 5, 2), random(8), ["permutations of dimension 1", "change of sign"]),
        (
            random(8, 3, 6, 6),
            torch.arange(8),
            ["shifts along dimensions (2, 3)", "turns by 90 degrees in dimensions (-2, -1)", "reflection of dimension 3"],
        ),
        (random(8, 3, 6, 5), torch.arange(8), ["shifts along dimensions (2, 3)", "reflection of dimension 3", "reflection of dimension 2"]),
        ((random(8, 5, 2), random(8, 5, 5)), torch.ones(8, 5).long(), ["permutations of the nodes"]),
        ((random(8, 5, 2), random(8, 5)), torch.arange(8), ["permutations of dimension 1"]),
        (torch.ones(8, 6).long(), torch.arange(8), ["permutations of dimension 1", "permutations of dimension 1"]),
        ("words", torch.arange(8), []),
        (random(8, 5), [1, 2], []),
    ],
)
def test_the_groups_that_a_shape_suggests(inputs: object, target: object, first: list[str]) -> None:
    found = [family[0].name for family in natural_groups(inputs, target)]
    assert found[: len(first)] == first


def test_the_targets_move_along_where_they_have_as_many_entries() -> None:
    family = natural_groups((random(8, 5, 2), random(8, 5, 5)), torch.arange(40).reshape(8, 5))[0]
    assert family[0].act_on_output(torch.tensor([1, 0, 2, 3, 4]), torch.arange(5)[None]).tolist() == [[1, 0, 2, 3, 4]]


def test_blocks_move_as_wholes() -> None:
    blocks = [g for family in natural_groups(random(4, 6), random(4)) for g in family if "blocks" in g.name]
    x = torch.arange(6)[None]
    assert blocks[0].act(torch.tensor([2, 0, 1]), x).tolist() == [[4, 5, 0, 1, 2, 3]]
    assert blocks[1].act(torch.tensor([2, 0, 1]), x).tolist() == [[2, 0, 1, 5, 3, 4]]


@pytest.mark.parametrize("seed", range(5))
def test_laws_that_are_the_same(seed: int) -> None:
    x = random(600, 8, seed=seed)
    ring = x + x.roll(1, 1)
    assert law_under(x, x.max(1).values, permutations(1), seed=seed).p > 0.001
    assert law_under(x, x.argsort(1).argsort(1), permutations(1, output_dim=1), seed=seed).p > 0.001
    assert law_under(ring, ring.max(1).values, shifts((1,)), seed=seed).p > 0.001
    assert law_under(x, x.sum(1).square(), sign_flips(), seed=seed).p > 0.001
    edges = (random(600, 8, 8, seed=seed + 10) > 0).float()
    assert law_under((x[..., None], edges), edges.sum(2), node_permutations("nodes"), seed=seed).p > 0.001


@pytest.mark.parametrize("seed", range(5))
def test_laws_that_are_not(seed: int) -> None:
    x = random(600, 8, seed=seed)
    ring = x + x.roll(1, 1)
    assert law_under(x + torch.arange(8), x.sum(1), permutations(1), seed=seed).p < 1e-6, "the inputs differ"
    assert law_under(x, x[:, 0], permutations(1), seed=seed).p < 1e-6, "the targets need one entry"
    assert law_under(ring, ring.max(1).values, permutations(1), seed=seed).p < 1e-6, "neighbours belong together"
    assert law_under(x, x.sum(1), sign_flips(), seed=seed).p < 1e-6
    assert law_under(x.cumsum(1), x.sum(1), reflections(1), seed=seed).p < 1e-6


def test_chance_passes_as_often_as_it_should() -> None:
    low = sum(float(law_under(random(200, 6, seed=s), random(200, seed=s + 500), permutations(1), seed=s).p or 0) < 0.05 for s in range(60))
    assert low <= 9, "Bonferroni's bound: 3 of 60 expected at most, 9 is five standard deviations above"
