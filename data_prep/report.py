"""What an examination found: readable in 80 columns, as JSON, and as a sheet of thumbnails."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from data_prep.images import kind_of
from data_prep.manifest import Label

Severity = Literal["error", "warning", "note"]

EXAMPLES = 20
"""Named of each kind; all are counted."""
THUMBNAILS = 8
"""Shown of each kind."""
THUMBNAIL_PX = 96
_COLUMNS = 8
_GAP_PX = 8
_LINE_PX = 14
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


class Finding(NamedTuple):
    """One thing about one image or file."""

    severity: Severity
    reason: str
    """`kind: detail` or kind alone; those of a kind are counted together."""
    where: str
    """The image or the file."""
    thumbnail: bytes = b""
    """A small JPEG."""


@dataclass(kw_only=True)
class Kind:
    """All findings of one kind."""

    severity: Severity
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Where, and the whole reason."""
    thumbnails: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(kw_only=True)
class Report:
    """Facts and findings about a data set or a source."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Words, numbers and tables of counts, by name."""
    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Count them, and keep some."""
        for finding in findings:
            kind = self.kinds.setdefault(kind_of(finding.reason), Kind(severity=finding.severity))
            kind.count += 1
            if len(kind.examples) < EXAMPLES:
                kind.examples.append((finding.where, finding.reason))
            if len(kind.thumbnails) < THUMBNAILS and finding.severity != "note":
                kind.thumbnails.append((finding.where, finding.thumbnail))

    def count(self, severity: Severity) -> int:
        """Findings of this severity."""
        return sum(kind.count for kind in self.kinds.values() if kind.severity == severity)

    def to_json(self) -> str:
        """The machine-readable report."""
        content = {
            "format": 1,
            "title": self.title,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "facts": self.facts,
            "findings": [
                {
                    "kind": name,
                    "severity": kind.severity,
                    "count": kind.count,
                    "examples": [
                        {"where": _plain(where), "reason": _plain(reason)}
                        for where, reason in kind.examples
                    ],
                }
                for name, kind in self._ordered()
            ],
        }
        return json.dumps(content, indent=1) + "\n"

    def show(self, console: Console) -> None:
        """Print it for people."""
        console.print(_plain(self.title), style="bold", markup=False, highlight=False)
        for name, value in self.facts.items():
            shown = _counts(value) if isinstance(value, Mapping) else str(value)
            console.print(f"{name}: {shown}", markup=False, highlight=False)
        if self.kinds:
            console.print(self._table())
        errors, warnings = self.count("error"), self.count("warning")
        verdict = f"{errors} errors, {warnings} warnings" if errors or warnings else "nothing wrong"
        console.print(verdict, style="bold red" if errors else "bold green", highlight=False)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("count", justify="right")
        table.add_column("what", overflow="fold", ratio=3)
        table.add_column("such as", overflow="fold", ratio=4)
        for name, kind in self._ordered():
            where, reason = (_plain(text) for text in kind.examples[0])
            detail = reason.partition(": ")[2]
            example = f"{where}: {detail}" if detail else where
            style = _STYLES[kind.severity]
            table.add_row(str(kind.count), _literal(name), _literal(example), style=style)
        return table

    def sheet(self) -> Image.Image | None:
        """Thumbnails of what is suspicious, a row or more for each kind; None if nothing is."""
        shown = [(name, kind) for name, kind in self._ordered() if kind.thumbnails]
        if not shown:
            return None
        cell = THUMBNAIL_PX + _GAP_PX
        height = len(shown) * (2 * _LINE_PX + cell + _GAP_PX) + _GAP_PX
        sheet = Image.new("RGB", (_COLUMNS * cell + _GAP_PX, height), "white")
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(11)
        y = _GAP_PX
        for name, kind in shown:
            draw.text((_GAP_PX, y), f"{name} ({kind.count})"[:120], "black", font)
            for number, (where, thumbnail) in enumerate(kind.thumbnails):
                x = _GAP_PX + number * cell
                sheet.paste(_tile(thumbnail), (x, y + _LINE_PX + 2))
                label = _shortened(_plain(where), font)
                draw.text((x, y + _LINE_PX + THUMBNAIL_PX + 4), label, "#555555", font)
            y += 2 * _LINE_PX + cell + _GAP_PX
        return sheet

    def _ordered(self) -> list[tuple[str, Kind]]:
        return sorted(
            self.kinds.items(), key=lambda item: (_ORDER[item[1].severity], -item[1].count, item[0])
        )


class LabelBalance:
    """Images of each class, or the range of each number, over any number of labels."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.lowest = self.highest = self.total = np.zeros(0)
        self.vectors = 0

    def add(self, labels: Sequence[Label]) -> None:
        """Count some more."""
        if labels and isinstance(labels[0], int):
            self.counts.update(label for label in labels if isinstance(label, int))
        elif labels:
            values = np.array(labels, np.float64)
            first = self.vectors == 0
            self.lowest = values.min(0) if first else np.minimum(self.lowest, values.min(0))
            self.highest = values.max(0) if first else np.maximum(self.highest, values.max(0))
            self.total = self.total + values.sum(0) if self.vectors else values.sum(0)
            self.vectors += len(labels)

    def facts(self, classes: int = 0) -> dict[str, Any]:
        """What a report says about them; `classes` is how many there are to be, if known."""
        if self.counts:
            numbers = range(max(classes, max(self.counts) + 1))
            each = [self.counts[number] for number in numbers]
            balance = {
                "fewest": min(each),
                "median": int(np.median(each)),
                "most": max(each),
                "classes without any": each.count(0),
            }
            return {"classes": len(each), "images of a class": balance}
        if not self.vectors:
            return {}
        values = {
            "lowest": round(float(self.lowest.min()), 4),
            "mean": round(float(self.total.mean() / self.vectors), 4),
            "highest": round(float(self.highest.max()), 4),
            "the same for all": int((self.lowest == self.highest).sum()),
        }
        return {"numbers in a label": len(self.lowest), "label values": values}


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an image, or one whose pixels are seen."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    if (factor := THUMBNAIL_PX // max(small.size)) > 1:
        size = small.width * factor, small.height * factor
        small = small.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def is_flat(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image [h, w] or [h, w, c] shows one colour only."""
    return bool((pixels == pixels[0, 0]).all())


def fingerprint(pixels: NDArray[np.uint8]) -> int:
    """64 bits that are equal for equal images, and for others as good as never."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], "little")


def copies(fingerprints: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Of each image that was there before: its number and the number of the first one like it."""
    order = np.argsort(fingerprints, kind="stable")
    ordered = fingerprints[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    firsts = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    again = order != firsts
    return sorted(zip(order[again].tolist(), firsts[again].tolist(), strict=True))


def _tile(content: bytes) -> Image.Image:
    tile = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "#dddddd")
    if not content:  # there is no picture to show
        draw = ImageDraw.Draw(tile)
        far = THUMBNAIL_PX - 1
        draw.line((0, 0, far, far), "#999999")
        draw.line((0, far, far, 0), "#999999")
        return tile
    with Image.open(io.BytesIO(content)) as small:
        place = (THUMBNAIL_PX - small.width) // 2, (THUMBNAIL_PX - small.height) // 2
        tile.paste(small, place)
    return tile


def _shortened(text: str, font: Any) -> str:
    """The end of a text, as much as fits under a thumbnail."""
    if font.getlength(text) <= THUMBNAIL_PX:
        return text
    while font.getlength(f"…{text}") > THUMBNAIL_PX:
        text = text[1:]
    return f"…{text}"


def _counts(counts: Mapping[Any, Any], most: int = 8) -> str:
    rows = [f"{name} {count}" for name, count in list(counts.items())[:most]]
    more = [f"… {len(counts) - most} more"] if len(counts) > most else []
    return ", ".join([*rows, *more])


def _plain(text: str) -> str:
    """A text that any terminal can show, on one line."""
    printable = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in printable)


def _literal(text: str) -> str:
    return text.replace("[", r"\[")
