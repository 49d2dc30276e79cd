"""What a run has made: RUN_URL/result.json, written by the driver at the end."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep import storage


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where everything is, and how good it is."""

    run_url: str
    checkpoint_url: str
    """The last one."""
    checkpoint_digest: str
    nimg: int
    metrics: Mapping[str, float]
    """Of the last checkpoint, by name."""
    first_metrics: Mapping[str, float]
    """Of the first checkpoint that was measured, as far as they were measured in the same way."""
    fingerprints: Mapping[str, str]
    """How each of `metrics` was measured; values with equal digests may be compared."""
    model: str
    """NAME/VERSION in the registry."""
    alias: str
    tracking_uri: str
    tracking_run_id: str

    def write(self) -> None:
        """Put it into the run's folder."""
        content = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        storage.write_atomic(_url(self.run_url), content.encode())


def read_result(run_url: str) -> Result:
    """What the driver of this run has left.

    Raises:
        MissingError: It has not come to its end.
    """
    return Result(**json.loads(storage.read_bytes(_url(run_url))))


def _url(run_url: str) -> str:
    return storage.join(run_url, "result.json")
