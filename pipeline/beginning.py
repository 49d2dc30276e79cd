"""What a run begins with: its device, its first weights, and whether a checkpoint is its own."""

import logging
from typing import Any

import torch

from data_prep.manifest import Manifest
from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.options import ConfigError
from pipeline.tracking import flatten
from stylegan.networks import family
from stylegan.state import TrainState

logger = logging.getLogger(__name__)


def choose_device(config: TrainConfig) -> torch.device:
    """The device of this process."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here; set device=cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def new_state(config: TrainConfig, device: torch.device) -> TrainState:
    """Networks with initial weights, a function of the configuration and the seed."""
    G = family.generator(config.network.G, seed=2 * config.seed)
    D = family.discriminator(config.network.D, seed=2 * config.seed + 1)
    for network in (G, D):
        # A quarter faster on CPUs at 32 px, and what tensor cores want.
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(
        G,
        D,
        config.optimizer,
        G_interval=config.loss.G_adam_interval,
        D_interval=config.loss.D_interval,
        scaled=config.step.precision == "float16",
    )


_ONLY_ROUNDING = ("threads_per_worker", "commit_kimg", "device", "step.micro_batch", "step.speed")
"""Options that change the order of summation alone."""


def refuse_changes(
    config: TrainConfig,
    scalars: dict[str, Any],
    manifest: Manifest,
    url: str,
    *,
    workers: int | None = None,
) -> None:
    """Refuse to go on from a checkpoint that another configuration or data set has made.

    Args:
        config: What is wanted now.
        scalars: Of the checkpoint.
        manifest: Of the data.
        url: Of the checkpoint.
        workers: As many there are now; None if that is not known yet.

    Raises:
        ConfigError: Shows the differences and what can be done.
    """
    if scalars["data_digest"] != manifest.digest:
        raise ConfigError(
            f"data.url {config.data.url} has digest {manifest.digest[:12]}…, but the run at "
            f"{config.run_url} was begun with data of digest {scalars['data_digest'][:12]}…; "
            f"give it back its data or choose another run_url"
        )
    before = configs.parse(scalars["config"])
    changed = configs.differences(config.identity(), before.identity())
    refused = {key: pair for key, pair in changed.items() if key not in config.accept_changes}
    before_free, free = (
        {key: flatten(configs.to_dict(each)).get(key) for key in _ONLY_ROUNDING}
        for each in (before, config)
    )
    if workers is not None:
        free["workers"], before_free["workers"] = workers, scalars["workers"]
    for key, (ours, was) in configs.differences(free, before_free).items():
        logger.warning(
            "%s is %s, it was %s: the weights will not be equal bit for bit to those of an "
            "undisturbed run",
            key,
            ours,
            was,
        )
    if refused:
        shown = "; ".join(f"{key} is {a}, it was {b}" for key, (a, b) in refused.items())
        raise ConfigError(
            f"the run at {config.run_url} was begun with other options ({url}): {shown}; undo "
            f"that, choose another run_url, or accept it with accept_changes="
            f"[{','.join(refused)}]"
        )
