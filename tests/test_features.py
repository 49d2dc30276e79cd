"""Tasks of an evaluation: which images they see, whoever computes them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.manifest import DigestError
from pipeline import tasks
from pipeline.fakes import FakeSource
from pipeline.features import fake_images, real_images
from stylegan import sample
from stylegan.draws import Draws, Purpose
from tests.measured import (
    CLASSES,
    RESOLUTION,
    SAMPLES,
    commit,
    evaluate_quickly,
    fakes_task,
    generator,
    make_data,
    reals_task,
    source_images,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return commit(tmp_path_factory.mktemp("run"), generator())


@given(count=st.integers(1, 2000), batch=st.integers(1, 40), most=st.integers(1, 12))
def test_every_image_is_in_one_batch_and_every_batch_in_one_task(count, batch, most):
    batches = tasks.plan_batches(count, batch)
    shared = tasks.parts(batches, most)

    assert [index for one in batches for index in one] == list(range(count))
    assert {len(one) for one in batches[:-1]} <= {batch}
    assert [one for task in shared for one in task] == batches
    full = max(len(task) for task in shared) == tasks.MOST_BATCHES
    assert len(shared) <= most or full, "more tasks, where they would be too large"
    assert max(len(task) for task in shared) <= tasks.MOST_BATCHES
    assert len({len(task) for task in shared[:-1]}) <= 1


def test_reals_are_spread_evenly_over_the_data_set_and_fill_up_the_last_batch(data):
    batches = list(real_images(reals_task(data)))
    images = torch.cat(batches)

    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert torch.equal(images[:10], source_images(data)[np.arange(10) * SAMPLES // 10])
    assert torch.equal(images[10:], images[9:10].expand(2, -1, -1, -1))


def test_as_many_reals_as_there_are_means_all_of_them_in_order(data):
    batches = tuple(tasks.plan_batches(SAMPLES, 13))
    task = reals_task(data, count=SAMPLES, batches=batches, batch=13)

    assert torch.equal(torch.cat(list(real_images(task))), source_images(data))


def test_mirrored_reals_are_flipped_by_the_draws_of_their_sample_numbers(data):
    batches = tuple(tasks.plan_batches(SAMPLES, 13))
    task = reals_task(data, count=SAMPLES, batches=batches, batch=13, mirror_seed=3)

    images, plain = torch.cat(list(real_images(task))), source_images(data)
    mirror = Draws(seed=3).mirror(torch.arange(SAMPLES))

    assert 0 < mirror.sum() < SAMPLES
    assert torch.equal(images[~mirror], plain[~mirror])
    assert torch.equal(images[mirror], plain[mirror].flip(3))


def test_a_fake_is_a_function_of_seed_and_index(checkpoint, data):
    """Whatever is beside it in its batch, and whatever other tasks do."""
    whole = torch.cat(list(fake_images(fakes_task(checkpoint, data))))
    one = fakes_task(checkpoint, data, batches=(range(4, 8),))
    draws, index = Draws(seed=0), torch.arange(12)
    Gs = generator()
    noise = draws.noise(Purpose.EVAL_NOISE, indices=index, sides=Gs.noise_sides())
    with torch.no_grad():
        z = draws.normal(Purpose.EVAL_Z, indices=index, count=8)
        expected = Gs.synthesis(Gs.broadcast(Gs.mapping(z)), noise=noise)

    assert torch.equal(next(fake_images(one)), whole[4:8])
    assert not torch.equal(next(fake_images(dataclasses.replace(one, seed=1))), whole[4:8])
    differences = (sample.to_uint8(expected).int() - whole.int()).abs()
    assert differences.max() <= 1
    assert len(whole.flatten(1).unique(dim=0)) == 12


@pytest.mark.parametrize(
    ("psi", "cutoff", "different"), [(1, None, 4), (1, 0, 4), (0, 2, 4), (0, 0, 4), (0, None, 1)]
)
def test_truncation_to_the_mean_gives_one_image_if_all_layers_are_cut(
    tmp_path, data, psi, cutoff, different
):
    task = fakes_task(commit(tmp_path, generator(noise=0)), data, psi=float(psi), cutoff=cutoff)

    assert len(next(fake_images(task)).flatten(1).unique(dim=0)) == different


@pytest.mark.parametrize("lod", [1.0, 1.5])
def test_a_growing_generator_is_measured_at_full_size_by_nearest_neighbour(tmp_path, data, lod):
    url = commit(tmp_path, generator(), lod=lod)

    images = next(fake_images(fakes_task(url, data)))

    assert images.shape == (4, 3, RESOLUTION, RESOLUTION)
    blocks = images[:, :, ::2, ::2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(blocks, images)
    (result, _) = evaluate_quickly(url, data)
    assert result.subject["lod"] == lod


def test_fakes_of_a_labelled_generator_take_labels_of_drawn_reals(tmp_path, data):
    Gs = generator(label_size=CLASSES)
    task = fakes_task(commit(tmp_path, Gs), data)
    drawn = torch.cat([labels for _, labels in FakeSource(task).batches()])

    assert drawn.shape == (12, CLASSES)
    assert drawn.sum(dim=1).eq(1).all()
    assert 0 < drawn[:, 0].sum() < 12
    images = torch.cat(list(fake_images(task)))
    assert images.shape == (12, 3, RESOLUTION, RESOLUTION)
    (result, _) = evaluate_quickly(task.url, data)
    assert result.fingerprint["labels"] == "of drawn reals"


def test_a_checkpoint_or_data_exchanged_during_the_evaluation_are_refused(checkpoint, data):
    with pytest.raises(DigestError, match="has changed during the evaluation"):
        next(fake_images(fakes_task(checkpoint, data, digest="0" * 64)))
    with pytest.raises(DigestError, match="has changed during the evaluation"):
        next(real_images(reals_task(data, data_digest="0" * 64)))
