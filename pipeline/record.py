"""What a driver leaves for the next one of the same run: RUN_URL/run.json."""

import json
from typing import Any

from data_prep import storage

Record = dict[str, Any]
"""tracking_run_id, tracking_uri; registered, registered_digest; curves."""


def read_record(run_url: str) -> Record:
    """The record of a run; empty at its first start.

    Raises:
        ValueError: It is damaged.
    """
    url = _url(run_url)
    try:
        record = json.loads(storage.read_bytes(url))
    except storage.MissingError:
        return {}
    except ValueError as err:
        raise ValueError(f"{url} is no JSON ({err}); {_REMEDY}") from err
    if not isinstance(record, dict):
        raise ValueError(f"{url} holds {type(record).__name__} instead of an object; {_REMEDY}")
    return record


def update_record(run_url: str, **entries: Any) -> None:
    """Set entries and leave the others as they are."""
    record = {**read_record(run_url), **entries}
    storage.write_atomic(_url(run_url), (json.dumps(record, indent=1) + "\n").encode())


_REMEDY = (
    "delete it: the training goes on from its checkpoints, with a new tracking run and a new "
    "registered version"
)


def _url(run_url: str) -> str:
    return storage.join(run_url, "run.json")
