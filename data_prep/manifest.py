"""What a data set is: its levels, its shards and where each sample lies.

    DEST/manifest.json    one `Manifest`, written last: what it does not name does not exist
    DEST/64/000000.tar    WebDataset shard 0 of the 64 px level (32/000000.tar: same samples)
    DEST/64/000000.json   its `ShardIndex`: where each sample lies, digest, source, label

Every shard but the last holds `samples_per_shard` samples. A sample is known by its number: the
rank of its source path among the readable ones. Each file is covered by a digest in the one above
it, and the manifest by its own: who knows the manifest's digest knows every byte.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from data_prep import storage

FORMAT = 1
SAMPLE_DIGEST_CHARS = 32

Label = int | tuple[float, ...]


class DigestError(ValueError):
    """Bytes are not the ones that were written; the message names their URL."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of one level, and its index."""

    samples: int
    bytes: int
    """Length of the tar."""
    sha256: str
    index_bytes: int
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """All samples at one resolution."""

    resolution: int
    """Width in pixels, and height unless that is given."""
    encoding: str
    """Suffix of the image members: png, npy (uint8 HWC), webp or jpg."""
    bytes: int
    """Length of all its tars together."""
    shards: tuple[Shard, ...]
    height: int | None = None
    """In pixels, of images that are not square."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.resolution, self.height or self.resolution


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the labels of a data set are."""

    kind: str
    """class: one integer below `size` each; vector: `size` numbers each."""
    size: int
    names: tuple[str, ...] = ()
    """Of the classes or of the numbers; empty where the source had none."""

    def __post_init__(self) -> None:
        if len(self.names) not in (0, self.size):
            raise ValueError(
                f"labels have {len(self.names)} names, but size {self.size}; run data_prep again"
            )

    def content(self) -> dict[str, Any]:
        """As the manifest holds it; names that there are not are not written."""
        names = {"names": list(self.names)} if self.names else {}
        return {"kind": self.kind, "size": self.size, **names}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Labels":
        """The way back."""
        return cls(**{**content, "names": tuple(content.get("names", ()))})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set (see the head of this file)."""

    name: str
    """For people; no part of the digest."""
    samples: int
    resolution: int
    """Width of the full level in pixels, and height unless that is given."""
    channels: int
    samples_per_shard: int
    source_transform: Mapping[str, str]
    """How source images became the full level: crop, resize, background."""
    levels: tuple[Level, ...]
    """From 4 px to the full level."""
    labels: Labels | None = None
    resample: str = "box"
    """Filter between the levels: box or lanczos (see `data_prep.pyramid`)."""
    height: int | None = None
    """Of the full level in pixels, where images are not square."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.samples_per_shard < 1:
            raise ValueError(
                f"data set {self.name} has {self.samples} samples in shards of "
                f"{self.samples_per_shard}; both must be at least 1; run data_prep again"
            )
        for level in self.levels:
            counts = [shard.samples for shard in level.shards]
            if counts != self._shard_samples():
                raise ValueError(
                    f"level {level.resolution} holds shards of {_short(counts)} samples, but "
                    f"{self.samples} samples in shards of {self.samples_per_shard} are "
                    f"{_short(self._shard_samples())}; run data_prep again"
                )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but the name; the fingerprint of the data."""
        return _digest(self._content())

    @property
    def num_shards(self) -> int:
        """Number of shards at every level."""
        return -(-self.samples // self.samples_per_shard)

    def level(self, resolution: int) -> Level:
        """The level of this resolution in pixels."""
        for level in self.levels:
            if level.resolution == resolution:
                return level
        available = ", ".join(str(level.resolution) for level in self.levels)
        raise ValueError(
            f"data set {self.name} has no level of {resolution} px; choose from {available}"
        )

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard and row inside it of a sample number."""
        if not 0 <= sample < self.samples:
            raise ValueError(
                f"sample {sample} is not in data set {self.name}; "
                f"choose from 0 to {self.samples - 1}"
            )
        return divmod(sample, self.samples_per_shard)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({**self._content(), "digest": self.digest}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, url: str = "manifest.json") -> "Manifest":
        """Read the text of manifest.json and verify its digest.

        Raises:
            DigestError: The text was altered.
            ValueError: It is no manifest, or one of another format.
        """
        content = _loads(text, url)
        if _digest(content) != content.get("digest"):
            raise DigestError(
                f"{url} was altered: its content has digest {_digest(content)}, "
                f"it says {content.get('digest')}"
            )
        try:
            return cls(
                name=content["name"],
                samples=content["samples"],
                resolution=content["resolution"],
                channels=content["channels"],
                samples_per_shard=content["samples_per_shard"],
                source_transform=content["source_transform"],
                levels=tuple(
                    Level(**{**level, "shards": tuple(Shard(**row) for row in level["shards"])})
                    for level in content["levels"]
                ),
                labels=None if content["labels"] is None else Labels.of(content["labels"]),
                resample=content["resample"],
                height=content.get("height"),
            )
        except (KeyError, TypeError) as err:
            raise ValueError(f"{url} is no manifest of a data set: {err!r}") from err

    @classmethod
    def load(cls, url: str) -> "Manifest":
        """The manifest of the data set at `url`: its folder, or manifest.json itself."""
        url = manifest_url(url)
        return cls.from_json(storage.read_bytes(url), url=url)

    def _shard_samples(self) -> list[int]:
        last = self.samples - self.samples_per_shard * (self.num_shards - 1)
        return [self.samples_per_shard] * (self.num_shards - 1) + [last]

    def _content(self) -> dict[str, Any]:
        # Keys are spelt out: this order is the order in the file.
        return {
            "format": FORMAT,
            "name": self.name,
            "samples": self.samples,
            "resolution": self.resolution,
            "channels": self.channels,
            "samples_per_shard": self.samples_per_shard,
            "resample": self.resample,
            "source_transform": dict(self.source_transform),
            "labels": None if self.labels is None else self.labels.content(),
            # What square images do not have is not written: digests of before stay.
            **({} if self.height is None else {"height": self.height}),
            "levels": [
                {key: value for key, value in asdict(level).items() if value is not None}
                for level in self.levels
            ],
        }


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the samples of one shard lie, as columns with one row per sample."""

    keys: tuple[str, ...]
    sources: tuple[str, ...]
    """Path in the source, for messages."""
    offsets: tuple[int, ...]
    """First byte of the image in the tar."""
    lengths: tuple[int, ...]
    sha256: tuple[str, ...]
    """First 32 hexadecimal characters of the SHA-256 of the image's bytes."""
    labels: tuple[Label, ...] | None = None
    metadata: tuple[Mapping[str, Any], ...] | None = None
    """What the sources say about the images (author, licence); of the full level only."""

    def __len__(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """The content of the index file."""
        columns = {"format": FORMAT, **vars(self)}
        if self.metadata is None:
            del columns["metadata"]
        return (json.dumps(columns, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, shard: Shard, *, url: str = "index") -> "ShardIndex":
        """Verify an index file against the manifest's entry and read it.

        Raises:
            DigestError: It is not the file the manifest was made with.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest != shard.index_sha256:
            raise DigestError(
                f"{url} was altered: its SHA-256 is {digest}, "
                f"the manifest says {shard.index_sha256}"
            )
        columns = _loads(content, url)
        labels, metadata = columns["labels"], columns.get("metadata")
        return cls(
            keys=tuple(columns["keys"]),
            sources=tuple(columns["sources"]),
            offsets=tuple(columns["offsets"]),
            lengths=tuple(columns["lengths"]),
            sha256=tuple(columns["sha256"]),
            labels=None if labels is None else tuple(_label(label) for label in labels),
            metadata=None if metadata is None else tuple(metadata),
        )

    @classmethod
    def load(
        cls, base: str, resolution: int, shard_number: int, manifest: Manifest
    ) -> "ShardIndex":
        """Fetch the index of one shard of the data set in the folder `base` and verify it."""
        shard = manifest.level(resolution).shards[shard_number]
        url = index_url(base, resolution, shard_number)
        return cls.from_bytes(storage.read_bytes(url), shard, url=url)


def manifest_url(url: str) -> str:
    """URL of the manifest of the data set at `url`."""
    return url if url.endswith(".json") else storage.join(url, "manifest.json")


def folder_url(url: str) -> str:
    """URL of the folder of a data set, given it or its manifest."""
    return url.rpartition("/")[0] if url.endswith(".json") else url.rstrip("/")


def shard_url(base: str, resolution: int, shard: int) -> str:
    """URL of one tar of one level."""
    return storage.join(base, str(resolution), f"{shard:06d}.tar")


def index_url(base: str, resolution: int, shard: int) -> str:
    """URL of the index of one tar."""
    return storage.join(base, str(resolution), f"{shard:06d}.json")


def sample_key(sample: int) -> str:
    """WebDataset key of a sample number."""
    return f"{sample:09d}"


def sample_digest(payload: bytes) -> str:
    """What the index keeps of the SHA-256 of an image's bytes."""
    return hashlib.sha256(payload).hexdigest()[:SAMPLE_DIGEST_CHARS]


def _digest(content: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in content.items() if key not in {"name", "digest"}}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _loads(text: str | bytes, url: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as err:
        raise ValueError(f"{url} is not JSON: {err}") from err
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(
            f"{url} has format {found}, but this version reads format {FORMAT}; "
            f"make the data set again with this version of data_prep"
        )
    return content


def _label(label: int | Sequence[float]) -> Label:
    return label if isinstance(label, int) else tuple(label)


def _short(counts: list[int]) -> str:
    return str(counts) if len(counts) <= 4 else f"[{counts[0]}, … {len(counts)} …, {counts[-1]}]"
