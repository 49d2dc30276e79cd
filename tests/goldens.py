"""Read the golden arrays: numbers of the official implementation (tests/golden/MANIFEST.md)."""

import fnmatch
import functools
import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))


@functools.cache
def manifest() -> dict[str, Any]:
    """Description of every set: file, static kwargs, seeds, notes, arrays."""
    return json.loads((GOLDEN_DIR / "manifest.json").read_text())


def sets(pattern: str) -> list[str]:
    """Names of the sets matching a shell pattern such as `A8_default_*`, sorted."""
    return sorted(fnmatch.filter(manifest()["sets"], pattern))


def entry(name: str) -> dict[str, Any]:
    """The manifest entry of one set."""
    return manifest()["sets"][name]


@functools.lru_cache(maxsize=8)
def load(file: str) -> dict[str, np.ndarray]:
    """All arrays of one `.npz` file."""
    with np.load(GOLDEN_DIR / file) as values:
        return {key: values[key] for key in values.files}


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one `.npz` set."""
    return load(entry(name)["file"])


@functools.cache
def recipe() -> ModuleType:
    """`recipe.py` of the folder: variables and images of the sets that do not store them."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN_DIR / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_recipe(
    shapes: dict[str, list[int]], sha256: dict[str, str], seed: int, **options: Any
) -> dict[str, np.ndarray]:
    """Variables of a set that does not store them, compared with their SHA-256."""
    values = {}
    for name, shape in shapes.items():
        values[name] = recipe().recipe(name, shape, seed, **options)
        if name in sha256:
            assert recipe().sha(values[name]) == sha256[name], f"{name} is not what the recipe says"
    return values


def network_images(images_u8: np.ndarray) -> np.ndarray:
    """Bytes as the official networks were fed with them."""
    return images_u8.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def said(name: str, key: str, pattern: str) -> str:
    """What the description of an array says where `pattern` has its group."""
    (item,) = (item for item in entry(name)["arrays"] if item["key"] == key)
    match = re.search(pattern, item["desc"])
    assert match, f"{name} {key}: {item['desc']} does not match {pattern}"
    return match[1]


def under(values: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below `prefix`, with the prefix removed."""
    return {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}


def assert_close(actual: Any, expected: np.ndarray, rtol_of_max: float, what: str = "") -> None:
    """Check max |actual - expected| <= rtol_of_max * max |expected| (MANIFEST section 8)."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    scale = max(float(np.abs(expected).max()), 1e-12)
    worst = float(np.abs(actual.astype(np.float64) - expected).max()) / scale
    assert worst <= rtol_of_max, (
        f"{what}: off by {worst:.2e} of the maximum, allowed {rtol_of_max:.0e}"
    )
