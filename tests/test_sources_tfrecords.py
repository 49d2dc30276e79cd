"""TFRecords as a source: golden files, damage, checksums."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.images import BadImageError
from data_prep.manifest import ShardIndex
from data_prep.pyramid import pyramid
from data_prep.sources import Listing, SourceError, list_source
from data_prep.sources.crc32c import crc32c, masked_crc32c
from tests import goldens
from tests.small_sets import expected_images, image_array, shard
from tests.source_forms import TFRECORDS, tfrecords

GOLDEN_TFRECORDS = [
    (name, folder)
    for name in goldens.sets("F2_*")
    for folder in goldens.GOLDEN_DIR.glob("F2_tfrecords*")
]


def _images(listing: Listing) -> np.ndarray:
    """All images [n, c, h, w]."""
    files = [listing.source.read(entry) for entry in listing.entries]
    arrays = [np.atleast_3d(np.asarray(Image.open(io.BytesIO(file)))) for file in files]
    return np.stack(arrays).transpose(0, 3, 1, 2)


def _levels(folder: Path) -> dict[int, Path]:
    files = sorted(folder.glob("*.tfrecords"))
    return {2 ** int(re.search(r"-r(\d\d)\.", file.name)[1]): file for file in files}


@pytest.mark.parametrize(("name", "folder"), GOLDEN_TFRECORDS)
def test_golden_tfrecords_hold_the_levels_that_were_written(name, folder, tmp_path):
    written = goldens.arrays(name)
    assert _levels(folder)

    for resolution, file in _levels(folder).items():
        images = _images(list_source(file, tmp_path))

        assert images.shape[2:] == (resolution, resolution)
        np.testing.assert_array_equal(images, written[f"out/res{resolution}"])


@pytest.mark.parametrize(("name", "folder"), GOLDEN_TFRECORDS)
def test_golden_tfrecords_become_a_data_set_with_the_official_levels_and_labels(
    name, folder, tmp_path
):
    """Only the full level is read. Ours below it differ by a rounding at most where the files leave
    out the level that theirs were made of.
    """
    resolution = max(_levels(folder))

    manifest = shard(folder, tmp_path / "data", resolution=resolution, labels="source").manifest

    assert [level.resolution for level in manifest.levels] == sorted(_levels(folder))
    made_of = goldens.arrays(name)["in/u8"].shape[-1]
    for level, file in _levels(folder).items():
        images = expected_images(str(tmp_path / "data"), level).astype(int)
        difference = np.abs(images - _images(list_source(file, tmp_path))).max()
        assert difference <= (level < resolution < made_of)
    (labels_file,) = folder.glob("*.labels")
    labels = np.load(labels_file)
    index = ShardIndex.load(str(tmp_path / "data"), resolution, 0, manifest)
    found = np.array(
        [np.eye(labels.shape[1])[x] if isinstance(x, int) else x for x in index.labels]
    )
    np.testing.assert_array_equal(found, labels[: len(found)])
    assert manifest.labels.size == labels.shape[1]


def test_a_flipped_bit_in_golden_tfrecords_is_a_bad_image_or_a_named_rest(tmp_path):
    whole = min(_levels(TFRECORDS).items())[1]
    content = whole.read_bytes()
    copy = tmp_path / whole.name
    entries = list_source(whole, tmp_path).entries
    ends = {0, *(entry.offset + entry.size + 4 for entry in entries)}

    for at in range(0, len(content), 3):
        copy.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        listing = list_source(copy, tmp_path)
        bad = {}
        for entry in listing.entries:
            try:
                listing.source.read(entry)
            except BadImageError as err:
                bad[entry.name] = str(err)
        (reason,) = bad.values()
        assert re.match(r"damaged: its CRC-32C|truncated archive: at byte \d+, ", reason)
        assert len(listing.entries) <= len(entries) + 1
    for length in set(range(0, len(content), 7)) - ends:
        copy.write_bytes(content[:length])
        last = list_source(copy, tmp_path).entries[-1]
        assert last.refused.startswith("truncated archive: ")


def test_labels_that_do_not_fit_golden_tfrecords_are_refused(tmp_path):
    shutil.copytree(TFRECORDS, tmp_path / "x")
    (labels,) = (tmp_path / "x").glob("*.labels")
    with labels.open("wb") as file:
        np.save(file, np.zeros((7, 3), np.float32))
    with pytest.raises(SourceError, match=r"labels has labels of shape \(7, 3\), but .* holds \d+"):
        list_source(tmp_path / "x", tmp_path)
    labels.write_bytes(b"no array")
    with pytest.raises(SourceError, match=r"labels is no .npy file of labels"):
        list_source(tmp_path / "x", tmp_path)
    for name in ("other-r02.tfrecords", "more-r03.tfrecords"):
        (tmp_path / "x" / name).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"holds the TFRecords of \w+ and more and other; name on"
    ):
        list_source(tmp_path / "x", tmp_path)


def test_crc32c_is_that_of_rfc_3720():
    """Appendix B.4, and the definition bit by bit for other lengths."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    for length in (1, 3, 4, 5, 63, 64, 1000, 4097):
        data, expected = os.urandom(length), 0xFFFFFFFF
        for byte in data:
            expected ^= byte
            for _ in range(8):
                expected = expected >> 1 ^ 0x82F63B78 * (expected & 1)
        assert crc32c(data) == expected ^ 0xFFFFFFFF
    assert masked_crc32c(b"") == 0xA282EAD8


def test_pyramids_of_grey_tfrecords_are_read(tmp_path):
    """One channel, and values packed or not, as protobuf leaves it to the writer."""
    image = image_array(1)[:, :, :1]
    for packed in (True, False):
        tfrecords(tmp_path, [image], packed=packed)

        images = _images(list_source(tmp_path, tmp_path))

        np.testing.assert_array_equal(images[0], image.transpose(2, 0, 1))
        assert pyramid(image)[-1].shape == (16, 16, 1)
