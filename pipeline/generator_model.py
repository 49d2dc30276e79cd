"""The registered generator as MLflow runs it (a model from code; `registry` logs this file).

    model = mlflow.pyfunc.load_model("models:/NAME@ALIAS")
    images = model.predict(pd.DataFrame({"seed": [1, 2]}), params={"truncation_psi": 0.7})

It is run where only `stylegan` comes along, so it imports nothing else of ours.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import safetensors.torch
import torch

from stylegan import sample


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
    ) -> np.ndarray:
        """Images of seeds.

        Args:
            context: MLflow's, not used.
            model_input: A data frame with a column `seed`, and `label`, the class, where the
                network has labels.
            params: `truncation_psi`; `truncation_cutoff`, -1 for all layers (both of them the
                model's own if left out); `noise`, see `stylegan.sample.sample`.

        Returns:
            uint8 of shape [n, h, w, c].
        """
        params = params or {}
        cutoff = params.get("truncation_cutoff", self.Gs.usual_cutoff)
        labels = None
        if "label" in model_input:
            classes = torch.tensor(model_input["label"].to_numpy(dtype=np.int64))
            labels = sample.one_hot(classes, self.Gs.config.label_size)
        images = sample.sample(
            self.Gs,
            [int(seed) for seed in model_input["seed"]],
            psi=float(params.get("truncation_psi", self.Gs.usual_psi)),
            cutoff=None if cutoff is None or cutoff < 0 else int(cutoff),
            labels=labels,
            noise=params.get("noise", "fixed"),
            lod=self.lod,
        )
        pixels: np.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels


mlflow.models.set_model(GeneratorModel())
