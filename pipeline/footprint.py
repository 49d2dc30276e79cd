"""How much memory a training takes, counted without computing anything.

The step runs on the meta device, where tensors have sizes and no contents; what lives at the same
time is added up. Workspaces of convolutions and the process itself come on top. Features are
counted as float32: bfloat16 and float16 take less.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.beginning import new_state
from pipeline.config import TrainConfig
from pipeline.trial import Trial
from stylegan.schedule import Phase


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of one worker."""

    state_bytes: int
    """Networks, their average and the optimizers' moments, which a minibatch leaves behind."""
    peak_bytes: int
    """The most that lives at one time in a minibatch."""


def footprint(config: TrainConfig, phase: Phase, *, batch: int) -> Footprint:
    """Of a worker with `batch` images of a minibatch, at the phase's level."""
    (found,) = footprints(config, [(phase, batch)])
    return found


def footprints(config: TrainConfig, wanted: Iterable[tuple[Phase, int]]) -> list[Footprint]:
    """Of a worker at each of these phases, with so many images of a minibatch."""
    plain = replace(config, step=replace(config.step, precision="float32", speed="eager"))
    state = new_state(plain, torch.device("meta"))
    networks: list[nn.Module] = [state.G, state.D, state.Gs]
    tensors = [t for network in networks for t in [*network.parameters(), *network.buffers()]]
    found = []
    for phase, batch in wanted:
        for network in networks:
            network.zero_grad()
        with _Living() as living:
            for tensor in [*tensors, *state.tensors().values()]:
                living.count(tensor)
            Trial(plain, phase, batch=batch, device=torch.device("meta"), state=state)()
        state_bytes = sum(tensor.nbytes for tensor in state.tensors().values())
        found.append(Footprint(state_bytes=state_bytes, peak_bytes=living.peak_bytes))
    return found


def largest_batch(config: TrainConfig, phase: Phase, *, most: int, memory_bytes: float) -> int:
    """The most images, up to `most`, that a worker can have at a time; 0 if it is none."""
    group = min(config.network.D.group, most)
    used = footprints(config, [(phase, n * group) for n in (1, 2)])
    one, two = (each.peak_bytes for each in used)
    if one > memory_bytes:
        return 0
    more = int((memory_bytes - one) // max(two - one, 1))
    return min(most // group, 1 + more) * group


class _Living(TorchDispatchMode):
    """Adds up the storages that live, for the time of a `with`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak_bytes = 0
        self._known: dict[int, int] = {}

    def count(self, tensor: Tensor) -> None:
        """Take a tensor's storage into account, once."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.bytes -= self._known.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._overloadpacket.__name__ == "_fused_adam_":  # works in place; has no meta form
            return None
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.device.type == "meta":
                self.count(each)
        return result
