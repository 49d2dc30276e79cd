"""Hostile and damaged archives: each file is read, or refused with a reason, in bounded memory."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from data_prep.images import BadImageError
from data_prep.sources import SourceError, list_source
from tests.small_sets import image_array, image_bytes, shard


def _reasons(path: Path) -> dict[str, str]:
    listing = list_source(path, path.parent)
    reasons = {}
    for entry in listing.entries:
        try:
            listing.source.read(entry)
            reasons[entry.name] = ""
        except BadImageError as err:
            reasons[entry.name] = str(err)
    return reasons


class _Unseekable(io.RawIOBase):
    """Makes zipfile write sizes behind the data."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, content):
        return self.file.write(content)


@pytest.mark.parametrize("kind", ["plain", "comment", "prefix", "stream", "zip64", "many", "empty"])
def test_a_zip_gives_what_pythons_own_reader_gives(kind, tmp_path, monkeypatch):
    if kind == "many":  # as if there were more than 65,535
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    path = tmp_path / "x.zip"
    with path.open("wb") as file:
        if kind == "prefix":
            file.write(b"#!/bin/sh\nPK\x05\x06 is no end\n")
        target = _Unseekable(file) if kind == "stream" else file
        with zipfile.ZipFile(target, "w") as archive:
            for number in range(0 if kind == "empty" else 30):
                member = zipfile.ZipInfo(f"{number % 7}/ä{number}.png")
                member.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                member.extra = struct.pack("<2H8s", 0x7075, 8, b"12345678") * (number % 3)
                force = kind == "zip64" and number % 5 == 0
                with archive.open(member, "w", force_zip64=force) as opened:
                    opened.write(bytes([number]) * (number * 10))
            archive.comment = b"c" * (65535 if kind == "comment" else 0)

    listing = list_source(path, tmp_path)

    with zipfile.ZipFile(path) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    assert {entry.name: listing.source.read(entry) for entry in listing.entries} == expected


def _zip_with(tmp_path: Path, name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr(name, content)
        archive.writestr("z.png", b"good", zipfile.ZIP_STORED)
    return tmp_path / "x.zip"


def _edit(path: Path, signature: bytes, offset: int, value: bytes) -> Path:
    """Overwrite a field of the first header of this kind."""
    content = bytearray(path.read_bytes())
    at = content.index(signature) + offset
    content[at : at + len(value)] = value
    path.write_bytes(bytes(content))
    return path


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
DAMAGES = [
    # The name claims to be UTF-8 and is not.
    (lambda path: _edit(path, CENTRAL, 46, b"\xff\xfe"), {"\udcff\udcfe.png": "", "z.png": ""}),
    (lambda path: _edit(path, CENTRAL, 16, b"\0\0\0\0"), {"ä.png": "damaged: its CRC-32"}),
    (lambda path: _edit(path, CENTRAL, 42, b"\1\0\0\0"), {"ä.png": "damaged: no file begins"}),
    (lambda path: _edit(path, CENTRAL, 42, b"\0\0\0\7"), {"ä.png": "damaged: it would lie behind"}),
    (lambda path: _edit(path, CENTRAL, 24, b"\xff\0\0\0"), {"ä.png": "truncated: only 100 of 255"}),
    (lambda path: _edit(path, CENTRAL, 24, b"\7\0\0\0"), {"ä.png": "changed: longer than the 7"}),
    (
        lambda path: _edit(path, CENTRAL, 10, b"\x0e\0"),
        {"ä.png": "unknown packing: method 14; zip"},
    ),
    (lambda path: _edit(path, CENTRAL, 24, b"\0\0\0\x50"), {"ä.png": "too long: 1342177280 bytes"}),
    (lambda path: _edit(path, LOCAL, 35, b"\xff\xff\xff"), {"ä.png": "cannot be read: Error -3"}),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_a_damaged_member_of_a_zip_has_its_reason_and_the_others_are_read(
    damage, expected, tmp_path
):
    path = _zip_with(tmp_path, "ä.png", b"x" * 100)

    reasons = _reasons(damage(path))

    assert reasons["z.png"] == ""
    for name, reason in expected.items():
        assert reasons[name].startswith(reason)
        assert bool(reasons[name]) == bool(reason)


def test_a_zip_whose_directory_is_cut_is_damaged_as_a_whole(tmp_path):
    path = _zip_with(tmp_path, "a.png", b"x" * 100)
    content = path.read_bytes()

    _edit(path, b"PK\x05\x06", 10, b"\7\0")
    with pytest.raises(SourceError, match=r"x.zip is damaged: its directory ends after 2 of 7 fi"):
        list_source(path, tmp_path)
    path.write_bytes(content[150:])
    with pytest.raises(SourceError, match=r"x.zip is damaged: its beginning is missing; get it ag"):
        list_source(path, tmp_path)


@pytest.mark.parametrize("kind", ["honest", "lying", "bzip2"])
def test_a_decompression_bomb_takes_no_memory(kind, tmp_path):
    """50 MB of zeros: in a member that says so, in one that says 100 bytes, in another packing."""
    method = zipfile.ZIP_BZIP2 if kind == "bzip2" else zipfile.ZIP_DEFLATED
    path = _zip_with(tmp_path, "bomb.png", bytes(50_000_000), method)
    if kind == "lying":
        _edit(path, CENTRAL, 24, struct.pack("<L", 100_000))
    tracemalloc.start()

    reasons = _reasons(path)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = {
        "honest": "decompression bomb: unpacks to",
        "lying": "changed: longer than the 100000",
        "bzip2": "unknown packing: method 12",
    }
    assert reasons["bomb.png"].startswith(expected[kind])
    assert reasons["z.png"] == ""
    assert peak < 5_000_000


def test_a_compressed_tar_that_fills_the_disk_is_stopped(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        member = tarfile.TarInfo("x.png")
        member.size = 80_000_000
        packed.write(member.tobuf())
        for _ in range(80):
            packed.write(bytes(1_000_000))

    with pytest.raises(SourceError, match=r"bomb.tar.gz is damaged: it unpacks to more than \d+ b"):
        list_source(path, tmp_path)


def _tar(path: Path, *members: tarfile.TarInfo, end: bool = True) -> Path:
    content = b"".join(
        member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        + bytes(-(-member.size // 512) * 512)
        for member in members
    )
    path.write_bytes(content + (bytes(1024) if end else b""))
    return path


def _member(name: str, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def test_links_devices_and_strange_names_in_a_tar_are_refused_or_read_by_name(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for member in (
            _member("ok.png"),
            _member("ÿ.png"),  # the byte ff, which is no UTF-8
            _member("soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            _member("hard.png", type=tarfile.LNKTYPE, linkname="ok.png"),
            _member("device.png", type=tarfile.CHRTYPE),
            _member("pipe.png", type=tarfile.FIFOTYPE),
            _member("a/../../up.png"),
        ):
            archive.addfile(member)

    assert _reasons(path) == {
        "ok.png": "",
        "\udcff.png": "",
        **dict.fromkeys(("soft.png", "hard.png", "device.png", "pipe.png"), "a link or a device"),
        "a/../../up.png": "its path leaves the archive",
    }


def test_names_that_are_no_utf8_go_through_the_whole_job(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for number, name in enumerate(["ÿ.png", "ok.png"]):
            content = image_bytes(image_array(number))
            archive.addfile(_member(name, size=len(content)), io.BytesIO(content))

    assert shard(path, tmp_path / "data").manifest.samples == 2
    assert shard(path, tmp_path / "data").already_complete


REST = "[rest of the archive].png"


def test_a_tar_that_is_cut_off_counts_its_rest_as_one_bad_file(tmp_path):
    path = _tar(tmp_path / "x.tar", _member("a.png"), _member("b.png"), end=False)
    assert _reasons(path) == {
        "a.png": "",
        "b.png": "",
        REST: "truncated archive: no tar goes on at byte 1024 of 1024",
    }
    path.write_bytes(path.read_bytes() + b"garbage!" * 200)
    assert _reasons(path)[REST] == "truncated archive: no tar goes on at byte 1024 of 2624"
    path = _tar(tmp_path / "x.tar", _member("a.png"), _member("b.png", size=9), end=False)
    path.write_bytes(path.read_bytes()[:1030])
    reasons = _reasons(path)
    assert reasons["a.png"] == ""
    assert reasons["b.png"] == "truncated: only 6 of 9 bytes could be read"
    assert reasons[REST].startswith("truncated archive: ")


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    huge = _member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=2**33)
    path = tmp_path / "x.tar"
    path.write_bytes(_member("a.png").tobuf() + huge.tobuf(tarfile.GNU_FORMAT))

    assert _reasons(path) == {
        "a.png": "",
        REST: f"truncated archive: a header of {2**33} bytes",
    }


def test_headers_nested_without_end_are_a_damage(tmp_path):
    nested = _member("x", type=tarfile.XHDTYPE, size=0).tobuf()
    (tmp_path / "x.tar").write_bytes(_member("a.png").tobuf() + nested * 5000)

    reasons = _reasons(tmp_path / "x.tar")

    assert reasons["a.png"] == ""
    assert reasons[REST].startswith("truncated archive: ")


def test_the_rest_of_a_tar_stops_the_job_unless_it_is_allowed(tmp_path):
    content = image_bytes(image_array(0))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(_member("a.png", size=len(content)), io.BytesIO(content))
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: 512 + len(content)])

    with pytest.raises(ValueError, match="1 of 2 images cannot be used, but only 0 may be left"):
        shard(tmp_path / "x.tar", tmp_path / "data", include="*.png")
    report = shard(tmp_path / "x.tar", tmp_path / "data", include="*.png", max_bad=1)

    assert report.manifest.samples == 1
    assert list(report.bad) == [REST]


def test_a_tar_gz_that_is_cut_off_is_damaged(tmp_path):
    packed = zlib.compress(bytes(10), wbits=31)
    (tmp_path / "x.tar.gz").write_bytes(packed[:-4])

    with pytest.raises(SourceError, match=r"x.tar.gz is damaged: Compressed file ended before"):
        list_source(tmp_path / "x.tar.gz", tmp_path)
