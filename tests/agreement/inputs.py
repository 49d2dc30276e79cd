"""Two small sets of images, and what else is fed to both sides, from NumPy's frozen generator.

The oracles' environment knows this file and not the project, so it needs NumPy alone.
"""

import hashlib

import numpy as np

SIDES = (64, 320)
"""Below and above the 299 px that Inception sees: enlarged and reduced."""
COUNT = 16
SPLITS = 4
NEIGHBOURS = {"pr": 3, "dc": 5}
PAIRS = 6
_SEEDS = {"reals": 1, "fakes": 2}
CLASSES, FEATURES = 1008, 2048


def images(name, side):
    """Coarse mosaics with noise on them, uint8 [16, side, side, 3]; fakes are of another kind."""
    rng = np.random.RandomState([_SEEDS[name], side])
    tiles = 8 if name == "reals" else 5
    at = np.arange(side) * tiles // side
    coarse = rng.randint(0, 256, (COUNT, tiles, tiles, 3))[:, at][:, :, at]
    noise = rng.randint(-48, 49, (COUNT, side, side, 3))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def logits():
    """Weights of classes that stand for the unpublished ones, float32 [1008, 2048]."""
    rng = np.random.RandomState(3)
    return (0.2 * rng.standard_normal((CLASSES, FEATURES))).astype(np.float32)


def digest(array):
    """SHA-256 of what an array holds."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def digests():
    """Of all inputs by name."""
    sets = {f"{name} {side} px": images(name, side) for name in _SEEDS for side in SIDES}
    return {name: digest(array) for name, array in {**sets, "logits": logits()}.items()}
