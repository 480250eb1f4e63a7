"""The accuracy of products of signs, against all patterns of right and wrong."""

import itertools
import math

import pytest

from gradoscope.theory.tuples import parity_accuracy


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("single", [0.0, 0.3, 0.5, 0.945, 1.0])
def test_against_all_patterns(single, k):
    patterns = itertools.product([True, False], repeat=k)
    right = sum(math.prod(single if r else 1 - single for r in p) for p in patterns if p.count(False) % 2 == 0)
    assert parity_accuracy(single, k) == pytest.approx(right, abs=1e-14)
