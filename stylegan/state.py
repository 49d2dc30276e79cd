"""All of a training that lives in memory: G, D, Gs, both optimizers and the counters."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from stylegan.networks.interface import Discriminator, Generator
from stylegan.optimizer import Adam, OptimizerConfig, named
from stylegan.schedule import Phase

Tensors = dict[str, Tensor]


class TrainState:
    """What a checkpoint holds (with the configuration, which does not change)."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        optimizer: OptimizerConfig,
        *,
        attempt: int = 0,
        G_interval: int = 0,
        D_interval: int = 0,
        scaled: bool = False,
    ) -> None:
        """Fresh networks; the rest of the options are those of `Adam`."""
        self.G, self.D = G, D
        self.Gs = copy.deepcopy(G).eval().requires_grad_(requires_grad=False)
        """Moving average of G, the generator that is kept."""
        self.path_mean = torch.zeros_like(G.w_avg[0])
        """Moving mean of path lengths."""
        self._make_G_opt = functools.partial(
            Adam, config=optimizer, interval=G_interval, scaled=scaled
        )
        self._make_D_opt = functools.partial(
            Adam, config=optimizer, interval=D_interval, scaled=scaled
        )
        self.G_opt: Adam | None = None
        self.D_opt: Adam | None = None
        self.nimg = 0
        """Reals shown, over all workers."""
        self.step = 0
        """Minibatches, dropped updates included."""
        self.attempt = attempt
        """Rollbacks so far."""
        self.phase_key: tuple[int, int] | None = None
        """floor and ceil of the lod the optimizers were made for."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.G.w_avg.device

    def enter(self, phase: Phase) -> bool:
        """Give the optimizers a new start if a level enters or completes; whether it does.

        As in the official code, moments and counts are forgotten whenever floor or ceil of the
        lod changes (golden C1 events).
        """
        if phase.key == self.phase_key:
            return False
        self._make_optimizers(phase.key)
        return True

    def activate(self) -> None:
        """Let those parameters have gradients that take part at this phase, and no others."""
        assert self.phase_key is not None, "enter a phase first"
        for network in (self.G, self.D):
            network.requires_grad_(requires_grad=False)
            for parameter in _active(network, self.phase_key).values():
                parameter.requires_grad_()

    def tensors(self) -> Tensors:
        """Everything that is a tensor; the name before the first dot is its group."""
        groups: dict[str, Tensors] = {
            name: dict(getattr(self, name).state_dict()) for name in ("G", "D", "Gs")
        }
        for name, adam in (("G_opt", self.G_opt), ("D_opt", self.D_opt)):
            if adam is not None:
                groups[name] = adam.tensors()
        return {f"{group}.{name}": t for group, part in groups.items() for name, t in part.items()}

    def scalars(self) -> dict[str, Any]:
        """Everything else, as JSON holds it; waits for the device."""
        return {
            "nimg": self.nimg,
            "step": self.step,
            "attempt": self.attempt,
            "path_mean": float(self.path_mean),
            "phase_key": None if self.phase_key is None else list(self.phase_key),
        }

    def load(self, tensors: Tensors, scalars: dict[str, Any]) -> None:
        """Take over what `tensors` and `scalars` gave.

        Raises:
            ValueError: They belong to other networks; names the first differences.
        """
        groups: dict[str, Tensors] = {}
        for name, tensor in tensors.items():
            group, _, inner = name.partition(".")
            groups.setdefault(group, {})[inner] = tensor
        for name in ("G", "D", "Gs"):
            load_network(getattr(self, name), groups.get(name, {}), name)
        self.path_mean.fill_(scalars["path_mean"])
        self.nimg, self.step = int(scalars["nimg"]), int(scalars["step"])
        self.attempt = int(scalars["attempt"])
        if scalars["phase_key"] is not None:
            floor, ceil = scalars["phase_key"]
            self._make_optimizers((floor, ceil))
            assert self.G_opt is not None
            assert self.D_opt is not None
            self.G_opt.load(groups["G_opt"])
            self.D_opt.load(groups["D_opt"])

    def _make_optimizers(self, key: tuple[int, int]) -> None:
        self.G_opt = self._make_G_opt(_active(self.G, key))
        self.D_opt = self._make_D_opt(_active(self.D, key))
        self.phase_key = key


def load_network(network: nn.Module, tensors: Tensors, name: str) -> None:
    """Load all tensors of a network, and nothing else.

    Raises:
        ValueError: Names or shapes differ.
    """
    own = network.state_dict()
    differences = sorted(own.keys() ^ tensors.keys())
    differences += [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if own[key].shape != tensors[key].shape
    ]
    if differences:
        raise ValueError(
            f"the checkpoint's {name} is another network: {', '.join(differences[:3])}; load it "
            f"with the configuration it was made with"
        )
    network.load_state_dict(tensors)


def _active(network: Generator | Discriminator, key: tuple[int, int]) -> dict[str, nn.Parameter]:
    return named(network, network.active_parameters(sum(key) / 2))
