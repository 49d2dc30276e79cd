"""The course of a training as a picture."""

import numpy as np
import pytest

from pipeline.figures import WIDTH_PX, Span, phase_spans, training_curves

LODS = [(0, 1.0), (1000, 1.0), (2000, 0.5), (3000, 0.0), (4000, 0.0)]
HISTORY = {
    "progress/lod": LODS,
    "loss/D": [(nimg, 1.0 + nimg / 4000) for nimg, _ in LODS],
    "loss/G": [(nimg, 2.0) for nimg, _ in LODS],
    "loss/r1": [(nimg, 0.1) for nimg, _ in LODS],
    "metric/fid300": [(0, 400.0), (4000, 200.0)],
    "metric/kid300": [(0, 0.4), (4000, 0.1)],
}


def test_phases_are_read_off_the_levels_of_detail():
    assert phase_spans(LODS, resolution=16) == [
        Span(start_nimg=0, end_nimg=1000, resolution=8, fade=False),
        Span(start_nimg=1000, end_nimg=3000, resolution=16, fade=True),
        Span(start_nimg=3000, end_nimg=4000, resolution=16, fade=False),
    ]


def test_a_fade_between_two_ticks_is_still_a_fade():
    spans = phase_spans([(0, 1.0), (1000, 0.0)], resolution=16)
    assert spans == [Span(start_nimg=0, end_nimg=1000, resolution=16, fade=True)]


@pytest.mark.parametrize("left_out", ["metric/", "loss/", "progress/", ""])
def test_curves_are_drawn_of_what_there_is(left_out):
    history = {
        name: values
        for name, values in HISTORY.items()
        if not (left_out and name.startswith(left_out))
    }
    image = training_curves(history, resolution=16, title="run")
    assert image.width == WIDTH_PX
    pixels = np.asarray(image)
    assert pixels.std() > 5, "an empty picture"
    # Nothing is cut off: the outermost pixels are paper.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_a_history_without_anything_to_draw_is_refused():
    with pytest.raises(ValueError, match="the history has time/sec_per_kimg"):
        training_curves({"time/sec_per_kimg": [(0, 1.0)]}, resolution=16)


def test_values_below_zero_and_values_that_are_not_finite_are_no_obstacle():
    """An unbiased KID can be below 0; a loss that diverged is NaN."""
    history = {
        "metric/kid300": [(0, 0.1), (1000, -0.01)],
        "metric/none": [(0, float("nan"))],
        "loss/D": [(0, 1.0), (1000, float("nan")), (2000, float("inf"))],
    }
    assert np.asarray(training_curves(history, resolution=16)).std() > 5
