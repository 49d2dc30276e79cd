"""Random tensors from NumPy's frozen generator."""

import numpy as np
import pytest
import torch


@pytest.fixture
def rng():
    return np.random.RandomState(0)


def normal(rng, *shape, dtype=np.float32):
    return torch.from_numpy(rng.standard_normal(shape).astype(dtype))


def bytes_of(rng, *shape):
    return torch.from_numpy(rng.randint(0, 256, size=shape).astype(np.uint8))
