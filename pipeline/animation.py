"""Frames to a film: GIF and WebP always, MP4 where ffmpeg is."""

import itertools
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from PIL import Image

FORMATS = (".gif", ".webp", ".mp4")


class NoFfmpegError(OSError):
    """There is no ffmpeg, or it refuses the film."""


def check(path: Path) -> Path:
    """See that a film of this name can be written, before hours are spent on its frames.

    Raises:
        NoFfmpegError: It is an MP4 and there is no ffmpeg.
        ValueError: It is none of the formats.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} is no film; let its name end with {', '.join(FORMATS)}")
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise NoFfmpegError(
            f"{path} needs ffmpeg, which is not installed; install it, or write .webp or .gif"
        )
    return path


def write(frames: Iterable[Image.Image], path: Path, *, fps: int = 25) -> Path:
    """Write a film that begins again at its end.

    Args:
        frames: All of one size, which for MP4 is even.
        path: Its suffix is the format.
        fps: Frames a second; GIF knows hundredths of a second alone.

    Raises:
        NoFfmpegError: See `check`; or ffmpeg refuses.
        ValueError: There are no frames, or `check` refuses.
    """
    check(path)
    every = iter(frames)
    first = next(every, None)
    if first is None:
        raise ValueError(f"{path} would be a film of no frames; give one or more")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _write_mp4(itertools.chain([first], every), path, size=first.size, fps=fps)
        return path
    save(itertools.chain([first], every), path, path.suffix[1:].upper(), fps=fps)
    return path


def save(frames: Iterable[Image.Image], file: Path | IO[bytes], form: str, *, fps: int) -> None:
    """Write GIF or WEBP, which begin again at their end."""
    first, *others = frames
    options: dict[str, Any] = {"quality": 90} if form == "WEBP" else {}
    options |= {"duration": round(1000 / fps), "loop": 0}
    first.save(file, format=form, save_all=True, append_images=others, **options)


def enlarged(image: Image.Image, at_least_px: int = 256) -> Image.Image:
    """A small frame, enlarged by a whole factor so that it can be seen."""
    factor = max(1, -(-at_least_px // image.width))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST).convert("RGB")


def _write_mp4(
    frames: Iterable[Image.Image], path: Path, *, size: tuple[int, int], fps: int
) -> None:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps)]
    coded = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = ["ffmpeg", "-loglevel", "error", "-y", *raw, "-i", "-", *coded, str(path)]
    with subprocess.Popen(  # noqa: S603 (fixed words and a path)
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ffmpeg:
        assert ffmpeg.stdin is not None
        assert ffmpeg.stderr is not None
        try:
            for frame in frames:
                ffmpeg.stdin.write(frame.convert("RGB").tobytes())
            ffmpeg.stdin.close()
        except BrokenPipeError:
            pass  # its words follow
        words = ffmpeg.stderr.read().decode(errors="replace").strip().splitlines()
    if ffmpeg.returncode:
        raise NoFfmpegError(f"{path}: ffmpeg refuses: {words[-1] if words else 'no reason given'}")
