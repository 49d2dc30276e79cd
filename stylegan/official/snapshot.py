"""Official snapshots: which networks a file holds, and one of them as ours.

imported = read(Path("stylegan-ffhq.pkl").read_bytes(), "Gs")
"""

from typing import Any, Literal

from stylegan.data_pickle import ArchiveError
from stylegan.official import pytorch, tensorflow
from stylegan.official.names import Imported
from stylegan.official.unpickler import TensorFlowNetwork, TorchModule, read_pickle

Name = Literal["G", "D", "Gs"]

_PLACES = {"G": 0, "D": 1, "Gs": 2}
_KEYS = {"G": "G", "D": "D", "Gs": "G_ema"}


def read(content: bytes, name: Name) -> Imported:
    """A network of an official pickle.

    Args:
        content: The file; it may be packed by gzip.
        name: Gs is the moving average of G, the generator to make images with.

    Raises:
        ArchiveError: The file is damaged, holds more than data, or no official networks.
        ValueError: The network cannot be represented here; says what of it.
    """
    tree = read_pickle(content)
    record: Any = None
    if isinstance(tree, tuple) and len(tree) == len(_PLACES):
        record = tree[_PLACES[name]]
    elif isinstance(tree, dict):
        record = tree.get(_KEYS[name])
    if not isinstance(record, TensorFlowNetwork | TorchModule):
        raise ArchiveError(
            f"the file is a {type(tree).__name__} without {name}; official snapshots hold G, D and "
            "Gs of TensorFlow, or G, D and G_ema of PyTorch"
        )
    imported = _convert(record)
    if imported.network.config.name != name[0]:
        raise ArchiveError(f"the file has a {imported.network.config.name} in the place of {name}")
    return imported


def read_network(content: bytes) -> Imported:
    """The only network of an official pickle, such as a classifier of attributes.

    Raises:
        ArchiveError: The file is damaged, holds more than data, or not one network.
        ValueError: The network cannot be represented here; says what of it.
    """
    record = read_pickle(content)
    if not isinstance(record, TensorFlowNetwork):
        raise ArchiveError(f"the file is a {type(record).__name__}, not one network of TensorFlow")
    return _convert(record)


def _convert(record: TensorFlowNetwork | TorchModule) -> Imported:
    try:
        if isinstance(record, TensorFlowNetwork):
            return tensorflow.convert(record)
        return pytorch.convert(record)
    except ValueError:
        raise
    except Exception as err:  # fields of any type, where the official code has one
        raise ArchiveError(
            f"the file describes no network of the official code ({type(err).__name__}): it is "
            "damaged, or was made to look like one"
        ) from err
