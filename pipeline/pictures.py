"""Pictures of an evaluation: metrics over the training, and what each fake is nearest to.

    pictures = draw(checkpoint_url, data_url, config, cache_url="", map=map)
    keep(pictures, checkpoint_url, "pictures")

neighbours.png           generated images, each beside the real ones nearest to it in feature space:
                         a generator that has learned images by heart shows them here
metrics.png              all that was measured of the run, over the resolutions of its schedule
precision-recall.png     both, of each checkpoint where they were measured
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline import config as configs
from pipeline import grids, values
from pipeline.checkpoint import Checkpoints
from pipeline.evaluation_config import EvaluationConfig
from pipeline.figures import Span
from pipeline.loader import LoaderConfig
from pipeline.marker import read_marker
from pipeline.metric import INCEPTION, Metric
from pipeline.metric_figures import metric_curves, precision_recall_scatter, schedule_spans
from pipeline.record import read_record
from pipeline.sampler import FanOut, Sampler
from pipeline.tracking import log_artifacts
from pipeline.weights import MissingWeightsError
from stylegan.metrics.precision_recall import nearest_neighbours

logger = logging.getLogger(__name__)

Pictures = Mapping[str, Image.Image]
"""By name, such as neighbours."""

FAKES, NEAREST = 8, 6
_AMONG = 1000
"""Real images whose distances among themselves say what is near."""
_CAPTION_PX, _LEAST_PX = 44, 96


def draw(
    url: str,
    data_url: str,
    config: EvaluationConfig,
    *,
    cache_url: str = "",
    map: FanOut = map,  # noqa: A002 (it is used like the builtin)
) -> Pictures:
    """Pictures of a checkpoint and its run, or of a model; what cannot be drawn says so in a line.

    The arguments are those of `measure.evaluate`.
    """
    config = dataclasses.replace(config, num_reals=config.num_reals or config.num_images)
    sampler = Sampler(url, data_url, config, loader=LoaderConfig(), cache_url=cache_url)
    found = {}
    try:
        found["neighbours"] = neighbours(sampler, map)
    except MissingWeightsError as err:
        logger.warning("neighbours left out: %s", err)
    if run_url := values.run_of(url):
        history, spans = values.history(run_url), _spans(url)
        name = run_url.rpartition("/")[2]
        figures: dict[str, Callable[[], Image.Image]] = {
            "metrics": lambda: metric_curves(history, spans=spans, title=name),
            "precision-recall": lambda: precision_recall_scatter(history, title=name),
        }
        for what, figure in figures.items():
            try:
                found[what] = figure()
            except ValueError as err:
                logger.warning("%s left out: %s", what, err)
    return found


def _spans(checkpoint_url: str) -> list[Span]:
    """Resolutions of the run's schedule; none where its configuration is another version's."""
    _, scalars = Checkpoints.load(checkpoint_url, ())
    try:
        config = configs.parse(scalars.get("config", {}))
    except ValueError as err:
        logger.warning("metrics are drawn without resolutions: %s", err)
        return []
    return schedule_spans(config.schedule, resolution=config.network.resolution)


def keep(pictures: Pictures, url: str, folder: str) -> None:
    """Write PNG files, and put them into the run of a checkpoint as artifacts.

    Raises:
        TrackingError: MLflow does not answer; the files are there then.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        image.save(Path(folder, f"{name}.png"))
    run_url = values.run_of(url)
    record = read_record(run_url) if run_url else {}
    if "tracking_run_id" in record:
        place = values.file_name(read_marker(url)).removesuffix(".json")
        files = {
            f"evaluation/{place}/{name}.png": Path(folder, f"{name}.png").read_bytes()
            for name in pictures
        }
        if not log_artifacts(record["tracking_uri"], record["tracking_run_id"], run_url, files):
            logger.warning("pictures are in %s alone: %s is the copy of a run", folder, run_url)


def neighbours(sampler: Sampler, fan_out: FanOut) -> Image.Image:
    """Generated images, each beside the real ones that are nearest in feature space."""
    metric = Metric(kind="kid", count=FAKES, network=INCEPTION)
    sampler.sha256[INCEPTION] = sampler.find_weights(INCEPTION)
    rows = sampler.rows([metric], fan_out)[metric]
    sampler.forget()
    assert rows.reals is not None
    count = len(rows.reals)
    squared, indices = nearest_neighbours(rows.fakes[0], rows.reals, k=min(NEAREST, count))
    fakes = sampler.fake_images(FAKES)
    reals = sampler.real_images(indices.flatten().tolist(), count=count)
    shown = [[fake, *own] for fake, own in zip(fakes, reals.split(indices.shape[1]), strict=True)]
    labels = [
        [f"fake {number}", *(f"{distance:.1f}" for distance in row)]
        for number, row in enumerate(squared.sqrt().tolist())
    ]
    sheet = grids.table(shown, labels=labels, at_least_px=_LEAST_PX, margin_px=4, apart=True)
    among, _ = nearest_neighbours(rows.reals[:_AMONG], rows.reals[:_AMONG], k=2)
    usual = float(torch.quantile(among[:, 1].sqrt(), 0.5))
    said = (
        f"Nearest of {count:,} real images to each fake, by distance in Inception's features.",
        f"Half of {len(among):,} real images have another one within {usual:.1f}.",
    )
    return _captioned(sheet, said)


def _captioned(sheet: Image.Image, lines: tuple[str, str]) -> Image.Image:
    font = ImageFont.load_default(size=14)
    width = max(sheet.width, *(int(font.getlength(line)) + 16 for line in lines))
    canvas = Image.new("RGB", (width, sheet.height + _CAPTION_PX), grids.BACKGROUND)
    canvas.paste(sheet, (0, _CAPTION_PX))
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((8, 5 + 18 * number), line, fill=grids.INK, font=font)
    return canvas
