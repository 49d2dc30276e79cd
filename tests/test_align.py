"""Faces are cropped by the published rectangle, wherever the photograph ends."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.align import (
    FaceError,
    aligned,
    face_points,
    face_rectangle,
    find_face,
    local_model,
    points_of,
    read_landmarks,
)
from data_prep.images import BadImageError, ImageConfig, load_image
from tests.small_sets import image_array, image_bytes

UPRIGHT = (40.0, 50.0, 60.0, 50.0, 44.0, 80.0, 56.0, 80.0)
"""Eyes 20 px apart, the mouth 30 px below: 4 * 20 < 3.6 * 30 = 108."""


def landmarks_of(points=UPRIGHT):
    """68 landmarks with these points; the outlines of the eyes go around theirs."""
    left, right, left_mouth, right_mouth = np.reshape(points, (4, 2))
    landmarks = np.zeros((68, 2))
    around = np.array([[-2, 0], [-1, -1], [1, -1], [2, 0], [1, 1], [-1, 1]])
    landmarks[36:42], landmarks[42:48] = left + around, right + around
    landmarks[48], landmarks[54] = left_mouth, right_mouth
    return landmarks.tolist()


def test_the_rectangle_is_the_published_one():
    """Karras et al. 2018, Appendix C: c = eyes - 0.1 y', s = max(4 |x'|, 3.6 |y'|)."""
    assert face_points(landmarks_of()) == UPRIGHT

    top_left, top_right, bottom_left = face_rectangle(UPRIGHT)

    half = 108 / 2  # around the eyes' centre and 0.1 * 30 below
    np.testing.assert_allclose(top_left, (50 - half, 53 - half))
    np.testing.assert_allclose(top_right, (50 + half, 53 - half))
    np.testing.assert_allclose(bottom_left, (50 - half, 53 + half))
    wide = (30.0, 50.0, 70.0, 50.0, 44.0, 80.0, 56.0, 80.0)
    assert face_rectangle(wide)[1][0] - face_rectangle(wide)[0][0] == 4 * 40


@given(
    st.floats(-3, 3), st.floats(0.2, 5), st.floats(-500, 500), st.floats(-500, 500), st.booleans()
)
def test_the_rectangle_follows_the_face(angle, scale, x, y, turned_head):
    """Turned, scaled and moved points give the rectangle turned, scaled and moved."""
    points = np.reshape(UPRIGHT, (4, 2)) + (
        np.array([[5, 2], [0, 0], [3, 0], [0, 4]]) * turned_head
    )
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    moved = face_rectangle(tuple((points @ turn.T + [x, y]).ravel()))

    np.testing.assert_allclose(
        moved, face_rectangle(tuple(points.ravel())) @ turn.T + [x, y], atol=1e-6
    )


def test_a_turned_face_becomes_upright():
    """A picture whose two colours meet along a slope through the eyes' centre of the crop."""
    angle = 0.4
    axis = np.array([np.cos(angle), np.sin(angle)])
    y, x = np.mgrid[0:200, 0:200]
    centre = np.array([100.0, 100.0])
    below = (y - centre[1]) * axis[0] - (x - centre[0]) * axis[1] > 0
    image = Image.fromarray(
        np.where(below[:, :, None], [200, 10, 10], [10, 10, 200]).astype(np.uint8)
    )
    turn = np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
    points = (np.reshape(UPRIGHT, (4, 2)) - [50, 53]) @ turn.T + centre

    face, enlarged = aligned(image, tuple(points.ravel()), 32)

    pixels = np.asarray(face)
    assert pixels.shape == (32, 32, 3)
    assert not enlarged
    assert pixels[:15, :, 2].min() > 190
    assert pixels[17:, :, 0].min() > 190


def test_an_upright_crop_inside_the_picture_is_a_crop():
    """108 px to 27: means of blocks of 4; pixels are points, so between four of them."""
    array = np.asarray(
        Image.fromarray(image_array(0, 20)).resize((200, 200), Image.Resampling.BICUBIC)
    )
    points = np.reshape(UPRIGHT, (4, 2)) + np.array([50, 47])

    face, _ = aligned(Image.fromarray(array), tuple(points.ravel()), 27)

    between = sum(
        array[row : row + 108, column : column + 108].astype(float)
        for row in (46, 47)
        for column in (46, 47)
    )
    part = between.reshape(27, 4, 27, 4, 3).mean((1, 3)) / 4
    assert np.abs(np.asarray(face) - part).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_beyond_the_picture_it_is_mirrored_and_blurred(mode):
    picture = Image.fromarray(image_array(1, 100)).convert(mode)

    face, enlarged = aligned(picture, UPRIGHT, 128)

    assert (face.mode, face.size, enlarged) == (mode, (128, 128), True)
    pixels = np.asarray(face.convert("L")).astype(float)
    # The rectangle begins 4 px left of the picture, and its bottom is 7 px below.
    assert np.abs(np.diff(pixels[:2], axis=1)).mean() > 5, "inside nothing is blurred"
    assert pixels[:, :2].std() > 0
    moved = tuple(number + 70 for number in UPRIGHT)
    outside = np.asarray(aligned(picture, moved, 128)[0].convert("L")).astype(float)
    assert np.abs(np.diff(outside[100:], axis=1)).mean() < 3, "far outside everything is"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((5.0, 5.0) * 4, "no face: its eye and mouth landmarks are no triangle"),
        (tuple(number + 900 for number in UPRIGHT), "no face: its crop lies outside the picture"),
        (tuple(number * 1000 for number in UPRIGHT), "no face: its crop is many times the picture"),
    ],
)
def test_points_that_are_no_face_in_the_picture_are_refused(points, message):
    with pytest.raises(FaceError, match=message):
        aligned(Image.new("RGB", (100, 100)), points, 2048)


def test_landmarks_are_found_by_the_path_of_the_image(tmp_path):
    other = tuple(number + 1 for number in UPRIGHT)
    record = {
        "metadata": {"author": "A"},
        "image": {"file_path": "images1024x1024/00000/00000.png", "face_landmarks": []},
        "in_the_wild": {
            "file_path": "in-the-wild-images/00000/00000.png",
            "face_landmarks": landmarks_of(),
        },
    }
    (tmp_path / "ffhq-dataset-v2.json").write_text(json.dumps({"0": record}))
    (tmp_path / "own.json").write_text(json.dumps({"a/b.png": landmarks_of(other)}))

    ffhq = read_landmarks(str(tmp_path / "ffhq-dataset-v2.json"))
    own = read_landmarks(str(tmp_path / "own.json"))

    for name in ("00000/00000.png", "in-the-wild-images/00000/00000.png", "x/00000/00000.png"):
        assert points_of(name, ffhq) == UPRIGHT
    assert points_of("photos/a/b.png", own) == other
    assert points_of("b.png", own) is None
    for content in ("[1]", "{}x", '{"a.png": [[1, 2]]}', '{"0": {"image": 1}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"bad.json is neither ffhq-dataset-v2.json nor a JSON"
        ):
            read_landmarks(str(tmp_path / "bad.json"))


def test_an_image_without_landmarks_is_refused():
    config = ImageConfig(resolution=16, crop="face")
    content = image_bytes(image_array(0, 100))

    assert load_image(content, config, UPRIGHT).pixels.shape == (16, 16, 3)
    with pytest.raises(BadImageError, match="no face: the landmarks do not name this image"):
        load_image(content, config)


def test_the_model_is_unpacked_once_and_kept(tmp_path, monkeypatch):
    import bz2

    monkeypatch.setenv("HOME", str(tmp_path))
    packed = tmp_path / "model.dat.bz2"
    packed.write_bytes(bz2.compress(b"model"))

    path = local_model(str(packed))
    packed.unlink()

    assert local_model(str(packed)) == path
    assert path.read_bytes() == b"model"
    with pytest.raises(
        ValueError, match=r"face model .*x.dat does not exist; give the path or URL"
    ):
        local_model(str(tmp_path / "x.dat"))


def test_dlib_finds_the_face_of_a_photograph():
    """dlib is an optional extra, and its model and a photograph are nowhere to be had by pip."""
    how = (
        "to run it, `pip install -e '.[align]'`, and set FACE_MODEL to dlib's "
        "shape_predictor_68_face_landmarks.dat and FACE_PHOTOGRAPH to a photograph of one face"
    )
    pytest.importorskip("dlib", reason=how)
    if not {"FACE_MODEL", "FACE_PHOTOGRAPH"} <= os.environ.keys():
        pytest.skip(how)
    photograph = Image.open(Path(os.environ["FACE_PHOTOGRAPH"])).convert("RGB")

    points = find_face(photograph, os.environ["FACE_MODEL"])

    left, right, left_mouth, right_mouth = np.reshape(points, (4, 2))
    assert left[0] < right[0]
    assert left_mouth[0] < right_mouth[0]
    assert left[1] < left_mouth[1]
    face, _ = aligned(photograph, points, 64)
    again = find_face(face.resize((512, 512)), os.environ["FACE_MODEL"])
    eyes = np.reshape(again, (4, 2))[:2].mean(0)
    assert abs(eyes[0] - 256) < 20, "in the middle"
    with pytest.raises(FaceError, match="no face: dlib finds none"):
        find_face(Image.new("RGB", (64, 64)), os.environ["FACE_MODEL"])
