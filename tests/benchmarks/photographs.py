"""Pictures that compress as photographs do: parts of the two that scikit-learn ships, with grain.

A PNG of 1024 px takes 1.5 MB of them, one of FFHQ 1.3 MB; noise alone would take 3 MB, drawings a
tenth.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

_GRAIN = 1.0
"""Standard deviation; what a sensor adds at a low ISO value."""


@functools.cache
def _photographs() -> list[Image.Image]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]


def photograph(number: int, width: int, height: int) -> Image.Image:
    """Another one for each number."""
    rng = np.random.default_rng([7, number])
    whole = _photographs()[number % 2]
    scale = rng.uniform(0.5, 1.0) * min(whole.width / width, whole.height / height)
    part = np.array([width, height]) * scale
    corner = rng.uniform(0, 1, 2) * ([whole.width, whole.height] - part)
    box = tuple(map(float, [*corner, *np.minimum(corner + part, whole.size)]))
    pixels = np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS, box=box))
    grain = rng.normal(0, _GRAIN, (height, width, 1)) + rng.normal(0, _GRAIN / 2, pixels.shape)
    return Image.fromarray(np.rint(pixels + grain).clip(0, 255).astype(np.uint8))


def make_photographs(folder: Path, count: int, size: tuple[int, int], suffix: str) -> Path:
    """A folder of `count` of them in files of this suffix, unless it is there."""
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = {"quality": 92} if suffix == "jpg" else {"compress_level": 1}
        for number in range(count):
            photograph(number, *size).save(folder / f"{number:06d}.{suffix}", **options)
        (folder / "complete").touch()
    return folder
