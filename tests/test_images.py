"""Any image file becomes an upright sRGB image of the full level's size, or is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.images import LARGEST_PIXELS, BadImageError, ImageConfig, decode_image, load_image
from tests.small_sets import image_array, image_bytes

CONFIG = ImageConfig(resolution=16)


def as_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    return content


def png_of_16_bits(array: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits a channel."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def linear_profile(space: bytes = b"RGB ") -> bytes:
    """An ICC profile of sRGB's primaries and linear light, or of linear grey."""

    def xyz(*numbers: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0100, 0)
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {
            b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
            b"gXYZ": xyz(0.38515, 0.71687, 0.09708),
            b"bXYZ": xyz(0.14307, 0.06061, 0.71410),
            b"rTRC": curve,
            b"gTRC": curve,
            b"bTRC": curve,
        }
    table, data = b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + table + data
    header = bytearray(128)
    struct.pack_into(
        ">I4sI4s4s4s", header, 0, 128 + len(body), b"", 0x02100000, b"mntr", space, b"XYZ "
    )
    header[36:40] = b"acsp"
    struct.pack_into(">iii", header, 68, 63190, 65536, 54061)
    return bytes(header) + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_an_image_of_the_right_size_is_taken_as_it_is(kind):
    array = image_array(1)
    options = {"lossless": True} if kind == "WEBP" else {}

    full = load_image(image_bytes(array, kind, **options), CONFIG)

    np.testing.assert_array_equal(full.pixels, array)
    assert not full.enlarged


GREY = Image.fromarray(np.full((16, 16), 100, np.uint8))
PALETTE = GREY.convert("P")
TRANSPARENT = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
HALF = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
DEEP = np.full((16, 16), 0x6480, np.uint16)


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (as_bytes(GREY), (100, 100, 100)),
        (as_bytes(PALETTE), (100, 100, 100)),
        (as_bytes(GREY.convert("1", dither=Image.Dither.NONE)), (0, 0, 0)),
        (as_bytes(GREY.convert("LA")), (100, 100, 100)),
        (as_bytes(Image.fromarray(DEEP)), (100, 100, 100)),
        (as_bytes(Image.fromarray(DEEP), "TIFF"), (100, 100, 100)),
        (png_of_16_bits(np.stack([DEEP, DEEP, DEEP // 2], -1)), (100, 100, 50)),
        (as_bytes(Image.new("CMYK", (16, 16)), "TIFF"), (255, 255, 255)),
        (as_bytes(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (as_bytes(TRANSPARENT), (0, 255, 0)),
        (as_bytes(HALF), (128, 127, 0)),
        (as_bytes(Image.new("P", (16, 16)), transparency=0), (0, 255, 0)),
        (as_bytes(Image.new("RGB", (16, 16), (1, 2, 3)), transparency=(1, 2, 3)), (0, 255, 0)),
        (as_bytes(Image.new("L", (16, 16), 7), "GIF"), (7, 7, 7)),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_every_mode_becomes_rgb_over_the_background(content, colour):
    full = load_image(content, ImageConfig(resolution=16, background="#00ff00"))

    assert full.pixels.dtype == np.uint8
    np.testing.assert_array_equal(full.pixels, np.broadcast_to(colour, (16, 16, 3)))


KEEP = {"channels": 4, "alpha": "keep"}


@pytest.mark.parametrize(
    ("image", "options", "pixel"),
    [
        (HALF, KEEP, (255, 0, 0, 128)),
        (GREY.convert("LA"), KEEP, (100, 100, 100, 255)),
        (GREY, KEEP, (100, 100, 100, 255)),
        (TRANSPARENT, {"alpha": "drop"}, (10, 20, 30)),
        (TRANSPARENT, {"channels": 1, "background": "black"}, (0,)),
        (Image.new("RGB", (16, 16), (200, 200, 200)), {"channels": 1}, (200,)),
        (Image.new("LA", (16, 16), (40, 0)), {"channels": 1, "alpha": "drop"}, (40,)),
    ],
)
def test_alpha_is_kept_dropped_or_laid_over_a_colour_in_1_3_or_4_channels(image, options, pixel):
    full = load_image(as_bytes(image), ImageConfig(resolution=16, **options))

    np.testing.assert_array_equal(full.pixels, np.broadcast_to(pixel, (16, 16, len(pixel))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation):
    """Stored rows and columns by what EXIF says of them; the scene is the array."""
    scene = image_array(4)
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.swapaxes(0, 1),
        6: scene.swapaxes(0, 1)[::-1],
        7: scene[::-1, ::-1].swapaxes(0, 1),
        8: scene.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    full = load_image(image_bytes(np.ascontiguousarray(stored), exif=exif), CONFIG)

    np.testing.assert_array_equal(full.pixels, scene)
    assert full.as_it_is == (orientation == 1)


NAN_EXIF = (  # the orientation is 0/0
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\0\0\0\0\0"
)


@pytest.mark.parametrize(
    "exif",
    [
        NAN_EXIF,
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0nothing of the kind",
    ],
    ids=["NaN", "offset beyond its end", "text"],
)
def test_nonsense_in_the_exif_does_not_cost_the_image(exif):
    array = image_array(5)

    full = load_image(image_bytes(array, exif=exif), CONFIG)

    np.testing.assert_array_equal(full.pixels, array)


@pytest.mark.parametrize(("space", "mode"), [(b"RGB ", "RGB"), (b"GRAY", "L")])
def test_a_colour_profile_is_applied(space, mode):
    """Linear light v becomes 1.055 v^(1/2.4) - 0.055 in sRGB (IEC 61966-2-1)."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)

    full = load_image(as_bytes(ramp, icc_profile=linear_profile(space)), CONFIG)

    light = np.arange(256) / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    off = np.abs(full.pixels.reshape(256, 3) - expected[:, None])
    assert off.max() <= 1.5
    assert not full.as_it_is


@pytest.mark.parametrize(
    ("profile", "remark"),
    [
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), ""),
        (b"no profile", "unreadable colour profile"),
        (linear_profile(b"GRAY"), "unreadable colour profile"),
    ],
    ids=["sRGB", "text", "of grey in an image of colours"],
)
def test_a_profile_of_srgb_or_of_nothing_changes_no_pixel(profile, remark):
    array = image_array(6)
    content = image_bytes(array, icc_profile=profile)

    picture = decode_image(content, CONFIG)

    np.testing.assert_array_equal(picture.image, array)
    assert " ".join(picture.remarks).startswith(remark)
    assert load_image(content, CONFIG).as_it_is == (remark == "")


def animation(kind: str) -> bytes:
    """Two pictures in one file: white, black."""
    white, black = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))
    return as_bytes(white, kind, save_all=True, append_images=[black])


@pytest.mark.parametrize("kind", ["MPO", "GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_used_or_the_file_is_refused(kind):
    """MPO is what telephones write: a JPEG that holds several pictures."""
    full = load_image(animation(kind), CONFIG)

    np.testing.assert_array_equal(full.pixels, np.full((16, 16, 3), 255))
    assert not full.as_it_is
    with pytest.raises(BadImageError, match="several pictures: refused by --animated refuse"):
        load_image(animation(kind), ImageConfig(resolution=16, animated="refuse"))


@pytest.mark.parametrize(
    ("content", "options", "kept"),
    [
        (image_bytes(image_array(1)), {}, True),
        (image_bytes(image_array(1), compress_level=9), {}, True),
        (image_bytes(image_array(1)), {"encoding": "webp"}, False),
        (image_bytes(image_array(1)), {"channels": 1}, False),
        (as_bytes(GREY), {"channels": 1}, True),
        (as_bytes(GREY), {}, False),
        (as_bytes(PALETTE), {}, False),
        (as_bytes(HALF), KEEP, True),
        (as_bytes(HALF), {}, False),
        (png_of_16_bits(np.stack([DEEP] * 3, -1)), {}, False),
        (image_bytes(image_array(1), "JPEG"), {"encoding": "jpg"}, True),
        (image_bytes(image_array(1), "JPEG"), {}, False),
        (image_bytes(image_array(1), "WEBP", lossless=True), {"encoding": "webp"}, True),
        (image_bytes(image_array(1, side=17)), {}, False),
        (image_bytes(image_array(1)) + bytes(2**17), {}, False),  # padded with a payload
    ],
)
def test_a_file_that_fits_already_is_kept_as_it_is(content, options, kept):
    assert load_image(content, ImageConfig(resolution=16, **options)).as_it_is == kept


def test_the_largest_centred_square_is_cropped_and_resized():
    array = image_array(2, side=64)
    wide = np.concatenate(
        [np.zeros((64, 10, 3), np.uint8), array, np.ones((64, 11, 3), np.uint8)], 1
    )

    full = load_image(image_bytes(wide), CONFIG)

    square = Image.fromarray(array).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(full.pixels, np.asarray(square))
    assert not full.enlarged
    with pytest.raises(BadImageError, match="not square: 85x64; use --crop centre to cut it"):
        load_image(image_bytes(wide), ImageConfig(resolution=16, crop="none"))


def test_the_largest_centred_part_of_another_shape_is_cropped():
    array = image_array(2, side=48)[:24]
    tall = np.concatenate([np.zeros((7, 48, 3)), array, np.ones((8, 48, 3))]).astype(np.uint8)
    config = ImageConfig(resolution=48, height=24)

    np.testing.assert_array_equal(load_image(image_bytes(tall), config).pixels, array)
    assert load_image(image_bytes(array), config).as_it_is
    with pytest.raises(BadImageError, match="not 48:24: 48x39; use --crop centre"):
        load_image(image_bytes(tall), ImageConfig(resolution=48, height=24, crop="none"))


def test_a_wide_crop_is_4_to_3_between_black_bars():
    """As for LSUN cars: 16x12 in a square of 16."""
    scene = image_array(3)[:12]
    wide = np.concatenate([np.full((12, 4, 3), 9, np.uint8), scene, scene[:, :4]], axis=1)

    full = load_image(image_bytes(wide), ImageConfig(resolution=16, crop="centre-wide"))

    np.testing.assert_array_equal(full.pixels[2:14], scene)
    assert not full.pixels[:2].any()
    assert not full.pixels[14:].any()


def test_a_small_image_is_enlarged_and_it_is_said():
    full = load_image(image_bytes(image_array(3, side=8)), CONFIG)

    assert full.pixels.shape == (16, 16, 3)
    assert full.enlarged


def declared(width: int, height: int) -> bytes:
    """A PNG that says it is so wide and high."""
    content = bytearray(image_bytes(image_array(0)))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


GOOD = image_bytes(image_array(0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no image at all", "not an image in one of the formats PNG, JPEG"),
        (GOOD[:100], "truncated: OSError: image file is truncated"),
        (GOOD[:60] + b"XX" + GOOD[62:], "damaged: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in one of"),
        (declared(100_000, 100_000), "too many pixels: "),
        (declared(2**14, 2**13 + 1), f"too many pixels: 16384x8193 are more than {LARGEST_PIXELS}"),
        (as_bytes(Image.new("F", (16, 16)), "TIFF"), "32-bit values: mode F has no known range"),
        (as_bytes(Image.new("I", (16, 16)), "TIFF"), "32-bit values: mode I"),
    ],
    ids=["empty", "text", "truncated", "altered", "EPS", "bomb", "huge", "float", "int32"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        load_image(content, CONFIG)


@pytest.mark.parametrize("length", range(1, len(GOOD), len(GOOD) // 12))
def test_a_truncated_image_is_never_used(length):
    with pytest.raises(BadImageError):
        load_image(GOOD[:length], CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "nocolour"}, "background 'nocolour' is no colour; write white, black"),
        ({"channels": 2}, "channels 2 are not offered; choose 1, 3 or 4"),
        ({"channels": 4}, "channels 4 and alpha composite do not go together; 4 channels keep"),
        ({"alpha": "keep"}, "channels 3 and alpha keep do not go together"),
        ({**KEEP, "encoding": "jpg"}, "jpg holds no alpha; choose png or webp"),
        ({"quality": 0}, "quality 0 is not from 1 to 100"),
        ({"height": 8, "crop": "face"}, "crop face makes squares; choose centre or none for 4x8"),
        ({"face_model": "x.dat"}, "a face model is of no use to crop centre; choose face"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig(resolution=4, **options)


def test_options_are_told_where_they_differ_from_the_defaults():
    """So that data sets made before an option existed are known to have its default."""
    plain = {"resolution": 4, "crop": "centre", "background": "#ffffff"}

    assert ImageConfig(resolution=4, height=4, background="white").options() == plain
    changed = ImageConfig(resolution=4, encoding="jpg", quality=80)
    assert changed.options() == plain | {"encoding": "jpg", "quality": 80}
    assert changed.source_transform()["quality"] == "80"
