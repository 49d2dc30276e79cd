"""Fixtures of all tests."""

import torch

# More threads than cores make tests of small networks several times slower.
torch.set_num_threads(1)

pytest_plugins = [
    "tests.services",
    "tests.loading",
    "tests.mlflow_server",
    "tests.ray_cluster",
    "tests.datasets",
    "tests.measured",
    "tests.random_arrays",
]
