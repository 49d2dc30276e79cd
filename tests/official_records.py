"""Networks of ours as TensorFlow's code would have pickled them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan.networks import family
from stylegan.official import snapshot, tensorflow
from stylegan.official.names import names
from tests.official_pickles import EasyDict, Network, ProgressiveNetwork, dumps

SIZES = {"resolution": 16, "num_channels": 3, "fmap_base": 32, "fmap_max": 8}
STYLE = ("G_style", "G_mapping", "G_synthesis")
STYLE2 = ("G_main", "G_mapping", "G_synthesis_stylegan2")
MAPPING = {"latent_size": 6, "dlatent_size": 7, "mapping_layers": 3, "mapping_fmaps": 5}


def options_of(build: tensorflow.Build, **more: Any) -> dict[str, Any]:
    mapping = MAPPING if build.generator and build.kind != "pggan" else {}
    return {**SIZES, **mapping, "label_size": 2, **more}


def network_of(build: tensorflow.Build, **fields: Any) -> Any:
    """A network of ours with those options."""
    module, which = family.KINDS[build.kind], "Generator" if build.generator else "Discriminator"
    sizes = {"resolution": 16, "channels": 3, "fmap_base": 32, "fmap_max": 8, "label_size": 2}
    if build.generator and build.kind == "pggan":
        sizes |= {"z_size": 8}
    elif build.generator:
        sizes |= {"z_size": 6, "w_size": 7, "mapping_layers": 3, "mapping_width": 5}
    config = getattr(module, f"{which}Config")(**sizes | dict(build.fields) | fields)
    network = getattr(module, which)(config)
    rng = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name in names(network):
            tensor.normal_(generator=rng)
    return network.eval()


def pickled(
    network: Any, built_by: tuple[str, ...], *, original: bool | None = None, **changes: Any
) -> Network:
    """A network of ours as TensorFlow's code would pickle it; `changes` to what it holds.

    `original`: by Progressive GAN's own repository; its networks are, unless StyleGAN's did it.
    """
    original = built_by[0] in ("G_paper", "D_paper") if original is None else original
    parts: dict[str, list[Any]] = {"": [("lod", np.float32(0))], "G_synthesis": [], "G_mapping": []}
    state = network.state_dict()
    for ours, theirs in names(network).items():
        scope, _, local = theirs.partition("/")
        scope, local = (scope, local) if scope in parts else ("", theirs)
        parts[scope].append((local, official_layout(theirs, state[ours], original)))
    made = ProgressiveNetwork if original else Network
    record = {"version": 2 if original else 4, "build_module_src": "", "static_kwargs": {}}
    if len(built_by) > 1:
        scopes = {"mapping": "G_mapping", "synthesis": "G_synthesis"}
        record["components"] = EasyDict(
            {
                part: made({**record, "build_func_name": by, "variables": parts[scopes[part]]})
                for part, by in zip(("mapping", "synthesis"), built_by[1:], strict=True)
            }
        )
    record |= {"build_func_name": built_by[0], "variables": parts[""]}
    return made(record | changes)


def official_layout(name: str, tensor: Tensor, original: bool) -> Any:
    """[o i kh kw] to [kh kw i o], [o i] to [i o]; scalars as NumPy scalars."""
    if tensor.ndim == 4 and name.endswith("weight"):
        tensor = tensor.permute(2, 3, 1, 0)
        if original and name.endswith("Conv0_up/weight"):
            tensor = tensor.transpose(2, 3)
    elif tensor.ndim == 2 and "LabelConcat" not in name:
        tensor = tensor.T
    return tensor.numpy()[()]


def read(thing: Any, name: snapshot.Name) -> snapshot.Imported:
    return snapshot.read(dumps(thing), name)
