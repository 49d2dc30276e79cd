"""StyleGAN's generator and discriminator with progressive growing (Karras et al. 2019).

Both work at the native size of a level: at `lod` = k + t images are R / 2**k pixels wide, and t > 0
fades that level in. Blocks are named by their side: `synthesis.blocks.8.conv0.weight`.

Legend: n images, c h w, l layers, d label components.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan.layers import (
    HE_GAIN,
    Conv,
    DownConv,
    Linear,
    UpConv,
    activate,
    append_minibatch_stddev,
    instance_norm,
    normal,
    pixel_norm,
)
from stylegan.networks.growing import GrowingConfig, required
from stylegan.networks.mapping import Mapping, MappingConfig
from stylegan.resample import Blur, blocky_up, box_down

_FUSED_FROM_PX = 128


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(MappingConfig):
    """Size and switches of G (Karras et al. 2019, Sections 2 and 3, Tables 1 and 4)."""

    const_input: bool = True
    """A learned 4x4 constant as first layer; off = a dense layer from w."""
    use_styles: bool = True
    """Scale and shift by w in each layer (AdaIN); off = w enters the first layer alone."""
    use_noise: bool = True
    """Noise input in each layer."""
    use_instance_norm: bool = True
    """Normalize each feature map before its style."""
    use_pixel_norm: bool = False
    """Normalize the features of each pixel, as Progressive GAN does."""
    fused_scale: Literal["auto", "always", "never"] = "auto"
    """Which blocks store their first kernel flipped, as official weights do: `auto` from 128 px."""

    def fused(self, resolution: int) -> bool:
        """Whether the block of `resolution` stores its first kernel flipped."""
        if self.fused_scale == "auto":
            return resolution >= _FUSED_FROM_PX
        return self.fused_scale == "always"


class Epilogue(nn.Module):
    """What follows each synthesis convolution: noise, bias, activation, normalization, style."""

    def __init__(self, channels: int, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_strength = nn.Parameter(torch.zeros(channels)) if config.use_noise else None
        self.style = None
        if config.use_styles:
            shape = (2 * channels, config.w_size)
            self.style = Linear(shape, rng=rng, gain=1.0, use_wscale=config.use_wscale)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        w: Float[Tensor, "n w_size"],
        noise: Float[Tensor, "_ 1 h w"] | None,
    ) -> Float[Tensor, "n c h w"]:
        if self.noise_strength is not None:
            assert noise is not None, "a layer with a noise input got none"
            x = torch.addcmul(x, noise.to(x.dtype), self.noise_strength[:, None, None])
        x = activate(x + self.bias[:, None, None], self.config.activation)
        if self.config.use_pixel_norm:
            x = pixel_norm(x)
        if self.config.use_instance_norm:
            x = instance_norm(x)
        if self.style is not None:
            scale, shift = self.style(w)[:, :, None, None].chunk(2, dim=1)
            x = torch.addcmul(shift, x, scale + 1)
        return x


class SynthesisBlock(nn.Module):
    """Two layers at one resolution; the first of 4 px is a constant, or dense."""

    def __init__(
        self, resolution: int, config: GeneratorConfig, blur: Blur | None, rng: torch.Generator
    ) -> None:
        super().__init__()
        o, i, use_wscale = (
            config.fmaps(resolution),
            config.fmaps(resolution // 2),
            config.use_wscale,
        )
        self.blur = blur
        if resolution > 4:
            fused = config.fused(resolution)
            self.conv0 = UpConv((o, i, 3, 3), rng=rng, fused=fused, use_wscale=use_wscale)
        elif config.const_input:
            self.const = nn.Parameter(torch.ones(1, o, 4, 4))
        else:
            shape, gain = (o * 16, config.w_size), HE_GAIN / 4
            self.dense = Linear(shape, rng=rng, gain=gain, use_wscale=use_wscale, bias=False)
        self.epilogue0 = Epilogue(o, config, rng)
        self.conv1 = Conv((o, o, 3, 3), rng=rng, use_wscale=use_wscale, bias=False)
        self.epilogue1 = Epilogue(o, config, rng)

    def forward(
        self,
        x: Float[Tensor, "n i _ _"] | None,
        ws: Sequence[Float[Tensor, "n w_size"]],
        noise: Sequence[Float[Tensor, "_ 1 h w"] | None],
    ) -> Float[Tensor, "n o h w"]:
        y = self._first(ws[0]) if x is None else self.conv0(x)
        if x is not None and self.blur is not None:
            y = self.blur(y)
        y = self.epilogue0(y, ws[0], noise[0])
        features: Tensor = self.epilogue1(self.conv1(y), ws[1], noise[1])
        return features

    def _first(self, w: Float[Tensor, "n w_size"]) -> Tensor:
        if hasattr(self, "const"):
            const: Tensor = self.const
            return const.expand(w.shape[0], -1, -1, -1)
        dense: Tensor = self.dense(w)
        return dense.reshape(len(w), -1, 4, 4)


class Synthesis(nn.Module):
    """One w per layer to images (Karras et al. 2019, Figure 1b)."""

    def __init__(self, config: GeneratorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        blur = Blur(config.blur) if config.blur else None
        self.blocks = nn.ModuleDict()
        self.to_rgb = nn.ModuleDict()
        for resolution in config.resolutions():
            shape, use_wscale = (config.channels, config.fmaps(resolution), 1, 1), config.use_wscale
            self.blocks[str(resolution)] = SynthesisBlock(resolution, config, blur, rng)
            self.to_rgb[str(resolution)] = Conv(shape, rng=rng, gain=1.0, use_wscale=use_wscale)
        sides = [side for side in config.resolutions() for _ in range(2)]
        self.noise_sizes: tuple[int, ...] = tuple(sides) if config.use_noise else ()
        for layer, side in enumerate(self.noise_sizes):
            self.register_buffer(f"noise{layer}", normal((1, 1, side, side), rng))

    def forward(
        self,
        ws: Float[Tensor, "n l w_size"],
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        """Images at the native size of `lod`.

        Args:
            ws: One w per layer; without styles only the first is read.
            noise: [n 1 h w] per layer that `lod` reaches; None = the stored noise.
            lod: Level of detail; 0 = full resolution.
        """
        if noise is None:
            noise = [self.get_buffer(f"noise{layer}") for layer in range(len(self.noise_sizes))]
        x: Tensor | None = None
        previous: Tensor | None = None
        for index, resolution in enumerate(self.config.resolutions(lod)):
            layers = (2 * index, 2 * index + 1)
            w = [ws[:, min(layer, ws.shape[1] - 1)] for layer in layers]
            maps = [noise[layer] if self.noise_sizes else None for layer in layers]
            previous, x = x, self.blocks[str(resolution)](x, w, maps)

        # Fade between the images of two levels.
        *coarse, fine = self.config.heads(lod)
        images: Tensor = self.to_rgb[str(fine)](x)
        if coarse:
            enlarged = blocky_up(self.to_rgb[str(coarse[0])](previous))
            images = torch.lerp(images, enlarged, lod - int(lod))
        return images


class Generator(nn.Module):
    """StyleGAN's G: `mapping` (z to w), `broadcast`, `truncate`, `synthesis` (ws to images)."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__()
        rng = torch.Generator("cpu").manual_seed(seed)
        self.config = config
        self.mapping = Mapping(config, rng)
        self.synthesis = Synthesis(config, rng)
        self.num_layers = 2 * len(config.resolutions())
        self.noise_sizes = self.synthesis.noise_sizes
        """Side of each layer's noise in pixels; empty without noise inputs."""
        self.register_buffer("w_avg", torch.zeros(config.w_size))

    def broadcast(self, w: Float[Tensor, "n w_size"]) -> Float[Tensor, "n l w_size"]:
        """The same w for every layer; without styles there is only one."""
        layers = self.num_layers if self.config.use_styles else 1
        return w[:, None].expand(-1, layers, -1)

    def truncate(
        self, ws: Float[Tensor, "n l w_size"], *, psi: float, cutoff: int | None
    ) -> Float[Tensor, "n l w_size"]:
        """Draw the first layers towards the mean w (Karras et al. 2019, Appendix B).

        Args:
            ws: One w per layer.
            psi: 1 = unchanged, 0 = the mean.
            cutoff: How many layers, counted from the coarsest; None = none of them.
        """
        if cutoff is None or psi == 1:
            return ws
        truncated = torch.lerp(self.w_avg, ws[:, :cutoff], psi)
        return torch.cat([truncated, ws[:, cutoff:]], dim=1)

    def forward(
        self,
        z: Float[Tensor, "n z_size"],
        labels: Float[Tensor, "n d"] | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n c h w"]:
        images: Tensor = self.synthesis(
            self.broadcast(self.mapping(z, labels)), noise=noise, lod=lod
        )
        return images

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in images of `lod`."""
        blocks = [self.synthesis.blocks[str(side)] for side in self.config.resolutions(lod)]
        heads = [self.synthesis.to_rgb[str(side)] for side in self.config.heads(lod)]
        return _parameters([self.mapping, *blocks, *heads])


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(GrowingConfig):
    """Size and switches of D (Karras et al. 2018, Appendix A; 2019, Appendix C)."""

    mbstd_group: int = 4
    """Images per minibatch-stddev group; 0 or 1 = none."""
    mbstd_features: int = 1
    """Feature maps of minibatch stddev."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("mbstd_group", 0)
        self._at_least("mbstd_features", 1)
        if self.fmaps(4) % self.mbstd_features:
            raise ValueError(
                f"D.mbstd_features is {self.mbstd_features}; it must divide the {self.fmaps(4)} "
                "feature maps of the 4 px layer: choose 1"
            )


class DiscriminatorBlock(nn.Module):
    """Features at one resolution to features at half of it."""

    def __init__(
        self, resolution: int, config: DiscriminatorConfig, blur: Blur | None, rng: torch.Generator
    ) -> None:
        super().__init__()
        i, o = config.fmaps(resolution), config.fmaps(resolution // 2)
        self.activation = config.activation
        self.conv0 = Conv((i, i, 3, 3), rng=rng, use_wscale=config.use_wscale)
        self.blur = blur
        self.conv1 = DownConv((o, i, 3, 3), rng=rng, use_wscale=config.use_wscale)

    def forward(self, x: Float[Tensor, "n i H W"]) -> Float[Tensor, "n o h w"]:
        x = activate(self.conv0(x), self.activation)
        if self.blur is not None:
            x = self.blur(x)
        return activate(self.conv1(x), self.activation)


class DiscriminatorTail(nn.Module):
    """Features at 4 px to outputs, one for each label component."""

    def __init__(self, config: DiscriminatorConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        fmaps, use_wscale = config.fmaps(4), config.use_wscale
        hidden, outputs = config.fmaps(2), max(config.label_size, 1)
        extra = config.mbstd_features if config.mbstd_group > 1 else 0
        self.conv = Conv((fmaps, fmaps + extra, 3, 3), rng=rng, use_wscale=use_wscale)
        self.dense0 = Linear((hidden, fmaps * 16), rng=rng, use_wscale=use_wscale)
        self.dense1 = Linear((outputs, hidden), rng=rng, gain=1.0, use_wscale=use_wscale)

    def forward(self, x: Float[Tensor, "n i 4 4"]) -> Float[Tensor, "n o"]:
        group, features = self.config.mbstd_group, self.config.mbstd_features
        if group > 1:
            x = append_minibatch_stddev(x, group=group, features=features)
        x = activate(self.conv(x), self.config.activation)
        x = activate(self.dense0(x.flatten(1)), self.config.activation)
        outputs: Tensor = self.dense1(x)
        return outputs


class Discriminator(nn.Module):
    """StyleGAN's D: images at the native size of `lod` to logits."""

    def __init__(self, config: DiscriminatorConfig, *, seed: int = 0) -> None:
        """Initial weights are a function of `config` and `seed` alone."""
        super().__init__()
        rng = torch.Generator("cpu").manual_seed(seed)
        self.config = config
        blur = Blur(config.blur) if config.blur else None
        self.from_rgb = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for resolution in config.resolutions():
            shape = (config.fmaps(resolution), config.channels, 1, 1)
            self.from_rgb[str(resolution)] = Conv(shape, rng=rng, use_wscale=config.use_wscale)
            if resolution > 4:
                self.blocks[str(resolution)] = DiscriminatorBlock(resolution, config, blur, rng)
        self.tail = DiscriminatorTail(config, rng)

    def forward(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Float[Tensor, "n d"] | None = None,
        lod: float = 0.0,
    ) -> Float[Tensor, "n 1"]:
        *coarse, fine = self.config.heads(lod)
        if images.shape[-1] != fine:
            raise ValueError(
                f"D got images of {images.shape[-1]} px at lod {lod}, where it takes {fine} px; "
                "pass images of the level floor(lod)"
            )
        x = self._from_rgb(images, fine)
        for resolution in reversed(self.config.resolutions(lod)[1:]):
            x = self.blocks[str(resolution)](x)
            # Fade between the features of two levels.
            if coarse and resolution == fine:
                x = torch.lerp(x, self._from_rgb(box_down(images), coarse[0]), lod - int(lod))

        outputs: Tensor = self.tail(x)
        if self.config.label_size:
            weights = required(labels, self.config).to(outputs.dtype)
            return (outputs * weights).sum(dim=1, keepdim=True)
        return outputs

    def _from_rgb(self, images: Tensor, resolution: int) -> Tensor:
        return activate(self.from_rgb[str(resolution)](images), self.config.activation)

    def active_parameters(self, lod: float) -> list[nn.Parameter]:
        """Parameters that take part in logits of `lod`."""
        heads = [self.from_rgb[str(side)] for side in self.config.heads(lod)]
        blocks = [self.blocks[str(side)] for side in self.config.resolutions(lod)[1:]]
        return _parameters([*heads, *blocks, self.tail])


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]
