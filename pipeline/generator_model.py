"""The registered generator as MLflow runs it (a model from code; `registry` logs this file).

    mlflow models serve -m models:/NAME@ALIAS --env-manager local --port 5001
    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \
        -d '{"dataframe_split": {"columns": ["seed"], "data": [[1], [2]]}, "params": {"psi": 0.7}}'

The answer is {"predictions": [{"seed": 1, "png": "iVBOR…"}, …]}, PNGs as base64; what cannot be
drawn is refused with status 400 and a sentence. In Python the same is
`mlflow.pyfunc.load_model("models:/NAME@ALIAS").predict(data_frame, params)`.

It is run where only `stylegan` comes along, so it imports nothing else of ours.
"""

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any, get_args

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import safetensors.torch
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from stylegan import sample

MAX_IMAGES = 64
"""Of one request."""
MAX_PSI = 2.0
"""Either way; beyond that images are none any more."""


class GeneratorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Seeds in, images out."""

    def load_context(self, context: Any) -> None:
        """Verify the weights against digests.json and build the network."""
        paths = {name: Path(path) for name, path in context.artifacts.items()}
        digests = json.loads(paths["digests"].read_text())["sha256"]
        for path in (paths["weights"], paths["network"]):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != digests[path.name]:
                raise ValueError(
                    f"{path.name} was changed: its SHA-256 is {digest}, registered was "
                    f"{digests[path.name]}; it is not used"
                )
        network = json.loads(paths["network"].read_text())
        self.lod = float(network.get("lod", 0.0))
        self.Gs = sample.build(network, safetensors.torch.load_file(paths["weights"]))
        if torch.cuda.is_available():
            self.Gs.cuda()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Images of seeds.

        Args:
            context: MLflow's, not used.
            model_input: A data frame with a column `seed`, and `label`, the class, where the
                network has labels; at most `MAX_IMAGES` rows.
            params: `psi`; `cutoff`, -1 for all layers (both of them the model's own if left out);
                `noise`, see `stylegan.sample.sample`. MLflow ignores others, and cuts off a seed's
                fraction.

        Returns:
            Columns `seed` and `png`, the file as base64.

        Raises:
            MlflowException: An argument is out of range; a server answers with status 400.
        """
        try:
            images = self._images(model_input, params or {})
        except (ValueError, TypeError) as err:
            raise MlflowException(str(err), error_code=INVALID_PARAMETER_VALUE) from err
        return pd.DataFrame({"seed": model_input["seed"], "png": [_png(image) for image in images]})

    def _images(self, rows: pd.DataFrame, params: dict[str, Any]) -> torch.Tensor:
        if len(rows) > MAX_IMAGES:
            raise ValueError(
                f"{len(rows)} images are asked for, but a request may have {MAX_IMAGES}; send more "
                f"requests"
            )
        psi = float(params.get("psi", self.Gs.usual_psi))
        if not (math.isfinite(psi) and abs(psi) <= MAX_PSI):
            raise ValueError(f"psi is {psi}; choose from {-MAX_PSI:g} to {MAX_PSI:g}, such as 0.7")
        noise = params.get("noise", "fixed")
        if noise not in get_args(sample.Noise):
            raise ValueError(f"noise is {noise!r}; choose from {', '.join(get_args(sample.Noise))}")
        cutoff = params.get("cutoff", self.Gs.usual_cutoff)
        labels = None
        if "label" in rows:
            classes = torch.tensor(rows["label"].to_numpy(dtype=np.int64))
            labels = sample.one_hot(classes, self.Gs.config.label_size)
        return sample.sample(
            self.Gs,
            [int(seed) for seed in rows["seed"]],
            psi=psi,
            cutoff=None if cutoff is None or cutoff < 0 else int(cutoff),
            labels=labels,
            noise=noise,
            lod=self.lod,
        )


def _png(image: torch.Tensor) -> str:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(GeneratorModel())
