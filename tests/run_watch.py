"""Watches the checkpoints of a run on S3 from beside it, by listing many times a second."""

import json
import threading
import time
from contextlib import suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.marker import MARKER, SUFFIX
from tests.services import BUCKET, S3Server, s3_client

_POLL_S = 0.03


class RunWatch:
    """What has been committed and what is being written, for the time of a `with`."""

    def __init__(self, server: S3Server, run: str) -> None:
        """`run`: its folder in the bucket."""
        self._prefix = f"{run}/checkpoints/"
        self._server = server
        self._client = s3_client(server)
        self.weights: dict[int, dict[str, str]] = {}
        """SHA-256 of each file of tensors, by nimg of the commit."""
        self.attempts: set[int] = set()
        self.uploading = ""
        """Folder of a checkpoint without its marker, if there is one now."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=server.host.call, args=(self._watch,), daemon=True)

    def __enter__(self) -> "RunWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def nimg(self) -> int:
        """Of the newest commit; -1 before the first."""
        return max(list(self.weights), default=-1)

    def is_committed(self, folder: str) -> bool:
        """Whether its marker is there now."""
        return self._server.host.call(self._marker, folder) is not None

    def look(self) -> None:
        """Take in what is there now."""
        self._server.host.call(self._look)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            with suppress(BotoCoreError, ClientError):
                self._look()

    def _look(self) -> None:
        listed = self._client.list_objects_v2(Bucket=BUCKET, Prefix=self._prefix)
        folders: dict[str, set[str]] = {}
        for found in listed.get("Contents", []):
            folder, _, name = found["Key"].removeprefix(self._prefix).partition("/")
            folders.setdefault(folder, set()).add(name)
        newest = max(folders, default="")
        self.uploading = newest if newest and MARKER not in folders[newest] else ""
        for folder, names in folders.items():
            if MARKER in names and int(folder.partition("-")[2]) not in self.weights:
                self._take(folder)

    def _take(self, folder: str) -> None:
        marker = self._marker(folder)
        if marker is None:
            return  # deleted meanwhile
        tensors = {n: f["sha256"] for n, f in marker["files"].items() if n.endswith(SUFFIX)}
        self.attempts.add(marker["attempt"])
        self.weights[marker["nimg"]] = tensors

    def _marker(self, folder: str) -> dict[str, Any] | None:
        try:
            found = self._client.get_object(Bucket=BUCKET, Key=f"{self._prefix}{folder}/{MARKER}")
            return json.loads(found["Body"].read())
        except (BotoCoreError, ClientError, ValueError):
            return None


def wait_for(condition, timeout_s: float, every_s: float = 0.02) -> bool:
    """Whether a condition came true in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(every_s)
    return True
