"""Freed memory that stays with a process."""

import subprocess
import sys

COUNT = """
import resource, sys, torch
from pipeline.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    tensors = [torch.ones(2**20 + 1000 * number) for number in range(40)]
    del tensors[::2]
    tensors += [torch.ones(2**21) for number in range(10)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_tensors_that_are_allocated_again_cost_hardly_a_page_fault():
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", COUNT, way], text=True))
        for way in ("kept", "given back")
    }

    assert faults["kept"] * 10 < faults["given back"]
