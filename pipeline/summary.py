"""What a configuration means, before anything starts: `--dry-run`."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from torch import nn

from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.loop import new_state
from pipeline.minibatches import total_nimg_of
from stylegan.networks.stylegan import Discriminator, Generator
from stylegan.schedule import phases


def show(config: TrainConfig, console: Console) -> None:
    """Print the resolved configuration, the schedule and the networks."""
    import torch

    console.print(configs.to_yaml(config), highlight=False, markup=False)
    console.print(schedule_table(config))
    state = new_state(config, torch.device("cpu"))
    console.print(network_table("G", state.G, generator_rows(state.G)))
    console.print(network_table("D", state.D, discriminator_rows(state.D)))


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


def network_table(name: str, network: nn.Module, rows: Iterator[tuple[str, str, int]]) -> Table:
    """Layers, shapes and parameters of a network."""
    total = sum(parameter.numel() for parameter in network.parameters())
    table = Table(title=f"{name}: {total:,} parameters", title_justify="left")
    table.add_column("layer")
    table.add_column("output", justify="right")
    table.add_column("parameters", justify="right")
    for layer, shape, parameters in rows:
        table.add_row(layer, shape, f"{parameters:,}")
    return table


def generator_rows(G: Generator) -> Iterator[tuple[str, str, int]]:
    """From z to the image."""
    config = G.config
    yield "mapping", f"n {config.w_size}", _count(G.mapping)
    for side in config.resolutions():
        block, head = G.synthesis.blocks[str(side)], G.synthesis.to_rgb[str(side)]
        yield f"synthesis.blocks.{side}", f"n {config.fmaps(side)} {side} {side}", _count(block)
        yield f"synthesis.to_rgb.{side}", f"n {config.channels} {side} {side}", _count(head)


def discriminator_rows(D: Discriminator) -> Iterator[tuple[str, str, int]]:
    """From the image to the logit."""
    config = D.config
    for side in reversed(config.resolutions()):
        shape = f"n {config.fmaps(side)} {side} {side}"
        yield f"from_rgb.{side}", shape, _count(D.from_rgb[str(side)])
        if side > 4:
            half = side // 2
            shape = f"n {config.fmaps(half)} {half} {half}"
            yield f"blocks.{side}", shape, _count(D.blocks[str(side)])
    yield "tail", f"n {max(config.label_size, 1)}", _count(D.tail)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shares(config: TrainConfig, batch: int) -> list[int]:
    """Images of each worker, equal ones said once."""
    shares = [
        sum(len(part) for part in config.split(rank).parts(batch)) for rank in range(config.workers)
    ]
    return sorted(set(shares), reverse=True)
