"""`python -m pipeline.attributes`: classifiers of a labelled data set, and separability by them."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.manifest import Manifest
from pipeline import attributes, classifiers
from pipeline import evaluate as evaluation
from pipeline.attribute_labels import AttributeLabels, split_samples
from pipeline.classifier_training import Classifier, ClassifierConfig, Data
from stylegan import losses
from tests.datasets import make_data_set
from tests.measured import commit, generator
from tests.small_sets import make_dataset

SIZE = ["--fmap-base", "64", "--fmap-max", "8", "--lr", "0.003", "--device", "cpu"]
SHORT = [*SIZE, "--total-kimg", "3", "--check-kimg", "1"]
NAMES = ["warm", "bright", "same", "hue"]


def draw(folder: Path, count: int) -> str:
    """Plain colours with noise: warm or cold, bright or dark; and labels that teach nothing."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = [",".join(["file", *NAMES])]
    for number in range(count):
        warm, bright = rng.integers(0, 2, 2)
        colour = np.array([30, 0, -30]) * (2 * warm - 1) + 75 + 100 * bright
        pixels = np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{2 * warm - 1},{bright},1,{rng.uniform():.3f}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    url = str(folder / "data")
    make_data_set(folder / "images", url, 16, labels=str(folder / "table.csv"))
    return url


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """URL of 200 images with four labels each."""
    return draw(tmp_path_factory.mktemp("labelled"), 200)


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    """Folder of two classifiers."""
    folder = str(tmp_path_factory.mktemp("classifiers"))
    names = ["--attribute", "warm", "--attribute", "bright"]
    assert attributes.main(["train", labelled, "--out", folder, *names, *SHORT]) == 0
    return folder


def test_the_loss_is_the_cross_entropy_that_separability_reads(rng):
    logits, has = torch.randn(6, 1), torch.arange(6) % 2 == 0
    both = torch.cat([logits, -logits], dim=1)

    expected = torch.nn.functional.cross_entropy(both, (~has).long(), reduction="none")

    torch.testing.assert_close(losses.attribute(logits, has), expected)


def test_classifiers_learn_what_can_be_learned_and_separability_asks_them(
    trained, labelled, tmp_path, capsys
):
    for name in ("warm", "bright"):
        record = classifiers.read_record(classifiers.classifier_url(trained, name))
        assert 18 <= record["held_out_images"] <= 20
        assert record["most_frequent_answer"] < 0.7
        assert record["accuracy"] >= 0.95
        assert record["training"]["data_digest"] == Manifest.load(labelled).digest
        assert record["network"]["mbstd_group"] == 0
    url = commit(tmp_path, generator(noise=0.0), data_url=labelled)
    asked = ["--metrics", "ls80", "--device", "cpu", "--cache", "", "--weights", trained, "--json"]

    assert evaluation.main(["--checkpoint", url, *asked]) == 0

    z, w = json.loads(capsys.readouterr().out)
    assert (z["name"], w["name"]) == ("ls80_z", "ls80_w")
    assert 1 <= z["value"] < 4
    assert z["fingerprint"]["attributes"] == "bright warm"
    assert z["fingerprint"]["network_sha256"] == classifiers.find(trained).sha256


def test_a_training_that_is_stopped_and_goes_on_gives_the_same_bytes(
    labelled, trained, tmp_path, monkeypatch
):
    arguments = ["train", labelled, "--out", str(tmp_path), "--attribute", "warm", *SHORT]
    look = Classifier.advance

    def look_once(classifier):
        if classifier.nimg:
            raise KeyboardInterrupt
        return look(classifier)

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "advance", look_once)
        assert attributes.main(arguments) == 130
    assert not (tmp_path / "warm.classifier.json").exists()

    assert attributes.main(arguments) == 0

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "warm.classifier.json",
        "warm.classifier.safetensors",
    ]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == Path(trained, path.name).read_bytes()
    monkeypatch.delattr(Classifier, "advance")
    assert attributes.main(arguments) == 0, "what is there is left as it is"


def test_a_training_stops_when_held_out_images_are_not_told_better_any_more(labelled):
    data = Data(url=labelled, manifest=Manifest.load(labelled))
    by_chance = np.random.RandomState(0).rand(200) < 0.5
    config = ClassifierConfig(
        resolution=16, fmap_base=64, fmap_max=8, check_kimg=0.3, total_kimg=50, patience=2, lr=0.01
    )
    classifier = Classifier(data, by_chance, split_samples(by_chance, seed=0), config, device="cpu")
    while not classifier.done:
        classifier.advance()

    assert classifier.nimg < 20_000
    assert classifier.finish().accuracy < 0.8


def test_held_out_images_are_a_tenth_twice_of_those_with_and_without(rng):
    has = np.arange(200) < 50

    split = split_samples(has, seed=3)

    parts = [split.train, split.stop, split.test]
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert [(int(has[part].sum()), len(part)) for part in parts] == [(40, 160), (5, 20), (5, 20)]
    assert not np.array_equal(split.test, split_samples(has, seed=4).test)


def test_classes_are_attributes_by_the_names_of_their_folders(tmp_path):
    for count, usual in ((2, ["class-1"]), (3, ["class-0", "class-1", "class-2"])):
        url = make_dataset(tmp_path / str(count), 6, classes=count)
        labels = AttributeLabels.read(url, Manifest.load(url))
        assert list(labels.usual) == usual
        assert labels.has("class-1").tolist().count(True) == 6 // count
    labels = dataclasses.replace(labels, names=("0", "1", "2"))
    assert labels.has("2").any(), "without names their numbers"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--attribute", "warn"],
            r"has no attribute 'warn'; did you mean warm\?; choose from warm",
        ),
        (["--attribute", "same"], "attribute same of .* has 1 value in its 200 images, but a"),
        (["--attribute", "hue"], r"attribute hue of .* has \d+ values in its 200 images"),
        ([], "attribute same of .* leave it out with --attribute for the others"),
        (["--resolution", "64"], "has no level of 64 px; choose from 4, 8, 16"),
        (["--batch", "0"], "batch is 0; choose at least 1"),
        (["--lr", "nan"], "lr is nan; choose a positive number"),
        (["--seed", "-1"], "seed is -1; choose from 0 to"),
        (["--threads", "0"], "--threads is 0; choose at least 1"),
        (["--attribute", "warm", "--lr", "1e30"], "has diverged at .* choose a lower --lr than"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    labelled, tmp_path, capsys, arguments, message
):
    assert attributes.main(["train", labelled, "--out", str(tmp_path), *SHORT, *arguments]) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_data_without_labels_or_too_few_images_are_refused(tiny_data, tmp_path, capsys):
    few = make_dataset(tmp_path / "few", 18, classes=2)
    for url, code, message in (
        (tiny_data, 2, "has no labels; make it again by `python -m data_prep shard"),
        (few, 2, "9 images are with attribute class-1; at least 10 must be"),
        (str(tmp_path / "none"), 1, "cannot read .*manifest.json"),
    ):
        assert attributes.main(["train", url, "--out", str(tmp_path / "out"), *SHORT]) == code
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("\n") == 1


def test_classifiers_that_do_not_fit_are_refused(trained, labelled, tmp_path, capsys, caplog):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in Path(trained).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    again = ["train", labelled, "--out", str(folder), "--attribute", "warm", *SHORT]
    assert attributes.main([*again, "--batch", "16"]) == 2
    assert "was made with batch 32 instead of 16; choose another" in capsys.readouterr().err

    def measured(resolution):
        Gs = generator(resolution=resolution)
        url = commit(tmp_path / str(resolution), Gs, data_url=labelled)
        asked = ["--metrics", "ls20", "--device", "cpu", "--cache", "", "--weights", str(folder)]
        assert evaluation.main(["--checkpoint", url, *asked]) == 1
        return caplog.records.pop().getMessage()

    left_out = (
        "ls20_z left out: the classifier .* looks at 3 x 16 x 16 px, but the generator gives 3 x 8"
    )
    assert re.search(left_out, measured(8))
    weights = folder / "warm.classifier.safetensors"
    classifiers._load.cache_clear()
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert re.search("ls20_z left out: .*warm.classifier.safetensors has SHA-256", measured(16))
    weights.unlink()
    assert re.search("ls20_z left out: .*warm.classifier.safetensors is missing", measured(16))
    (folder / "warm.classifier.json").write_text("{}")
    assert re.search(
        "ls20_z left out: .*warm.classifier.json is no classifier of form", measured(16)
    )
