"""The official multi-resolution TFRecords of PGGAN, StyleGAN and StyleGAN2, without TensorFlow.

    NAME-r02.tfrecords … NAME-r10.tfrecords   one file per level; 10 = log2 of 1024 px
    NAME-rxx.labels                           .npy, float32 [images, label size]; may be absent

Only the full level is read: ours are made of it by the same rule (`data_prep.pyramid`). A record is
length (uint64), masked CRC-32C of that, data, masked CRC-32C of that; the data is a
`tf.train.Example` in protobuf with `shape` (int64: channels, height, width) and `data` (bytes).
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep import storage
from data_prep.images import BadImageError
from data_prep.manifest import Label
from data_prep.sources.base import (
    LARGEST_FILE_BYTES,
    LARGEST_SIDECAR_BYTES,
    Entry,
    Source,
    SourceError,
    check_size,
    rest_of_archive,
)
from data_prep.sources.crc32c import masked_crc32c
from data_prep.sources.ranges import read_at
from data_prep.sources.raw import image_file, npy_array

LEVEL = re.compile(r"(?P<name>.+)-r(?P<log2>\d\d)\.tfrecords")
_HEAD = struct.Struct("<QL")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True)
class TFRecords(Source):
    """Records of one file; each becomes a PPM or PGM file."""

    def _read(self, entry: Entry) -> bytes:
        record = check_size(read_at(self.url, entry.offset, entry.size), entry.size)
        if masked_crc32c(record) != entry.stamp:
            raise BadImageError("damaged: its CRC-32C is another than the file says")
        return image_file(example_image(record).transpose(1, 2, 0))


def full_level(folder: str, names: Sequence[str]) -> str:
    """Name of the file with the largest images.

    Raises:
        SourceError: The files are of several data sets.
    """
    levels = [match for name in names if (match := LEVEL.fullmatch(name))]
    sets = sorted({match["name"] for match in levels})
    if len(sets) > 1:
        raise SourceError(
            f"source {folder} holds the TFRecords of {' and '.join(sets[:3])}; name one of the "
            f"files with the largest images instead of their folder"
        )
    return max(levels, key=lambda match: int(match["log2"]))[0]


def tfrecord_entries(file: BinaryIO, prefix: str) -> Iterator[Entry]:
    """All records of a file in order; one that stands for the rest if it is damaged."""
    number, offset = 0, 0
    file.seek(0)
    head = file.read(_HEAD.size)
    while head:
        problem = _problem(head)
        if problem:
            yield rest_of_archive(f"truncated archive: at byte {offset}, {problem}")
            return
        size, _ = _HEAD.unpack(head)
        start = offset + _HEAD.size
        file.seek(start + size)
        tail = file.read(4 + _HEAD.size)
        if len(tail) < 4:
            yield rest_of_archive(f"truncated archive: at byte {offset}, it ends within a record")
            return
        # One read gives the checksum of this record and the head of the next.
        (crc,) = struct.unpack_from("<L", tail)
        yield Entry(f"{prefix}/{number:08d}", size, crc, start)
        number, offset, head = number + 1, start + size + 4, tail[4:]


def tfrecord_labels(url: str, entries: tuple[Entry, ...]) -> dict[str, Label]:
    """Labels by name of the records of a file; none if there is no file of labels.

    Raises:
        SourceError: They do not fit the records.
    """
    labels_url = re.sub(r"-r\d\d\.tfrecords$", "-rxx.labels", url)
    if not storage.exists(labels_url):
        return {}
    if storage.size_bytes(labels_url) > LARGEST_SIDECAR_BYTES:
        raise SourceError(f"{labels_url} is longer than {LARGEST_SIDECAR_BYTES} bytes")
    try:
        rows = npy_array(storage.read_bytes(labels_url))
    except ValueError as err:
        raise SourceError(f"{labels_url} is no .npy file of labels: {err}") from err
    if rows.ndim != 2 or len(rows) != len(entries):
        raise SourceError(
            f"{labels_url} has labels of shape {rows.shape}, but {url} holds {len(entries)} "
            f"images; get both again, or use --labels none"
        )
    return {
        entry.name: tuple(float(value) for value in row)
        for entry, row in zip(entries, rows, strict=True)
    }


def example_image(record: bytes) -> NDArray[np.uint8]:
    """The image [c, h, w] of a `tf.train.Example`.

    Raises:
        BadImageError: It is none.
    """
    try:
        features = dict(_features(record))
        shape = tuple(_int64s(features["shape"]))
        (content,) = (value for number, value in _fields(features["data"]) if number == 1)
        pixels = np.frombuffer(content, np.uint8)
        image = pixels.reshape(shape) if min(shape, default=0) > 0 else None
    except (ValueError, KeyError, IndexError, TypeError) as err:
        raise BadImageError(f"no official record: {err!r}") from err
    if image is None or image.ndim != 3:
        raise BadImageError(f"no official record: shape {shape} is not channels, height, width")
    return image


def _problem(head: bytes) -> str:
    if len(head) < _HEAD.size:
        return "it ends within the length of a record"
    size, crc = _HEAD.unpack(head)
    if masked_crc32c(head[:8]) != crc:
        return "the length of a record has another checksum than the file says"
    if size > LARGEST_FILE_BYTES:
        return f"a record of {size} bytes is more than {LARGEST_FILE_BYTES}"
    return ""


def _features(record: bytes) -> Iterator[tuple[str, bytes]]:
    """Example{1: Features{1: map entry{1: name, 2: Feature{1: list of any type}}}}."""
    for _, features in _fields(record):
        for _, pair in _fields(features):
            parts = dict(_fields(pair))
            yield parts[1].decode(), dict(_fields(parts[2])).popitem()[1]


def _int64s(values: bytes) -> Iterator[int]:
    for number, value in _fields(values):
        if number == 1 and isinstance(value, int):
            yield value
        elif number == 1:  # packed
            at = 0
            while at < len(value):
                item, at = _varint(value, at)
                yield item


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: an int, or bytes for all else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
