"""What all ranks agree on between outer iterations, without waiting for each other or a device."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """Whether any rank wants to stop; all learn it one outer iteration later, at the same place."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: tuple[Tensor, Callable[[], object]] | None = None

    def wanted(self, mine: bool) -> bool:
        """To be called by all ranks after each outer iteration; what they wanted at the last call.

        Alone, a process wants what it wants.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return mine
        before = self._answer()
        flag = torch.full((1,), float(mine), device=self._device)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        if flag.is_cuda:
            work.wait()  # the stream waits, not the host
            host = torch.empty(1, pin_memory=True)
            host.copy_(flag, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._asked = host, copied.synchronize
        else:
            self._asked = flag, work.wait
        return before

    def close(self) -> None:
        """Wait for what has been asked, which nobody needs any more."""
        self._answer()

    def _answer(self) -> bool:
        if self._asked is None:
            return False
        (flag, wait), self._asked = self._asked, None
        wait()
        return bool(flag.item())
