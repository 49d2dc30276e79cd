"""Labels: from folders, from the source, from tables; of one kind, or refused with one sentence."""

import json
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_prep import storage
from data_prep.labels import check_labels_option, read_labels
from data_prep.manifest import Labels, Manifest, ShardIndex
from data_prep.sources import Listing, SourceError, list_source
from tests.small_sets import make_folder, read_webdataset, shard

NAMES = ("a/0.png", "a/1.png", "b/2.png")


@pytest.fixture
def listing(tmp_path) -> Listing:
    """Of three files with the names above."""
    for name in NAMES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    return list_source(tmp_path / "images", tmp_path)


def _table(folder: Path, text: str, name: str = "t.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8-sig" if name.endswith("csv") else "utf-8")
    return str(folder / name)


def test_the_first_folder_is_the_class(listing, tmp_path):
    table = read_labels("folder", listing)

    assert table.kind == Labels(kind="class", size=2, names=("a", "b"))
    assert table.by_name == dict(zip(NAMES, (0, 0, 1), strict=True))
    (tmp_path / "images" / "top.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"top.png lies in no folder, but with --labels folder"):
        read_labels("folder", list_source(tmp_path / "images", tmp_path))


CLASS, VECTOR = "class", "vector"
TABLES = [
    ("file,label\n{0},2\n{1},0\n{2},2\n", "", CLASS, 3, (2, 0, 2), ""),
    ("label,file_name\n2,{0}\n0,{1}\n2,{2}\n", "", CLASS, 3, (2, 0, 2), ""),  # known by its header
    ("x,y\n{0},cat\n{1},ant\n{2},cat\n", "", CLASS, 2, (1, 0, 1), "ant cat"),  # first column
    ("x,y\n{0},red|big\n{1},\n{2},big\n", "", VECTOR, 2, ((1, 1), (0, 0), (1, 0)), "big red"),
    ("x,y\n{0},0.5\n{1},1\n{2},-2\n", "", VECTOR, 1, ((0.5,), (1.0,), (-2.0,)), "y"),
    ("x,y\n{0},-1\n{1},1\n{2},-1\n", "", VECTOR, 1, ((-1.0,), (1.0,), (-1.0,)), "y"),
    ("x,y,z\n{0},1,0.5\n{1},0,1\n{2},1,1\n", "", VECTOR, 2, ((1, 0.5), (0, 1), (1, 1)), "y z"),
    ("x,y,z\n{0},1,0\n{1},0,1\n{2},1,0\n", "", CLASS, 2, (0, 1, 0), "y z"),  # one-hot
    ("x,y,z\n{0},1,w\n{1},0,w\n{2},1,w\n", "#y", CLASS, 2, (1, 0, 1), ""),
    (
        "x,a,b,c\n{0},1,7,3\n{1},0,7,2\n{2},1,7,1\n",
        "#c,a",
        VECTOR,
        2,
        ((3, 1), (2, 0), (1, 1)),
        "c a",
    ),
    ("x,y\n0.png,2\n1.png,0\n2.png,1\nmore.png,9\n", "", CLASS, 3, (2, 0, 1), ""),  # no folders
]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize(("text", "columns", "labels", "size", "expected", "names"), TABLES)
def test_a_table_gives_classes_and_vectors_and_their_names(
    kind, text, columns, labels, size, expected, names, listing, tmp_path
):
    text = text.format(*NAMES)
    if kind == ".parquet":
        rows = [line.split(",") for line in text.splitlines()]
        values = {
            name: [_number(row[place]) for row in rows[1:]] for place, name in enumerate(rows[0])
        }
        parquet.write_table(pyarrow.table(values), tmp_path / "t.parquet")
    else:
        _table(tmp_path, text.replace(",", "\t") if kind == ".tsv" else text, f"t{kind}")

    table = read_labels(f"{tmp_path}/t{kind}{columns}", listing)

    assert table.kind == Labels(kind=labels, size=size, names=tuple(names.split()))
    assert tuple(table.by_name[name] for name in NAMES) == expected


def test_the_attributes_of_celeba_are_read_as_they_are_published(listing, tmp_path):
    text = "3\nBald Smiling \n0.png  1 -1\n1.png -1 -1\n2.png -1  1\n"

    table = read_labels(_table(tmp_path, text, "anno.txt"), listing)

    assert table.by_name == {"a/0.png": (1, -1), "a/1.png": (-1, -1), "b/2.png": (-1, 1)}
    assert table.kind.names == ("Bald", "Smiling")


def _number(text: str):
    if text.lstrip("-").replace(".", "", 1).isdigit():
        return float(text) if "." in text else int(text)
    return text


def test_lists_in_a_parquet_are_vectors(listing, tmp_path):
    values = {"name": list(NAMES), "w": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    parquet.write_table(pyarrow.table(values), tmp_path / "t.parquet")

    table = read_labels(str(tmp_path / "t.parquet"), listing)

    assert table.by_name["b/2.png"] == (5.0, 6.0)


REFUSALS = [
    ("", "have no rows; write a header and one row per image"),
    ("x,y\n", "have no rows; write a header and one row per image"),
    ("x\n{0}\n", "have no column but x; choose from x"),
    (
        "x,y\n{0},1\n",
        r"a/1.png has no row in .*t.csv, which begins with a/0.png; add it, or choose",
    ),
    ("x,y\n{0},1,2\n", r"row 2 of .*t.csv has 3 cells, but the header 2; repair it"),
    ("x,y,z\n{0},1,w\n{1},1,w\n{2},1,w\n", r"column z of .* does not hold numbers alone, .*#y"),
    (
        "x,y\n{0},nan\n{1},1\n{2},1\n",
        r"a/0.png has label \[nan\] from .*; all must be 1 finite num",
    ),
    ("x,y\n{0},1e999\n{1},1\n{2},1\n", r"a/0.png has label \[inf\] from .*; all must be 1 finite"),
    ("x,y\n{0},1234567\n{1},1\n{2},1\n", r"a/0.png has class 1234567 from .*; classes are numbers"),
]


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_a_table_that_does_not_fit_is_refused(text, message, listing, tmp_path):
    with pytest.raises(SourceError, match=message):
        read_labels(_table(tmp_path, text.format(*NAMES)), listing)


def test_files_that_are_no_tables_are_refused(listing, tmp_path):
    for name in ("x.csv", "x.json", "x.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\0")
        with pytest.raises(SourceError, match=rf"{name} (cannot be read|is no table of labels)"):
            read_labels(str(tmp_path / name), listing)
    with pytest.raises(SourceError, match=r"labels .*nothing.csv do not exist"):
        read_labels(str(tmp_path / "nothing.csv"), listing)
    with pytest.raises(SourceError, match="have no column size; choose from x, y"):
        read_labels(_table(tmp_path, "x,y\n{0},1\n") + "#size", listing)
    with pytest.raises(ValueError, match="labels folders are not known; choose none, folder, sour"):
        check_labels_option("folders")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([2, 0, 2], Labels(kind="class", size=3)), ([[0.5, 1], [0, 0], [1, 1]], None)],
)
@pytest.mark.parametrize("place", ["zip", "folder", "file"])
def test_dataset_json_of_stylegan2_ada_is_read(place, labels, kind, listing, tmp_path):
    content = json.dumps({"labels": [list(row) for row in zip(NAMES, labels, strict=True)]})
    option = "source"
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("dataset.json", content)
            for name in NAMES:
                archive.writestr(name, b"")
        listing = list_source(tmp_path / "x.zip", tmp_path)
    elif place == "folder":
        (tmp_path / "images" / "dataset.json").write_text(content)
        listing = list_source(tmp_path / "images", tmp_path)
    else:
        option = _table(tmp_path, content, "labels.json")

    table = read_labels(option, listing)

    assert table.kind == (kind or Labels(kind="vector", size=2))
    expected = [tuple(x) if isinstance(x, list) else x for x in labels]
    assert [table.by_name[name] for name in NAMES] == expected


def test_a_source_without_labels_says_what_was_looked_for(listing, tmp_path):
    with pytest.raises(
        SourceError, match=r"a/0.png has no label in its source \(dataset.json, .cl"
    ):
        read_labels("source", listing)
    (tmp_path / "images" / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(SourceError, match=r"a/0.png has no label in its source"):
        read_labels("source", list_source(tmp_path / "images", tmp_path))
    (tmp_path / "images" / "dataset.json").write_text('{"labels": [["a/0.png", "cat"]]}')
    with pytest.raises(SourceError, match=r"dataset.json is no table of labels as stylegan2-ada"):
        read_labels("source", list_source(tmp_path / "images", tmp_path))


@pytest.mark.parametrize(
    ("suffix", "texts", "expected"),
    [
        ("cls", ("1", "0", "1"), (1, 0, 1)),
        ("json", ('{"label": 1, "x": 2}', '{"label": 0}', '{"label": 2}'), (1, 0, 2)),
        ("json", ('{"label": [1, 2]}', "[3, 4]", '{"cls": [5, 6]}'), ((1, 2), (3, 4), (5, 6))),
    ],
)
def test_members_beside_the_images_are_their_labels(suffix, texts, expected, listing, tmp_path):
    for name, text in zip(NAMES, texts, strict=True):
        (tmp_path / "images" / name).with_suffix(f".{suffix}").write_text(text)

    table = read_labels("source", list_source(tmp_path / "images", tmp_path))

    assert tuple(table.by_name[name] for name in NAMES) == expected
    (tmp_path / "images" / NAMES[0]).with_suffix(f".{suffix}").write_text("cat")
    with pytest.raises(SourceError, match=rf"a/0.{suffix} holds no label: "):
        read_labels("source", list_source(tmp_path / "images", tmp_path))


def test_vectors_are_in_the_index_and_in_json_members_and_changed_ones_are_noticed(tmp_path):
    source = make_folder(tmp_path / "images", 7)
    rows = [f"{number:04d}.png,{number},0.5" for number in range(7)]
    option = _table(tmp_path, "\n".join(["x,y,z", *rows]))

    manifest = shard(source, tmp_path / "data", labels=option).manifest

    assert manifest.labels == Labels(kind="vector", size=2, names=("y", "z"))
    assert Manifest.load(str(tmp_path / "data")) == manifest
    index = ShardIndex.load(str(tmp_path / "data"), 16, 1, manifest)
    assert index.labels == ((5.0, 0.5), (6.0, 0.5))
    samples = read_webdataset(tmp_path / "data/8/000001.tar", decode="pil")
    assert [sample["json"] for sample in samples] == [{"label": [5, 0.5]}, {"label": [6, 0.5]}]
    assert shard(source, tmp_path / "data", labels=option).already_complete
    _table(tmp_path, "\n".join(["x,y,z", *rows]).replace("6,0.5", "6,0.25"))
    with pytest.raises(
        ValueError, match=r"made from other images.*labels or landmarks differ\); choose ano"
    ):
        shard(source, tmp_path / "data", labels=option)


def test_bad_images_need_no_label(tmp_path):
    source = make_folder(tmp_path / "images", 2)
    (source / "bad.png").symlink_to("nowhere")
    option = _table(tmp_path, "x,y\n0000.png,0\n0001.png,1\n")

    report = shard(source, tmp_path / "data", labels=option, max_bad=1)

    assert report.manifest.labels.size == 2
    assert list(report.bad) == ["bad.png"]


def test_a_table_may_lie_in_a_store(s3, listing):
    storage.write_atomic(f"{s3.url}/t.csv", b"x,y\na/0.png,1\na/1.png,0\nb/2.png,1\n")

    assert read_labels(f"{s3.url}/t.csv", listing).kind.size == 2
