"""What comes along when the library is imported."""

import subprocess
import sys

EVERYTHING = """
import importlib, pkgutil, sys
import stylegan
for module in pkgutil.walk_packages(stylegan.__path__, "stylegan."):
    importlib.import_module(module.name)
heavy = {"torch._dynamo", "matplotlib", "ray", "mlflow", "fsspec"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_all_of_the_library_takes_little_beside_torch_along():
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
