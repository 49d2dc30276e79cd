"""A run on one page: RUN_URL/report.html, which opens without a server and holds all it shows.

    python -m pipeline.report runs/faces

It is made of the run's own records and committed checkpoints, so it can be made again at any time,
also of a run that goes on. A training makes it at its end, and its tracking run has it as an
artifact, with the pictures in report/.
"""

from collections.abc import Mapping

from data_prep import storage
from pipeline.report import inside, page, records

NAME = "report.html"


def make(run_url: str) -> dict[str, bytes]:
    """Write the report of a run; it and its pictures as artifacts, by their path.

    Raises:
        DigestError: A checkpoint is damaged.
        StorageError: The run cannot be read or written.
        ValueError: It has no checkpoint.
    """
    run = records.read(run_url)
    made = page.make(run, inside.look(run))
    html = page.render(made).encode()
    storage.write_atomic(storage.join(run_url, NAME), html)
    pictures: Mapping[str, bytes] = {
        f"report/{picture.name}": picture.data
        for section in made.sections
        for picture in section.pictures
    }
    return {NAME: html, **pictures}
