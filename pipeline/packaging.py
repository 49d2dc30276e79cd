"""A generator's files as a model that MLflow can run by itself."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import stylegan
from pipeline import bundle as bundles
from pipeline import grids
from pipeline.bundle import Bundle
from stylegan import sample

_REQUIREMENTS = ["torch>=2.11", "numpy>=2", "safetensors>=0.6", "jaxtyping>=0.3", "pillow>=12"]
_GRID_IMAGES = 32


def draw_grid(bundle: Bundle) -> Image.Image:
    """Samples of the first seeds, truncated as usual."""
    Gs = bundle.generator()
    labels = None
    if Gs.config.label_size:
        classes = torch.arange(_GRID_IMAGES) % Gs.config.label_size
        labels = sample.one_hot(classes, Gs.config.label_size)
    images = sample.sample(
        Gs,
        range(_GRID_IMAGES),
        psi=Gs.usual_psi,
        cutoff=Gs.usual_cutoff,
        labels=labels,
        lod=bundle.lod,
    )
    return grids.sheet(images, columns=8)


def save_model(bundle: Bundle, scratch: Path) -> Path:
    """The model's folder as MLflow wants it, made of `scratch`/files."""
    with warnings.catch_warnings(action="ignore"):  # MLflow's import warns of its own type hints
        import mlflow.pyfunc

    files, folder = scratch / "files", scratch / "model"
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("generator_model.py")),
        code_paths=[str(Path(stylegan.__file__).parent)],
        artifacts={
            "weights": str(files / bundles.WEIGHTS),
            "network": str(files / bundles.NETWORK),
            "digests": str(files / bundles.DIGESTS),
            "metrics": str(files / bundles.METRICS),
            "lineage": str(files / bundles.LINEAGE),
            "grid": str(files / bundles.GRID),
        },
        signature=_signature(bundle),
        input_example=_example(bundle),
        pip_requirements=[f"mlflow=={mlflow.__version__}", *_REQUIREMENTS],
    )
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    return folder


def facts(bundle: Bundle) -> dict[str, str]:
    """What one wants to see of a version at a glance, as tags."""
    facts = {name: str(value) for name, value in bundle.lineage.items() if value not in ("", None)}
    return facts | {name: f"{metric.value:.6g}" for name, metric in bundle.metrics.items()}


def description(bundle: Bundle, name: str) -> str:
    """Markdown for the version's page."""
    side = int(bundle.network["G"]["resolution"]) >> int(bundle.lod)
    metrics = ", ".join(f"{key} {metric.value:.4g}" for key, metric in bundle.metrics.items())
    return "\n".join(
        [
            f"{side}x{side} px, {int(bundle.lineage.get('nimg', 0)) / 1000:g} kimg. {metrics}",
            "",
            f"Samples: `artifacts/{bundles.GRID}`. The files, verified:",
            f"`python -m pipeline.registry pull {name}@ALIAS DIR`",
        ]
    )


def _example(bundle: Bundle) -> tuple[Any, dict[str, Any]]:
    import pandas  # type: ignore[import-untyped]

    columns = {"seed": [0, 1]} | ({"label": [0, 0]} if bundle.network["G"]["label_size"] else {})
    return pandas.DataFrame(columns), _params(bundle)


def _params(bundle: Bundle) -> dict[str, Any]:
    """What may be given beside the seeds, with what is taken otherwise."""
    Gs = bundle.generator()
    cutoff = -1 if Gs.usual_cutoff is None else Gs.usual_cutoff
    return {"psi": Gs.usual_psi, "cutoff": cutoff, "noise": "fixed"}


def _signature(bundle: Bundle) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    config, params = bundle.network["G"], _params(bundle)
    columns: list[Any] = [ColSpec(DataType.long, "seed")]
    if config["label_size"]:
        columns.append(ColSpec(DataType.long, "label"))
    return ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec(DataType.long, "seed"), ColSpec(DataType.string, "png")]),
        params=ParamSchema(
            [
                ParamSpec("psi", DataType.double, params["psi"]),
                ParamSpec("cutoff", DataType.long, params["cutoff"]),
                ParamSpec("noise", DataType.string, params["noise"]),
            ]
        ),
    )
