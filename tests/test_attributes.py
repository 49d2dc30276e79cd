"""Separability of a generator by official classifiers of attributes."""

import dataclasses

import pytest
import torch

from pipeline import classifiers, probes
from pipeline.evaluate import evaluate
from pipeline.fakes import FakeSource
from pipeline.known_weights import CLASSIFIERS, OFFICIAL_CLASSIFIERS
from pipeline.tasks import Extractor
from stylegan.metrics.separability import separability
from stylegan.official import tensorflow
from tests.measured import SMALL, fakes_task, generator, values
from tests.official_pickles import dumps
from tests.official_records import SIZES, network_of, pickled


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    """Two classifiers of 16 px in official pickles."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / OFFICIAL_CLASSIFIERS).mkdir()
    build = tensorflow.BUILDS["D_basic",]
    for number, name in enumerate(("male", "smiling")):
        D = network_of(build, label_size=0, mbstd_group=0)
        for tensor in D.parameters():
            tensor.data.normal_(generator=torch.Generator().manual_seed(number + len(tensor)))
        # Half of the images have the attribute.
        z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            D.tail.dense1.bias -= D(generator()(z))[:, 0].median()
        options = {**SIZES, "label_size": 0, "mbstd_group_size": 0}
        record = pickled(D, ("D_basic",), static_kwargs=options)
        path = folder / OFFICIAL_CLASSIFIERS / f"celebahq-classifier-{number:02d}-{name}.pkl"
        path.write_bytes(dumps(record))
    return str(folder)


def test_separability_is_that_of_what_official_classifiers_say(checkpoint, data, classifier_folder):
    config = dataclasses.replace(SMALL, metrics=("ls60",), batch=32, weights=classifier_folder)

    found = evaluate(checkpoint, data, config)

    urls = classifiers.find(classifier_folder).urls
    extractor = Extractor(
        network=CLASSIFIERS,
        sha256=classifiers.find(classifier_folder).sha256,
        precision="float32",
        weights=classifier_folder,
        device="cpu",
        threads=1,
    )
    task = fakes_task(checkpoint, data, batches=(range(60),), batch=60, extractors=(extractor,))
    z, w, logits = map(torch.from_numpy, probes.attributes(task))
    assert (z.shape, w.shape, logits.shape) == ((60, 8), (60, 8), (60, 2))
    source = FakeSource(task)
    images = source.images(source.styles(torch.arange(8), None), torch.arange(8))
    for column, url in enumerate(urls):
        torch.testing.assert_close(logits[:8, column], classifiers.answers(images, url, "cpu"))
    assert values(found) == {
        "ls60_z": pytest.approx(separability(z, logits, keep=30), rel=0.05),
        "ls60_w": pytest.approx(separability(w, logits, keep=30), rel=0.05),
    }
    assert found[0].fingerprint["attributes"] == "00-male 01-smiling"
    larger = torch.nn.functional.interpolate(images, scale_factor=2)
    torch.testing.assert_close(
        classifiers.answers(larger, urls[0], "cpu"), classifiers.answers(images, urls[0], "cpu")
    )
    with pytest.raises(ValueError, match="looks at 3 x 16 x 16 px, but the generator gives 3 x 8"):
        classifiers.answers(images[:, :, ::2, ::2], urls[0], "cpu")


def test_an_attribute_that_all_images_have_is_named():
    latents, logits = torch.randn(20, 3), torch.ones(20, 1)

    with pytest.raises(ValueError, match="attribute smiling has the same answer for all of the 10"):
        separability(latents, logits, keep=10, attributes=["smiling"])
