"""What the tests of these studies share: results of chosen settings, made as the engine makes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradoscope.study import Context, Results, Study, Table


def results(study: Study, settings: Sequence[tuple[Mapping[str, Any], Sequence[int]]]) -> Results:
    """Run each setting with its seeds; every row and curve carries its setting."""
    rows, curves, arrays = [], [], []
    for values, seeds in settings:
        found = study.run(values, seeds, Context())
        rows += [{**values, **row} for row in found.rows]
        curves += [{**values, **row} for row in found.curves]
        arrays.append((values, tuple(seeds), lambda kept=found.arrays: kept))
    return Results(Table(rows), Table(curves), arrays)


def same(study: Study, values: Mapping[str, Any], seeds: Sequence[int]) -> bool:
    """Whether two runs of a unit give the same bits."""
    one, two = study.run(values, seeds, Context()), study.run(values, seeds, Context())
    equal = all(torch.equal(a, two.arrays[name]) for name, a in one.arrays.items())
    return repr(one.rows) == repr(two.rows) and repr(one.curves) == repr(two.curves) and equal
