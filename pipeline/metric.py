"""Metrics by name, and values with what goes with them.

    metric = parse("ppl100k_wend", num_images=50_000)
    metric.names  # ("ppl100k_wend",)

A name is a kind, a number of generated images if it is another than usual, and how: fid, fid50k,
fid50k_mix2, pr50k_vgg16, ppl_wend. A number without its fingerprint is none: two that differ there
are not compared.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pipeline.bundle import MetricValue
from pipeline.known_weights import CLASSIFIERS
from stylegan.metrics.inception_input import CONVENTIONS, Convention

Kind = Literal["fid", "kid", "pr", "dc", "is", "ppl", "ls", "swd", "msssim"]
Pass = Literal["images", "paths", "latents", "pairs"]
"""What is sampled: images for all metrics that compare sets, or something of its own."""

INCEPTION, LOGITS = "inception-2015-12-05", "inception-2015-12-05-logits"
PATCHES = "laplacian-patches"
"""Of images, without a feature network."""
NETWORKS: Mapping[str, str] = {
    "fid": INCEPTION,
    "kid": INCEPTION,
    "pr": INCEPTION,
    "dc": INCEPTION,
    "is": INCEPTION,
    "ppl": "lpips-vgg16",
    "ls": CLASSIFIERS,
    "swd": PATCHES,
    "msssim": "",
}
"""Feature network of each kind of metric, unless its name says another."""
PASSES: Mapping[str, Pass] = {"ppl": "paths", "ls": "latents", "msssim": "pairs"}
"""Of the kinds that look at other things than images."""
HIGHER = ("precision", "recall", "density", "coverage", "is")
"""Values that are better the higher they are; all others the lower."""
MOST_MIXED = 4

_NAME = re.compile(r"([a-z]+)(?:(\d+)(k?))?((?:_[a-z0-9]+)*)")
_LABELS: Mapping[str, tuple[str, ...]] = {
    "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
}
assert set(NETWORKS) == set(get_args(Kind))


class Look(NamedTuple):
    """What looks at images."""

    network: str
    convention: Convention = "official"
    """How images are brought to Inception."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as it is asked for."""

    kind: str
    """See `Kind`."""
    count: int
    """Generated images; of `ppl` and `msssim` pairs of them."""
    network: str
    """Feature network; empty for none."""
    convention: Convention = "official"
    """How images are brought to Inception; of other tools by their name."""
    mixed: int = 1
    """Latents that each image is mixed of (Karras et al. 2019, Table 2)."""
    space: Literal["z", "w"] = "w"
    """Of path lengths."""
    sampling: Literal["full", "end"] = "end"
    """Of path lengths: anywhere on the path, or at its begin."""

    @property
    def sampled(self) -> Pass:
        """What it is computed of."""
        return PASSES.get(self.kind, "images")

    @property
    def look(self) -> Look:
        """What looks at the images, and how."""
        return Look(self.network, self.convention)

    @property
    def compares(self) -> bool:
        """Whether it looks at real images, too."""
        return self.kind in ("fid", "kid", "pr", "dc", "swd")

    @property
    def needs(self) -> tuple[str, ...]:
        """Feature networks without which it cannot be computed."""
        found = (self.network, LOGITS) if self.kind == "is" else (self.network,)
        return tuple(name for name in found if name not in ("", PATCHES))

    @property
    def names(self) -> tuple[str, ...]:
        """Of its values, the decisive one first, such as precision50k and recall50k."""
        if self.kind == "ls":
            return self._named("ls", "z"), self._named("ls", "w")
        if self.kind == "is":
            return self._named("is"), self._named("is", "std")
        return tuple(self._named(label) for label in _LABELS.get(self.kind, (self.kind,)))

    def _named(self, label: str, *suffixes: str) -> str:
        how = [f"{self.space}{self.sampling}"] if self.kind == "ppl" else []
        if self.network != NETWORKS[self.kind]:
            how.append(self.network.removeprefix("lpips-"))
        if self.convention != "official":
            how.append(self.convention)
        if self.mixed > 1:
            how.append(f"mix{self.mixed}")
        return "_".join([metric_name(label, self.count), *how, *suffixes])


def parse(name: str, num_images: int) -> Metric:
    """The metric of a name; `num_images` is its count if the name has none.

    Raises:
        ValueError: There is no such metric; lists them.
    """
    found = _NAME.fullmatch(name)
    if not found or found[1] not in NETWORKS:
        raise ValueError(f"{name!r} is no metric; choose from {', '.join(NETWORKS)}, {_RULE}")
    kind, suffixes = found[1], found[4].split("_")[1:]
    count = int(found[2]) * (1000 if found[3] else 1) if found[2] else num_images
    options: dict[str, Any] = {"network": NETWORKS[kind]}
    for suffix in suffixes:
        options |= _option(kind, suffix, name)
    if kind == "ppl" and "space" not in options:
        raise ValueError(f"{name!r} does not say along which path; write ppl_wend, {_RULE}")
    if "convention" in options and options["network"] != INCEPTION:
        raise ValueError(f"{name!r} has Inception's resize, but another network; leave out one")
    return Metric(kind=kind, count=count, **options)


def with_count(name: str, count: int) -> str:
    """The name of a metric with another number of images, as fid300 of fid50k.

    Raises:
        ValueError: There is no such metric.
    """
    parse(name, count)
    found = _NAME.fullmatch(name)
    assert found is not None
    return f"{found[1]}{count}{found[4]}"


_TOOLS = [name for name in CONVENTIONS if name != "official"]
_RULE = (
    f"with a number of images as in fid50k, and pr_vgg16, fid_mix2 (to 4), resized as other tools "
    f"do it as in fid_cleanfid ({', '.join(_TOOLS)}), ppl_zfull, ppl_zend, ppl_wfull, ppl_wend"
)


def _option(kind: str, suffix: str, name: str) -> dict[str, Any]:
    path = re.fullmatch("([zw])(full|end)", suffix)
    mixed = re.fullmatch(f"mix([1-{MOST_MIXED}])", suffix)
    if path and kind == "ppl":
        return {"space": path[1], "sampling": path[2]}
    if mixed and PASSES.get(kind, "images") == "images":
        return {"mixed": int(mixed[1])}
    if suffix in _TOOLS and NETWORKS[kind] == INCEPTION:
        return {"convention": suffix}
    if suffix == "vgg16" and kind in _LABELS:
        return {"network": "vgg16"}
    if suffix == "alexnet" and kind == "ppl":
        return {"network": "lpips-alexnet"}
    raise ValueError(f"{name!r} has _{suffix}, which {kind} does not know; write it {_RULE}")


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A value, what it was measured on and how."""

    name: str
    """Metric and number of generated images, e.g. fid50k."""
    value: float
    """Lower is better, unless the fingerprint says `better: higher`."""
    fingerprint: Mapping[str, Any]
    """All that the value depends on but the generator; what JSON can hold."""
    subject: Mapping[str, Any]
    """The generator: url, digest, nimg, attempt, lod."""
    note: str = ""
    """What a reader of the value should know, if anything."""

    @property
    def fingerprint_digest(self) -> str:
        """SHA-256 of the fingerprint."""
        return _digest(self.fingerprint)

    @property
    def sign(self) -> int:
        """What to multiply the value by so that lower is better."""
        return -1 if self.fingerprint.get("better") == "higher" else 1

    def as_value(self) -> MetricValue:
        """As it goes to the registry, which leaves `snapshot` out when it compares."""
        snapshot = self.subject["digest"]
        return MetricValue(value=self.value, fingerprint={**self.fingerprint, "snapshot": snapshot})


def comparable(a: MetricResult, b: MetricResult) -> bool:
    """Whether the two were measured in the same way, on whatever generators."""
    return a.fingerprint == b.fingerprint


def differences(a: MetricResult, b: MetricResult) -> Sequence[str]:
    """What of the fingerprints differs, one line each; none where the two may be compared."""
    keys = sorted(a.fingerprint.keys() | b.fingerprint.keys())
    pairs = [(key, a.fingerprint.get(key), b.fingerprint.get(key)) for key in keys]
    return [f"{key}: {x} against {y}" for key, x, y in pairs if x != y]


def metric_name(metric: str, fakes: int) -> str:
    """How a metric of so many generated images is called, e.g. fid50k or fid300."""
    return f"{metric}{fakes // 1000}k" if fakes % 1000 == 0 else f"{metric}{fakes}"


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
