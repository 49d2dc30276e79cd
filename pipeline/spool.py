"""A queue in a folder: what was put there waits until it has been delivered, also across restarts.

    FOLDER/entries.jsonl    one JSON object a line, oldest first
    FOLDER/files/           what entries refer to

One process writes and takes at a time. An entry that was delivered just before a crash is there
again afterwards: the taker has to recognise it.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


class Spool:
    """Entries on their way (see the head of this file); safe to use from several threads."""

    def __init__(self, folder: Path, *, limit_bytes: int = 256 * 2**20) -> None:
        """Open the queue, with what an earlier process has left.

        Args:
            folder: On the local disk.
            limit_bytes: Size from which new entries are dropped, and counted in a warning.
        """
        self.path = folder / "entries.jsonl"
        self.files = folder / "files"
        self.dropped = 0
        """Entries that found no room."""
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._start = 0  # first byte that is not delivered
        self._closed = False
        self.files.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # written when the process died
            os.truncate(self.path, sum(map(len, lines)))
        self._end = sum(map(len, lines))
        self._waiting = len(lines)

    def __len__(self) -> int:
        """Entries not delivered."""
        return self._waiting

    def put(self, entry: Entry) -> None:
        """Append an entry; a full disk or spool costs the entry, never the caller."""
        line = json.dumps(entry).encode() + b"\n"
        with self._changed:
            try:
                if self._end + len(line) > self._limit_bytes:
                    raise OSError(f"{self.path} has reached its limit of {self._limit_bytes} bytes")
                with self.path.open("ab") as file:
                    file.write(line)
            except OSError as err:
                self._drop(err)
                with suppress(OSError):
                    os.truncate(self.path, self._end)  # half a line
                return
            self._end += len(line)
            self._waiting += 1
            self._changed.notify_all()

    def put_file(self, name: str, entry: Entry, write: Callable[[Path], None]) -> None:
        """Append an entry that refers to a file, as `entry["file"]`.

        Args:
            name: Its name.
            entry: All else.
            write: Makes the file at the path it is given.
        """
        path = self.files / name
        try:
            write(path)
        except OSError as err:
            self._drop(err)
            return
        self.put({**entry, "file": str(path)})

    def peek(self, count: int) -> list[Entry]:
        """The oldest entries, at most `count`."""
        with self._changed:
            if not self._waiting:
                return []
            with self.path.open("rb") as file:
                file.seek(self._start)
                lines = [file.readline() for _ in range(min(count, self._waiting))]
        return [json.loads(line) for line in lines]

    def delivered(self, count: int) -> None:
        """Take away the oldest `count` entries."""
        with self._changed:
            with self.path.open("rb") as file:
                file.seek(self._start)
                for _ in range(count):
                    entry = json.loads(file.readline())
                    if "file" in entry:
                        Path(entry["file"]).unlink(missing_ok=True)
                self._start = file.tell()
            self._waiting -= count
            if not self._waiting:
                os.truncate(self.path, 0)
                self._start = self._end = 0
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is an entry, or `close`; whether there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting > 0 or self._closed, timeout_s)
            return self._waiting > 0

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until all is delivered; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting == 0, timeout_s)

    def close(self) -> None:
        """Nobody waits for further entries."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drop(self, err: OSError) -> None:
        if not self.dropped:
            logger.warning("no room for what is to be tracked, it is lost from now on: %s", err)
        self.dropped += 1
