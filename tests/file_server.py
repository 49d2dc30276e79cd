"""A web server on a folder: counts what is read, may be slow, and may damage what it sends."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FileServer:
    """What it does, and what it was asked for."""

    folder: Path
    url: str = ""
    delay_s: float = 0.0
    """Before the answer to each read."""
    damage: set[str] = field(default_factory=set)
    """Names of files whose next answer has its last byte altered."""
    reads: list[tuple[str, int]] = field(default_factory=list)
    """Path and length of each range that was sent."""

    def read_paths(self, suffix: str) -> list[str]:
        """Paths of this suffix, once for each time they were read."""
        return [path for path, _ in self.reads if path.endswith(suffix)]


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    """Serve `folder` on a free loopback port."""
    served = FileServer(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._begin(self._content())

        def do_GET(self):
            content = self._content()
            if content is None:
                self._begin(None)
                return
            whole = self.headers.get("Range") is None
            if not whole:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                content = content[int(first) : int(last) + 1]
            served.reads.append((self.path.strip("/"), len(content)))
            time.sleep(served.delay_s)
            name = self.path.rpartition("/")[-1]
            if name in served.damage:
                served.damage.remove(name)
                content = content[:-1] + bytes([content[-1] ^ 1])
            self._begin(content, status=200 if whole else 206)
            self.wfile.write(content)

        def _content(self):
            path = served.folder / self.path.strip("/")
            return path.read_bytes() if path.is_file() else None

        def _begin(self, content, status=200):
            self.send_response(404 if content is None else status)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
