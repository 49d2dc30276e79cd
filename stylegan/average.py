"""Gs, the moving average of G's weights (Karras et al. 2018, Section 6.1)."""

import torch
from torch import nn


@torch.no_grad()
def update_average(Gs: nn.Module, G: nn.Module, *, batch: int, half_life_kimg: float) -> None:
    """Move the parameters of Gs towards G; buffers (noise, `w_avg`) are copied.

    Args:
        Gs: The average.
        G: The network in training, before its own update of this step.
        batch: Images shown since the last call, over all workers.
        half_life_kimg: Thousands of images after which an old weight counts half; 0 copies G.
    """
    decay = 0.5 ** (batch / (half_life_kimg * 1000)) if half_life_kimg > 0 else 0.0
    torch._foreach_lerp_(list(Gs.parameters()), list(G.parameters()), 1 - decay)
    buffers = list(Gs.buffers())
    if buffers:  # foreach refuses empty lists
        torch._foreach_copy_(buffers, list(G.buffers()))
