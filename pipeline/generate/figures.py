"""`figures`: the figures of the paper that a generator can give, on one sheet."""

import argparse
import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pipeline import animation, grids
from pipeline.generate import arithmetic, interpolate, mix, noise, truncation
from pipeline.generate.options import CELL_PX, add_command
from pipeline.model import Model

_SEEDS = 32
_WIDEST_PX = 1600
_FILM_FPS = 15
_EXAMPLES = """examples:
  %(prog)s --model models:/faces@champion --out figures.html
  %(prog)s --model ffhq.pkl --out figures.pdf

One file that needs no other: .html with a film of an interpolation, or .pdf with a page for each
figure. What the network cannot give, such as mixing without styles, is listed with the reason."""
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#2b2f36;max-width:1000px;margin:2rem auto;"
    "padding:0 1rem}img{max-width:100%;image-rendering:pixelated}h2{margin-top:2.5rem}"
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture or a film, or why there is none."""

    title: str
    text: str
    image: Image.Image | None = None
    film: Sequence[Image.Image] = ()
    reason: str = ""


def add_to(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "figures",
        run=run,
        summary="all figures of the papers that the model can give, as one HTML or PDF",
        examples=_EXAMPLES,
    )
    parser.add_argument("--label", type=int, help="class, where the network has labels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html|pdf")


def run(model: Model, args: argparse.Namespace) -> str:
    """Draw all figures and write them."""
    form = args.out.suffix.lower()
    if form not in (".html", ".pdf"):
        raise ValueError(f"{args.out} is neither .html nor .pdf; choose one of them")
    drawn = draw(model, labels=args.label, film=form == ".html")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if form == ".html":
        args.out.write_text(as_html(str(model), drawn))
    else:
        pages = [_page(figure) for figure in drawn if figure.image]
        pages[0].save(args.out, save_all=True, append_images=pages[1:], title=str(model))
    given = [figure for figure in drawn if not figure.reason]
    lacking = "".join(f"\nleft out: {f.title.lower()}: {f.reason}" for f in drawn if f.reason)
    return f"{len(given)} figures in {args.out}{lacking}"


def draw(model: Model, *, labels: int | None = None, film: bool = True) -> list[Figure]:
    """The figures in the order of the papers; those that the network cannot give have a reason."""
    options: dict[str, Any] = {"labels": labels}
    psi = model.Gs.usual_psi
    sums = [(1, [0, 1, 2]), (-1, [3, 4, 5]), (1, [6, 7, 8])]

    def samples(psi: float) -> Image.Image:
        return grids.sheet(model.sample(range(_SEEDS), psi=psi, **options), columns=8)

    def walk() -> list[Image.Image]:
        return list(
            interpolate.frames(
                model, interpolate.path(model, range(4), frames=_FILM_FPS, **options)
            )
        )

    figures = [
        _figure(
            "Samples", f"Images of seeds 0 to {_SEEDS - 1}, psi = {psi:g}.", lambda: samples(psi)
        ),
        _figure(
            "Style mixing",
            "Sources A above, sources B on the left; each image has the named styles of its B and "
            "the others of its A (Karras et al. 2019, Figure 3).",
            lambda: mix.table(model, range(5), **options),
        ),
        _figure(
            "Stochastic variation",
            "Images that differ in nothing but noise, and the standard deviation of each pixel "
            "over 100 of them; below, noise in some layers alone (Karras et al. 2019, Figures 4 "
            "and 5).",
            lambda: noise.table(model, range(2), **options),
        ),
        _figure(
            "Truncation",
            "From the image of a seed to the mean image and beyond (Karras et al. 2019, Figure 8).",
            lambda: truncation.table(model, range(4), **options),
        ),
        _figure(
            "Latent arithmetic",
            "Sums and differences of mean latents (Radford et al. 2016, Figure 7).",
            lambda: arithmetic.picture(model, sums, space="w", **options),
        ),
    ]
    if psi != 1:
        text = "The same seeds without truncation, psi = 1."
        figures.insert(1, _figure("Samples without truncation", text, lambda: samples(1.0)))
    if film:
        text = "From seed 0 by way of 1, 2 and 3 back to it, along lines in w."
        figures.append(Figure(title="Interpolation", text=text, film=walk()))
    return figures


def as_html(title: str, figures: Sequence[Figure]) -> str:
    """A page that loads nothing."""
    parts = []
    for figure in figures:
        parts.append(f"<h2>{html.escape(figure.title)}</h2><p>{html.escape(figure.text)}</p>")
        if figure.reason:
            parts.append(f"<p><em>Not with this network: {html.escape(figure.reason)}.</em></p>")
        else:
            kind, content = _content(figure)
            data = base64.b64encode(content).decode()
            name = html.escape(figure.title, quote=True)
            parts.append(f'<p><img alt="{name}" src="data:image/{kind};base64,{data}"></p>')
    name = html.escape(title)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang='en'><head>{head}</head><body><h1>{name}</h1>" + (
        "\n".join(parts) + "</body></html>\n"
    )


def _figure(title: str, text: str, make: Callable[[], Image.Image]) -> Figure:
    try:
        return Figure(title=title, text=text, image=make())
    except ValueError as err:
        return Figure(title=title, text=text, reason=str(err))


def _content(figure: Figure) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    if figure.film:
        animation.save(figure.film, buffer, "WEBP", fps=_FILM_FPS)
        return "webp", buffer.getvalue()
    assert figure.image is not None
    image = figure.image
    if image.width > _WIDEST_PX:
        image = image.resize((_WIDEST_PX, round(image.height * _WIDEST_PX / image.width)))
    image.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()


def _page(figure: Figure) -> Image.Image:
    """Title and text above the picture."""
    assert figure.image is not None
    margin = CELL_PX // 4
    width = max(figure.image.width, 8 * CELL_PX) + 2 * margin
    words, font = _wrapped(figure.text, width - 2 * margin)
    lines = len(words.splitlines())
    top = 2 * margin + 28 + 20 * lines
    page = Image.new("RGB", (width, top + figure.image.height + 2 * margin), grids.BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((margin, margin), figure.title, fill="black", font=grids.font(20))
    pen.multiline_text((margin, margin + 30), words, fill=(60, 60, 60), font=font)
    page.paste(figure.image, (margin, top))
    return page


def _wrapped(text: str, width: int) -> tuple[str, Any]:
    font = grids.font(14)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines), font
