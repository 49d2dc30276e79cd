"""A proxy before a store: breaks answers as networks and stores do, and counts what it passes on.

    with fault_proxy("127.0.0.1", port, shares={"503": 0.05, "reset": 0.02}) as proxy:
        ...                                   # proxy.url instead of the store's
    proxy.injected["503"], proxy.sent         # what was done, what went through

Faults: `503`, `stall` (silence before the answer), `reset` (RST instead of it), `expired` (what S3
says to a key that is no longer valid); and in a body `stall in body`, `reset in body`, `truncated`
(the connection is closed), `short` (half a body is declared as the whole). Paths and headers pass
unaltered, so S3 signatures stay valid. With an SSL context it speaks https.
"""

import contextlib
import http.client
import http.server
import math
import os
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
_SLOW_DOWN = b"<Error><Code>ServiceUnavailable</Code><Message>Please slow down.</Message></Error>"
_IN_BODY = {"stall in body", "reset in body", "truncated", "short"}
_RST = struct.pack("ii", 1, 0)


@dataclass
class FaultProxy:
    """What it does to answers, and what it did."""

    host: str
    port: int
    shares: Mapping[str, float] = field(default_factory=dict)
    """Part of the requests that meet each fault."""
    faults_left: float = math.inf
    """Faults after which there are no more."""
    stall_s: float = 1.0
    """Length of a silence."""
    expired_keys: set[str] = field(default_factory=set)
    """S3 access keys that are refused."""
    expires_after: int | None = None
    """Requests after which the key of the next one is added to them."""
    on_expiry: Callable[[], object] = bool
    """Called a quarter of a second later."""
    keys: set[str] = field(default_factory=set)
    """S3 access keys that have come through."""
    url: str = ""
    requests: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    sent: list[tuple[str, int]] = field(default_factory=list)
    """Path and length of the body of every GET that came through whole."""
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def bytes_of(self, *parts: str) -> int:
        """Bytes sent of all paths that contain one of these."""
        return sum(size for path, size in self.sent if any(part in path for part in parts))

    def next_fault(self, command: str, authorization: str) -> str:
        """What happens to the next request; empty for nothing."""
        key = authorization.partition("Credential=")[2].partition("/")[0]
        with self.lock:
            self.requests += 1
            if self.expires_after is not None and self.requests > self.expires_after:
                self.expires_after = None
                self.expired_keys.add(key)
                threading.Timer(0.25, self.on_expiry).start()
            fault = "expired" if key in self.expired_keys else self._drawn(command)
            self.injected[fault] += 1
            if not fault:
                self.keys.add(key)
        return fault

    def _drawn(self, command: str) -> str:
        draw = self.generator.random()
        for name, share in self.shares.items():
            draw -= share
            if draw < 0 < self.faults_left:
                if command == "HEAD" and name in _IN_BODY:
                    break
                self.faults_left -= 1
                return name
        return ""


@contextmanager
def fault_proxy(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, **options
) -> Iterator[FaultProxy]:
    """A proxy on a free loopback port before the store at this address."""
    proxy = FaultProxy(host, port, **options)

    class Handler(_Handler):
        served = proxy

    with _Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        proxy.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            server.shutdown()
            thread.join()


class _Server(http.server.ThreadingHTTPServer):
    block_on_close = False  # clients keep their connections open

    def handle_error(self, request, client_address):
        """Clients that go away are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    served: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        proxy = self.served
        fault = proxy.next_fault(self.command, self.headers.get("Authorization", ""))
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "reset":
            self._reset()
            return
        if fault in {"503", "expired"}:
            self._answer(*((503, _SLOW_DOWN) if fault == "503" else (400, _EXPIRED)))
            return
        if fault == "stall" and proxy.closing.wait(proxy.stall_s):
            return
        status, headers, body = self._upstream(asked)
        self._begin(status, headers, len(body) // 2 if fault == "short" else len(body))
        if self.command == "HEAD":
            return
        if fault in _IN_BODY:
            self.wfile.write(body[: len(body) // 2])
            self._break_off(fault, body)
        else:
            proxy.sent.append((self.path, len(body)))
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _break_off(self, fault, body):
        """Half of the body is sent."""
        if fault == "truncated":
            self.close_connection = True
        elif fault == "reset in body":
            self._reset()
        elif fault == "stall in body":
            self.served.closing.wait(self.served.stall_s)
            self.wfile.write(body[len(body) // 2 :])

    def _upstream(self, asked):
        connection = http.client.HTTPConnection(self.served.host, self.served.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(asked)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _begin(self, status, headers, length):
        self.send_response_only(status)
        for name, value in headers:
            dropped = {"transfer-encoding", "connection"}
            if self.command != "HEAD":
                dropped.add("content-length")
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status, body):
        self._begin(status, [("Content-Type", "application/xml")], len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.close_connection = True
        os.close(self.connection.detach())  # the server would shut it down first, with a FIN

    def log_message(self, *_):
        pass
