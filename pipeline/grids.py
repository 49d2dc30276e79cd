"""Images side by side, as one PIL image."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND = (255, 255, 255)
INK = (60, 60, 60)


def to_image(image: Tensor) -> Image.Image:
    """One uint8 tensor [c h w] as an image: 1 channel grey, 3 RGB, 4 RGBA."""
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def grid(
    images: Tensor | Sequence[Tensor],
    *,
    columns: int = 0,
    margin_px: int = 2,
    at_least_px: int = 0,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Images from left to right and top to bottom.

    Args:
        images: uint8 [n c h w], all of one size.
        columns: Images in a row; 0 makes the grid about square.
        margin_px: Between images and around them.
        at_least_px: Smaller images are enlarged by a whole factor to at least this width.
        labels: One under each image.
    """
    count = len(images)
    if not count:
        raise ValueError("a grid of no images; pass at least one")
    columns = min(columns or round(count**0.5 + 0.4), count)
    rows = [images[start : start + columns] for start in range(0, count, columns)]
    words = [labels[start : start + columns] for start in range(0, count, columns)]
    return table(rows, margin_px=margin_px, at_least_px=at_least_px, labels=words)


def table(
    rows: Sequence[Tensor | Sequence[Tensor]],
    *,
    margin_px: int = 2,
    at_least_px: int = 0,
    labels: Sequence[Sequence[str]] = (),
    corner: bool = False,
    top: str = "",
    left: Sequence[tuple[str, int]] = (),
    apart: bool = False,
) -> Image.Image:
    """Rows of images, all of one size.

    Args:
        rows: Images, uint8 [c h w], row by row.
        margin_px: Between images and around them.
        at_least_px: See `grid`.
        labels: Under the images, row by row.
        corner: Leave the first place of the first row empty, and a wider gap beside it.
        top: Heading above the images, or with `corner` those of the first row.
        left: Titles of so many rows each, upwards beside them; with `corner` from the second on.
        apart: Leave a wider gap behind the first column.
    """
    first = rows[0][0]
    factor = max(1, -(-at_least_px // first.shape[2]))
    height_px, width_px = (int(side) * factor for side in first.shape[1:])
    label_font = font(max(9, min(14, width_px // 6)))
    title_font = font(max(11, min(40, width_px // 7)))
    title_px = _height(title_font) + 4
    gap_px = 4 * margin_px if corner else 0
    across_px = 4 * margin_px if corner or apart else 0
    x0, step_x = margin_px + title_px * bool(left), width_px + margin_px

    # Where each row begins, and the end of the last.
    starts = [margin_px + title_px * bool(top)]
    for r in range(len(rows)):
        text_px = _height(label_font) + 2 if r < len(labels) and any(labels[r]) else 0
        starts.append(starts[-1] + height_px + text_px + margin_px + gap_px * (r == 0))
    columns = max(len(row) + (corner and index == 0) for index, row in enumerate(rows))
    size = (x0 + columns * step_x + across_px, starts[-1])
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        words = labels[r] if r < len(labels) else ()
        for c, tensor in enumerate(row, start=int(corner and r == 0)):
            x = x0 + c * step_x + (across_px if c else 0)
            image = to_image(tensor).resize((width_px, height_px), Image.Resampling.NEAREST)
            canvas.paste(image, (x, starts[r]))
            if c < len(words):
                middle = (x + width_px / 2, starts[r] + height_px + 2)
                draw.text(middle, words[c], fill=INK, font=label_font, anchor="ma")
    if top:
        start_x = x0 + (step_x + gap_px if corner else 0)
        draw.text(((start_x + size[0]) / 2, 2), top, fill=INK, font=title_font, anchor="ma")
    r = int(corner)
    for title, count in left:
        length_px = starts[r + count] - starts[r]
        upwards = Image.new("RGB", (length_px, title_px), BACKGROUND)
        middle = (length_px / 2, 2)
        ImageDraw.Draw(upwards).text(middle, title, fill=INK, font=title_font, anchor="ma")
        canvas.paste(upwards.rotate(90, expand=True), (margin_px, starts[r]))
        r += count
    return canvas


def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, of this size."""
    return ImageFont.load_default(size=size_px)


def _height(of: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Of a line with ascenders and descenders, in pixels."""
    return math.ceil(of.getbbox("Ág")[3]) + 2


def sheet(images: Tensor, *, columns: int = 0) -> Image.Image:
    """Samples as they are shown to people: small ones enlarged, with thin margins."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; convert them with stylegan.sample.to_uint8")
    return grid(images, columns=columns, at_least_px=64 if images.shape[-1] < 128 else 0)
