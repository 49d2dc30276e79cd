"""Features of images or sums of them, kept under a key of what they are features of.

    CACHE/<key>.safetensors    one tensor `features` [n, d]; in its header the key and a SHA-256

The key is a digest of content (data, feature network, level, …), never of a place or a date, so
runs share a folder. One file is one entry and appears as a whole. What is read is verified; a
damaged entry is made anew, and a store that fails costs the work, not the evaluation.
"""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_prep import storage

logger = logging.getLogger(__name__)

Features = NDArray[Any]
"""Rows of features, float32; sums of them are float64."""

FORMAT = 1
_LENGTH_BYTES, _MAX_HEADER_BYTES = 8, 100_000
_DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F64": np.dtype(np.float64)}
_ROWS_TOGETHER = 4096
"""Rows that are read or written together, so that memory does not grow with them."""


class DamagedEntryError(ValueError):
    """An entry is not what was written."""


class FeatureCache:
    """The entries below a URL."""

    def __init__(self, url: str):
        self.url = url

    def get(self, key: Mapping[str, Any]) -> Features | None:
        """The features of this key, verified; None if they have to be made."""
        url = self.entry_url(key)
        try:
            with tempfile.TemporaryDirectory(prefix="features-") as scratch:
                path = Path(scratch, "entry")
                if storage.is_local(url):
                    path = storage.local_path(url)
                else:
                    storage.download(url, path)
                return _read(path, _canonical(key))
        except storage.MissingError:
            return None
        except DamagedEntryError as err:
            logger.warning("%s is damaged (%s): made anew", url, err)
        except storage.StorageError as err:
            logger.warning("cached features are not used: %s", err)
        return None

    def put(self, key: Mapping[str, Any], features: Features) -> None:
        """Keep features under this key."""
        try:
            with tempfile.TemporaryDirectory(prefix="features-") as scratch:
                path = Path(scratch, "entry")
                with path.open("wb") as file:
                    _write(file, features, _canonical(key))
                storage.upload(path, self.entry_url(key), move=True)
        except storage.StorageError as err:
            logger.warning("features are not kept: %s", err)

    def delete(self, key: Mapping[str, Any]) -> None:
        """Forget the features of this key."""
        try:
            storage.delete(self.entry_url(key))
        except storage.StorageError as err:
            logger.warning("features are not deleted: %s", err)

    def entry_url(self, key: Mapping[str, Any]) -> str:
        """Where the features of this key are, or would be."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return storage.join(self.url, f"{digest[:32]}.safetensors")


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))


def _write(file: IO[bytes], features: Features, key: str) -> None:
    """The format of safetensors with one tensor, written by rows."""
    digest = hashlib.sha256()
    for rows in _blocks(features):
        digest.update(rows.tobytes())
    (dtype,) = (name for name, dtype in _DTYPES.items() if dtype == features.dtype)
    shape = list(features.shape)
    entry = json.dumps({"key": key, "sha256": digest.hexdigest()})
    header = {
        "__metadata__": {"entry": entry},
        "features": {"dtype": dtype, "shape": shape, "data_offsets": [0, features.nbytes]},
    }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % _LENGTH_BYTES)
    file.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    for rows in _blocks(features):
        file.write(rows.tobytes())


def _read(path: Path, key: str) -> Features:
    """The rows of an entry, in the file as long as nobody asks for them."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        entry, tensor = json.loads(header["__metadata__"]["entry"]), header["features"]
        found, sha256 = entry["key"], entry["sha256"]
        dtype, shape = _DTYPES[tensor["dtype"]], tuple(map(int, tensor["shape"]))
        start = _LENGTH_BYTES + length
        if path.stat().st_size != start + math.prod(shape) * dtype.itemsize:
            raise DamagedEntryError(f"it has {path.stat().st_size} bytes, which are not {shape}")
        # Copy on write: nobody can change what is kept.
        features: Features = np.memmap(path, dtype, "c", offset=start, shape=shape)
    except FileNotFoundError as err:
        raise storage.MissingError(str(err)) from err
    except OSError as err:
        raise storage.StorageError(str(err)) from err
    except DamagedEntryError:
        raise
    except (ValueError, KeyError, TypeError) as err:
        raise DamagedEntryError(f"{type(err).__name__}: {err}") from err
    if found != key:
        raise DamagedEntryError(f"it holds the features of {found}")
    digest = hashlib.sha256()
    finite = True
    for rows in _blocks(features):
        digest.update(rows.tobytes())
        finite = finite and bool(np.isfinite(rows).all())
    if digest.hexdigest() != sha256:
        raise DamagedEntryError(
            f"its features have SHA-256 {digest.hexdigest()}, written were {sha256}"
        )
    if features.ndim != 2 or not finite:
        raise DamagedEntryError(f"it holds {features.dtype} {features.shape}, or is not finite")
    return features


def _blocks(features: Features) -> Iterator[Features]:
    for start in range(0, len(features), _ROWS_TOGETHER):
        yield features[start : start + _ROWS_TOGETHER]
