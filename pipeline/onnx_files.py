"""A generator as two ONNX files, which any runtime reads without this project.

    mapping.onnx    z [n z], psi [] (and labels [n d] of a network with labels) -> ws [n l w]
    synthesis.onnx  ws [n l w] -> images [n c h w] in about [-1, 1]

All are float32 and n is free. What is in a file besides is said in its metadata. They are written
by `torch.export` and compared with PyTorch before they are handed out.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stylegan import sample
from stylegan.networks.interface import Generator

Noise = Literal["fixed", "none"]

MAPPING, SYNTHESIS = "mapping.onnx", "synthesis.onnx"
TOLERANCE = 1e-4
"""Most that an element may differ from PyTorch's."""
_SEEDS = (range(3), range(3, 4))
_TRACED = 2
"""Images of the example; of 1 the exporter would make a constant."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where the files are, and how well they agree."""

    paths: Sequence[Path]
    difference: float
    """Largest of an element of ws or images, against PyTorch."""


class _Mapping(nn.Module):
    def __init__(self, Gs: Generator, cutoff: int | None) -> None:
        super().__init__()
        self.Gs = Gs
        self.cutoff = Gs.layers() if cutoff is None else cutoff

    def forward(self, z: Tensor, psi: Tensor, labels: Tensor | None = None) -> Tensor:
        ws = self.Gs.broadcast(self.Gs.mapping(z, labels))
        truncated = torch.lerp(self.Gs.w_avg, ws[:, : self.cutoff], psi)
        return torch.cat([truncated, ws[:, self.cutoff :]], dim=1)


class _Synthesis(nn.Module):
    def __init__(self, Gs: Generator, noise: Noise, lod: float) -> None:
        super().__init__()
        self.Gs, self.lod = Gs, lod
        sides = Gs.noise_sides(lod) if noise == "none" else ()
        self.noise = [torch.zeros(1, 1, side, side) for side in sides] or None

    def forward(self, ws: Tensor) -> Tensor:
        images: Tensor = self.Gs.synthesis(ws, noise=self.noise, lod=self.lod)
        return images


def write(
    Gs: Generator,
    folder: Path,
    *,
    lod: float = 0.0,
    cutoff: int | None = None,
    noise: Noise = "fixed",
    facts: Mapping[str, str] | None = None,
) -> Written:
    """Write both files into `folder`, after they were compared with PyTorch.

    Args:
        Gs: The generator, on the CPU.
        folder: Made if need be; nothing in it changes if the files do not agree.
        lod: Level of detail of a network that is still growing; 0 = full size.
        cutoff: Layers that psi truncates, from the coarsest; None = all.
        noise: That which is stored with the network, or none at all.
        facts: More for the files' metadata.

    Raises:
        ModuleNotFoundError: The extra `onnx` is not installed.
        ValueError: There are not so many layers, or the files do not compute what PyTorch does.
    """
    if cutoff is not None and not 0 <= cutoff <= Gs.layers():
        raise ValueError(
            f"cutoff is {cutoff}, but the network has {Gs.layers()} layers to truncate; choose "
            f"from 0 to {Gs.layers()}, or leave it out for all"
        )
    modules = (_Mapping(Gs, cutoff).eval(), _Synthesis(Gs, noise, lod).eval())
    metadata = {
        "psi": str(Gs.usual_psi),
        "cutoff": str(Gs.layers() if cutoff is None else cutoff),
        "noise": noise,
        "lod": str(lod),
        "network": json.dumps(sample.describe(Gs.config)),
        **(facts or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as scratch:
        paths = [Path(scratch, name) for name in (MAPPING, SYNTHESIS)]
        ws = torch.zeros(_TRACED, Gs.layers(), Gs.config.w_size)
        examples = (_inputs(Gs, range(_TRACED)), {"ws": ws})
        for module, example, path in zip(modules, examples, paths, strict=True):
            _export(module, example, path, metadata)
        difference = max(_difference(Gs, modules, paths, seeds) for seeds in _SEEDS)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported files differ from PyTorch by {difference:.2g}, but at most "
                f"{TOLERANCE:g} is allowed; nothing was written: use the safetensors files instead"
            )
        # Large weights lie beside the file.
        for path in Path(scratch).iterdir():
            path.replace(folder / path.name)
    return Written(paths=[folder / MAPPING, folder / SYNTHESIS], difference=difference)


def _inputs(Gs: Generator, seeds: Sequence[int]) -> dict[str, Tensor]:
    """What mapping.onnx takes for these seeds; of labelled networks one class after the other."""
    inputs = {"z": sample.latents(seeds, Gs.config.z_size), "psi": torch.tensor(0.7)}
    if size := Gs.config.label_size:
        inputs["labels"] = sample.one_hot(torch.tensor(seeds) % size, size)
    return inputs


def _export(
    module: nn.Module, example: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    n = torch.export.Dim("n")
    dynamic = {name: {0: n} if tensor.ndim else {} for name, tensor in example.items()}
    output = "ws" if path.name == MAPPING else "images"
    with _quiet(), torch.no_grad():
        exported = torch.export.export(
            module, (), dict(example), dynamic_shapes=dynamic, strict=False
        )
        program = torch.onnx.export(
            exported,
            output_names=[output],
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.producer_name = "stylegan-pipeline"
    program.model.metadata_props.update(metadata)
    program.save(path)


def _difference(
    Gs: Generator, modules: Sequence[nn.Module], paths: Sequence[Path], seeds: Sequence[int]
) -> float:
    """The largest difference of an element between the files and PyTorch."""
    import onnxruntime

    values, largest = _inputs(Gs, seeds), 0.0
    for module, path in zip(modules, paths, strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {name: value.numpy() for name, value in values.items()})
        with torch.no_grad():
            expected = module(**values)
        largest = max(largest, float((torch.from_numpy(output) - expected).abs().max()))
        values = {"ws": expected}
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not needed, and on torch itself."""
    try:
        import onnxruntime  # noqa: F401 (looked for before the long work)
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(
            f"{err.name} is not installed; get it with pip install -e '.[onnx]'"
        ) from err
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
