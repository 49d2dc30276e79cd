"""Seconds torch-fidelity takes for the features of a folder: run by `tests.benchmarks.features`.

.cache/oracles/bin/python features_torch_fidelity.py FOLDER WEIGHTS IMAGES BATCH
"""

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "agreement"))

import oracles
import torch
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id_cached


def main(folder, weights, images, batch):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch, "inception.pth")
        torch.save(oracles.inception_state(Path(weights, oracles.INCEPTION)), state)
        options = {
            "input1": folder,
            "cuda": False,
            "cache": False,
            "batch_size": int(batch),
            "verbose": False,
            "save_cpu_ram": True,
            "samples_find_deep": False,
            "feature_extractor_weights_path": str(state),
        }
        extractor = create_feature_extractor("inception-v3-compat", ["2048"], **options)
        start_s = time.perf_counter()
        found = extract_featuresdict_from_input_id_cached(1, extractor, **options)
        seconds = time.perf_counter() - start_s
    assert len(found["2048"]) == int(images)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
