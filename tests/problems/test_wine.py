"""The wines: what their construction demands, and what the diagnosis says of both variants."""

import torch

from gradoscope import diagnose
from gradoscope.measure.scales import scales
from gradoscope.problems import find
from gradoscope.problems.wine import wines


def test_the_split_is_one_of_all_wines_and_another_with_another_seed() -> None:
    (x, y), (xv, yv) = wines(0)
    assert len(x) + len(xv) == 178
    assert torch.bincount(torch.cat([y, yv])).tolist() == [59, 71, 48]
    assert not torch.equal(wines(1)[0][0], x)


def test_the_construction() -> None:
    """Raw analyses cost more than ten thousand times the stable steps of standardised ones, by the eigenvalues alone."""
    raw, even = (find(name).data[0] for name in ("wine:raw", "wine:standardised"))
    assert scales(raw).stretch > 1e4
    assert 0.5 < scales(even).stretch < 2


def test_verdicts() -> None:
    found = diagnose(find("wine:raw"), step_seconds=1e-3)
    assert [f.obstacle for f in found.present] == ["unnormalised_inputs"]
    assert found["unnormalised_inputs"].counterfactual == "standardise"
    assert diagnose(find("wine:standardised"), step_seconds=1e-3).verdict == "healthy"
