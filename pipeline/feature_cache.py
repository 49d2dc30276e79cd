"""Features of real images, kept under a key of what they are features of.

    CACHE/<key>.safetensors    one tensor `features` [n, d]; in its header the key and a SHA-256

The key is a digest of content (data, feature network, level, …), never of a place or a date, so
runs share a folder. One file is one entry and appears as a whole. What is read is verified; a
damaged entry is made anew, and a store that fails costs the work, not the evaluation.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from data_prep import storage

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]

FORMAT = 1
_LENGTH_BYTES = 8


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
            return _decode(storage.read_bytes(url), _canonical(key))
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
            storage.write_atomic(self.entry_url(key), _encode(features, _canonical(key)))
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


def _encode(features: Features, key: str) -> bytes:
    tensors = {"features": np.ascontiguousarray(features)}
    entry = {"key": key, "sha256": hashlib.sha256(features.tobytes()).hexdigest()}
    # One item, because safetensors writes several in any order.
    content: bytes = safetensors.numpy.save(tensors, metadata={"entry": json.dumps(entry)})
    return content


def _decode(content: bytes, key: str) -> Features:
    try:
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
        entry = json.loads(header["__metadata__"]["entry"])
        found, sha256 = entry["key"], entry["sha256"]
        features: Features = safetensors.numpy.load(content)["features"]
    except (SafetensorError, ValueError, KeyError, TypeError) as err:
        raise DamagedEntryError(f"{type(err).__name__}: {err}") from err
    if found != key:
        raise DamagedEntryError(f"it holds the features of {found}")
    digest = hashlib.sha256(features.tobytes()).hexdigest()
    if digest != sha256:
        raise DamagedEntryError(f"its features have SHA-256 {digest}, written were {sha256}")
    if features.dtype != np.float32 or features.ndim != 2 or not np.isfinite(features).all():
        raise DamagedEntryError(f"it holds {features.dtype} {features.shape}, or is not finite")
    return features
