"""How each kind of fault is made on an installation, and how it is repaired."""

import signal
import time
from collections.abc import Callable

import psutil

from tests.chaos_plan import Fault
from tests.installation import NODES, Installation
from tests.run_watch import RunWatch, wait_for

_PATIENCE_S = 300


class Injector:
    """Makes faults, and repairs what comes back by itself when its time is over."""

    def __init__(self, installation: Installation, watch: RunWatch) -> None:
        self._installation = installation
        self._watch = watch
        self._repairs: list[tuple[float, Callable[[], None]]] = []
        self._ways: dict[str, Callable[[Fault], str]] = {
            "worker killed": lambda fault: self._signal_worker(fault, signal.SIGKILL),
            "worker stopped": lambda fault: self._signal_worker(fault, signal.SIGSTOP),
            "controller killed": self._kill_controller,
            "driver killed": self._kill_driver,
            "driver terminated": self._terminate_driver,
            "node killed": self._kill_node,
            "head killed": self._kill_head,
            "S3 away": self._kill_s3,
            "S3 frozen": self._freeze_s3,
            "MLflow away": self._kill_mlflow,
            "cable cut": self._cut,
        }

    def __enter__(self) -> "Injector":
        return self

    def __exit__(self, *_: object) -> None:
        for _, repair in self._repairs:
            repair()

    @property
    def broken(self) -> bool:
        """Whether something is still away."""
        return bool(self._repairs)

    def inject(self, fault: Fault) -> str:
        """Do it; what was hit."""
        return self._ways[fault.kind](fault)

    def repair(self) -> None:
        """Repair what is due."""
        for due in [each for each in self._repairs if each[0] <= time.monotonic()]:
            self._repairs.remove(due)
            due[1]()

    def _later(self, fault: Fault, repair: Callable[[], None]) -> None:
        self._repairs.append((time.monotonic() + fault.lasts_s, repair))

    def _signal_worker(self, fault: Fault, sig: signal.Signals) -> str:
        victim = self._one_of(self._installation.workers, fault)
        victim.send_signal(sig)
        return f"worker process {fault.target % len(NODES)}"

    def _kill_controller(self, fault: Fault) -> str:
        self._one_of(self._installation.controllers, fault).kill()
        return "TrainController"

    def _kill_driver(self, _: Fault) -> str:
        self._installation.end_driver()
        return "pipeline/train.py"

    def _terminate_driver(self, _: Fault) -> str:
        began_s = time.monotonic()
        self._installation.end_driver(signal.SIGTERM)
        return f"pipeline/train.py, gone after {time.monotonic() - began_s:.1f} s"

    def _kill_node(self, fault: Fault) -> str:
        name = NODES[fault.target % len(NODES)]
        self._installation.kill_ray(name)
        return f"node {name}"

    def _kill_head(self, _: Fault) -> str:
        self._installation.kill_ray("head")
        self._installation.end_driver()
        self._installation.start_head()
        for name in NODES:  # which belong to the old one
            self._installation.kill_ray(name)
        return "head and driver"

    def _kill_s3(self, fault: Fault) -> str:
        server = self._installation.s3
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        self._later(fault, server.start)
        return "S3 server"

    def _freeze_s3(self, fault: Fault) -> str:
        server = self._installation.s3
        server.pause()
        self._later(fault, server.resume)
        return "S3 server"

    def _kill_mlflow(self, fault: Fault) -> str:
        server = self._installation.mlflow
        server.kill()
        self._later(fault, lambda: (server.start(), None)[1])
        return "MLflow server"

    def _cut(self, fault: Fault) -> str:
        network, name = self._installation.network, NODES[fault.target % len(NODES)]
        assert network is not None
        network.cut(name)
        self._later(fault, lambda: network.mend(name))
        return f"cable of node {name}"

    def _one_of(self, find: Callable[[], list[psutil.Process]], fault: Fault) -> psutil.Process:
        """One of the processes, which may be about to start."""
        found: list[psutil.Process] = []

        def there() -> bool:
            self._installation.tend()
            found[:] = find()
            return bool(found)

        if not wait_for(there, _PATIENCE_S, 0.05):
            raise RuntimeError(f"nothing to hit for {fault.kind}")
        return sorted(found, key=lambda process: process.pid)[fault.target % len(found)]
