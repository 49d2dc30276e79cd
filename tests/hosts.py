"""Hosts of a test's own: network namespaces of this machine on one switch, with cables to cut.

    with Network(["head", "a", "b"]) as network:
        subprocess.Popen([*network["a"].prefix, "ray", "start", …])   # runs on host a
        network["a"].call(urllib.request.urlopen, url)                # so does this call
        network.cut("a")

The switch is a bridge in a namespace of its own: nothing of this machine's own network is touched.
"""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

INTERFACE = "eth0"
"""Of every host."""
NETEM = ("netem", "delay", "40ms", "10ms", "loss", "1%")
TBF = ("tbf", "rate", "200mbit", "burst", "64kb", "latency", "20ms")
"""Where the kernel has no netem: a narrow cable, whose queue delays packets and drops them."""
_NEW_NETWORK = 0x40000000


@dataclass(frozen=True)
class Host:
    """Where processes run: this machine, or a namespace of it."""

    ip: str = "127.0.0.1"
    namespace: str = ""

    @property
    def prefix(self) -> list[str]:
        """Of a command, so that it runs here; its process id is that of the command."""
        return ["ip", "netns", "exec", self.namespace] if self.namespace else []

    def call(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call a function on this host; the sockets that it opens itself are of its network."""
        if not self.namespace:
            return function(*args, **options)
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(self.namespace,)) as pool:
            return pool.submit(function, *args, **options).result()


LOOPBACK = Host()


class Network:
    """Hosts by name, for the time of a `with`."""

    def __init__(self, names: Sequence[str]) -> None:
        mark = secrets.token_hex(2)
        self._switch = f"{mark}-switch"
        self._ports = {name: f"port{number}" for number, name in enumerate(names)}
        self._hosts = {
            name: Host(f"10.77.0.{number}", f"{mark}-{name}")
            for number, name in enumerate(names, start=1)
        }

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> "Network":
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def cut(self, name: str) -> None:
        """Pull the cable of a host; connections are not closed, packets are lost."""
        self._on_switch("ip", "link", "set", self._ports[name], "down")

    def mend(self, name: str) -> None:
        """Put it back."""
        self._on_switch("ip", "link", "set", self._ports[name], "up")

    def worsen(self, name: str) -> str:
        """Latency and loss in both directions; what was done, as `tc` calls it."""
        for shape in (NETEM, TBF):
            try:
                for prefix, device in self._ends(name):
                    _run(*prefix, "tc", "qdisc", "replace", "dev", device, "root", *shape)
            except RuntimeError:
                if shape == TBF:
                    raise
                continue
            return " ".join(shape)
        raise AssertionError

    def better(self, name: str) -> None:
        """Undo `worsen`."""
        for prefix, device in self._ends(name):
            _run(*prefix, "tc", "qdisc", "del", "dev", device, "root")

    def _ends(self, name: str) -> Iterator[tuple[list[str], str]]:
        yield self._hosts[name].prefix, INTERFACE
        yield Host(namespace=self._switch).prefix, self._ports[name]

    def _create(self) -> None:
        _run("ip", "netns", "add", self._switch)
        self._on_switch("ip", "link", "add", "bridge", "type", "bridge")
        self._on_switch("ip", "link", "set", "bridge", "up")
        for name, host in self._hosts.items():
            _run("ip", "netns", "add", host.namespace)
            cable = ("link", "add", self._ports[name], "type", "veth", "peer", "name", INTERFACE)
            self._on_switch("ip", *cable, "netns", host.namespace)
            self._on_switch("ip", "link", "set", self._ports[name], "master", "bridge", "up")
            inside = ("ip", "-n", host.namespace)
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "address", "add", f"{host.ip}/24", "dev", INTERFACE)
            _run(*inside, "link", "set", INTERFACE, "up")
            # Programs ask the route outside for their own address.
            _run(*inside, "route", "add", "default", "dev", INTERFACE)

    def _remove(self) -> None:
        for namespace in (*(host.namespace for host in self._hosts.values()), self._switch):
            if Path("/run/netns", namespace).exists():
                _run("ip", "netns", "delete", namespace)

    def _on_switch(self, *command: str) -> None:
        _run("ip", "netns", "exec", self._switch, *command)


def refusal() -> str:
    """Why this machine does not let us make hosts; empty if it does."""
    try:
        with Network(["probe"]):
            return ""
    except (OSError, RuntimeError) as err:
        return str(err)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _enter(namespace: str) -> None:
    """Have this thread's new sockets be of a namespace (Linux)."""
    file = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file, _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"network namespace {namespace} cannot be entered")
    finally:
        os.close(file)
