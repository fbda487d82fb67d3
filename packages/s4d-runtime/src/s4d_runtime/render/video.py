"""From the pictures of a drive to a GIF (always) or an MP4 (extra ``render``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MissingExtraError
from ..files import atomic_write

__all__ = ["require_mp4", "write_gif", "write_mp4"]


def write_gif(
    path: str | Path, pictures: Sequence[Path], fps: float = 2.0, width: int = 1280
) -> Path:
    """An endless GIF of picture files, one picture in memory at a time.

    Args:
        path: where to.
        pictures: image files of one size, in order, at least one.
        fps: pictures per second.
        width: pixels; GIFs of full-size pictures are too large to be of use.
    """
    palette = _shrink(pictures[0], width).quantize(256, method=Image.Quantize.MEDIANCUT)

    def rest() -> Iterator[Image.Image]:
        for picture in pictures[1:]:
            yield _shrink(picture, width).quantize(palette=palette, dither=Image.Dither.NONE)

    with atomic_write(path) as file:
        palette.save(
            file,
            format="GIF",
            save_all=True,
            append_images=rest(),
            duration=round(1000 / fps),
            loop=0,
        )
    return Path(path)


def require_mp4() -> Any:
    """The module that writes MP4; ask before the first picture is drawn.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise MissingExtraError(
            "MP4 needs the package imageio-ffmpeg; install s4d-runtime[render]"
        ) from None
    return imageio_ffmpeg


def write_mp4(path: str | Path, pictures: Sequence[Path], fps: float = 2.0) -> Path:
    """An H.264 MP4 of picture files.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    ffmpeg = require_mp4()
    with Image.open(pictures[0]) as first:
        size = (first.width // 2 * 2, first.height // 2 * 2)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial.mp4")
    writer = ffmpeg.write_frames(
        str(partial), size, fps=fps, quality=8, macro_block_size=2, ffmpeg_log_level="error"
    )
    try:
        writer.send(None)
        for picture in pictures:
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB").crop((0, 0, *size)))
            writer.send(np.ascontiguousarray(pixels))
        writer.close()
        partial.replace(target)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return target


def _shrink(path: Path, width: int) -> Image.Image:
    with Image.open(path) as image:
        height = round(image.height * width / image.width)
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
