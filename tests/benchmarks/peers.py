"""Other libraries, each in an environment of its own, for what is measured beside them.

The environments lie in a cache folder outside the repository. They see the packages of this one
(torch, Pillow, boto3) and hold only what differs, so they cost 300 MB and a minute, once.
"""

import importlib.util
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

FOLDER = Path("~/.cache/stylegan-benchmarks").expanduser()

# Without their dependencies: torchvision, which none of the ways measured here uses, would bring
# another torch. transformers has MosaicML's type of batches.
_REQUIREMENTS = {
    "litdata": ["litdata==0.2.76", "lightning-utilities==0.15.3", "tifffile", "obstore"],
    "mosaicml": [
        "mosaicml-streaming==0.13.0",
        "numpy==2.1.3",
        *("Brotli", "python-snappy", "cramjam", "zstd", "xxhash", "catalogue", "tqdm"),
        *(
            "transformers==4.57.6",
            "huggingface_hub==0.36.2",
            "tokenizers==0.22.2",
            "regex",
            "hf-xet",
        ),
    ],
}


def interpreter(peer: str) -> str:
    """The Python that has this peer; made at the first call."""
    if peer not in _REQUIREMENTS:
        return sys.executable
    folder = FOLDER / "environments" / peer
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    beside = sysconfig.get_path("purelib")
    wanted = "\n".join([*_REQUIREMENTS[peer], beside])
    if not made.exists() or made.read_text() != wanted:
        print(f"making the environment of {peer} in {folder}", file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True
        )
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "lib" / version / "site-packages" / "beside.pth").write_text(beside)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, *_REQUIREMENTS[peer]], check=True)
        made.write_text(wanted)
    return str(python)


def run(peer: str, module: str, *arguments: object) -> str:
    """The last line that a module of the benchmarks prints, run in the environment of this peer."""
    command = [interpreter(peer), "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return (done.stdout.splitlines() or [""])[-1]


def import_streaming() -> None:
    """MosaicML's core alone: the package itself imports torchvision for its examples."""
    spec = importlib.util.find_spec("streaming")
    assert spec is not None
    package = types.ModuleType("streaming")
    package.__path__ = spec.submodule_search_locations
    sys.modules["streaming"] = package
