r"""Classifiers of binary attributes, trained on labelled data; linear separability asks them.

    python -m data_prep shard faces data/faces --resolution 256 --labels 'table.csv#smiling,hat'
    python -m pipeline.attributes train data/faces --out models/attributes
    python -m pipeline.evaluate --run runs/faces --metrics ls200k --weights models/attributes

Each class or number of the labels is an attribute, known by the name of its folder or column. A
tenth of the images decides when to stop, another tells how good the classifier is. Stopped? The
same command goes on: finished classifiers are left as they are. Exit codes: 0 done, 1 failed on the
way, 2 wrong request.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep import storage
from data_prep.manifest import DigestError, Manifest
from data_prep.storage import StorageError
from pipeline import classifiers
from pipeline.attribute_labels import AttributeLabels, Split, split_samples
from pipeline.checkpoint import CheckpointConfig, Checkpoints
from pipeline.classifier_training import Classifier, ClassifierConfig, Data, Quality
from pipeline.exits import fail
from pipeline.loader import SampleError
from pipeline.tasks import Device

Say = Callable[[str, Classifier, Quality], None]
_DEFAULT = ClassifierConfig()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        train(options)
    except (StorageError, DigestError, SampleError) as err:
        return fail(1, str(err))
    except ValueError as err:
        return fail(2, str(err))
    except KeyboardInterrupt:
        return fail(130, "stopped; run the same command again to go on")
    return 0


def train(options: argparse.Namespace) -> None:
    """Train what is missing of the classifiers that are asked for, and print how good all are.

    Everything that can be wrong with any of them is said before the first begins.
    """
    data = Data(url=options.data, manifest=Manifest.load(options.data))
    config = _config(options, data.manifest)
    config.network(data.manifest)
    labels = AttributeLabels.read(options.data, data.manifest)
    asked: dict[str, tuple[NDArray[np.bool_], Split]] = {}
    for name in dict.fromkeys(options.attribute or labels.usual):
        has = labels.has(name)
        asked[_as_file(name)] = has, split_samples(has, seed=config.seed, name=name)
    trainings = {name: _Training(name, data, config, options) for name in asked}
    missing = [name for name, training in trainings.items() if not training.is_done()]
    with _Shown(Console(highlight=False, soft_wrap=True), len(missing)) as shown:
        for name in missing:
            trainings[name].run(*asked[name], shown.say)
    for name in asked:
        print(_told(name, trainings[name].record()))
    print(
        f"in {options.out}; use them by `python -m pipeline.evaluate … --metrics ls200k --weights "
        f"{options.out}`"
    )


class _Training:
    """The classifier of one attribute: its files, and what they have to have been made of."""

    def __init__(
        self, name: str, data: Data, config: ClassifierConfig, options: argparse.Namespace
    ) -> None:
        self.name, self.data, self.config, self.options = name, data, config, options
        self.url = classifiers.classifier_url(options.out, name)
        self.state_url = storage.join(options.out, name)
        self.checkpoints = Checkpoints(self.state_url, config=CheckpointConfig(keep_last=1))
        # As JSON gives it back.
        made_of = {"data_digest": data.manifest.digest, **dataclasses.asdict(config)}
        self.made_of: Mapping[str, Any] = json.loads(json.dumps(made_of))

    def is_done(self) -> bool:
        """Whether the classifier is there.

        Raises:
            ValueError: One is there that was trained in another way.
        """
        if not storage.exists(self.url):
            return False
        self._refuse_other(self.record()["training"], self.url)
        return True

    def record(self) -> dict[str, Any]:
        return classifiers.read_record(self.url)

    def run(self, has: NDArray[np.bool_], split: Split, say: Say) -> None:
        """Train it to its end, from where it was."""
        classifier = Classifier(
            self.data,
            has,
            split,
            self.config,
            device=self.options.device,
            threads=self.options.threads,
        )
        if kept := self.checkpoints.load_latest():
            checkpoint, tensors, scalars = kept
            self._refuse_other(scalars["training"], checkpoint.url)
            classifier.load(tensors, scalars)
        while not classifier.done:
            say(self.name, classifier, classifier.advance())
            scalars = {**classifier.scalars(), "training": self.made_of}
            self.checkpoints.save(classifier.tensors(), scalars, nimg=classifier.nimg, attempt=0)
        self.checkpoints.wait()
        found = classifier.finish()
        share = float(has[split.test].mean())
        told = {
            "attribute": self.name,
            "accuracy": found.accuracy,
            "most_frequent_answer": max(share, 1 - share),
            "held_out_images": found.images,
            "held_out_loss": found.loss,
            "kimg": classifier.nimg / 1000,
            "training": self.made_of,
        }
        classifiers.write(self.url, classifier.network, told)
        storage.delete(self.state_url, recursive=True)

    def _refuse_other(self, training: Mapping[str, Any], url: str) -> None:
        differences = [
            f"{key} {training.get(key)} instead of {value}"
            for key, value in self.made_of.items()
            if training.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{url} was made with {', '.join(differences)}; choose another --out, or delete it"
            )


class _Shown:
    """Progress: a bar on a terminal, and a line for each look at the held-out images elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._name = console, total, ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", told="")
        self._number = 0

    def __enter__(self) -> "_Shown":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, name: str, classifier: Classifier, found: Quality) -> None:
        """A classifier was looked at."""
        if name != self._name:
            self._number, self._name = self._number + 1, name
            self._bar.reset(self._task)
        told = f"loss {found.loss:.3f}  accuracy {found.accuracy:.3f}"
        label = f"{name} ({self._number} of {self._total})"
        self._bar.update(
            self._task,
            description=label,
            total=classifier.total_nimg,
            completed=classifier.nimg,
            told=told,
        )
        if not self._console.is_terminal:
            kimg = f"{classifier.nimg / 1000:.1f}/{classifier.total_nimg / 1000:.1f} kimg"
            self._console.print(f"{label}  {kimg}  {told}", markup=False)


def _told(name: str, record: Mapping[str, Any]) -> str:
    """One line about a classifier."""
    accuracy, chance = record["accuracy"], record["most_frequent_answer"]
    line = (
        f"{name}: accuracy {accuracy:.3f} on {record['held_out_images']} held-out images, the more "
        f"frequent answer is {chance:.3f} of them; {record['kimg']:.1f} kimg"
    )
    return line if accuracy > chance else f"{line}; it has learned nothing that helps"


def _as_file(name: str) -> str:
    """The name, if a file can have it."""
    if "/" in name or name.startswith("."):
        raise ValueError(
            f"attribute {name!r} cannot name a file; rename its column or folder and run data_prep "
            f"again"
        )
    return name


def _config(options: argparse.Namespace, manifest: Manifest) -> ClassifierConfig:
    names = [field.name for field in dataclasses.fields(ClassifierConfig)]
    given = {name: getattr(options, name) for name in names}
    given["resolution"] = given["resolution"] or min(_DEFAULT.resolution, manifest.resolution)
    if options.threads < 1:
        raise ValueError(f"--threads is {options.threads}; choose at least 1")
    return ClassifierConfig(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.attributes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="labelled images -> a classifier an attribute")
    command.add_argument("data", metavar="DATA", help="folder or URL made by data_prep")
    command.add_argument("--out", required=True, metavar="FOLDER", help="of the classifiers")
    command.add_argument(
        "--attribute",
        action="append",
        metavar="NAME",
        help="again for another (default: all; of two classes the second)",
    )
    for name, of in {
        "resolution": "pixels it looks at (default 256, or those of smaller images)",
        "fmap_base": "feature maps at r pixels are 2 * BASE / r",
        "fmap_max": "most feature maps",
        "batch": "images in an update",
        "lr": "learning rate",
        "total_kimg": "thousands of images after which it ends at the latest",
        "check_kimg": "thousands of images between looks at those held out",
        "patience": "looks without a lower loss after which it ends",
        "seed": "of weights, order and what is held out",
    }.items():
        value = getattr(_DEFAULT, name)
        shown = "" if name == "resolution" else f" (default {value})"
        command.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=0 if name == "resolution" else value,
            help=of + shown,
        )
    command.add_argument("--mirror", action="store_true", help="flip half of the images")
    command.add_argument(
        "--device",
        choices=get_args(Device),
        default="auto",
        help="what it trains on (default auto: a GPU where there is one)",
    )
    command.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
