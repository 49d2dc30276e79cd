"""What stands on the page: sections of pictures, each with a sentence on how to read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from pipeline import grids
from pipeline.figures import Span, metric_label, phase_spans
from pipeline.report import charts, pictures
from pipeline.report.inside import DROPLET_SEEDS, REACH, Inside
from pipeline.report.pictures import Picture, of_image, of_svg
from pipeline.report.records import Run, SampleGrid
from stylegan import diagnosis
from stylegan.sample import to_uint8

_MOST_STRIPS = 12
_IN_STRIP, _IN_SHEET = 8, 32
_MEASURED = 6
"""Curves of metrics that are shown."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    text: str
    pictures: Sequence[Picture]
    layout: Literal["grid", "strips", "strips small"] = "grid"


def sections(run: Run, inside: Inside) -> list[Section]:
    """All that there is something to show for."""
    made = [_strip(run), _curves(run), _distributions(run, inside), _resolutions(run, inside)]
    made += [_latents(inside), _features(inside)]
    return [section for section in made if section.pictures]


def _strip(run: Run) -> Section:
    rows = []
    for grid in _spread(run.grids, _MOST_STRIPS):
        cells = grid.cells[:_IN_STRIP]
        rows.append(
            of_image(
                f"samples-{grid.nimg:012d}",
                pictures.row(cells),
                title=f"{grid.nimg / 1000:.1f} kimg",
                caption=f"{grid.side} px",
                alt=f"{len(cells)} samples after {grid.nimg / 1000:.1f} thousand images",
            )
        )
    return Section(
        id="film",
        title="How it learned",
        text="The same latents after more and more images shown (kimg: thousands), drawn by the "
        "averaged generator without truncation, at the resolution it had reached.",
        pictures=rows,
        layout="strips",
    )


def _curves(run: Run) -> Section:
    spans = _spans(run)
    return Section(
        id="curves",
        title="Curves",
        text="Shaded: a resolution fades in. Losses of a GAN do not fall as it gets better; what "
        "should fall are the distances to the real images.",
        pictures=[*_metric_curves(run, spans), *_loss_curves(run, spans)],
    )


def _metric_curves(run: Run, spans: Sequence[Span]) -> Iterator[Picture]:
    names = [name for name in sorted(run.history) if name.startswith("metric/")]
    for name in names[:_MEASURED]:
        points, label = run.history[name], metric_label(name)
        yield of_svg(
            f"curve-{name.removeprefix('metric/')}",
            charts.curves({label: points}, spans=spans, from_zero=True),
            title=label,
            caption=f"{points[0][1]:.4g} → {points[-1][1]:.4g}",
            alt=f"{label} over the images shown: {points[0][1]:.4g} to {points[-1][1]:.4g}",
        )


def _loss_curves(run: Run, spans: Sequence[Span]) -> Iterator[Picture]:
    panels = [
        ("losses", "Losses", {"D": "loss/D", "G": "loss/G"}, ""),
        ("r1", "Gradient penalty R1", {"R1": "loss/r1"}, "How steep D is at the real images."),
        ("gp", "Gradient penalty of WGAN-GP", {"GP": "loss/gp"}, ""),
        ("path", "Path length regularization", {"path": "loss/path"}, ""),
        ("pace", "Seconds per thousand images", {"s": "time/sec_per_kimg"}, ""),
    ]
    for name, title, names, caption in panels:
        series = {label: run.history[key] for label, key in names.items() if run.history.get(key)}
        if series:
            svg = charts.curves(
                series,
                spans=spans,
                from_zero=name != "losses",
                colors=(charts.VIOLET, charts.GREEN),
            )
            yield of_svg(
                f"curve-{name}", svg, title=title, caption=caption, alt=f"{title} over kimg"
            )


def _distributions(run: Run, inside: Inside) -> Section:
    return Section(
        id="real",
        title="Real or generated",
        text="Where D's logits of both lie on each other, it cannot tell them apart; where they do "
        "not touch, G has little to learn from it.",
        pictures=[*_sheets(inside), *_logits(run, inside)],
    )


def _sheets(inside: Inside) -> Iterator[Picture]:
    if inside.reals is None:
        return
    for name, title, images, caption in (
        ("reals", "Real images", inside.reals, "As D sees them, spread over the data set."),
        ("fakes", "Generated images", inside.images, "Of the first seeds, without truncation."),
    ):
        sheet = grids.sheet(to_uint8(images[:_IN_SHEET]), columns=_IN_STRIP)
        yield of_image(name, sheet, title=title, caption=caption, alt=title)


def _logits(run: Run, inside: Inside) -> Iterator[Picture]:
    if inside.logits:
        real, fake = inside.logits["real"], inside.logits["fake"]
        means = f"means {float(real.mean()):.2f} and {float(fake.mean()):.2f}"
        yield of_svg(
            "logits",
            charts.histogram(
                {"real images": real, "generated": fake}, xlabel="logit of D: larger = more real"
            ),
            title="What D says now",
            caption=f"{len(real)} real images and as many of G; {means}.",
            alt=f"Histograms of D's logits of real and generated images; {means}",
        )
    names = {"real images": "signs/real", "generated": "signs/fake"}
    series = {label: run.history[key] for label, key in names.items() if run.history.get(key)}
    if series:
        yield of_svg(
            "curve-signs",
            charts.curves(series, spans=_spans(run), colors=(charts.BLUE, charts.RED)),
            title="What D said",
            caption="Mean sign of its logits: 1 and -1 where it is always right, 0 where it "
            "guesses.",
            alt="Mean signs of D's logits over kimg",
        )


def _resolutions(run: Run, inside: Inside) -> Section:
    """Contribution of each resolution (Karras et al. 2020, Section 4.1)."""
    made = []
    found = [(grid.nimg, diagnosis.octaves(grid.tensor())) for grid in run.grids]
    sides = sorted({side for _, octaves in found for side in octaves})
    if sides:
        made.append(
            of_svg(
                "octaves",
                charts.curves(
                    {
                        f"{side} px": [(nimg, o[side]) for nimg, o in found if side in o]
                        for side in sides
                    },
                    from_zero=True,
                    colors=charts.by_resolution(len(sides)),
                    goals={f"{side} px": value for side, value in inside.octaves_real.items()},
                ),
                title="Detail in the images",
                caption="Standard deviation of what each resolution adds to the next coarser one"
                + ("; dashes at the right: real images." if inside.octaves_real else "."),
                alt="Detail at each resolution over kimg",
            )
        )
    if inside.contributions:
        sides = sorted(inside.contributions[-1][1])
        made.append(
            of_svg(
                "to-rgb",
                charts.curves(
                    {
                        f"{side} px": [(n, c[side]) for n, c in inside.contributions]
                        for side in sides
                    },
                    from_zero=True,
                    colors=charts.by_resolution(len(sides)),
                ),
                title="What each ToRGB adds",
                caption="Standard deviation of the pixels of each skip connection, at the "
                "checkpoints that were kept.",
                alt="Contribution of each ToRGB over kimg",
            )
        )
    return Section(
        id="resolutions",
        title="Which resolution does the work",
        text="Training goes from coarse to fine: fine resolutions should take over late, and reach "
        "what real images have. Where the finest adds less than that, its capacity is the limit "
        "(Karras et al. 2020, Section 4.1).",
        pictures=made,
    )


def _latents(inside: Inside) -> Section:
    made: list[Picture] = []
    if inside.components is not None and inside.w is not None:
        colors = ((inside.images.mean(dim=(2, 3)) + 1) / 2).clamp(0, 1)
        if colors.shape[1] < 3:
            colors = colors[:, :1].expand(-1, 3)
        made.append(
            of_svg(
                "w",
                charts.scatter(inside.w, colors=colors[:, :3], shares=inside.components.shares),
                title="Where images lie in w",
                caption="Each dot is an image, in its mean colour.",
                alt="Latents along the first two principal components",
                height=charts.TALL_PX,
            )
        )
        made.append(
            of_svg(
                "w-shares",
                charts.shares(inside.components),
                title="How many directions matter",
                caption="Principal components of 4,096 w.",
                alt="Share of the variance of each component",
                height=charts.TALL_PX,
            )
        )
        made += [
            of_image(
                f"w-component-{number}",
                pictures.tensor_row(images),
                title=f"Component {number}",
                caption=f"{float(share):.0%} of the variance: from -{REACH:g} to +{REACH:g} "
                "standard deviations, the mean w in the middle.",
                alt=f"Images along component {number}",
            )
            for number, (images, share) in enumerate(
                zip(inside.walks, inside.components.shares, strict=False), start=1
            )
        ]
    return Section(
        id="latents",
        title="Inside w",
        text="The intermediate latent space, along the directions in which it varies most "
        "(principal components; Härkönen et al. 2020).",
        pictures=made,
    )


def _features(inside: Inside) -> Section:
    """Droplets (Karras et al. 2020, Section 2)."""
    made = []
    for side, norms in inside.norms.items():
        maps = [pictures.norm_map(norm) for norm in norms]
        made.append(
            of_image(
                f"norms-{side}",
                pictures.row(maps),
                title=f"{side} px",
                caption=f"peak {inside.peaks[side]:.1f} times",
                alt=f"Feature norms at {side} px; highest {inside.peaks[side]:.1f} medians",
            )
        )
    if made:
        thumbs: list[Image.Image] = [
            pictures.thumbnail(image) for image in inside.images[: len(DROPLET_SEEDS)]
        ]
        images = of_image("norms-images", pictures.row(thumbs), title="Images", alt="The images")
        made.insert(0, images)
    return Section(
        id="features",
        title="Feature maps",
        text="Length of the feature vector at each pixel behind each block, in medians of its map: "
        f"black 1/{pictures.BRIGHTEST:g}, white {pictures.BRIGHTEST:g} times. StyleGAN's droplets "
        "are a small spot of dozens of times the median in every image (Karras et al. 2020, "
        "Section 2). The peak is that of 32 images.",
        pictures=made,
        layout="strips small",
    )


def _spans(run: Run) -> list[Span]:
    lods = run.history.get("progress/lod", ())
    return phase_spans(lods, resolution=run.config.network.resolution)


def _spread(every: Sequence[SampleGrid], most: int) -> list[SampleGrid]:
    """At most so many, evenly spaced, the first and the last among them."""
    if len(every) <= most:
        return list(every)
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]
