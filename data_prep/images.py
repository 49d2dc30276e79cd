"""From the bytes of any image file to the full level: upright, sRGB, 8 bits, of one size."""

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError

from data_prep.align import FaceError, Points, aligned, find_face

# Formats whose readers are plain decoders; EPS and its kin would start other programs.
SUFFIXES_BY_FORMAT = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg", ".jpe", ".jfif"],
    "WEBP": [".webp"],
    "BMP": [".bmp"],
    "GIF": [".gif"],
    "TIFF": [".tif", ".tiff"],
    "PPM": [".ppm", ".pgm", ".pbm", ".pnm"],
}
FORMATS = tuple(SUFFIXES_BY_FORMAT)
SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)
TOLD_BY = f"they are told by their suffixes, {', '.join(sorted(SUFFIXES))}"
LARGEST_PIXELS = 2**27
"""Of a source image: decoding one takes up to 3 GB."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMAT_OF_ENCODING = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
_METADATA_BYTES = 2**16
_NOT_KEPT = {"several pictures", "16 bits", "unreadable EXIF", "unreadable colour profile"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Encoding = Literal["png", "webp", "jpg"]


class BadImageError(ValueError):
    """An image cannot be used; the message is the reason, without its name: `kind: detail`."""


def kind_of(reason: str) -> str:
    """The class of a reason; those of one class are counted together."""
    return reason.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a source image becomes the levels of a sample."""

    resolution: int
    """Width of the full level in pixels, and height unless that is given."""
    height: int | None = None
    """Height of the full level where it is not square."""
    crop: Literal["centre", "centre-wide", "face", "none"] = "centre"
    """centre: the largest centred part of the right shape; centre-wide: the largest one of 4:3 in
    black bars (LSUN car); face: see `data_prep.align`; none: another shape is refused."""
    face_model: str = ""
    """For the crop face: URL of dlib's landmark model, used where landmarks are not given."""
    channels: int = 3
    """1 for grey, 3 for colour, 4 for colour and alpha."""
    alpha: Literal["composite", "drop", "keep"] = "composite"
    """composite: over `background`; drop: the colours under it; keep: as the fourth channel."""
    background: str = "#ffffff"
    """Colour behind transparent pixels, as #rrggbb or a name such as white."""
    animated: Literal["first", "refuse"] = "first"
    """Whether files of several pictures give their first one."""
    levels: Literal["all", "full"] = "all"
    """full: the full level alone, for networks that do not grow; smaller ones take a third more."""
    downsampling: Literal["box", "lanczos"] = "box"
    """How smaller levels come from the full one."""
    encoding: Encoding = "png"
    """Of the full level; jpg is the only one that loses."""
    lower_encoding: Encoding = "webp"
    """Of the other levels above 8 px."""
    quality: int = 95
    """Of jpg, 1 to 100."""

    def __post_init__(self) -> None:
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError as err:
            raise ValueError(
                f"background {self.background!r} is no colour; write white, black or #rrggbb"
            ) from err
        object.__setattr__(self, "background", f"#{red:02x}{green:02x}{blue:02x}")
        if self.height == self.resolution:
            object.__setattr__(self, "height", None)
        jpg = "jpg" in (self.encoding, self.lower_encoding)
        rules = {
            f"channels {self.channels} are not offered; choose 1, 3 or 4": self.channels in MODES,
            f"channels {self.channels} and alpha {self.alpha} do not go together; 4 channels keep "
            f"the alpha, 1 and 3 composite or drop it": (self.alpha == "keep")
            == (self.channels == 4),
            "jpg holds no alpha; choose png or webp for 4 channels": not (
                jpg and self.channels == 4
            ),
            f"quality {self.quality} is not from 1 to 100": 1 <= self.quality <= 100,
            f"crop {self.crop} makes squares; choose centre or none for "
            f"{self.resolution}x{self.height}": self.height is None
            or self.crop in {"centre", "none"},
            f"a face model is of no use to crop {self.crop}; choose face": self.crop == "face"
            or not self.face_model,
        }
        for message, obeyed in rules.items():
            if not obeyed:
                raise ValueError(message)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the full level in pixels."""
        return self.resolution, self.height or self.resolution

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, and what has none."""
        shown = {"resolution", "crop", "background"}
        return {
            field.name.replace("_", "-"): getattr(self, field.name)
            for field in fields(self)
            if field.name in shown
            or (field.default is not MISSING and getattr(self, field.name) != field.default)
        }

    def source_transform(self) -> dict[str, str]:
        """What the manifest says about it."""
        told = {"crop": self.crop, "resize": "lanczos", "background": self.background}
        for name in ("alpha", "animated", "face-model", "quality"):
            if name in self.options():
                told[name] = str(self.options()[name])
        return told


class Picture(NamedTuple):
    """A source image, decoded: upright, sRGB, in the mode of its channels."""

    image: Image.Image
    format: str
    """Pillow's name of the file's format."""
    mode: str
    """Pillow's name of the colours in the file."""
    remarks: tuple[str, ...]
    """What was unusual, as `kind: detail` or kind alone."""
    plain: bool
    """The file holds these very pixels, in this mode: nothing had to be done to them."""


class FullLevel(NamedTuple):
    """A source image as the full level."""

    pixels: NDArray[np.uint8]
    """[h, w, c]"""
    enlarged: bool
    """It had to be enlarged."""
    as_it_is: bool
    """The file itself can be stored as the full level."""


def load_image(content: bytes, config: ImageConfig, face: Points | None = None) -> FullLevel:
    """Decode an image file and bring it to the size of the full level.

    Args:
        content: The file.
        config: What to make of it.
        face: For the crop face: the eyes and the mouth.

    Raises:
        BadImageError: It cannot be decoded, or is nothing this program accepts.
    """
    picture = decode_image(content, config)
    image, enlarged = fit_image(picture.image, config, face)
    pixels = np.asarray(image)
    as_it_is = (
        picture.plain
        and image is picture.image
        and picture.format == _FORMAT_OF_ENCODING[config.encoding]
        and len(content) <= pixels.nbytes + _METADATA_BYTES
    )
    return FullLevel(pixels.reshape(*pixels.shape[:2], config.channels), enlarged, as_it_is)


def decode_image(content: bytes, config: ImageConfig) -> Picture:
    """Decode an image file, whatever its size.

    Raises:
        BadImageError: It cannot be decoded, or is nothing this program accepts.
    """
    if not content:
        raise BadImageError("empty file")
    with _reasons(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind = image.format or ""
        if image.width * image.height > LARGEST_PIXELS:
            raise BadImageError(
                f"too many pixels: {image.width}x{image.height} are more than {LARGEST_PIXELS}"
            )
        animated = bool(getattr(image, "is_animated", False))
        if animated and config.animated == "refuse":
            raise BadImageError("several pictures: refused by --animated refuse")
        image.load()
        remarks = ["several pictures: the first is used"] if animated else []
        if kind == "PNG" and content[24] == 16:
            remarks.append("16 bits: the high byte is used")
        upright = _upright(image, remarks)
        converted = _converted(upright, kind, config, remarks)
        plain = converted is image and not _NOT_KEPT.intersection(map(kind_of, remarks))
        return Picture(converted, kind, image.mode, tuple(dict.fromkeys(remarks)), plain)


def fit_image(
    image: Image.Image, config: ImageConfig, face: Points | None
) -> tuple[Image.Image, bool]:
    """Crop and resize to the full level; whether that enlarged it.

    Raises:
        BadImageError: It has another shape and is not to be cropped, or no face is found.
    """
    width, height = config.size
    if config.crop == "face":
        try:
            if face is None:
                if not config.face_model:
                    raise FaceError("no face: the landmarks do not name this image")
                face = find_face(image, config.face_model)
            return aligned(image, face, width)
        except FaceError as err:
            raise BadImageError(str(err)) from err
    if config.crop == "centre-wide":
        height = width * 3 // 4
    part = _centre(image, width, height)
    if part is not image and config.crop == "none":
        shape = "square" if width == height else f"{width}:{height}"
        raise BadImageError(
            f"not {shape}: {image.width}x{image.height}; use --crop centre to cut it"
        )
    enlarged = part.width < width
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling.LANCZOS)
    if config.crop == "centre-wide":
        bars = Image.new(part.mode, (width, width))
        bars.paste(part, (0, (width - height) // 2))
        part = bars
    return part, enlarged


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a broken file leads Pillow's readers into into a reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubts about metadata and size
            yield
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as err:
        raise BadImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from err
    except Image.DecompressionBombError as err:
        raise BadImageError(f"too many pixels: {err}") from err
    except Exception as err:
        message = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", str(err))
        kind = (
            "truncated"
            if "truncated" in message.lower() or isinstance(err, EOFError)
            else "damaged"
        )
        raise BadImageError(f"{kind}: {type(err).__name__}: {message}") from err


def _upright(image: Image.Image, remarks: list[str]) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (Pillow promises no class, from SyntaxError to struct.error)
        remarks.append("unreadable EXIF: taken as upright")
        return image
    if turn is None:
        return image
    remarks.append("turned upright")
    return image.transpose(turn)


def _converted(
    image: Image.Image, kind: str, config: ImageConfig, remarks: list[str]
) -> Image.Image:
    """The image in the mode of its channels; itself if it is that already."""
    mode = MODES[config.channels]
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        # The high byte, as Pillow itself does for 16-bit RGB.
        remarks.append("16 bits: the high byte is used")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise BadImageError(f"32-bit values: mode {image.mode} has no known range")
    if image.mode not in {"L", "RGB"}:
        remarks.append(f"colour mode {image.mode}")

    # The colours, without the alpha.
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image
    if image.mode not in {"L", "RGB", "CMYK"}:
        colours = image.convert("L" if image.mode in {"1", "LA", "La"} else "RGB")
    as_stored = colours
    if icc:
        colours = _to_srgb(colours, icc, remarks)

    # The alpha, by the policy.
    if alpha is not None:
        remarks.append("transparent pixels")
    if config.alpha == "keep":
        if image.mode == mode and colours is as_stored:
            return image
        colours = colours.convert("RGB")
        colours.putalpha(alpha if alpha is not None else 255)
        return colours
    if alpha is not None and config.alpha == "composite":
        colours = colours.convert("RGB")
        canvas = Image.new("RGB", colours.size, config.background)
        canvas.paste(colours, mask=alpha)
        colours = canvas
    return colours if colours.mode == mode else colours.convert(mode)


def _to_srgb(image: Image.Image, icc: bytes, remarks: list[str]) -> Image.Image:
    try:
        transform = _srgb_transform(icc, image.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as err:
        remarks.append(f"unreadable colour profile: taken as sRGB ({err})")
        return image
    if transform is None:
        return image
    remarks.append("colour profile other than sRGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@functools.lru_cache(maxsize=8)
def _srgb_transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings an image of this mode to sRGB; None if it changes no value by more than 1.

    Raises:
        ValueError: The profile is one of other colours.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = str(profile.profile.xcolor_space).strip()
    if space != {"L": "GRAY"}.get(mode, mode):
        raise ValueError(f"it is for {space} in an image of {mode}")
    target = ImageCms.createProfile("sRGB")
    # Optimized for grey it would be off by up to 10 in the dark.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(profile, target, mode, "RGB", flags=flags)
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 9, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    probe = Image.fromarray(ramp if mode == "L" else cube)
    result = ImageCms.applyTransform(probe, transform)
    assert result is not None
    change = np.asarray(result).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > 1 else None


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of this shape; the image itself if it has it."""
    if image.width * height >= image.height * width:
        part = max(1, round(image.height * width / height)), image.height
    else:
        part = image.width, max(1, round(image.width * height / width))
    if part == image.size:
        return image
    left, top = (image.width - part[0]) // 2, (image.height - part[1]) // 2
    return image.crop((left, top, left + part[0], top + part[1]))
