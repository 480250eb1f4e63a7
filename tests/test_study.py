"""What a study is: its units, its tables, its stacks of networks."""

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.study import Results, Setting, Table, all_studies, find
from tests.a_study import Averages

STUDY = Averages()


def test_units_are_fixed_by_the_grid() -> None:
    setting = Setting({"d": 5}, seeds=10, block=4)
    assert [unit.seeds for unit in setting.units(STUDY, None)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    more = [unit.key for unit in setting.units(STUDY, 12)]
    assert more[:2] == [unit.key for unit in setting.units(STUDY, None)][:2]  # more seeds leave full blocks what they were
    assert [unit.seeds for unit in Setting({}, seeds=0).units(STUDY, 7)] == [()]


def test_keys_tell_units_apart() -> None:
    values = [{"d": 5}, {"d": 50}, {"d": "5"}, {"d": 5, "lr": 0.1}, {"lr": 0.1, "d": 5.0}]
    keys = [unit.key for v in values for unit in Setting(v, seeds=4, block=2).units(STUDY, None)]
    assert len(set(keys)) == len(keys) == 10
    assert all(key.isascii() and "/" not in key and len(key) < 100 for key in keys)
    once, again = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert next(iter(Setting(once).units(STUDY, None))).key[-12:] == next(iter(Setting(again).units(STUDY, None))).key[-12:]


def test_tables_answer() -> None:
    table = Table([{"d": d, "seed": s, "step": t, "acc": d + s + t} for d in (5, 10) for s in range(3) for t in range(4)])
    assert len(table.where(d=5)) == 12
    assert len(table.where(seed=(0, 2), d=10)) == 8
    assert table.values("d") == [5, 10]
    x, y = table.where(d=10).spread("step", "acc")
    assert x.tolist() == [0, 1, 2, 3]
    assert y.tolist() == [[10, 11, 12, 13], [11, 12, 13, 14], [12, 13, 14, 15]]
    assert table.where(d=7).column("acc") == []


def test_arrays_are_found_by_setting() -> None:
    load = [lambda v=v: {"w": torch.full((2,), v)} for v in (1.0, 2.0)]
    results = Results(Table([]), Table([]), [({"k": 1}, (0,), load[0]), ({"k": 2}, (0,), load[1])])
    assert results.array("w", k=2).tolist() == [2.0, 2.0]
    assert len(results.arrays("w")) == 2
    with pytest.raises(KeyError, match="no array 'v'"):
        results.array("v", k=1)


def test_unknown_studies_are_told_what_there_is() -> None:
    with pytest.raises(Usage, match="there is no study 'nothing'"):
        find("nothing")


def test_every_study_is_well_formed() -> None:
    for name, study in all_studies().items():
        assert name == study.name
        assert study.title
        assert study.source
        assert study.about
        for scale in ("quick", "paper"):
            settings = study.grid(scale)
            keys = [unit.key for setting in settings for unit in setting.units(study, None)]
            assert len(keys) == len(set(keys)), f"{name}: two settings of {scale} have the same values"
            claims = study.claims(scale)
            assert len({claim.id for claim in claims}) == len(claims), f"{name}: two claims share an id"
            for claim in claims:
                assert claim.says, f"{name}: {claim.id} says nothing"
                assert claim.stated, f"{name}: {claim.id} has no source"
                assert claim.why or not claim.expected_to_fail, f"{name}: {claim.id} is expected to fail and does not say why"
            figures = study.figures(scale)
            assert figures
            assert len({figure.name for figure in figures}) == len(figures)
