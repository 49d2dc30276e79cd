"""Faces upright and in one place: the crop of CelebA-HQ and FFHQ from facial landmarks.

The crop rectangle is that of Karras et al. 2018, Appendix C: from two eye and two mouth points it
takes centre, size and direction. FFHQ (Karras et al. 2019, Appendix A) has these points from the 68
landmarks of Kazemi and Sullivan 2014, which its ffhq-dataset-v2.json lists and dlib finds in other
photographs (extra `align`). What the rectangle takes in from outside the photograph is mirrored and
blurred, as the appendix describes; its filter widths are not published, so pixels there differ from
those of the published images.

Points are x y in pixels, y downwards; the centre of the first pixel is (0, 0).
"""

import bz2
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data_prep import storage

LANDMARKS = 68
SUPERSAMPLED_PX = 4096
"""Width at which the rectangle is sampled, as published, before the box filter."""
MOST_OUTSIDE = 16
"""How many times the rectangle may be what the picture has of it."""

Points = tuple[float, ...]
"""x y of left eye, right eye, left and right corner of the mouth, as seen in the picture."""


class FaceError(ValueError):
    """A face cannot be aligned; the message is the reason, without the image's name."""


def face_points(landmarks: Sequence[Sequence[float]]) -> Points:
    """The four points of 68 landmarks: the means of the eyes' outlines, the mouth's corners.

    Raises:
        ValueError: They are not 68 pairs of numbers.
    """
    all_points = np.asarray(landmarks, np.float64)
    if all_points.shape != (LANDMARKS, 2) or not np.isfinite(all_points).all():
        raise ValueError(f"landmarks have the shape {all_points.shape}; give 68 points x y")
    eyes = all_points[36:42].mean(0), all_points[42:48].mean(0)
    points = np.concatenate([*eyes, all_points[48], all_points[54]])
    return tuple(float(number) for number in points)


def face_rectangle(points: Points) -> NDArray[np.float64]:
    """Corners of the crop: top left, top right, bottom left (Karras et al. 2018, Appendix C).

    Raises:
        FaceError: The points are no face.
    """
    left_eye, right_eye, left_mouth, right_mouth = np.reshape(points, (4, 2))
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    across, up = right_eye - left_eye, eyes - mouth
    centre = eyes - 0.1 * up
    size = max(4.0 * np.hypot(*across), 3.6 * np.hypot(*up))
    x = across - _turned(up)
    if np.hypot(*x) < 1e-6 * size or size < 1:
        raise FaceError("no face: its eye and mouth landmarks are no triangle")
    x *= size / 2 / np.hypot(*x)
    y = _turned(x)
    return np.stack([centre - x + y, centre + x + y, centre - x - y])


def aligned(image: Image.Image, points: Points, side: int) -> tuple[Image.Image, bool]:
    """The face in `image` as a square of `side` pixels, and whether it had to be enlarged.

    Raises:
        FaceError: The rectangle cannot be cut out.
    """
    corners = face_rectangle(points) + 0.5  # to coordinates in which pixel 0 covers [0, 1)
    size = float(np.hypot(*(corners[1] - corners[0])))
    enlarged = size < side

    # Shrink where the sampling would skip pixels.
    factor = min(4, max(1, SUPERSAMPLED_PX // side))
    shrink = math.ceil(size / (side * factor))
    if shrink > 1:
        image = image.reduce(shrink)
        corners, size = corners / shrink, size / shrink

    canvas, origin = _canvas(image, corners, size)
    top_left, top_right, bottom_left = corners - origin
    right, down = ((corner - top_left) / (side * factor) for corner in (top_right, bottom_left))
    coefficients = (right[0], down[0], top_left[0], right[1], down[1], top_left[1])
    sampled = canvas.transform(
        (side * factor, side * factor),
        Image.Transform.AFFINE,
        tuple(float(number) for number in coefficients),
        Image.Resampling.BILINEAR,
    )
    return (sampled.reduce(factor) if factor > 1 else sampled), enlarged


def read_landmarks(url: str) -> dict[str, Points]:
    """Points of the face of each image by its path, from ffhq-dataset-v2.json or {path: 68 points}.

    Paths of the former are known with and without their first folder, in-the-wild-images.

    Raises:
        ValueError: The file is neither.
    """
    try:
        records: Mapping[str, Any] = json.loads(storage.read_bytes(url))
        found: dict[str, Points] = {}
        for name, record in records.items():
            if isinstance(record, dict):
                photograph = record["in_the_wild"]
                path, points = photograph["file_path"], face_points(photograph["face_landmarks"])
                found[path] = found[path.partition("/")[2]] = points
            else:
                found[name] = face_points(record)
    except storage.MissingError as err:
        raise ValueError(f"landmarks {url} do not exist; give ffhq-dataset-v2.json") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(
            f"{url} is neither ffhq-dataset-v2.json nor a JSON object of 68 landmarks by path: "
            f"{err!r}"
        ) from err
    return found


def points_of(name: str, faces: Mapping[str, Points]) -> Points | None:
    """The points of the image of this path, which may lie in more folders than the file knows."""
    while name not in faces and "/" in name:
        name = name.partition("/")[2]
    return faces.get(name)


def find_face(image: Image.Image, model: str) -> Points:
    """Points of the largest face that dlib finds.

    Args:
        image: The photograph, upright.
        model: URL or path of shape_predictor_68_face_landmarks.dat, also packed as .bz2.

    Raises:
        FaceError: There is none.
        ValueError: dlib or the model is missing.
    """
    detect, predict = _finder(model)
    pixels = np.asarray(image.convert("RGB"))
    faces = detect(pixels, 1 if max(image.size) < 1024 else 0)
    if not faces:
        raise FaceError("no face: dlib finds none")
    shape = predict(pixels, max(faces, key=lambda face: (face.area(), -face.left(), -face.top())))
    return face_points([(point.x, point.y) for point in shape.parts()])


def check_face_model(model: str) -> None:
    """Make sure that faces can be found with this model.

    Raises:
        ValueError: dlib or the model is missing.
    """
    _finder(model)


@functools.lru_cache(maxsize=1)
def _finder(model: str) -> tuple[Any, Any]:
    try:
        import dlib
    except ImportError as err:
        raise ValueError(
            "--face-model needs dlib; pip install -e '.[align]' or give --landmarks"
        ) from err
    try:
        return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(local_model(model)))
    except RuntimeError as err:
        raise ValueError(
            f"face model {model} cannot be read ({err}); get "
            f"shape_predictor_68_face_landmarks.dat anew"
        ) from err


def local_model(url: str) -> Path:
    """The model as an unpacked local file; what was fetched stays in the user's cache."""
    if storage.is_local(url) and not url.endswith(".bz2"):
        path = storage.local_path(url)
        if not path.is_file():
            raise ValueError(
                f"face model {url} does not exist; give the path or URL of "
                f"shape_predictor_68_face_landmarks.dat"
            )
        return path
    cache = Path("~/.cache/stylegan-pipeline/face-models").expanduser()
    path = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.dat"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        content = storage.read_bytes(url)
        storage.write_atomic(
            str(path), bz2.decompress(content) if url.endswith(".bz2") else content
        )
    return path


def _turned(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quarter turn against the clock as seen in the picture, where y goes down."""
    return np.array([vector[1], -vector[0]])


def _canvas(
    image: Image.Image, corners: NDArray[np.float64], size: float
) -> tuple[Image.Image, NDArray[np.float64]]:
    """What the rectangle needs of the image, mirrored and blurred outside, and its origin in it."""
    fourth = corners[1] + corners[2] - corners[0]
    every = np.vstack([corners, fourth])
    left, top = (int(edge) for edge in np.floor(every.min(0)) - 2)
    right, bottom = (int(edge) for edge in np.ceil(every.max(0)) + 2)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise FaceError("no face: its crop lies outside the picture")
    area = (inside[2] - inside[0]) * (inside[3] - inside[1])
    if (right - left) * (bottom - top) > MOST_OUTSIDE * area:
        raise FaceError("no face: its crop is many times the picture")
    part = image.crop(inside)
    origin = np.array([left, top], np.float64)
    before = (inside[1] - top, inside[0] - left)
    after = (bottom - inside[3], right - inside[2])
    if not any((*before, *after)):
        return part, origin

    # Mirrored, and the more blurred the farther it is from the picture.
    pixels = np.asarray(part)
    margins = [(before[0], after[0]), (before[1], after[1])]
    mirrored = np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")
    sharp = Image.fromarray(mirrored)
    blurred = sharp.filter(ImageFilter.GaussianBlur(size / 50))
    rows, columns = (
        np.concatenate([np.arange(first, 0, -1), [0] * length, np.arange(1, last + 1)])
        for (first, last), length in zip(margins, pixels.shape[:2], strict=True)
    )
    distance = np.hypot(rows[:, None], columns[None, :], dtype=np.float32)
    weight = np.clip(distance / (size / 10), 0, 1) * 255
    mask = Image.fromarray(weight.astype(np.uint8))
    return Image.composite(blurred, sharp, mask), origin
