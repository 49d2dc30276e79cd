"""Growing: from images shown so far to lod, resolution, batch, learning rates and tick length."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Table = Literal["official-1", "official-2", "official-4", "official-8", "none"]

# Minibatch per resolution and for all others (Karras et al. 2019, Appendix C, for 1 to 8 GPUs).
_BATCH: dict[str, tuple[dict[int, int], int]] = {
    "official-1": ({4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}, 4),
    "official-2": ({4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}, 8),
    "official-4": ({4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16}, 16),
    "official-8": ({4: 512, 8: 256, 16: 128, 32: 64, 64: 32}, 32),
}
_LR, _BASE_LR = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}, 0.001
_TICK_KIMG = {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 30, 1024: 20}
_BASE_TICK_KIMG = 160


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """When to grow, and what changes with it (Karras et al. 2019, Appendix C)."""

    first_resolution: int = 8
    """Width and height at nimg = 0, in pixels."""
    stable_kimg: float = 600
    """Thousands of images shown at each resolution once it is fully faded in."""
    fade_kimg: float = 600
    """Thousands of images over which a resolution fades in; 0 = at once."""
    total_kimg: float = 25000
    """Thousands of images of the whole run."""
    table: Table = "official-8"
    """Batches and learning rates of the official run on so many GPUs, whatever the workers here.

    With `none` every batch must be given below, and learning rates not given are 0.001.
    """
    batch: Mapping[int, int] = field(default_factory=dict)
    """Images per minibatch over all workers, by resolution; takes precedence over the table."""
    lr: Mapping[int, float] = field(default_factory=dict)
    """Adam's step size of both networks, by resolution."""
    G_lr: Mapping[int, float] = field(default_factory=dict)
    """Adam's step size of G alone, by resolution; takes precedence over `lr`."""
    D_lr: Mapping[int, float] = field(default_factory=dict)
    """Adam's step size of D alone, by resolution; takes precedence over `lr`."""
    tick_kimg: Mapping[int, float] = field(default_factory=dict)
    """Thousands of images between two reports, by resolution."""
    lr_rampup_kimg: float = 0
    """Thousands of images over which the learning rates rise from 0."""
    minibatch_repeats: int = 4
    """Minibatches under one look at this schedule."""

    def __post_init__(self) -> None:
        _check_power_of_two("first_resolution", self.first_resolution)
        for key in ("stable_kimg", "fade_kimg", "lr_rampup_kimg"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"schedule.{key} is {getattr(self, key)}; it must be 0 or above: "
                    "choose 0 to switch it off"
                )
        if not 0 < self.total_kimg < math.inf:
            raise ValueError(
                f"schedule.total_kimg is {self.total_kimg}; it must be above 0: "
                "choose 25000 for an official run"
            )
        if self.minibatch_repeats < 1:
            raise ValueError(
                f"schedule.minibatch_repeats is {self.minibatch_repeats}; it must be 1 or above: "
                "choose 4 as officially"
            )
        for key in ("batch", "lr", "G_lr", "D_lr", "tick_kimg"):
            for resolution, value in getattr(self, key).items():
                _check_power_of_two(key, resolution)
                if not 0 < value < math.inf:
                    raise ValueError(
                        f"schedule.{key}.{resolution} is {value}; it must be above 0, "
                        "or leave it out to take the table's"
                    )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What holds at one moment of a run."""

    nimg: int
    """Images shown so far, over all workers."""
    lod: float
    """Level of detail: 0 = full resolution, a fraction = mid-fade."""
    resolution: int
    """Width and height of the images, in pixels: that of floor(lod)."""
    batch: int
    """Images per minibatch, over all workers."""
    G_lr: float
    D_lr: float
    tick_kimg: float

    @property
    def key(self) -> tuple[int, int]:
        """Changes when a level enters or is complete: then the optimizers start anew."""
        return math.floor(self.lod), math.ceil(self.lod)


def phase_at(nimg: int, config: ScheduleConfig, *, resolution: int) -> Phase:
    """What holds after `nimg` images in a run of full size `resolution`."""
    lod = _lod(nimg / 1000, config, resolution)
    now = resolution >> math.floor(lod)
    rampup = 1.0
    if config.lr_rampup_kimg > 0:
        rampup = min(nimg / 1000 / config.lr_rampup_kimg, 1.0)
    table_lr = _BASE_LR if config.table == "none" else _LR.get(now, _BASE_LR)
    lr = config.lr.get(now, table_lr)
    return Phase(
        nimg=nimg,
        lod=lod,
        resolution=now,
        batch=_batch(now, config),
        G_lr=config.G_lr.get(now, lr) * rampup,
        D_lr=config.D_lr.get(now, lr) * rampup,
        tick_kimg=config.tick_kimg.get(now, _TICK_KIMG.get(now, _BASE_TICK_KIMG)),
    )


def phases(config: ScheduleConfig, resolution: int) -> list[Phase]:
    """The first moment of each level's fade-in and of its stable time, up to the end of the run.

    Raises:
        ValueError: The schedule does not fit the resolution, or lacks a batch.
    """
    check(config, resolution)
    starts = [0]
    length_kimg = config.stable_kimg + config.fade_kimg
    for index in range(_growths(config, resolution)):
        # A fade begins with the first image after its boundary, stable time with the one on it.
        if config.fade_kimg > 0:
            starts.append(math.floor((index * length_kimg + config.stable_kimg) * 1000) + 1)
        starts.append(math.ceil((index + 1) * length_kimg * 1000))
    end = config.total_kimg * 1000
    return [phase_at(nimg, config, resolution=resolution) for nimg in starts if nimg < end]


def check(config: ScheduleConfig, resolution: int) -> None:
    """See that `config` can be followed up to the full size `resolution`.

    Raises:
        ValueError: It cannot; says which key to change.
    """
    _check_power_of_two("resolution", resolution)
    if config.first_resolution > resolution:
        raise ValueError(
            f"schedule.first_resolution is {config.first_resolution}, above the {resolution} px of "
            f"the data; set it to {resolution} or below"
        )
    growths = _growths(config, resolution)
    if growths and config.stable_kimg + config.fade_kimg == 0:
        raise ValueError(
            "schedule.stable_kimg and schedule.fade_kimg are both 0, so that "
            f"{config.first_resolution} px would never grow to {resolution} px; "
            f"set schedule.first_resolution to {resolution}"
        )


def _lod(kimg: float, config: ScheduleConfig, resolution: int) -> float:
    length_kimg = config.stable_kimg + config.fade_kimg
    index = math.floor(kimg / length_kimg) if length_kimg > 0 else 0
    lod = float(_growths(config, resolution) - index)
    if config.fade_kimg > 0:
        into_fade = kimg - index * length_kimg - config.stable_kimg
        lod -= max(into_fade, 0.0) / config.fade_kimg
    return max(lod, 0.0)


def _growths(config: ScheduleConfig, resolution: int) -> int:
    return resolution.bit_length() - config.first_resolution.bit_length()


def _batch(resolution: int, config: ScheduleConfig) -> int:
    if resolution in config.batch:
        return config.batch[resolution]
    if config.table == "none":
        raise ValueError(
            f"schedule.batch has no value for {resolution} px and schedule.table is 'none'; "
            f"set schedule.batch.{resolution} or choose a table from official-1, -2, -4, -8"
        )
    by_resolution, base = _BATCH[config.table]
    return by_resolution.get(resolution, base)


def _check_power_of_two(key: str, resolution: int) -> None:
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(
            f"schedule.{key} names {resolution} px; sizes are powers of two: choose 4, 8, 16, ..."
        )
