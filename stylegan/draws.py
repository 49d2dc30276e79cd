"""Every random number of a training, as a function of (seed, purpose, attempt, global image index).

    draws = Draws(seed=0, attempt=0)
    z = draws.normal(Purpose.Z, step=D_STEP, indices=indices, count=512)  # [n, 512]

Philox4x32-10 (Salmon et al. 2011): the key is seed, purpose and attempt, the counter image index
and position. Nothing is kept between calls, so a worker draws the numbers of its own images and no
others, and a resumed run draws what the undisturbed one would have. Integers and floats are equal
bit for bit on every device: normals come from a table and one multiplication and addition, not from
logarithms that differ between machines.

Legend: n images, c numbers per image, l layers, z latent size, h w side of a layer, u dropout
numbers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF

MAX_SEED = 2**32 - 1
MAX_ATTEMPT = 2**16 - 1

D_STEP, G_STEP, PATH_STEP = 0, 1, 64
"""Updates that draw the same kind of numbers; 2 * purpose + step never meets for two of them."""


class Purpose(IntEnum):
    """What a number is for; the values are part of what a seed means and never change."""

    Z = 1
    Z_MIX = 2
    MIX_COIN = 3
    MIX_CUTOFF = 4
    NOISE = 5
    MIRROR = 6
    GP_MIX = 7
    LABEL = 8
    PATH_NOISE = 9
    EVAL_Z = 10
    EVAL_NOISE = 11
    EVAL_LABEL = 12
    REAL_DROPOUT = 13
    FAKE_DROPOUT = 14
    EVAL_MIX = 15
    EVAL_PATH = 16
    PROJECTION_Z = 17
    PROJECTION_W = 18
    PROJECTION_NOISE = 19


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorDraws:
    """What G needs for one part of a minibatch."""

    z: Float[Tensor, "n z"]
    z_mix: Float[Tensor, "n z"] | None
    """Latents of the layers from `cutoff` on; None without style mixing."""
    cutoff: Int64[Tensor, " n"]
    """First layer that takes `z_mix`; the number of layers reached where nothing is mixed."""
    noise: Sequence[Float[Tensor, "n 1 _ _"]] | None
    """Of the layers that the level reaches; None for the noise that G stores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscriminatorDraws:
    """What D needs for one part of a minibatch; None where nothing is drawn."""

    gp_mix: Float[Tensor, "n 1 1 1"] | None = None
    """WGAN-GP's place between real and fake."""
    real_dropout: Float[Tensor, "n u"] | None = None
    fake_dropout: Float[Tensor, "n u"] | None = None


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one run."""

    seed: int
    attempt: int = 0
    """Rollbacks so far: a run that was rolled back does not repeat itself."""
    fused: bool = False
    """Compute them in one compiled pass: the same bits; the first call takes seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; choose from 0 to {MAX_SEED}")
        if not 0 <= self.attempt <= MAX_ATTEMPT:
            raise ValueError(f"attempt is {self.attempt}; it must lie between 0 and {MAX_ATTEMPT}")

    def bits(
        self,
        purpose: Purpose,
        *,
        step: int = 0,
        indices: Int64[Tensor, " n"],
        count: int,
        start: int = 0,
    ) -> Int64[Tensor, "n c"]:
        """Integers from 0 to 2^32 - 1.

        Args:
            purpose: What for.
            step: D_STEP, G_STEP or PATH_STEP, where more than one of them draws.
            indices: Global image indices.
            count: Numbers per image.
            start: Position of the first one, a multiple of 4.
        """
        if start % 4:
            raise ValueError(f"start is {start}; Philox gives 4 numbers at a time: a multiple of 4")
        blocks = torch.arange(start // 4, -(-(start + count) // 4), device=indices.device)
        key = self._key(purpose, step)
        if self.fused:
            words = _fused_words()(blocks, indices, *(torch.tensor(word) for word in key))
        else:
            words = _words(blocks, indices, *key)
        return words[:, :count]

    def _key(self, purpose: Purpose, step: int) -> tuple[int, int]:
        return self.seed, (2 * purpose + step) << 16 | self.attempt

    def uniform(
        self, purpose: Purpose, *, step: int = 0, indices: Int64[Tensor, " n"], count: int
    ) -> Float32[Tensor, "n c"]:
        """Multiples of 2^-24 in [0, 1)."""
        bits = self.bits(purpose, step=step, indices=indices, count=count)
        return (bits >> 8).to(torch.float32) * 2.0**-24

    def normal(
        self,
        purpose: Purpose,
        *,
        step: int = 0,
        indices: Int64[Tensor, " n"],
        count: int,
        start: int = 0,
    ) -> Float32[Tensor, "n c"]:
        """Standard normal numbers."""
        return normal_of_bits(
            self.bits(purpose, step=step, indices=indices, count=count, start=start)
        )

    def generator(
        self,
        step: int,
        indices: Int64[Tensor, " n"],
        *,
        first_index: int,
        z_size: int,
        noise_sides: Sequence[int],
        layers: int,
        mixing_prob: float,
    ) -> GeneratorDraws:
        """All that G needs for the images with these indices.

        Args:
            step: D_STEP, G_STEP or PATH_STEP.
            indices: Global image indices of this part.
            first_index: Global index of the first image of the whole minibatch, which keys the
                one coin and the one cutoff of style mixing.
            z_size: Length of z.
            noise_sides: Side in pixels of each noise input that the current level reaches.
            layers: Layers that the current level reaches; with only one nothing is mixed.
            mixing_prob: Probability of style mixing.
        """
        latents = functools.partial(self.normal, step=step, indices=indices, count=z_size)
        mixing = mixing_prob > 0 and layers > 1
        cutoff = self._cutoff(step, first_index, layers, mixing_prob) if mixing else layers
        return GeneratorDraws(
            z=latents(Purpose.Z),
            z_mix=latents(Purpose.Z_MIX) if mixing else None,
            cutoff=torch.full_like(indices, cutoff),
            noise=self.noise(Purpose.NOISE, step=step, indices=indices, sides=noise_sides),
        )

    def noise(
        self,
        purpose: Purpose,
        *,
        step: int = 0,
        indices: Int64[Tensor, " n"],
        sides: Sequence[int],
    ) -> list[Float32[Tensor, "n 1 _ _"]]:
        """Noise inputs of the first layers, whose sides these are; a layer's own at every lod."""
        areas = [side * side for side in sides]
        if not areas:
            return []
        flat = self.normal(purpose, step=step, indices=indices, count=sum(areas))
        parts = flat.split(areas, dim=1)
        return [part.unflatten(1, (1, side, side)) for part, side in zip(parts, sides, strict=True)]

    def mirror(self, indices: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which reals are flipped."""
        return self.bits(Purpose.MIRROR, indices=indices, count=1)[:, 0] >> 31 == 1

    def gp_mix(self, indices: Int64[Tensor, " n"]) -> Float32[Tensor, "n 1 1 1"]:
        """WGAN-GP's place between real and fake."""
        return self.uniform(Purpose.GP_MIX, indices=indices, count=1)[:, :, None, None]

    def samples(self, indices: Int64[Tensor, " n"], *, samples: int) -> Int64[Tensor, " n"]:
        """A sample number for each image of the G step, whose label it takes."""
        bits = self.bits(Purpose.LABEL, indices=indices, count=2)
        # 53 bits over at most 2^31 samples: the bias is below 2^-22.
        return ((bits[:, 0] << 21) + (bits[:, 1] >> 11)) % samples

    def _cutoff(self, step: int, first_index: int, layers: int, mixing_prob: float) -> int:
        """One coin and one cutoff in [1, layers) a minibatch, drawn on the host.

        Without mixing it is `layers`, which no evaluated layer comes up to.
        """
        coin, place = (
            (
                philox((0, 0, first_index >> 32, first_index & _LOW), self._key(purpose, step))[0]
                >> 8
            )
            * 2.0**-24
            for purpose in (Purpose.MIX_COIN, Purpose.MIX_CUTOFF)
        )
        return layers if coin >= mixing_prob else 1 + int(place * (layers - 1))


Word = TypeVar("Word", int, Tensor)


def philox(counter: Sequence[Word], key: tuple[Word | int, Word | int]) -> list[Word]:
    """Philox4x32-10 of 4 words of 32 bits, or int64 tensors of such (Salmon et al. 2011, 3.3)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product wraps at 64 bits, whose two's complement has the right words all the same.
        p0, p1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = (
            ((p1 >> 32) & _LOW) ^ x1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ x3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [x0, x1, x2, x3]


def _words(
    blocks: Int64[Tensor, " b"],
    indices: Int64[Tensor, " n"],
    k0: int | Int64[Tensor, ""],
    k1: int | Int64[Tensor, ""],
) -> Int64[Tensor, "n c"]:
    """Four words of each block for each index."""
    high, low = indices[:, None] >> 32, indices[:, None] & _LOW
    x = [blocks[None, :], torch.zeros_like(blocks)[None, :], low, high]
    return torch.stack(torch.broadcast_tensors(*philox(x, (k0, k1))), dim=-1).flatten(1)


@functools.cache
def _fused_words() -> Callable[..., Tensor]:
    return torch.compile(_words, dynamic=True)


# The table of quantiles has 128 steps in each octave of the probability, so it is as fine in the
# tail (to 6.3 sigma) as in the middle; the floating-point format of the probability is its index.
_STEP_BITS = 16
_FIRST = 0x3F000000 >> _STEP_BITS  # of 0.5, the smallest value
_LAST = 0x4F000000 >> _STEP_BITS  # of 2^31, where the quantile is 0


def normal_of_bits(bits: Int64[Tensor, "*c"]) -> Float32[Tensor, "*c"]:
    """Standard normal numbers of 32 random bits: one the sign, 31 the quantile of the magnitude.

    The quantile function is interpolated linearly; errors are below 1e-5.
    """
    values, steps = _quantiles(bits.device)
    # float32 rounds to nearest on every machine.
    place = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5).view(torch.int32)
    index = (place >> _STEP_BITS) - _FIRST
    fraction = (place & ((1 << _STEP_BITS) - 1)).to(torch.float32) * 2.0**-_STEP_BITS
    magnitude = values[index] + fraction * steps[index]
    return torch.where(bits >> 31 == 1, -magnitude, magnitude)


@functools.cache
def _quantiles(device: torch.device) -> tuple[Tensor, Tensor]:
    """Magnitude at each step of the table, and its change to the next."""
    edges = torch.arange(_FIRST, _LAST + 2, dtype=torch.int32) << _STEP_BITS
    probabilities = edges.view(torch.float32).double().clamp(max=2.0**31) * 2.0**-32
    values = torch.special.ndtri(probabilities).neg().clamp(min=0).to(torch.float32)
    return values[:-1].to(device), values.diff().to(device)
