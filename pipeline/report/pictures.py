"""Pictures of the report: rows of images, and maps in colours."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline import grids
from pipeline.report.charts import HEIGHT_PX, WIDTH_PX
from stylegan.sample import to_uint8

BRIGHTEST = 8.0
"""Medians of its map at which a feature norm is drawn brightest."""
_WIDEST_PX = 1040
_CELL_PX = 96
_PNG_BYTES = 400_000


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page, which holds it, and a file of the run's artifacts."""

    name: str
    """Of the file."""
    title: str
    data: bytes
    alt: str
    """What it shows, for those who do not see it."""
    width: int
    """In pixels, as is the height: of the pictures' own."""
    height: int
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture itself, as a data: URI."""
        kind = {"svg": "svg+xml"}.get(self.name.rpartition(".")[2], self.name.rpartition(".")[2])
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


def of_image(name: str, image: Image.Image, *, title: str, alt: str, caption: str = "") -> Picture:
    """A PNG, or a WebP where that would be large; `name` is without an ending."""
    if image.width > _WIDEST_PX:
        height = round(image.height * _WIDEST_PX / image.width)
        image = image.resize((_WIDEST_PX, height), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png"
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() > _PNG_BYTES:
        buffer, kind = io.BytesIO(), "webp"
        image.save(buffer, "WEBP", quality=90)
    return Picture(
        name=f"{name}.{kind}",
        title=title,
        data=buffer.getvalue(),
        alt=alt,
        width=image.width,
        height=image.height,
        caption=caption,
    )


def of_svg(
    name: str, svg: str, *, title: str, alt: str, caption: str = "", height: int = HEIGHT_PX
) -> Picture:
    """A diagram of `charts`; `name` is without an ending."""
    return Picture(
        name=f"{name}.svg",
        title=title,
        data=svg.encode(),
        alt=alt,
        width=WIDTH_PX,
        height=height,
        caption=caption,
    )


def row(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size side by side, with narrow gaps."""
    width, height = images[0].size
    gap = max(width // 32, 2)
    canvas = Image.new("RGB", (len(images) * (width + gap) - gap, height), grids.BACKGROUND)
    for index, image in enumerate(images):
        canvas.paste(image.convert("RGB"), (index * (width + gap), 0))
    return canvas


def tensor_row(images: Tensor) -> Image.Image:
    """The same of images [n c h w] in [-1, 1]; small ones are enlarged by a whole factor."""
    return row([_enlarged(grids.to_image(image)) for image in to_uint8(images)])


def norm_map(norm: Tensor) -> Image.Image:
    """Feature norms [h w], in medians, from black over purple to white: logarithmic."""
    scaled = torch.log2(norm.clamp(min=1 / BRIGHTEST)) / (2 * np.log2(BRIGHTEST)) + 0.5
    colors = mpl.colormaps["magma"](scaled.clamp(0, 1).numpy())
    image = Image.fromarray((colors[..., :3] * 255).round().astype(np.uint8))
    return image.resize((_CELL_PX, _CELL_PX), Image.Resampling.NEAREST)


def thumbnail(image: Tensor) -> Image.Image:
    """An image [c h w] in [-1, 1] as large as a `norm_map`."""
    whole = grids.to_image(to_uint8(image)).convert("RGB")
    small = whole.width <= _CELL_PX
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return whole.resize((_CELL_PX, _CELL_PX), method)


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-_CELL_PX // image.width))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
