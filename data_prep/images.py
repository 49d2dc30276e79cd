"""From the bytes of any image file to a square RGB image of the full resolution."""

import io
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

# Formats whose readers are plain decoders; EPS and its kin would start other programs.
_SUFFIXES_BY_FORMAT = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg", ".jpe", ".jfif"],
    "WEBP": [".webp"],
    "BMP": [".bmp"],
    "GIF": [".gif"],
    "TIFF": [".tif", ".tiff"],
    "PPM": [".ppm", ".pgm", ".pbm", ".pnm"],
}
FORMATS = tuple(_SUFFIXES_BY_FORMAT)
SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES_BY_FORMAT.values() for suffix in suffixes)


class BadImageError(ValueError):
    """An image cannot be used; the message is the reason, without its name."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a source image becomes the full level; recorded in the manifest."""

    resolution: int
    """Width and height of the full level in pixels."""
    crop: Literal["centre", "none"] = "centre"
    """centre: the largest centred square; none: an image that is not square is refused."""
    background: str = "#ffffff"
    """Colour behind transparent pixels, as #rrggbb or a name such as white."""

    def __post_init__(self) -> None:
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError as err:
            raise ValueError(
                f"background {self.background!r} is no colour; write white, black or #rrggbb"
            ) from err
        object.__setattr__(self, "background", f"#{red:02x}{green:02x}{blue:02x}")

    def source_transform(self) -> dict[str, str]:
        """What the manifest says about it."""
        return {"crop": self.crop, "resize": "lanczos", "background": self.background}


def load_image(content: bytes, config: ImageConfig) -> tuple[NDArray[np.uint8], bool]:
    """Decode an image file: upright, RGB, square, of the full resolution.

    Animated files give their first frame; 16-bit values keep their high byte.

    Returns:
        The image [h, w, 3], and whether it had to be enlarged.

    Raises:
        BadImageError: It cannot be decoded, or is nothing this program accepts.
    """
    if not content:
        raise BadImageError("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rgb = _to_rgb(upright, image.format, config.background)
    except UnidentifiedImageError as err:
        raise BadImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from err
    except BadImageError:
        raise
    except Exception as err:  # Pillow's readers raise whatever a broken file leads them into.
        message = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", str(err))
        raise BadImageError(f"{type(err).__name__}: {message}") from err

    # Crop and resize.
    side = min(rgb.size)
    if rgb.width != rgb.height:
        if config.crop == "none":
            raise BadImageError(f"{rgb.width}x{rgb.height} is not square; use --crop centre")
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
    if side != config.resolution:
        rgb = rgb.resize((config.resolution, config.resolution), Image.Resampling.LANCZOS)
    return np.asarray(rgb), side < config.resolution


def _to_rgb(image: Image.Image, kind: str | None, background: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        # The high byte, as Pillow itself does for 16-bit RGB.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise BadImageError(f"32-bit values (mode {image.mode}) have no known range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, background)
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")
