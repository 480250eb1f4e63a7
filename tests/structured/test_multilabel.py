"""Multilabel files: small ones written here, malformed ones, and the real ones where the user has them."""

from pathlib import Path

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.structured import multilabel
from gradoscope.structured.multilabel import FOLDER, KNOWN, available, generated, held_out, load, read_arff, read_labels, standardised

HEADER = """% a comment
@RELATION 'small set'

@attribute size numeric
@attribute 'two words' REAL
@attribute colour {red, 'dark blue', green}
@attribute "say \\"hi\\"" {0,1}
@attribute TAG_m\\'usica {0,1}

@data
"""
LABELS = ('say "hi"', "TAG_m\\'usica")
XML = """<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="say &quot;hi&quot;"></label>
<label name="TAG_m\\'usica"><label name="inner"/></label>
</labels>
"""


def written(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "small.arff"
    path.write_text(header + rows)
    return path


def test_dense_and_sparse_rows_mean_the_same(tmp_path: Path) -> None:
    dense = read_arff(written(tmp_path, "% first\n1.5,-2,'dark blue',1,0\n\n0, 3e2, red ,0,1\n"), LABELS)
    sparse = read_arff(written(tmp_path, "{0 1.5,1 -2, 2 'dark blue',3 1}\n{1 3e2,4 1}\n"), LABELS)
    assert torch.equal(dense.x, sparse.x)
    assert torch.equal(dense.y, sparse.y)
    assert dense.x.tolist() == [[1.5, -2, 1], [0, 300, 0]]
    assert dense.y.tolist() == [[1, 0], [0, 1]]
    assert dense.features == ("size", "two words", "colour")
    assert dense.labels == LABELS
    assert (dense.name, len(dense)) == ("small", 2)
    assert len(read_arff(written(tmp_path, ""), LABELS)) == 0


def test_labels_may_stand_anywhere_and_come_in_the_order_asked(tmp_path: Path) -> None:
    found = read_arff(written(tmp_path, "1,2,red,1,0\n"), (LABELS[1], LABELS[0]))
    assert found.y.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,2,red,1\n", "line 12: 4 values for 5 attributes"),
        ("1,2,red,1,0\n1,2,pink,1,0\n", "line 13: the value of 'colour' must be one of red, dark blue, green, got 'pink'"),
        ("1,two,red,1,0\n", "line 12: the value of 'two words' must be a number, got 'two'"),
        ("1,?,red,1,0\n", "is missing"),
        ("{0 1,9 1}\n", "line 12: '9' is no index"),
        ("{0 1,0 2}\n", "line 12: attribute 0 occurs twice"),
        ("{0 1,1 2\n", "line 12: a sparse row does not end"),
        ("% comment\n{x 1}\n", "line 13: 'x' is no index"),
    ],
)
def test_malformed_rows_are_told_with_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(Usage, match=r"small\.arff") as told:
        read_arff(written(tmp_path, rows, "\n" + HEADER), LABELS)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("@attribute a numeric\n", "no @data"),
        ("@data\n", "no @attribute before"),
        ("@attribute a date\n@data\n", "line 1: attributes of type 'date'"),
        ("@attribute a {0,1\n@data\n", "line 1: the list of nominal values does not end"),
        ("@attribute\n@data\n", "line 1: a name is missing"),
        ("what is this\n@data\n", "line 1: expected @relation"),
        ("@attribute a {0,1}\n@attribute a {0,1}\n@data\n", "the same name"),
        ("@attribute b {0,1}\n@data\n", "no attribute for 1 of 1 labels, e.g. 'a'"),
    ],
)
def test_malformed_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(Usage) as told:
        read_arff(written(tmp_path, "", header), ("a",))
    assert message in str(told.value)


def test_labels_must_be_zero_or_one(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="line 13: label 'size' must be 0 or 1, got 2"):
        read_arff(written(tmp_path, "1,0,red,0,0\n2,0,red,0,0\n", "\n" + HEADER), ("size",))


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "small.xml"
    path.write_text(XML)
    assert read_labels(path) == (*LABELS, "inner")
    for text, message in (("<labels>", "well-formed"), ("<labels/>", "got none"), ("<labels><label/></labels>", "without a name")):
        path.write_text(text)
        with pytest.raises(Usage, match=message):
            read_labels(path)


def test_a_set_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    folder = tmp_path / "multilabel" / "small"
    folder.mkdir(parents=True)
    assert not available("small")
    with pytest.raises(Usage, match=r"GRADOSCOPE_DATA.*small-train.arff.*small-test.arff and small.xml"):
        load("small")
    (folder / "small.xml").write_text(XML.replace('<label name="inner"/>', ""))
    (folder / "small-train.arff").write_text(HEADER + "1,2,red,1,0\n3,2,green,0,1\n")
    (folder / "small-test.arff").write_text(HEADER + "{0 5,4 1}\n")
    train, test = load("small")
    assert available("small")
    assert (len(train), len(test)) == (2, 1)
    scaled, other = standardised(train, test)
    assert scaled.x.mean(0).abs().max() < 1e-6
    assert float(other.x[0, 0]) == pytest.approx(3 / 2**0.5)  # (5 - 2) / sqrt(2), by the numbers of the training part
    assert scaled.x[:, 1].tolist() == [0, 0]  # constant in the training part
    (folder / "small-test.arff").write_text(HEADER.replace("size", "mass") + "{0 5,4 1}\n")
    multilabel._load.cache_clear()
    with pytest.raises(Usage, match="different attributes"):
        load("small")


def test_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert not available("bibtex")
    with pytest.raises(Usage, match=FOLDER):
        load("bibtex")


def test_the_generated_set_is_what_it_says() -> None:
    train, test = generated(3)
    again, _ = generated(3)
    assert torch.equal(train.x, again.x)
    assert torch.equal(train.y, again.y)
    number = torch.cat([train.y, test.y]).sum(1)
    assert (float(number.min()), float(number.max())) == (1, 6)
    together = torch.corrcoef(torch.cat([train.y, test.y]).T)  # labels go together: more than chance would give
    assert float(together.triu(1).max()) > 0.2
    assert not torch.equal(generated(4)[0].y, train.y)


def test_held_out_is_a_partition() -> None:
    train, _ = generated(0)
    rest, part = held_out(train, 0.1, seed=2)
    rows = sorted(tuple(r) for r in torch.cat([rest.x, part.x])[:, :3].tolist())
    assert rows == sorted(tuple(r) for r in train.x[:, :3].tolist())
    assert len(part) == 60


SIZES = {  # rows of the two parts, features, labels, labels per example of the training part
    "bibtex": (4880, 2515, 1836, 159, 2.380),
    "emotions": (391, 202, 72, 6, 1.813),
    "enron": (1123, 579, 1001, 53, 3.387),
    "scene": (1211, 1196, 294, 6, 1.062),
    "yeast": (1500, 917, 103, 14, 4.228),
}


@pytest.mark.parametrize("name", ["emotions", "enron", "yeast"])
def test_published_files(name: str) -> None:
    if not available(name):
        pytest.skip(f"the set {name} is not in the folder that {FOLDER} names")
    train, test = load(name)
    first, second, features, labels, mean = SIZES[name]
    assert (len(train), len(test), train.x.shape[1], train.y.shape[1]) == (first, second, features, labels)
    assert float(train.y.sum(1).mean()) == pytest.approx(mean, abs=1e-3)
    assert name in KNOWN
