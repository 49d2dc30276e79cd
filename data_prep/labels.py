"""Labels of the images: from folder names, from the source itself, or from a table.

--labels folder                       the first folder of a path is the class
--labels source                       dataset.json of stylegan2-ada, .cls or .json members of a
                                      WebDataset, labels of TFRecords, labels of a data set
--labels attributes.csv               first column: names; one other column: classes (integers
                                      or words), several words (a|b), or a number; more columns:
                                      a vector. Also .tsv, .parquet, dataset.json, .txt as
                                      CelebA has it; also URLs
--labels 'attributes.csv#Smiling,Male'   these columns only
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from data_prep import storage
from data_prep.manifest import Label, Labels
from data_prep.sources import Entry, Listing, SourceError, printable
from data_prep.sources.base import LARGEST_SIDECAR_BYTES

NAME_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_id", "name")
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".json")
_BETWEEN = "|"
_LARGEST_CLASS = 10**6

Columns = dict[str, list[Any]]
Names = tuple[str, ...]
"""Of classes, or of the numbers of a vector; empty where the source has none."""
Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The label of each image, all of one kind."""

    by_name: Mapping[str, Label]
    kind: Labels


def check_labels_option(option: str) -> None:
    """Refuse what is no value of --labels.

    Raises:
        ValueError: It is none; says what is.
    """
    table = option.partition("#")[0]
    if option not in ("none", "folder", "source") and not table.lower().endswith(TABLES):
        raise ValueError(
            f"labels {option} are not known; choose none, folder, source, or name a file that ends "
            f"in {', '.join(TABLES)}"
        )


def read_labels(option: str, listing: Listing) -> LabelTable | None:
    """Labels of all images of a listing that are not refused.

    Raises:
        SourceError: There is none for an image, or they are not of one kind.
    """
    names = [entry.name for entry in listing.entries if not entry.refused]
    if option == "none":
        return None
    if option == "folder":
        return _table(*_folder_labels(names), option)
    if option == "source":
        return _table(_source_labels(listing, names), listing.label_names, option)
    url, _, wanted = option.partition("#")
    found, called = _file_labels(url, [name for name in wanted.split(",") if name])
    return _table(_matched(names, found, url), called, url)


def _folder_labels(names: Iterable[str]) -> tuple[dict[str, Label], Names]:
    """The rank of the first folder of each name among all of them, sorted; and the folders."""
    first = {name: name.partition("/")[0] if "/" in name else None for name in names}
    for name, folder in first.items():
        if folder is None:
            raise SourceError(
                f"{printable(name)} lies in no folder, but with --labels folder the first folder "
                f"is the class; move it or use --labels none"
            )
    return _ranks({name: folder for name, folder in first.items() if folder is not None})


# From the source itself.


def _source_labels(listing: Listing, names: Sequence[str]) -> dict[str, Label]:
    sidecars = _Sidecars(listing)
    found: dict[str, Label] = {}
    for name in names:
        label = listing.labels.get(name)
        label = sidecars.label(name) if label is None else label
        if label is None:
            raise SourceError(
                f"{printable(name)} has no label in its source (dataset.json, .cls or .json of the "
                f"same key, labels of TFRecords or of a data set); use --labels none, folder or a "
                f"table"
            )
        found[name] = label
    return found


class _Sidecars:
    """Labels in files beside the images, inside the source."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.tables: dict[str, dict[str, Label]] = {}
        self.members: dict[str, Entry] = {}
        # .json first, so that a .cls of the same key has the last word.
        ordered = sorted(listing.sidecars.items(), key=lambda item: item[0].endswith(".cls"))
        for name, entry in ordered:
            path = PurePosixPath(name)
            if path.name == "dataset.json":
                self.tables[str(path.parent)] = _dataset_json(self._read(entry), name)
            else:
                self.members[_sample_key(name)] = entry

    def label(self, name: str) -> Label | None:
        """The label of one image, None if there is none."""
        for folder in map(str, PurePosixPath(name).parents):
            if folder in self.tables:
                inside = name if folder == "." else name.removeprefix(f"{folder}/")
                return self.tables[folder].get(inside)
        entry = self.members.get(_sample_key(name))
        return None if entry is None else _member_label(self._read(entry), entry.name)

    def _read(self, entry: Entry) -> bytes:
        if entry.size > LARGEST_SIDECAR_BYTES:
            raise SourceError(f"{entry.name} is longer than {LARGEST_SIDECAR_BYTES} bytes")
        try:
            return self.listing.source.read(entry)
        except ValueError as err:
            raise SourceError(f"labels {printable(entry.name)} cannot be used: {err}") from err


def _sample_key(name: str) -> str:
    """What WebDataset takes for the key: all before the first dot of the last component."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _member_label(content: bytes, name: str) -> Label | None:
    try:
        value = json.loads(content)
        if isinstance(value, dict):
            value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
        return None if value is None else _label(value)
    except (ValueError, TypeError) as err:
        raise SourceError(f"{printable(name)} holds no label: {err}") from err


def _dataset_json(content: bytes, url: str) -> dict[str, Label]:
    """`{"labels": [[name, class or vector], …]}` of stylegan2-ada."""
    try:
        rows = json.loads(content)["labels"]
        return {str(name): _label(label) for name, label in rows or []}
    except (ValueError, KeyError, TypeError) as err:
        raise SourceError(
            f"{url} is no table of labels as stylegan2-ada has it "
            f'({{"labels": [[name, label], …]}}): {err!r}'
        ) from err


def _label(value: Any) -> Label:
    if isinstance(value, list):
        return tuple(float(number) for number in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return (value,)
    raise ValueError(f"{value!r} is neither a number nor a list of numbers")


# From a table.


def _file_labels(url: str, wanted: Sequence[str]) -> tuple[dict[str, Label], Names]:
    try:
        content = storage.read_bytes(url)
    except storage.MissingError as err:
        raise SourceError(f"labels {url} do not exist") from err
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".json":
        return _dataset_json(content, url), ()
    columns = _parquet(content, url) if suffix == ".parquet" else _csv(content, url, suffix)
    if not columns or not next(iter(columns.values())):
        raise SourceError(f"labels {url} have no rows; write a header and one row per image")

    # Which columns.
    names = next((name for name in NAME_COLUMNS if name in columns), next(iter(columns)))
    chosen = list(wanted) or [name for name in columns if name != names]
    unknown = [name for name in chosen if name not in columns]
    if unknown or not chosen:
        raise SourceError(
            f"labels {url} have no column {unknown[0] if unknown else 'but ' + names}; choose from "
            f"{', '.join(list(columns)[:50])}"
        )
    labels, called = _column_labels(columns, chosen, url)
    return dict(zip(map(str, columns[names]), labels, strict=True)), called


def _csv(content: bytes, url: str, suffix: str) -> Columns:
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = list(csv.reader(text, delimiter="\t" if suffix == ".tsv" else ",", strict=True))
    except (UnicodeDecodeError, csv.Error) as err:
        raise SourceError(f"labels {url} cannot be read: {err}; save them as UTF-8") from err
    if suffix == ".txt":
        rows = _celeba([line.split() for line in text.getvalue().splitlines()])
    rows = [row for row in rows if row]
    if not rows:
        return {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise SourceError(
                f"row {number} of {url} has {len(row)} cells, but the header {len(rows[0])}; "
                f"repair it"
            )
    return {
        name.strip(): [_cell(row[place]) for row in rows[1:]] for place, name in enumerate(rows[0])
    }


def _celeba(rows: list[list[str]]) -> list[list[str]]:
    """Cells between blanks, below their number and a header without the column of names."""
    rows = rows[1:] if rows and len(rows[0]) == 1 else rows
    if len(rows) > 1 and len(rows[0]) == len(rows[1]) - 1:
        rows[0] = [NAME_COLUMNS[0], *rows[0]]
    return rows


def _cell(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text.strip()


def _parquet(content: bytes, url: str) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as err:
        raise SourceError(
            f"reading {url} needs the package pyarrow; install it or save the labels as .csv"
        ) from err
    try:
        columns: Columns = parquet.read_table(pyarrow.BufferReader(content)).to_pydict()
    except (pyarrow.ArrowException, OSError) as err:
        raise SourceError(f"labels {url} cannot be read: {err}") from err
    return columns


def _column_labels(columns: Columns, chosen: Sequence[str], url: str) -> tuple[list[Label], Names]:
    cells = {name: columns[name] for name in chosen}
    if len(cells) == 1:
        (values,) = cells.values()
        if any(isinstance(value, str) for value in values):
            return _words([str(value) for value in values])
        if all(isinstance(value, int) for value in values) and min(values) < 0:
            return [(float(value),) for value in values], tuple(cells)
        labels = _each(_label, values, url)
        return labels, tuple(cells) if any(isinstance(v, float) for v in values) else ()
    for name, values in cells.items():
        if not all(isinstance(value, int | float) for value in values):
            raise SourceError(
                f"column {name} of {url} does not hold numbers alone, so it is no part of a "
                f"vector; name the columns to be used: {url}#{chosen[0]}"
            )
    return [tuple(map(float, row)) for row in zip(*cells.values(), strict=True)], tuple(cells)


def _each(make: Callable[[Any], Label], values: Sequence[Any], url: str) -> list[Label]:
    try:
        return [make(value) for value in values]
    except (ValueError, TypeError) as err:
        raise SourceError(f"labels {url} cannot be used: {err}; repair that row") from err


def _words(values: Sequence[str]) -> tuple[list[Label], Names]:
    """Classes; where a cell may hold several words (`a|b`), a vector of 0 and 1."""
    if not any(_BETWEEN in value for value in values):
        ranks, words = _ranks(dict(enumerate(values)))
        return list(ranks.values()), words
    each = [{word.strip() for word in value.split(_BETWEEN) if word.strip()} for value in values]
    every = sorted(set().union(*each))
    return [tuple(float(word in words) for word in every) for words in each], tuple(every)


def _ranks(words: Mapping[Key, str]) -> tuple[dict[Key, Label], Names]:
    every = tuple(sorted(set(words.values())))
    rank = {word: number for number, word in enumerate(every)}
    return {key: rank[word] for key, word in words.items()}, every


def _matched(names: Sequence[str], found: Mapping[str, Label], url: str) -> dict[str, Label]:
    """Labels by the full names; a table may leave out the first folders."""
    labels: dict[str, Label] = {}
    for name in names:
        known = name
        while known not in found and "/" in known:
            known = known.partition("/")[2]
        if known not in found:
            raise SourceError(
                f"{printable(name)} has no row in {url}, which begins with "
                f"{printable(next(iter(found), 'nothing'))}; add it, or choose images by --include"
            )
        labels[name] = found[known]
    return labels


def _table(labels: Mapping[str, Label], names: Names, origin: str) -> LabelTable:
    """Make sure that all labels are of one kind; rows of one 1 and zeros else are classes."""
    if all(isinstance(label, int) for label in labels.values()):
        classes: dict[str, int] = {name: int(label) for name, label in labels.items()}  # type: ignore[arg-type]
        for name, number in classes.items():
            if not 0 <= number <= _LARGEST_CLASS:
                raise SourceError(
                    f"{printable(name)} has class {number} from {origin}; classes are numbers from "
                    f"0 to {_LARGEST_CLASS}"
                )
        size = max(max(classes.values(), default=-1) + 1, len(names))
        return LabelTable(by_name=classes, kind=Labels(kind="class", size=size, names=names))
    vectors = {
        name: label if isinstance(label, tuple) else (float(label),)
        for name, label in labels.items()
    }
    size = len(next(iter(vectors.values())))
    for name, vector in vectors.items():
        if len(vector) != size or size == 0 or not all(map(math.isfinite, vector)):
            raise SourceError(
                f"{printable(name)} has label {list(vector)} from {origin}; all must be {size} "
                f"finite numbers, as the first is"
            )
    if all(sorted(vector) == [0.0] * (size - 1) + [1.0] for vector in vectors.values()):
        classes = {name: vector.index(1.0) for name, vector in vectors.items()}
        return LabelTable(by_name=classes, kind=Labels(kind="class", size=size, names=names))
    return LabelTable(by_name=vectors, kind=Labels(kind="vector", size=size, names=names))
