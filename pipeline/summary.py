"""What a configuration means, before anything starts: `--dry-run`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pipeline import config as configs
from pipeline.beginning import new_state
from pipeline.config import TrainConfig
from pipeline.footprint import footprints
from pipeline.minibatches import total_nimg_of
from pipeline.trial import levels
from stylegan.networks.interface import Discriminator, DiscriminatorConfig, Generator
from stylegan.schedule import phases


def show(config: TrainConfig, console: Console) -> None:
    """Print the resolved configuration, the schedule, what it takes, and the networks."""
    console.print(configs.to_yaml(config), highlight=False, markup=False)
    console.print(schedule_table(config))
    console.print(memory_table(config))
    console.print("hours, cost and bytes: python -m pipeline.plan\n")
    state = new_state(config, torch.device("cpu"))
    console.print(network_table("G", state.G))
    console.print(network_table("D", state.D))


def schedule_table(config: TrainConfig) -> Table:
    """The moments at which something changes."""
    table = Table(title="schedule", title_justify="left")
    for name in ("nimg", "lod", "resolution", "batch", "G lr", "D lr", "tick kimg", "per worker"):
        table.add_column(name, justify="right")
    for phase in phases(config.schedule, resolution=config.network.resolution):
        table.add_row(
            f"{phase.nimg:,}",
            f"{phase.lod:.3g}",
            f"{phase.resolution} px",
            str(phase.batch),
            f"{phase.G_lr:g}",
            f"{phase.D_lr:g}",
            f"{phase.tick_kimg:g}",
            " + ".join(str(images) for images in _shares(config, phase.batch)),
        )
    table.add_row(f"{total_nimg_of(config):,}", "end", *[""] * 6)
    return table


def memory_table(config: TrainConfig) -> Table:
    """What a worker needs at each level (see `pipeline.footprint`)."""
    table = Table(title="memory of a worker", title_justify="left")
    for name in ("level", "images of a minibatch", "GiB", "of it networks and optimizers"):
        table.add_column(name, justify="right")
    wanted = [(phase, max(_shares(config, phase.batch))) for phase in levels(config)]
    for (phase, share), used in zip(wanted, footprints(config, wanted), strict=True):
        table.add_row(
            f"{phase.resolution} px",
            str(share),
            f"{used.peak_bytes / 2**30:.2f}",
            f"{used.state_bytes / 2**30:.2f}",
        )
    return table


def network_table(name: str, network: Generator | Discriminator) -> Table:
    """Layers, output shapes and parameters of a network; heads of all lods among them."""
    table = Table(title=f"{name}: {_count(network):,} parameters", title_justify="left")
    table.add_column("layer")
    table.add_column("output", justify="right")
    table.add_column("parameters", justify="right")
    shapes = _output_shapes(network.to("meta"))
    modules = dict(network.named_modules())
    for layer, shape in shapes.items():
        table.add_row(layer, shape, f"{_count(modules[layer]):,}")
    return table


def _output_shapes(network: Generator | Discriminator) -> dict[str, str]:
    """Of each part, in the order in which images pass through them, at all lods."""
    config, shapes = network.config, dict[str, str]()
    n = config.group if isinstance(config, DiscriminatorConfig) else 1
    labels = torch.zeros(n, config.label_size, device="meta") if config.label_size else None
    levels = int(math.log2(config.resolution)) - 2 if config.grows else 0
    with _recorded(network, shapes), torch.no_grad():
        for level in range(levels + 1):
            if isinstance(network, Generator):
                z = torch.zeros(n, network.config.z_size, device="meta")
                network(z, labels, lod=float(levels - level))
            else:
                side = config.resolution >> level
                images = torch.zeros(n, config.channels, side, side, device="meta")
                network(images, labels, float(level))
    return shapes


@contextmanager
def _recorded(network: nn.Module, shapes: dict[str, str]) -> Iterator[None]:
    """Write down what each part of the network puts out."""

    def hook(name: str, output: Tensor) -> None:
        shapes.setdefault(name, " ".join(["n", *map(str, output.shape[1:])]))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, module in _parts(network)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Blocks and heads: what is not taken apart any further."""
    for name, child in module.named_children():
        container = type(child).forward is nn.Module.forward
        if name == "synthesis" or container:
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shares(config: TrainConfig, batch: int) -> list[int]:
    """Images of each worker, equal ones said once."""
    world = config.worker_range[1]
    shares = [
        sum(len(part) for part in config.split(rank, world).parts(batch)) for rank in range(world)
    ]
    return sorted(set(shares), reverse=True)
