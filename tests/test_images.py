"""Any image file becomes an upright square RGB image of the full resolution, or is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.images import BadImageError, ImageConfig, load_image
from tests.small_sets import image_array, image_bytes

CONFIG = ImageConfig(resolution=16)


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_an_image_of_the_right_size_is_taken_as_it_is(kind):
    array = image_array(1)
    options = {"lossless": True} if kind == "WEBP" else {}

    image, enlarged = load_image(image_bytes(array, kind, **options), CONFIG)

    np.testing.assert_array_equal(image, array)
    assert not enlarged


GREY = Image.fromarray(np.full((16, 16), 100, np.uint8))
PALETTE = GREY.convert("P")
TRANSPARENT = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
HALF = Image.new("RGBA", (16, 16), (255, 0, 0, 128))


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (_bytes(GREY), (100, 100, 100)),
        (_bytes(PALETTE), (100, 100, 100)),
        (_bytes(GREY.convert("1", dither=Image.Dither.NONE)), (0, 0, 0)),
        (_bytes(GREY.convert("LA")), (100, 100, 100)),
        (_bytes(Image.fromarray(np.full((16, 16), 0x6400, np.uint16))), (100, 100, 100)),  # 16 bit
        (_bytes(Image.fromarray(np.full((16, 16), 0x6400, np.uint16)), "TIFF"), (100, 100, 100)),
        (_bytes(Image.new("CMYK", (16, 16)), "TIFF"), (255, 255, 255)),
        (_bytes(TRANSPARENT), (0, 255, 0)),
        (_bytes(HALF), (128, 127, 0)),
        (_bytes(Image.new("P", (16, 16)), transparency=0), (0, 255, 0)),
        (_bytes(Image.new("RGB", (16, 16), (1, 2, 3)), transparency=(1, 2, 3)), (0, 255, 0)),
        (_bytes(Image.new("L", (16, 16), 7), "GIF"), (7, 7, 7)),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_every_mode_becomes_rgb_over_the_background(content, colour):
    image, _ = load_image(content, ImageConfig(resolution=16, background="#00ff00"))

    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(colour, (16, 16, 3)))


def test_a_jpeg_is_turned_upright():
    """Orientation 6: the camera was turned, so the left column is to be the top row."""
    array = np.zeros((16, 16, 3), np.uint8)
    array[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6

    image, _ = load_image(image_bytes(array, "JPEG", quality=100, exif=exif), CONFIG)

    assert image[:8].min() > 200
    assert image[8:].max() < 50


def test_a_picture_from_a_telephone_gives_its_first_image():
    """MPO: a JPEG that holds several pictures."""
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))

    image, _ = load_image(_bytes(first, "MPO", save_all=True, append_images=[second]), CONFIG)

    np.testing.assert_array_equal(image, np.full((16, 16, 3), 255))


def test_the_largest_centred_square_is_cropped_and_resized():
    array = image_array(2, side=64)
    wide = np.concatenate(
        [np.zeros((64, 10, 3), np.uint8), array, np.ones((64, 11, 3), np.uint8)], 1
    )

    image, enlarged = load_image(image_bytes(wide), CONFIG)

    square = Image.fromarray(array).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(image, np.asarray(square))
    assert not enlarged
    with pytest.raises(BadImageError, match="85x64 is not square; use --crop centre"):
        load_image(image_bytes(wide), ImageConfig(resolution=16, crop="none"))


def test_a_small_image_is_enlarged_and_it_is_said():
    image, enlarged = load_image(image_bytes(image_array(3, side=8)), CONFIG)

    assert image.shape == (16, 16, 3)
    assert enlarged


def _bomb() -> bytes:
    """A PNG that says it is 100,000 pixels wide and high."""
    content = bytearray(image_bytes(image_array(0)))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


GOOD = image_bytes(image_array(0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no image at all", "not an image in one of the formats PNG, JPEG"),
        (GOOD[:100], "OSError: .*truncated|SyntaxError|OSError"),
        (GOOD[:60] + b"XX" + GOOD[62:], "SyntaxError|OSError|not an image|broken"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in one of"),
        (_bomb(), "DecompressionBombError"),
        (_bytes(Image.new("F", (16, 16)), "TIFF"), r"32-bit values \(mode F\) have no known range"),
        (_bytes(Image.new("I", (16, 16)), "TIFF"), r"32-bit values \(mode I\)"),
    ],
    ids=["empty", "text", "truncated", "altered", "EPS", "bomb", "float", "int32"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        load_image(content, CONFIG)


@pytest.mark.parametrize("length", range(1, len(GOOD), len(GOOD) // 12))
def test_a_truncated_image_is_never_used(length):
    with pytest.raises(BadImageError):
        load_image(GOOD[:length], CONFIG)


def test_the_background_is_written_in_one_way():
    assert ImageConfig(resolution=4, background="white").background == "#ffffff"
    with pytest.raises(ValueError, match="background 'nocolour' is no colour; write white, black"):
        ImageConfig(resolution=4, background="nocolour")
