"""A data set that data_prep made: its full level, by manifest and indices, with its labels."""

from dataclasses import dataclass, replace

from data_prep.images import BadImageError
from data_prep.manifest import (
    Label,
    Manifest,
    ShardIndex,
    folder_url,
    sample_digest,
    shard_url,
)
from data_prep.sources.base import Entry, Listing, Source, check_size
from data_prep.sources.ranges import read_at
from data_prep.sources.raw import image_file, npy_array


@dataclass(frozen=True, kw_only=True)
class DataSet(Source):
    """Images of the full level; `url` is the folder."""

    resolution: int
    arrays: bool
    """Stored as .npy."""

    def _read(self, entry: Entry) -> bytes:
        tar = shard_url(self.url, self.resolution, int(entry.member))
        content = check_size(read_at(tar, entry.offset, entry.size), entry.size)
        if sample_digest(content) != entry.stamp:
            raise BadImageError("damaged: its SHA-256 is another than the index says")
        if not self.arrays:
            return content
        return image_file(npy_array(content))  # type: ignore[arg-type]


def list_data_set(url: str) -> Listing:
    """All samples of a data set under the names of their sources.

    Raises:
        ValueError: Its manifest or an index is damaged.
    """
    manifest = Manifest.load(url)
    base, level = folder_url(url), manifest.level(manifest.resolution)
    source = DataSet(url=base, resolution=level.resolution, arrays=level.encoding == "npy")
    entries: list[Entry] = []
    labels: dict[str, Label] = {}
    for number in range(manifest.num_shards):
        index = ShardIndex.load(base, level.resolution, number, manifest)
        rows = zip(index.sources, index.lengths, index.sha256, index.offsets, strict=True)
        for row, (name, length, digest, offset) in enumerate(rows):
            entry = Entry(name, length, digest, offset, member=str(number))
            if index.metadata is not None:
                entry = replace(entry, metadata=index.metadata[row])
            entries.append(entry)
            if index.labels is not None:
                labels[name] = index.labels[row]
    ordered = tuple(sorted(entries, key=lambda entry: entry.name))
    called = () if manifest.labels is None else manifest.labels.names
    return Listing(source=source, entries=ordered, labels=labels, label_names=called)
