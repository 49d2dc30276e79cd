"""Gs, the moving average of G's weights (Karras et al. 2018, Section 6.1)."""

import torch
from torch import nn


@torch.no_grad()
def update_average(Gs: nn.Module, G: nn.Module, *, decay: float) -> None:
    """Move the parameters of Gs towards G; buffers (noise, `w_avg`) are copied.

    Args:
        Gs: The average.
        G: The network in training, before its own update of this step.
        decay: What is kept of the average, from 0 (a copy of G) to 1.
    """
    torch._foreach_lerp_(list(Gs.parameters()), list(G.parameters()), 1 - decay)
    buffers = list(Gs.buffers())
    if buffers:  # foreach refuses empty lists
        torch._foreach_copy_(buffers, list(G.buffers()))
