"""Files by URL: a local folder and a real S3 server behave alike, and failures are honest."""

import errno
import http.server
import os
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

from data_prep import storage
from tests.certificates import make_certificate
from tests.fault_proxy import fault_proxy
from tests.services import free_ports, s3_client, start_s3_server

QUICK = storage.Retry(attempts=2, first_wait_s=0.01)


@pytest.fixture(params=["local", "file", "s3"])
def base(request, tmp_path):
    """URL of an empty folder."""
    if request.param == "s3":
        return request.getfixturevalue("s3").url
    return f"file://{tmp_path}/x" if request.param == "file" else str(tmp_path / "x")


def test_what_is_written_is_read_back(base):
    url = storage.join(base, "a", "b.bin")

    storage.write_atomic(url, b"0123456789")
    assert storage.read_bytes(url) == b"0123456789"
    storage.write_atomic(url, b"abcdefghij")

    assert storage.read_bytes(url) == b"abcdefghij"
    assert storage.read_range(url, 3, 4) == b"defg"
    assert storage.read_range(url, 3, 0) == b""
    assert storage.size_bytes(url) == 10
    assert storage.exists(url)
    assert storage.exists(base)
    assert storage.sha256(url).startswith("72399361da6a7754")


def test_an_empty_url_is_not_the_root_of_the_file_system():
    with pytest.raises(ValueError, match="the URL of a folder is empty"):
        storage.join("", "data")
    assert storage.join("/", "data") == "/data"


def test_listings_are_fresh_sorted_and_without_the_folder_itself(base):
    assert storage.listdir(base) == []

    for name in ("c.txt", "a/b.txt", "b"):
        storage.write_atomic(storage.join(base, name), b"1")
        assert name.partition("/")[0] in storage.listdir(base)

    assert storage.listdir(base) == ["a", "b", "c.txt"]
    assert storage.listdir(base + "/a/") == ["b.txt"]


def test_files_are_uploaded_whole_and_moved_if_wanted(base, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)

    storage.upload(path, storage.join(base, "copy"))
    assert path.exists()
    storage.upload(path, storage.join(base, "moved"), move=True)

    assert not path.exists()
    for name in ("copy", "moved"):
        assert storage.read_bytes(storage.join(base, name)) == bytes(range(256)) * 100
    assert storage.listdir(base) == ["copy", "moved"]


def test_a_large_file_is_uploaded_in_parts(s3, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2**20) * 60)  # s3fs cuts at 50 MiB

    storage.upload(path, f"{s3.url}/large")

    assert storage.size_bytes(f"{s3.url}/large") == 60 * 2**20
    assert storage.sha256(f"{s3.url}/large") == storage.sha256(str(path))


def test_deleting_is_no_error_where_there_is_nothing(base):
    storage.write_atomic(storage.join(base, "a/b"), b"1")
    storage.write_atomic(storage.join(base, "a/c/d"), b"1")

    storage.delete(storage.join(base, "a/b"))
    storage.delete(storage.join(base, "a/b"))
    assert storage.listdir(storage.join(base, "a")) == ["c"]
    storage.delete(storage.join(base, "a"), recursive=True)
    storage.delete(storage.join(base, "a"), recursive=True)

    # Some stores go on listing empty folders.
    assert not storage.exists(storage.join(base, "a/c/d"))


def test_a_missing_object_fails_at_once_with_its_url(base):
    url = storage.join(base, "nothing")
    start_s = time.monotonic()

    for call in (storage.read_bytes, storage.size_bytes, storage.sha256):
        with pytest.raises(storage.MissingError, match=f"{url}: there is no such object"):
            call(url)

    assert time.monotonic() - start_s < 2
    assert not storage.exists(url)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """The local disk fills up in the middle of a file."""
    storage.write_atomic(str(tmp_path / "x"), b"before")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(storage.StorageError, match=f"cannot write {tmp_path}/x: OSError.*No space"):
        storage.write_atomic(str(tmp_path / "x"), b"after")

    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


def test_a_short_range_is_a_failure_not_fewer_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"0123")

    with pytest.raises(storage.StorageError, match=r"read bytes 2 to 5 of .*got 2 bytes instead"):
        storage.read_range(str(tmp_path / "x"), 2, 4, retry=QUICK)


def test_passing_failures_are_tried_again_and_lasting_ones_are_not(caplog):
    """A web server that fails twice, then answers; one that forbids; one that is not there."""
    calls = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            failing = self.path == "/flaky" and len(calls) <= 2
            lasting = {"/forbidden": 403, "/gone": 404}
            self.send_response(503 if failing else lasting.get(self.path, 200))
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"ok")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        patient = storage.Retry(attempts=5, first_wait_s=0.01)

        assert storage.read_bytes(f"{url}/flaky", retry=patient) == b"ok"
        assert len(calls) == 3
        assert caplog.text.count("again in 0.0 s") == 2
        for look in (storage.read_bytes, storage.size_bytes):
            with pytest.raises(storage.StorageError, match=r"/forbidden: Client.*: 403, "):
                look(f"{url}/forbidden", retry=patient)
            with pytest.raises(storage.MissingError, match="/gone: there is no such object"):
                look(f"{url}/gone", retry=patient)
        assert not storage.exists(f"{url}/gone")
        assert caplog.text.count("again in") == 2
        server.shutdown()
    with pytest.raises(storage.StorageError, match=r"/x: ClientConnectorError.*\(2 attempts\)"):
        storage.read_bytes(f"{url}/x", retry=QUICK)


def test_waits_grow_and_are_bounded():
    retry = storage.Retry(first_wait_s=1, longest_wait_s=5)

    for attempt, longest_s in enumerate([1, 2, 4, 5, 5]):
        assert longest_s / 2 <= retry.wait_s(attempt) <= longest_s


def test_urls_are_joined_and_told_apart(tmp_path):
    assert storage.join("s3://b/", "/a/", "c") == "s3://b/a/c"
    assert storage.join("/", "a") == "/a"
    assert storage.is_local("x/y")
    assert not storage.is_local("memory://x")
    assert storage.local_path(f"file://{tmp_path}") == tmp_path
    with pytest.raises(ValueError, match="memory://x is no local file"):
        storage.local_path("memory://x")


@pytest.mark.parametrize("url", ["foo://x/y", "sftp-nothing://x"])
def test_an_unknown_kind_of_store_is_named(url):
    with pytest.raises(ValueError, match=f"{url} names no store that can be used here: Protocol"):
        storage.check_reachable(url)


def test_a_store_that_answers_is_reachable_whatever_it_holds(s3, tmp_path):
    storage.check_reachable(f"{s3.url}/nothing/here")
    storage.check_reachable(s3.url)
    storage.check_reachable(s3.url.rpartition("/")[0])
    storage.check_reachable(str(tmp_path / "nothing"))
    storage.check_reachable("memory://nothing")


def test_a_store_that_answers_within_the_patience_is_reachable():
    """It is busy at first; what it said then is not what counts."""
    statuses = [503, 200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(statuses[0])
            self.end_headers()
            if self.command == "GET" and len(statuses) > 1:
                statuses.pop(0)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage.check_reachable(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()

    assert statuses == [200]


CHECK = "import sys; from data_prep.storage import *; check_reachable(sys.argv[1], patience_s=2)"


def _check_reachable(url, environment):
    """In a process of its own, because clients are kept: seconds, and the last line it wrote."""
    start_s = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", CHECK, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return time.monotonic() - start_s, result.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses {url} at {endpoint} with these credentials"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "refuses {url} at {endpoint} with these credentials"),
        ({"AWS_ACCESS_KEY_ID": ""}, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ENDPOINT_URL": "{closed}"}, "{url} at {closed} cannot be reached in 2 s"),
    ],
    ids=["secret", "key", "none", "closed port"],
)
def test_a_store_that_refuses_is_named_with_the_remedy(s3, change, message):
    names = {
        "url": s3.url,
        "endpoint": s3.environment["AWS_ENDPOINT_URL"],
        "closed": f"http://127.0.0.1:{free_ports(1)[0]}",
    }
    environment = {**s3.environment, **{key: text.format(**names) for key, text in change.items()}}

    seconds, said = _check_reachable(s3.url, environment)

    assert "data_prep.storage.StorageError: " in said
    assert message.format(**names) in said
    assert seconds < 8


def test_an_endpoint_that_changes_in_the_environment_is_the_one_that_is_asked(s3, monkeypatch):
    storage.write_atomic(f"{s3.url}/a", b"1")
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(storage.StorageError, match="cannot read"):
        storage.read_bytes(f"{s3.url}/a", retry=storage.Retry(attempts=1))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.endpoint)
    assert storage.read_bytes(f"{s3.url}/a") == b"1"


def test_objects_with_the_names_of_folders_are_not_listed(s3):
    client = s3_client(s3.server)
    for key in ("folder/", "folder/a", "folder/b/"):
        bucket, _, base = s3.url.removeprefix("s3://").partition("/")
        client.put_object(Bucket=bucket, Key=f"{base}/{key}", Body=b"")

    assert list(storage.find(f"{s3.url}/folder")) == ["a"]
    client.close()


def test_a_missing_bucket_is_named(s3):
    with pytest.raises(
        storage.MissingError, match=r"no bucket for s3://not-there/x at http://127.*create it"
    ):
        storage.check_reachable("s3://not-there/x")


def test_s3_by_https_with_an_authority_of_ones_own(s3, monkeypatch, tmp_path):
    certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.server)
    storage.write_atomic(f"{s3.url}/x", b"1")
    address = urlsplit(s3.server.endpoint)
    clear = fsspec.get_filesystem_class("s3").clear_instance_cache
    with fault_proxy(address.hostname, address.port, tls=tls) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        clear()  # clients stay with the endpoint they began with
        # Who is not trusted now will not be in half a minute.
        with pytest.raises(storage.StorageError, match="CERTIFICATE_VERIFY_FAILED") as failed:
            storage.read_bytes(f"{s3.url}/x")
        assert "attempts" not in str(failed.value)

        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.authority))
        clear()
        assert storage.read_bytes(f"{s3.url}/x") == b"1"
    clear()


def test_a_store_that_hangs_is_named_in_time_and_used_again_when_it_is_back(
    tmp_path, monkeypatch, caplog
):
    server = start_s3_server(tmp_path / "server")
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        storage.write_atomic("s3://tests/x", b"1")
        server.pause()
        start_s = time.monotonic()

        with pytest.raises(
            storage.StorageError, match=r"s3://tests/x at http.* cannot be reached in"
        ):
            storage.check_reachable("s3://tests/x", patience_s=1)

        assert time.monotonic() - start_s < 3
        server.resume()
        storage.check_reachable("s3://tests/x")

        # An outage in mid-run is waited for.
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            content = pool.submit(storage.read_bytes, "s3://tests/x")
            time.sleep(0.5)
            server.start()
            assert content.result() == b"1"
        assert "cannot read s3://tests/x" in caplog.text
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
