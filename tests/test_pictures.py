"""Pictures of an evaluation: curves over the schedule, precision and recall, nearest images."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import grids, pictures
from pipeline.figures import Span
from pipeline.loader import LoaderConfig
from pipeline.metric_figures import metric_curves, precision_recall_scatter, schedule_spans
from pipeline.sampler import Sampler
from stylegan.metrics.precision_recall import nearest_neighbours
from stylegan.schedule import ScheduleConfig
from tests.measured import RESOLUTION, SMALL, source_images

HISTORY = {
    "metric/fid300": [(0, 400.0), (2000, 300.0), (4000, 200.0)],
    "metric/kid300": [(0, 0.4), (4000, -0.01)],
    "metric/precision300": [(0, 0.1), (4000, 0.7)],
    "metric/recall300": [(0, 0.0), (4000, 0.4)],
}
SPANS = [
    Span(start_nimg=0, end_nimg=1000, resolution=8, fade=False),
    Span(start_nimg=1000, end_nimg=2000, resolution=16, fade=True),
    Span(start_nimg=2000, end_nimg=4000, resolution=16, fade=False),
]


def test_the_spans_of_a_schedule_are_its_resolutions_and_fades_to_its_end():
    config = ScheduleConfig(first_resolution=8, stable_kimg=1, fade_kimg=1, total_kimg=4)

    spans = schedule_spans(config, resolution=16)

    assert [(s.resolution, s.fade) for s in spans] == [(8, False), (16, True), (16, False)]
    # A fade begins with the first image after its boundary.
    assert [s.end_nimg for s in spans] == [1001, 2000, 4000]
    assert spans[0].start_nimg == 0


@pytest.mark.parametrize("left_out", ["metric/recall300", "metric/fid300", ""])
def test_metrics_are_drawn_over_the_resolutions(left_out):
    history = {name: points for name, points in HISTORY.items() if name != left_out}

    pixels = np.asarray(metric_curves(history, spans=SPANS, title="run"))
    without = np.asarray(metric_curves(history, spans=[], title="run"))

    assert pixels.std() > 5, "an empty picture"
    # Recall shares the panel of precision.
    panels = len(history) - ("metric/recall300" in history)
    assert pixels.shape[0] == round(200 * (0.9 + 1.7 * panels))
    assert (pixels != without).any(), "bands of the schedule"
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all(), "nothing is cut off"


def test_precision_and_recall_of_all_checkpoints_are_one_course():
    pixels = np.asarray(precision_recall_scatter(HISTORY, title="run"))

    assert pixels.std() > 5
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    with pytest.raises(ValueError, match="no checkpoint has precision and recall"):
        precision_recall_scatter({"metric/precision300": [(0, 0.1)]})
    with pytest.raises(ValueError, match="no checkpoint of the run was measured"):
        metric_curves({}, spans=SPANS)


@pytest.mark.parametrize("tile", [3, 100])
def test_nearest_neighbours_are_those_of_all_distances(rng, tile):
    points, others = (torch.from_numpy(rng.standard_normal((n, 5))).float() for n in (7, 20))
    distances = torch.cdist(points.double(), others.double()).square()
    expected = distances.topk(4, dim=1, largest=False)

    squared, indices = nearest_neighbours(points, others, k=4, tile=tile)

    torch.testing.assert_close(squared, expected.values)
    assert torch.equal(indices, expected.indices)


def test_an_image_that_was_learned_by_heart_stands_beside_itself(checkpoint, data, monkeypatch):
    """Fakes have the features of reals 3, 1, 4, ...: these are shown next to them."""
    copied = [3, 1, 4, 1, 5, 9, 2, 6]
    reals = np.random.RandomState(0).rand(10, 12).astype(np.float32)

    def copies(function, tasks):
        for task in tasks:
            at = np.concatenate([np.arange(batch.start, batch.stop) for batch in task.batches])
            of = function.__name__ == "fake_features"
            yield (reals[[copied[i] for i in at]] if of else reals[at],)

    config = dataclasses.replace(SMALL, num_reals=10)
    shown = []
    monkeypatch.setattr(
        grids, "table", lambda rows, **options: shown.append((rows, options)) or _blank()
    )
    sampler = Sampler(checkpoint, data, config, loader=LoaderConfig(), cache_url="")
    pictures.neighbours(sampler, copies)

    ((rows, options),) = shown
    assert len(rows) == pictures.FAKES
    assert len(rows[0]) == 1 + pictures.NEAREST
    # Ten of the 26 images, evenly spaced.
    originals = source_images(data)[[i * 26 // 10 for i in range(10)]]
    for row, labels, number in zip(rows, options["labels"], copied, strict=True):
        assert torch.equal(row[1], originals[number])
        assert labels[1] == "0.0"
        assert float(labels[2]) > 0
        assert row[0].shape == (3, RESOLUTION, RESOLUTION)


def _blank():
    return Image.new("RGB", (50, 50), "white")
