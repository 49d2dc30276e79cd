"""What a run has left: configuration, checkpoints, sample grids, values, curves.

Nothing but its folder is needed. Of curves those in the folder's own mlflow.db are taken, if there
is one, so that a copy of a run is read as it is.
"""

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_prep import storage
from pipeline import config as configs
from pipeline import samples, tracking, values
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.figures import History
from pipeline.marker import CommittedCheckpoint
from pipeline.metric import MetricResult
from pipeline.mlflow_client import TrackingError
from pipeline.record import Record, read_record
from pipeline.result import Result, read_result
from stylegan import schedule

logger = logging.getLogger(__name__)

_SAMPLES = re.compile(r"(\d{3,})-(\d{12,})\.png")


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleGrid:
    """The images of a checkpoint's grid, of the same seeds in every grid."""

    nimg: int
    side: int
    """Of the images, in pixels: what the generator made then."""
    picture: Image.Image
    columns: int
    rows: int

    @cached_property
    def cells(self) -> Sequence[Image.Image]:
        """The images as they stand in the grid, without the margins."""
        pitch = self.picture.width // self.columns
        margin = self.picture.width - pitch * self.columns
        width = pitch - margin
        starts = [
            (margin + column * pitch, margin + row * pitch)
            for row in range(self.rows)
            for column in range(self.columns)
        ]
        return [self.picture.crop((x, y, x + width, y + width)) for x, y in starts]

    def tensor(self) -> Tensor:
        """The images at their own size, float [n c h w] in [-1, 1]."""
        own = [cell.resize((self.side, self.side), Image.Resampling.NEAREST) for cell in self.cells]
        rows = [torch.tensor(list(image.getdata()), dtype=torch.float32) for image in own]
        pixels = torch.stack(rows).reshape(len(own), self.side, self.side, -1)
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run as its folder shows it."""

    url: str
    config: TrainConfig
    record: Record
    result: Result | None
    """None while it has not come to its end."""
    checkpoints: Sequence[CommittedCheckpoint]
    """Those that were kept, newest last."""
    state: Mapping[str, Any]
    """What the newest one holds beside tensors."""
    grids: Sequence[SampleGrid]
    """In the order of nimg; those of attempts that were rolled back are left out."""
    measured: Sequence[Sequence[MetricResult]]
    """Values of each checkpoint that was measured, in the order of nimg."""
    history: History
    missing: Sequence[str]
    """What could not be read, one sentence each."""

    @property
    def latest(self) -> CommittedCheckpoint:
        """The newest checkpoint."""
        return self.checkpoints[-1]

    @property
    def resolution(self) -> int:
        """Side of the images that the newest checkpoint makes."""
        return self.config.network.resolution >> int(self.lod)

    @property
    def lod(self) -> float:
        """Level of detail of the newest checkpoint."""
        return float(self.state.get("lod", 0.0))


def read(run_url: str) -> Run:
    """Read a run.

    Raises:
        DigestError: Its newest checkpoint is damaged.
        StorageError: It cannot be read.
        ValueError: It has no checkpoint.
    """
    checkpoints = sorted(Checkpoints(run_url).list(), key=lambda checkpoint: checkpoint.age)
    if not checkpoints:
        raise ValueError(
            f"{run_url} has no checkpoint to report on; name the folder of a run, which holds "
            f"checkpoints/"
        )
    _, state = Checkpoints.load(checkpoints[-1], set())
    config = configs.parse(state["config"])
    record, missing = read_record(run_url), list[str]()
    try:
        history = _history(run_url, record)
    except TrackingError as err:
        history = {}
        missing.append(f"Curves are missing: {err}.")
    try:
        result = read_result(run_url)
    except storage.MissingError:
        result = None
    return Run(
        url=run_url,
        config=config,
        record=record,
        result=result,
        checkpoints=checkpoints,
        state=state,
        grids=_grids(run_url, config),
        measured=_measured(run_url),
        history=history,
        missing=missing,
    )


def _history(run_url: str, record: Record) -> History:
    if "tracking_run_id" not in record:
        return {}
    uri = record["tracking_uri"]
    if storage.is_local(run_url) and storage.exists(storage.join(run_url, "mlflow.db")):
        uri = tracking.default_uri(storage.local_path(run_url))
    return tracking.history(uri, record["tracking_run_id"])


def _grids(run_url: str, config: TrainConfig) -> list[SampleGrid]:
    names = [_SAMPLES.fullmatch(name) for name in storage.listdir(storage.join(run_url, "samples"))]
    places = sorted((int(name[1]), int(name[2]), name[0]) for name in names if name)
    grids: dict[int, SampleGrid] = {}
    for _, nimg, name in places:
        # What an earlier attempt made from here on was rolled back.
        grids = {known: grid for known, grid in grids.items() if known < nimg}
        resolution = config.network.resolution
        side = schedule.phase_at(nimg, config.schedule, resolution=resolution).resolution
        columns, rows = samples.layout(resolution)
        picture = Image.open(io.BytesIO(storage.read_bytes(storage.join(run_url, "samples", name))))
        grids[nimg] = SampleGrid(
            nimg=nimg, side=side, picture=picture.convert("RGB"), columns=columns, rows=rows
        )
    return list(grids.values())


def _measured(run_url: str) -> list[Sequence[MetricResult]]:
    folders = (values.BY_DRIVER, values.BY_HAND)
    names = {name for folder in folders for name in storage.listdir(storage.join(run_url, folder))}
    return [values.of_run(run_url, name) for name in sorted(names) if name.endswith(".json")]


def as_json(value: Any) -> str:
    """For people: one line, shortened."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
