"""Counts what a piece of code computes: numbers that do not wobble with the machine."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """Calls of each operator and floating-point operations, for the time of a `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()
        self.flop = 0
        """Of convolutions and matrix products; a multiplication with its addition counts as 2."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        self.calls[packet.__name__] += 1
        if packet in flop_registry:
            self.flop += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def launched(operations: Operations) -> int:
    """Operators that compute: neither views nor allocations."""
    return sum(n for name, n in operations.calls.items() if name not in _NO_KERNEL)


_NO_KERNEL = {
    "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty", "empty_like",
    "empty_strided", "expand", "new_empty", "new_empty_strided", "permute", "select", "slice",
    "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
