"""Every kind of bad file is classified and counted; none stops the job or fills the memory."""

import io
import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data_prep.__main__ import main
from data_prep.doctor import DoctorConfig, examine
from data_prep.images import ImageConfig
from data_prep.job import run_job
from data_prep.job_config import JobConfig
from tests.small_sets import image_array, image_bytes, make_folder
from tests.test_images import (
    DEEP,
    NAN_EXIF,
    animation,
    as_bytes,
    declared,
    linear_profile,
    png_chunks,
    png_of_16_bits,
)

GOOD = image_bytes(image_array(0))
JPEG = image_bytes(image_array(0), "JPEG")
RGBA = Image.fromarray(np.random.default_rng(9).integers(0, 256, (16, 16, 4), np.uint8))
DEEP_GREY = Image.fromarray(DEEP + np.arange(16, dtype=np.uint16) * 512)
HUGE_BITMAP = b"BM" + struct.pack("<IIIIiiHH6I", 99, 0, 54, 40, 10**6, 10**6, 1, 24, *[0] * 6)
LINEAR = linear_profile()
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6


def text_bomb() -> bytes:
    """A PNG with a text of 200 MB that takes 200 kB."""
    text = b"k\0\0" + zlib.compress(bytes(200_000_000), 1)
    return GOOD[:33] + png_chunks((b"zTXt", text))[8:] + GOOD[33:]


def profile_bomb() -> bytes:
    """A PNG with a colour profile of 200 MB."""
    profile = b"k\0\0" + zlib.compress(bytes(200_000_000), 1)
    return GOOD[:33] + png_chunks((b"iCCP", profile))[8:] + GOOD[33:]


def pixel_bomb() -> bytes:
    """A PNG of 16 px whose data unpack to 200 MB."""
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(200_000_000), 1)
    return png_chunks((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))


UNUSABLE = {
    "empty.png": (b"", "empty file"),
    "zeros.png": (bytes(1000), "not an image in one of the formats"),
    "text.png": (b"not a picture", "not an image in one of the formats"),
    "error.jpg": (b"<html><body>404 Not Found</body></html>", "not an image in one of the"),
    "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in one of the"),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in one"),
    "truncated.png": (GOOD[:200], "truncated"),
    "truncated.jpg": (JPEG[:-200], "truncated"),
    "truncated.webp": (image_bytes(image_array(0), "WEBP")[:-50], "damaged"),
    "truncated.gif": (image_bytes(image_array(0), "GIF")[:900], "truncated"),
    "header only.png": (GOOD[:33], "not an image in one of"),
    "altered.png": (GOOD[:60] + b"XX" + GOOD[62:], "damaged"),
    "bomb.png": (declared(100_000, 100_000), "too many pixels"),
    "huge.png": (declared(2**14, 2**13 + 1), "too many pixels"),
    "longest.png": (declared(2**31 - 1, 1), "too many pixels"),
    "no width.png": (declared(0, 16), "not an image in one of the formats"),
    "huge.bmp": (HUGE_BITMAP, "too many pixels"),
    "float.tif": (as_bytes(Image.new("F", (16, 16)), "TIFF"), "32-bit values"),
    "integers.tif": (as_bytes(Image.new("I", (16, 16)), "TIFF"), "32-bit values"),
    "text bomb.png": (text_bomb(), "damaged"),
    "profile bomb.png": (profile_bomb(), "damaged"),
}  # fmt: skip

USABLE = {
    "wrong suffix.png": (JPEG, "wrong suffix"),
    "cmyk.jpg": (as_bytes(RGBA.convert("CMYK"), "JPEG"), "colour mode CMYK"),
    "deep grey.png": (as_bytes(DEEP_GREY), "16 bits"),
    "deep.png": (png_of_16_bits(image_array(3).astype(np.uint16) * 256), "16 bits"),
    "palette.png": (as_bytes(RGBA.convert("RGB").quantize(16)), "colour mode P"),
    "grey alpha.png": (as_bytes(RGBA.convert("LA")), "colour mode LA"),
    "rgba.png": (as_bytes(RGBA), "transparent pixels"),
    "animated.gif": (animation("GIF"), "several pictures"),
    "animated.png": (animation("PNG"), "several pictures"),
    "telephone.jpg": (animation("MPO"), "several pictures"),
    "nan.png": (image_bytes(image_array(4), exif=NAN_EXIF), ""),
    "exif.jpg": (image_bytes(image_array(5), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), ""),
    "sideways.png": (image_bytes(image_array(6), exif=SIDEWAYS), "turned upright"),
    "profile.png": (image_bytes(image_array(7), icc_profile=LINEAR), "colour profile other"),
    "no profile.png": (image_bytes(image_array(8), icc_profile=b"x"), "unreadable colour profile"),
    "pixel bomb.png": (pixel_bomb(), "one colour"),
    "one colour.png": (as_bytes(Image.new("RGB", (16, 16), "red")), "one colour"),
    "one pixel.png": (image_bytes(image_array(9, 1)), "one colour"),
    "long.png": (image_bytes(image_array(9, 64)[:, :4].copy()), "long shape"),
    "small.png": (image_bytes(image_array(9, 8)), "smaller than the full level"),
    "copy.png": (image_bytes(image_array(1)), "copy"),
    "appended.png": (image_bytes(image_array(10)) + b"PK\3\4 and more", ""),
    os.fsdecode(b"caf\xe9.png"): (image_bytes(image_array(11)), "name is not UTF-8"),
}  # fmt: skip


def _report(*sources, **options):
    config = DoctorConfig(sources=tuple(map(str, sources)), **options)
    return examine(config, lambda done, total, what: None)


def _left_out(source: Path, dest: Path) -> tuple[int, list[dict]]:
    """Samples of the data set made of a source, and what the quarantine says."""
    config = JobConfig(source=source, dest=str(dest), image=ImageConfig(resolution=16), max_bad=1)
    manifest = run_job(config, lambda done, total, what: None).manifest
    quarantine = dest / "quarantine.json"
    rows = json.loads(quarantine.read_text())["images"] if quarantine.exists() else []
    return manifest.samples, rows


@pytest.mark.parametrize("name", [*UNUSABLE, *USABLE], ids=ascii)
def test_every_kind_of_bad_file_is_classified_and_counted_and_stops_nothing(name, tmp_path):
    content, kind = {**UNUSABLE, **USABLE}[name]
    source = make_folder(tmp_path / "images", 3)
    (source / name).write_bytes(content)
    unusable = name in UNUSABLE

    report = _report(source, image=ImageConfig(resolution=16))
    samples, quarantine = _left_out(source, tmp_path / "data")

    assert report.facts["images"] == 4
    assert report.facts["usable"] == samples == 3 + (not unusable)
    assert report.count("error") == len(quarantine) == unusable
    found = [found for found in report.kinds if kind and found.startswith(kind)]
    assert len(found) == (kind != ""), list(report.kinds)
    if kind:
        assert report.kinds[found[0]].count == 1
        assert report.kinds[found[0]].examples[0][0] == name
    if unusable:
        assert (quarantine[0]["source"], quarantine[0]["kind"]) == (name, found[0])
        assert quarantine[0]["reason"].startswith(kind)


def _zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _zip_link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("link.png")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def _tar_link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("link.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a path out of a zip": (lambda path: _zip(path, ("../../x.png", GOOD)), "its path leaves"),
    "an absolute path in a tar": (
        lambda path: _tar(path, (tarfile.TarInfo("/etc/x.png"), GOOD)),
        "its path leaves",
    ),
    "a path out of a tar": (
        lambda path: _tar(path, (tarfile.TarInfo("a/../../x.png"), GOOD)),
        "its path leaves",
    ),
    "a link in a zip": (lambda path: _zip(path, (_zip_link(), b"/etc/passwd")), "a link"),
    "a link in a tar": (lambda path: _tar(path, (_tar_link(tarfile.SYMTYPE), b"")), "a link"),
    "a hard link in a tar": (lambda path: _tar(path, (_tar_link(tarfile.LNKTYPE), b"")), "a link"),
    "a device in a tar": (
        lambda path: _tar(path, (_tar_link(tarfile.CHRTYPE), b"")),
        "a link or a",
    ),
    "a name twice in a tar": (
        lambda path: _tar(path, *[(tarfile.TarInfo("same.png"), GOOD)] * 2),
        "another file has the same name",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_leads_out_of_an_archive_is_refused_and_counted(name, tmp_path):
    make, kind = HOSTILE[name]
    archive = make(tmp_path / "archive")
    beside = make_folder(tmp_path / "images", 2)

    report = _report(archive, beside)

    assert report.facts["usable"] == report.facts["images"] - 1
    (found,) = (found for found, counted in report.kinds.items() if counted.severity == "error")
    assert found.startswith(kind)
    assert report.kinds[found].count == 1


@pytest.mark.parametrize("make", ["dangling link", "pipe", "link to itself"])
def test_what_is_no_file_in_a_folder_is_refused_and_counted(make, tmp_path):
    source = make_folder(tmp_path / "images", 2)
    path = source / "x.png"
    if make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if make == "dangling link" else path)

    report = _report(source)

    assert (report.facts["images"], report.facts["usable"]) == (3, 2)
    assert report.count("error") == 1


def test_no_bad_file_takes_more_than_a_bounded_memory(tmp_path):
    """200 MB each, were they unpacked; what a process takes at all is measured beside."""
    for name, (content, _) in {**UNUSABLE, **USABLE}.items():
        if "bomb" in name or "huge" in name or "longest" in name:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "archive").mkdir()
    program = (
        "import resource, sys\nfrom data_prep.__main__ import main\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"code = main(['doctor', {str(tmp_path)!r}, '--workers', '1', '--json', '-'])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(code, (peak - base) // 1024, file=sys.stderr)"
    )

    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    code, grown_mib = map(int, run.stderr.split()[-2:])
    assert code == 3
    assert json.loads(run.stdout)["facts"]["images"] == 7
    assert grown_mib < 120


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with one of each kind of file, in two classes."""
    source = tmp_path_factory.mktemp("mixed")
    make_folder(source / "good", 40)
    (source / "bad").mkdir()
    for name, (content, _) in {**UNUSABLE, **USABLE}.items():
        if "bomb" not in name:
            (source / "bad" / name).write_bytes(content)
    return source


def test_the_report_is_80_columns_and_the_same_for_any_number_of_processes(mixed, capsys, tmp_path):
    outputs = []
    for workers in ("1", "2"):
        arguments = ["doctor", mixed, "--labels", "folder", "--workers", workers]
        sheet, report = tmp_path / f"{workers}.png", tmp_path / f"{workers}.json"
        code = main([*map(str, arguments), "--sheet", str(sheet), "--json", str(report)])
        assert code == 3
        outputs.append((capsys.readouterr().out, sheet.read_bytes(), report.read_text()))

    assert outputs[0] == outputs[1]
    out, sheet, report = outputs[0]
    assert max(map(len, out.splitlines())) <= 80
    assert "classes: 2" in out
    assert "wrong suffix" in out
    content = json.loads(report)
    assert (content["errors"], content["facts"]["images"]) == (18, 80)
    assert content["facts"]["formats"]["PNG"] > 40
    kinds = {row["kind"]: row for row in content["findings"]}
    assert kinds["empty file"] == {
        "kind": "empty file",
        "severity": "error",
        "count": 1,
        "examples": [{"where": "bad/empty.png", "reason": "empty file"}],
    }
    image = Image.open(io.BytesIO(sheet))
    assert (image.format, image.width) == ("PNG", 8 * 104 + 8)
    pixels = np.asarray(image)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500, "pictures are on it"


def test_a_clean_source_has_nothing_wrong_and_no_sheet(capsys, tmp_path):
    source = make_folder(tmp_path / "images", 3)

    code = main(["doctor", str(source), "--workers", "1", "--sheet", str(tmp_path / "sheet.png")])

    out = capsys.readouterr().out
    assert code == 0
    assert "images: 3\nusable: 3\n" in out
    assert out.splitlines()[-1] == "nothing wrong"
    assert not (tmp_path / "sheet.png").exists()


def test_wanted_sizes_and_labels_are_checked_before_sharding(tmp_path):
    source = make_folder(tmp_path / "images", 3, side=24)
    (source / "wide.png").write_bytes(image_bytes(image_array(7, 32)[:16].copy()))

    report = _report(source, image=ImageConfig(resolution=32, crop="none"), labels="folder")

    assert report.kinds["not square"].count == 1
    assert report.kinds["smaller than the full level"].count == 3
    assert report.kinds["no labels"].count == 1
    assert report.facts["sizes"] == {"24x24": 3}


def test_names_with_control_characters_and_markup_are_shown_as_they_are(tmp_path):
    source = make_folder(tmp_path / "images", 1)
    (source / "[bold]\x1b[31m\n.png").write_bytes(b"")
    console = Console(width=80, file=io.StringIO())

    _report(source).show(console)

    assert r"[bold]\x1b[31m\n.png" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()


def test_a_source_without_images_is_refused(capsys, tmp_path):
    code = main(["doctor", str(tmp_path)])

    assert code == 2
    assert "holds no images; they are told by their suffixes, .bmp, " in capsys.readouterr().err
