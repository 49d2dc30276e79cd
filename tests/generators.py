"""Tiny trained-looking generators for tests, as bundles and as committed checkpoints."""

import torch

from pipeline.bundle import Bundle, MetricValue
from pipeline.checkpoint import Checkpoints, CommittedCheckpoint
from stylegan import sample
from stylegan.networks.stylegan import Generator, GeneratorConfig

FINGERPRINT = {"data_digest": "d" * 64, "network": "inception-2015-12-05", "reals": 300}


def generator(*, seed: int = 1, label_size: int = 0) -> Generator:
    """8 layers, 32 px; its mean w is not zero."""
    config = GeneratorConfig(
        resolution=32,
        label_size=label_size,
        fmap_base=64,
        fmap_max=8,
        z_size=8,
        w_size=8,
        mapping_width=8,
    )
    Gs = Generator(config, seed=seed).eval()
    Gs.w_avg.normal_(generator=torch.Generator().manual_seed(seed))
    return Gs


def bundle(*, fid: float = 50.0, seed: int = 1, fingerprint=None, label_size: int = 0) -> Bundle:
    Gs = generator(seed=seed, label_size=label_size)
    fingerprint = {**FINGERPRINT, "snapshot": f"s{seed}", **(fingerprint or {})}
    return Bundle(
        tensors=Gs.state_dict(),
        network=sample.describe(Gs.config),
        metrics={"fid300": MetricValue(value=fid, fingerprint=fingerprint)},
        lineage={
            "data_digest": "d" * 64,
            "config_digest": "c" * 64,
            "code_revision": "unknown",
            "checkpoint": f"s3://b/run/checkpoints/{seed}",
            "checkpoint_digest": "e" * 64,
            "nimg": 64_000,
        },
    )


def checkpoint(run_url: str, *, nimg: int = 8000, lod: float = 0.0, seed: int = 1):
    """Committed under `run_url`; the checkpoint and its generator."""
    Gs = generator(seed=seed)
    scalars = {
        "network": sample.describe(Gs.config),
        "lod": lod,
        "data_digest": "d" * 64,
        "config_digest": "c" * 64,
        "tracking_run_id": "r" * 32,
    }
    tensors = {f"Gs.{name}": tensor for name, tensor in Gs.state_dict().items()}
    checkpoints = Checkpoints(run_url)
    future = checkpoints.save(tensors, scalars, nimg=nimg, attempt=0)
    checkpoints.wait()
    committed: CommittedCheckpoint = future.result()
    return committed, Gs
