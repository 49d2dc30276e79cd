"""Sources: folders, zips and tars give the same listing and the same bytes, damaged or hostile."""

import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep import storage
from data_prep.images import BadImageError
from data_prep.sources import Entry, Source, SourceError, list_source, printable

FILES = {
    "b/2.png": b"two",
    "a/10.JPG": b"ten!",
    "a/9.webp": b"",
    "top.jpeg": b"jpeg",
    "b/ünï.png": b"name",
}
IGNORED = {
    "readme.txt": b"no",
    "a/.hidden.png": b"no",
    "__MACOSX/x.png": b"no",
    ".git/x.png": b"no",
}
SORTED = ["a/10.JPG", "a/9.webp", "b/2.png", "b/ünï.png", "top.jpeg"]


def _make(kind: str, folder: Path) -> Path:
    files = {**FILES, **IGNORED}
    path = folder / f"source.{kind}"
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("a")
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_kind_of_source_lists_the_same_images_and_reads_them(kind, tmp_path):
    listing = list_source(_make(kind, tmp_path), tmp_path)

    assert [entry.name for entry in listing.entries] == SORTED
    assert listing.ignored == len(IGNORED)
    # Sources travel to other processes.
    source = pickle.loads(pickle.dumps(listing.source))
    assert {entry.name: source.read(entry) for entry in listing.entries} == FILES


def test_folders_behind_links_are_listed_and_loops_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "x.png").write_bytes(b"x")
    (outside / "back").symlink_to(tmp_path / "source")
    root = tmp_path / "source"
    root.mkdir()
    (root / "class").symlink_to(outside)
    (root / "self").symlink_to(root)
    (root / "up").symlink_to("/")
    (root / "file.png").symlink_to(outside / "deep" / "x.png")

    listing = list_source(root, tmp_path)

    assert [entry.name for entry in listing.entries] == ["class/deep/x.png", "file.png"]
    assert [listing.source.read(entry) for entry in listing.entries] == [b"x", b"x"]


def test_what_is_no_file_is_refused_by_name(tmp_path):
    (tmp_path / "dangling.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "ok.png").write_bytes(b"1")

    entries = {entry.name: entry for entry in list_source(tmp_path, tmp_path).entries}

    assert entries["dangling.png"].refused == "cannot be read: No such file or directory"
    assert entries["pipe.png"].refused == "neither a file nor a link to one"
    assert entries["ok.png"].refused == ""


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_archive_or_are_links_are_refused(kind, tmp_path):
    path = tmp_path / f"evil.{kind}"
    names = ["../up.png", "/etc/root.png", "a/../../up2.png"]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"evil")
            link = zipfile.ZipInfo("link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"evil"))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)

    listing = list_source(path, tmp_path)

    assert len(listing.entries) == 4
    for entry in listing.entries:
        assert entry.refused in {"its path leaves the archive", "a link", "a link or a device"}
        with pytest.raises(BadImageError, match=entry.refused):
            listing.source.read(entry)
    assert not (tmp_path.parent / "up.png").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_not_confused(kind, tmp_path):
    path = tmp_path / f"twice.{kind}"
    with tarfile.open(path, "w") if kind == "tar" else zipfile.ZipFile(path, "w") as archive:
        for name, content in (("x.png", b"first"), ("./x.png", b"second")):
            if kind == "zip":
                archive.writestr(name, content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    first, second = list_source(path, tmp_path).entries

    assert (first.name, first.refused) == ("x.png", "")
    assert (second.name, second.refused) == ("x.png#2", "another file has the same name")
    assert list_source(path, tmp_path).source.read(first) == b"first"


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = _make("zip", tmp_path)
    path = tmp_path / "outer.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner.zip")
        member = tarfile.TarInfo("x.png")
        archive.addfile(member)

    assert [entry.name for entry in list_source(path, tmp_path).entries] == ["x.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "nothing does not exist"),
        ("x.zip", b"PK\x03\x04 no zip", "x.zip is damaged: a zip whose end is missing; get it"),
        ("x.zip", b"no zip", "x.zip is none of the known forms: folder, zip"),
        ("x.png", b"\x89PNG", "x.png is none of the known forms: folder, zip"),
        ("empty.tar", b"", "empty.tar is none of the known forms: folder, zip"),
    ],
)
def test_what_is_no_source_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=f"^source .*{message}"):
        list_source(tmp_path / name, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_truncated_archive_is_damaged_or_gives_fewer_bytes_loudly(kind, tmp_path):
    """At every length: either the listing fails, or reading, or the archive is whole."""
    path = _make(kind, tmp_path)
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        try:
            listing = list_source(path, tmp_path)
        except SourceError:
            continue
        refused = 0
        for entry in listing.entries:
            try:
                assert listing.source.read(entry) == FILES[entry.name]
            except BadImageError:
                refused += 1
        missing = set(FILES) - {entry.name for entry in listing.entries}
        assert not missing or refused, f"{length} bytes: {missing} are silently lost"


def test_a_file_that_changed_since_it_was_listed_is_bad(tmp_path):
    (tmp_path / "x.png").write_bytes(b"1234")
    listing = list_source(tmp_path, tmp_path)
    (tmp_path / "x.png").write_bytes(b"12")

    with pytest.raises(BadImageError, match="only 2 of 4 bytes could be read"):
        listing.source.read(listing.entries[0])
    (tmp_path / "x.png").unlink()
    with pytest.raises(BadImageError, match=r"cannot be read: .*No such file"):
        listing.source.read(listing.entries[0])


def test_an_encrypted_zip_member_is_bad_not_a_crash(tmp_path):
    path = _make("zip", tmp_path)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = content.find(signature)
        while at >= 0:
            content[at + place] |= 1  # the flag alone
            at = content.find(signature, at + 1)
    path.write_bytes(bytes(content))
    listing = list_source(path, tmp_path)

    with pytest.raises(BadImageError, match="encrypted"):
        listing.source.read(listing.entries[0])


@pytest.mark.parametrize("mtime", [3, 3.5, float("nan"), float("inf")])
def test_the_time_of_a_member_of_a_tar_goes_with_it(mtime, tmp_path):
    path = tmp_path / "source.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("x.png")
        member.pax_headers = {"mtime": str(mtime)}
        archive.addfile(member)

    (entry,) = list_source(path, tmp_path).entries

    assert str(entry.stamp) == str(float(mtime))


@dataclass(frozen=True, kw_only=True)
class _Failing(Source):
    cause: type[Exception]

    def _read(self, entry):
        try:
            raise self.cause("why")
        except self.cause as err:
            raise storage.StorageError(f"cannot read {entry.name}: why") from err


def test_a_store_that_fails_ends_the_job_and_condemns_no_image():
    """But for an object that is not there, or is not for us to read."""
    for cause in (FileNotFoundError, PermissionError):
        with pytest.raises(BadImageError, match=r"cannot be read: cannot read x.png: why"):
            _Failing(url="s3://b", cause=cause).read(Entry("x.png", 1))
    with pytest.raises(storage.StorageError, match=r"cannot read x.png: why"):
        _Failing(url="s3://b", cause=TimeoutError).read(Entry("x.png", 1))


def test_any_name_can_be_printed():
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"
