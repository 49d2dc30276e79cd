"""The files of a generator, as they are registered and pulled: safetensors and JSON.

    G.safetensors    the averaged generator's tensors
    network.json     what they are the weights of
    metrics.json     values, each with the fingerprint of how it was measured
    lineage.json     data, configuration, code, checkpoint
    grid.png         samples
    digests.json     SHA-256 of each of them

The SHA-256 of digests.json stands for all: where it is known from elsewhere, no byte can have
changed unnoticed.

Nothing of ours is needed to read it. Tensors are float32 under their names in the module, such as
mapping.0.weight [o i], synthesis.blocks.8.conv0.weight [o i k k], synthesis.noise0 [1 1 h w] and
w_avg; a weight is stored before its equalized learning rate. network.json has the fields of the
kind's GeneratorConfig under "G", "lod" (0: full size) and, where an imported file said so,
"truncation" (psi, cutoff). `pipeline.export` writes other forms of it.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from data_prep import storage
from data_prep.manifest import DigestError
from pipeline.checkpoint import Checkpoints
from pipeline.marker import read_marker
from pipeline.revision import code_revision
from stylegan import sample
from stylegan.networks.interface import Generator
from stylegan.official import snapshot
from stylegan.official.names import Imported

FORMAT = 1
WEIGHTS, NETWORK, METRICS, LINEAGE = "G.safetensors", "network.json", "metrics.json", "lineage.json"
GRID = "grid.png"
DIGESTS = "digests.json"
FILES = (WEIGHTS, NETWORK, METRICS, LINEAGE, GRID)

_SNAPSHOT = ("snapshot", "checkpoint", "checkpoint_digest")


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A number and how it was measured."""

    value: float
    """Lower is better, unless the fingerprint says `better: higher`."""
    fingerprint: Mapping[str, Any]
    """Digests of data and feature network, filter, counts … and the snapshot itself."""

    def compare(self, other: "MetricValue", name: str) -> tuple[bool, str]:
        """Whether this is better, and a reason; values measured in different ways are not compared.

        The snapshot is what is compared, so it alone may differ.
        """
        keys = sorted((self.fingerprint.keys() | other.fingerprint.keys()) - set(_SNAPSHOT))
        pairs = [(key, self.fingerprint.get(key), other.fingerprint.get(key)) for key in keys]
        differences = [f"{key} {_short(a)} against {_short(b)}" for key, a, b in pairs if a != b]
        if differences:
            return False, f"{name} was measured differently ({'; '.join(differences)})"
        higher = self.fingerprint.get("better") == "higher"
        better = self.value > other.value if higher else self.value < other.value
        comparison = f"{name} {self.value:.4g} against {other.value:.4g}"
        return better, comparison if better else f"{comparison} is not better"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A generator and all that is known of it."""

    tensors: Mapping[str, Tensor]
    """Of the averaged generator, by their names in `Generator`."""
    network: Mapping[str, Any]
    """See `stylegan.sample.describe`; besides `lod`, if it still grows, and `truncation`, if it was
    imported from a file that says."""
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    """By name, e.g. fid300."""
    lineage: Mapping[str, Any]
    """data_digest, config_digest, code_revision, checkpoint, checkpoint_digest, nimg …"""
    grid: Image.Image | None = None
    """Samples; made by `write` if there are none."""

    def generator(self) -> Generator:
        """The network."""
        return sample.build(self.network, self.tensors)

    @property
    def lod(self) -> float:
        """Level of detail the weights were trained up to; 0 = full size."""
        return float(self.network.get("lod", 0.0))


def from_checkpoint(
    url: str,
    *,
    metrics: Mapping[str, MetricValue] | None = None,
    code_revision: str = "",
    grid: Image.Image | None = None,
) -> Bundle:
    """The generator of a committed checkpoint, which is verified.

    Raises:
        DigestError: The checkpoint is damaged.
        MissingError: There is none.
    """
    checkpoint = read_marker(url)
    tensors, scalars = Checkpoints.load(checkpoint, {"Gs"})
    return Bundle(
        tensors={name.removeprefix("Gs."): tensor for name, tensor in tensors.items()},
        network={**scalars.get("network", {}), "lod": scalars.get("lod", 0.0)},
        metrics=metrics or {},
        lineage={
            "checkpoint": checkpoint.url,
            "checkpoint_digest": checkpoint.digest,
            "nimg": checkpoint.nimg,
            "attempt": checkpoint.attempt,
            "code_revision": code_revision,
            **{key: scalars.get(key, "") for key in ("data_digest", "config_digest")},
            "tracking_run_id": scalars.get("tracking_run_id", ""),
        },
        grid=grid,
    )


def read_official(url: str, name: snapshot.Name = "Gs") -> tuple[Imported, dict[str, Any]]:
    """A network of an official pickle, which is read as data, and its lineage.

    Raises:
        ArchiveError: The file is damaged, or asks for more than data.
        StorageError: It cannot be read.
        ValueError: The network cannot be represented here; says what of it.
    """
    content = storage.read_bytes(url)
    imported = snapshot.read(content, name)
    lineage = {
        "source": url,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "source_network": name,
        "source_notes": "; ".join(imported.notes),
        "code_revision": code_revision(),
        **imported.facts,
    }
    return imported, lineage


def from_official(imported: Imported, lineage: Mapping[str, Any]) -> Bundle:
    """The generator of an official file."""
    assert isinstance(imported.network, Generator)
    network = {**sample.describe(imported.network.config), "lod": imported.lod}
    if imported.psi is not None:
        network["truncation"] = {"psi": imported.psi, "cutoff": imported.cutoff}
    return Bundle(tensors=imported.network.state_dict(), network=network, lineage=lineage)


def write(bundle: Bundle, folder: Path, *, grid: Image.Image) -> str:
    """Write the files of a bundle; the digest that stands for all."""
    contents = {
        WEIGHTS: safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.tensors.items()}
        ),
        NETWORK: _json(bundle.network),
        METRICS: _json({name: asdict(metric) for name, metric in bundle.metrics.items()}),
        LINEAGE: _json(bundle.lineage),
        GRID: _png(grid),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[DIGESTS] = _json({"format": FORMAT, "sha256": digests})
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return hashlib.sha256(contents[DIGESTS]).hexdigest()


def read_digests(content: bytes, *, url: str, anchor: str | None = None) -> dict[str, str]:
    """SHA-256 of each file, from the digests.json that lies at `url`.

    Raises:
        DigestError: Its own SHA-256 is not `anchor`, or it is none of ours.
    """
    if anchor is not None:
        verify(content, anchor, url=url)
    try:
        listed = json.loads(content)
        digests: dict[str, str] = listed["sha256"]
        if listed["format"] != FORMAT or set(digests) != set(FILES):
            raise ValueError(f"format {listed['format']}, files {', '.join(digests)}")
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DigestError(f"{url} is no {DIGESTS} of format {FORMAT}: {err!r}") from err
    return digests


def verify(content: bytes, sha256: str, *, url: str) -> None:
    """Refuse the content of a file whose SHA-256 is another.

    Raises:
        DigestError: Names the file.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DigestError(
            f"{url} was changed: its SHA-256 is {digest}, registered was {sha256}; it is not used"
        )


def load(folder: str | Path) -> Bundle:
    """Read and verify the files in a folder, which may be any URL.

    Raises:
        DigestError: One is not the file that was registered.
        StorageError: They cannot be read.
    """
    urls = {name: storage.join(str(folder), name) for name in (*FILES, DIGESTS)}
    digests = read_digests(storage.read_bytes(urls[DIGESTS]), url=urls[DIGESTS])
    contents = {}
    for name, sha256 in digests.items():
        try:
            contents[name] = storage.read_bytes(urls[name])
        except storage.MissingError as err:
            raise DigestError(f"{urls[name]} is missing, but {DIGESTS} names it") from err
        verify(contents[name], sha256, url=urls[name])
    try:
        tensors = safetensors.torch.load(contents[WEIGHTS])
    except SafetensorError as err:
        raise DigestError(f"{urls[WEIGHTS]} is no safetensors file: {err}") from err
    with Image.open(io.BytesIO(contents[GRID])) as grid:
        grid.load()
    return Bundle(
        tensors=tensors,
        network=json.loads(contents[NETWORK]),
        metrics=read_metrics(contents[METRICS]),
        lineage=json.loads(contents[LINEAGE]),
        grid=grid,
    )


def read_metrics(content: bytes) -> dict[str, MetricValue]:
    """What metrics.json holds."""
    return {name: MetricValue(**entry) for name, entry in json.loads(content).items()}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
