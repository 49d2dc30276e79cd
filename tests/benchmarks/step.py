"""How many images a second are trained on, beside the plain way and beside the machine's limits.

    python -m tests.benchmarks.step                                    # the demo's networks
    python -m tests.benchmarks.step --config stylegan-f --sides 32 --batch 8
    python -m tests.benchmarks.step --config ffhq-1024 --sides 1024 256 32 --device cuda \
        --ways eager compile max --precisions float32 bfloat16 float16
    python -m tests.benchmarks.step --profile                          # operators by their time

Whole minibatches (D with its penalty, average, G, both optimizers) with reals from memory. The ways
take turns, so that whatever else the machine does meets all of them. A minibatch's operations are
counted; beside what they reach stands what the largest convolution of the level reaches alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.memory import keep_freed_memory
from pipeline.trial import Trial, levels
from tests.benchmarks import reference
from tests.operations import Operations


@dataclass
class Way:
    """One way to train, and its measured seconds a minibatch."""

    name: str
    run: Callable[[], None]
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(
        "| px | batch | way | ms a minibatch: median (least to most) | images/s | TFLOP/s "
        "| of the convolution's | times the first |\n|---|---|---|---|---|---|---|---|"
    )
    for side in options.sides:
        _measure(options, side)


def _measure(options: argparse.Namespace, side: int) -> None:
    limit = convolution_limit(options, side)
    ways = [
        Way(f"{name} {precision}", prepare(options, side, name, precision))
        for precision in options.precisions
        for name in options.ways
        if name != "reference" or precision == "float32"
    ]
    for way in ways:
        for _ in range(options.warm):
            way.run()
    with Operations() as counted:
        prepare(options, side, "eager", "float32")()
    operations = counted.flop
    for _ in range(options.repeats):
        for way in ways:
            started_s = time.perf_counter()
            way.run()
            way.seconds.append(time.perf_counter() - started_s)
    first = statistics.median(ways[0].seconds)
    for way in ways:
        s = statistics.median(way.seconds)
        low, high = min(way.seconds) * 1e3, max(way.seconds) * 1e3
        print(
            f"| {side} | {options.batch} | {way.name} | {s * 1e3:.0f} ({low:.0f} to {high:.0f}) "
            f"| {options.batch / s:.1f} | {operations / s / 1e12:.3f} "
            f"| {100 * operations / s / limit:.0f} % | {first / s:.2f} |"
        )
    if options.profile:
        print(_operators(ways[-1].run))


def prepare(options: argparse.Namespace, side: int, way: str, precision: str) -> Callable[[], None]:
    """A training of its own; each call is one minibatch and ends when the device has done it."""
    config = configured(options, side, "eager" if way == "reference" else way, precision)
    phase = levels(config)[-1]
    trial = Trial(config, phase, batch=options.batch, device=torch.device(options.device))
    if way != "reference":
        return trial
    for network in (trial.state.G, trial.state.D, trial.state.Gs):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def run() -> None:
        with reference.plain():
            trial()

    return run


def configured(options: argparse.Namespace, side: int, speed: str, precision: str) -> TrainConfig:
    """The presets at one size."""
    return configs.load(
        options.config or ["demo"],
        [
            "data.url=none",
            "run_url=none",
            "workers=1",
            f"network.resolution={side}",
            f"schedule.first_resolution={side}",
            f"schedule.batch.{side}={options.batch}",
            f"step.precision={precision}",
            f"step.speed={speed}",
            *options.overrides,
        ],
    )


def convolution_limit(options: argparse.Namespace, side: int) -> float:
    """Operations a second of the level's largest 3x3 convolution alone, in float32."""
    G = configured(options, side, "eager", "float32").network.G
    fmaps = G.fmaps(side) if hasattr(G, "fmaps") else 64
    shape, device = (options.batch, fmaps, side, side), torch.device(options.device)
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(fmaps, fmaps, 3, 3, device=device).to(memory_format=torch.channels_last)
    best_s = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        torch.conv2d(x, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * x.numel() * fmaps * 9 / best_s


def _operators(run: Callable[[], None]) -> str:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profile.key_averages().table(sort_by=order, row_limit=15))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", help="presets laid over each other")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ways", nargs="+", default=["reference", "eager"])
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


if __name__ == "__main__":
    main()
