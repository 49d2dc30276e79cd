r"""What a run will take: hours, cost, bytes and memory, level by level, and what binds.

    python -m pipeline.plan --config ffhq-1024 --measure rates.json      # on a machine of the kind
    python -m pipeline.plan --config ffhq-1024 --gpus 8 --rates rates.json --price 3.0
    python -m pipeline.plan --config ffhq-1024 --gpus 8 workers=8 data.url=s3://bucket/ffhq

Without rates there are no hours. Memory is counted (pipeline.footprint), bytes come from the data
set where it can be read, else they are those of photographs. Exit codes: 0 done, 2 wrong request.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep.manifest import Manifest
from data_prep.storage import StorageError
from pipeline import config as configs
from pipeline.beginning import choose_device, new_state
from pipeline.config import TrainConfig
from pipeline.exits import fail
from pipeline.footprint import footprint, footprints, largest_batch
from pipeline.memory import keep_freed_memory
from pipeline.minibatches import total_nimg_of
from pipeline.options import ConfigError
from pipeline.trial import Trial, levels
from stylegan.schedule import Phase, phases

_PNG_BYTES = 1.3e6 / 1024**2
"""Of a pixel of a photograph: FFHQ's PNGs."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the run is to have."""

    gpus: int = 1
    memory_gib: float = 80.0
    """Of one GPU."""
    read_mb_s: float = 1000.0
    """Of all nodes together, from the store."""
    exchange_gb_s: float = 50.0
    """Of one GPU's gradients, in each direction."""
    price: float = 0.0
    """Of one GPU for an hour."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One level of a run."""

    resolution: int
    kimg: float
    batch: int
    share: int
    """Largest share of a GPU in a minibatch, images."""
    memory_gib: float
    """Of a GPU in float32, without workspaces of convolutions and the process itself."""
    micro_batch: int
    """Most images of the share that fit at a time; 0 = not one stddev group does."""
    read_gb: float
    images_per_s: float | None
    """Of all GPUs; None without rates."""
    hours: float | None
    cost: float | None
    binds: str
    """compute, data or network; empty without rates."""


def plan(
    config: TrainConfig,
    cluster: Cluster,
    *,
    rates: Mapping[int, float],
    image_bytes: Mapping[int, float],
) -> list[Row]:
    """A row for each level.

    Args:
        config: Of the run, for as many workers as there are GPUs.
        cluster: What it runs on.
        rates: Images a second of one GPU with its share, by resolution; may lack some.
        image_bytes: Of a stored image, by resolution.
    """
    rows, memory_bytes = [], cluster.memory_gib * 2**30
    wanted = [(p, max(len(part) for part in _shares(config, p))) for p in levels(config)]
    for (phase, share), used in zip(wanted, footprints(config, wanted), strict=True):
        kimg = _images(config, phase.resolution) / 1000
        images_per_s, binds = None, ""
        if phase.resolution in rates:
            seconds = {
                "compute": share / rates[phase.resolution],
                "data": phase.batch * image_bytes[phase.resolution] / (cluster.read_mb_s * 1e6),
                "network": _exchanged_bytes(config, phase, cluster) / (cluster.exchange_gb_s * 1e9),
            }
            binds = max(seconds, key=lambda name: seconds[name])
            images_per_s = phase.batch / seconds[binds]
        hours = None if images_per_s is None else kimg * 1000 / images_per_s / 3600
        rows.append(
            Row(
                resolution=phase.resolution,
                kimg=kimg,
                batch=phase.batch,
                share=share,
                memory_gib=used.peak_bytes / 2**30,
                micro_batch=share
                if used.peak_bytes <= memory_bytes
                else largest_batch(config, phase, most=share, memory_bytes=memory_bytes),
                read_gb=kimg * 1000 * image_bytes[phase.resolution] / 1e9,
                images_per_s=images_per_s,
                hours=hours,
                cost=None if hours is None else hours * cluster.gpus * cluster.price,
                binds=binds,
            )
        )
    return rows


def measure(config: TrainConfig, console: Console, *, repeats: int = 5) -> dict[int, float]:
    """Images a second of this process with the share of one worker, by resolution."""
    device = choose_device(config)
    torch.set_num_threads(config.threads_per_worker)
    keep_freed_memory()
    rates = {}
    for phase in track(levels(config), "measuring", console=console, transient=True):
        share = max(len(part) for part in _shares(config, phase))
        trial, seconds = Trial(config, phase, batch=share, device=device), []
        for _ in range(2 + repeats):
            started_s = time.perf_counter()
            trial()
            seconds.append(time.perf_counter() - started_s)
        rates[phase.resolution] = share / statistics.median(seconds[2:])
    return rates


def image_bytes(config: TrainConfig) -> tuple[dict[int, float], str]:
    """Bytes of a stored image by resolution, and where they are from."""
    sides = [phase.resolution for phase in levels(config)]
    try:
        manifest = Manifest.load(config.data.url)
    except (StorageError, ValueError):
        return {side: side**2 * _PNG_BYTES for side in sides}, "photographs as PNG (estimated)"
    stored = {level.resolution: level.bytes / manifest.samples for level in manifest.levels}
    missing = [side for side in sides if side not in stored]
    if missing:
        raise ConfigError(
            f"{config.data.url} has no level of {missing[0]} px; choose a data set of "
            f"{config.network.resolution} px"
        )
    return {side: stored[side] for side in sides}, config.data.url


def table(rows: Sequence[Row], config: TrainConfig, cluster: Cluster) -> Table:
    """The rows for a terminal, with their sums."""
    timed = all(row.hours is not None for row in rows)
    shown = Table(title=f"{config.name} on {cluster.gpus} GPUs", title_justify="left")
    names = ["level", "kimg", "batch", "per GPU", "GiB per GPU", "micro-batch", "GB read"]
    for name in [*names, *(["img/s", "hours", "cost", "binds"] if timed else [])]:
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [
            f"{row.resolution} px",
            f"{row.kimg:,.0f}",
            str(row.batch),
            str(row.share),
            f"{row.memory_gib:.1f}",
            str(row.micro_batch) if row.micro_batch else "none fits",
            f"{row.read_gb:,.1f}",
        ]
        if row.images_per_s is not None:
            cells += [
                f"{row.images_per_s:,.1f}",
                f"{row.hours:,.1f}",
                f"{row.cost:,.0f}",
                row.binds,
            ]
        shown.add_row(*cells)
    shown.add_section()
    sums = ["in all", f"{sum(row.kimg for row in rows):,.0f}", "", "", "", ""]
    sums.append(f"{sum(row.read_gb for row in rows):,.1f}")
    if timed:
        sums += ["", f"{sum(row.hours or 0 for row in rows):,.1f}"]
        sums += [f"{sum(row.cost or 0 for row in rows):,.0f}", ""]
    shown.add_row(*sums)
    return shown


def checkpoints(config: TrainConfig) -> str:
    """How many there are and how large, in a sentence."""
    last = levels(config)[-1]
    size_gb = footprint(config, last, batch=config.network.D.group).state_bytes / 1e9
    count = math.ceil(config.schedule.total_kimg / config.commit_kimg) + 1
    return (
        f"{count} checkpoints of {size_gb:.2f} GB are written, {count * size_gb:,.0f} GB in all; "
        f"checkpoint.keep_last={config.checkpoint.keep_last} of them stay, and those of a metric"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    given = {"data.url": "none", "run_url": "none", "workers": options.gpus}
    named = {override.partition("=")[0] for override in options.overrides}
    defaults = [f"{key}={value}" for key, value in given.items() if key not in named]
    try:
        config = configs.load(options.config, [*defaults, *options.overrides])
        rates = _rates(options, config, console)
        sizes, source = image_bytes(config)
        cluster = Cluster(
            gpus=config.worker_range[1],
            memory_gib=options.gpu_memory,
            read_mb_s=options.read_mb_s,
            exchange_gb_s=options.exchange_gb_s,
            price=options.price,
        )
        rows = plan(config, cluster, rates=rates, image_bytes=sizes)
    except (ValueError, OSError) as err:
        return fail(2, err)
    console.print(table(rows, config, cluster))
    console.print(f"images: {source}\n{checkpoints(config)}")
    missing = [row.resolution for row in rows if row.hours is None]
    if missing:
        console.print(
            f"no rate for {', '.join(f'{side} px' for side in missing)}, hence no hours: "
            "--measure FILE on a machine of the kind, then --rates FILE"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def _rates(
    options: argparse.Namespace, config: TrainConfig, console: Console
) -> Mapping[int, float]:
    if options.measure:
        measured = measure(config, console)
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        content = {"machine": machine, "torch": torch.__version__, "images_per_s": measured}
        Path(options.measure).write_text(json.dumps(content, indent=1) + "\n")
        return measured
    if not options.rates:
        return {}
    try:
        content = json.loads(Path(options.rates).read_text())
        return {int(side): float(rate) for side, rate in content["images_per_s"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as err:
        raise ConfigError(
            f"--rates {options.rates} is no file of rates ({err!r}); make one with --measure FILE"
        ) from err


def _images(config: TrainConfig, resolution: int) -> int:
    """Shown at a level, its fade included."""
    begun = phases(config.schedule, resolution=config.network.resolution)
    ends = [phase.nimg for phase in begun[1:]] + [total_nimg_of(config)]
    return sum(
        end - phase.nimg
        for phase, end in zip(begun, ends, strict=True)
        if phase.resolution == resolution
    )


def _shares(config: TrainConfig, phase: Phase) -> list[list[int]]:
    """Of each worker, the images of a minibatch."""
    world = config.worker_range[1]
    return [
        [image for part in config.split(rank, world).parts(phase.batch) for image in part.tolist()]
        for rank in range(world)
    ]


def _exchanged_bytes(config: TrainConfig, phase: Phase, cluster: Cluster) -> float:
    """Sent by one GPU in a minibatch: a ring passes the gradients of G and D on twice."""
    state = new_state(config, torch.device("meta"))
    active = [
        *state.G.active_parameters(phase.lod),
        *state.D.active_parameters(phase.lod),
    ]
    gradients = sum(4 * parameter.numel() for parameter in active)
    return 2 * gradients * (cluster.gpus - 1) / cluster.gpus


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Cluster()
    parser.add_argument("--config", required=True, action="append", help="preset or YAML file")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of the cluster, one worker each")
    parser.add_argument("--rates", help="file of images a second that --measure has written")
    parser.add_argument("--measure", metavar="FILE", help="measure this machine, and keep it there")
    parser.add_argument("--price", type=float, default=default.price, help="of one GPU for an hour")
    parser.add_argument(
        "--gpu-memory", type=float, default=default.memory_gib, help="GiB of one GPU"
    )
    parser.add_argument(
        "--read-mb-s", type=float, default=default.read_mb_s, help="MB/s of the store, all nodes"
    )
    parser.add_argument(
        "--exchange-gb-s", type=float, default=default.exchange_gb_s, help="GB/s between GPUs"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that differ")
    return parser


if __name__ == "__main__":
    sys.exit(main())
