"""Videos and folders of frames as clips: (T, H, W, 3) or (T, H, W) uint8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmnas.machine.errors import UserError, one_line
from bmnas.tasks.kinds import Array

if TYPE_CHECKING:
    from av.codec.context import CodecContext


def read_video(path: Path, count: int, size: int, middle: float = 1.0) -> Array:
    """Return ``count`` frames of a video, squeezed to (count, size, size, 3) RGB uint8.

    They are the middle ones of ``count`` parts, equally long, of the ``middle`` of the video: of
    all, or of a fraction of its frames.

    Raises UserError, with file and frame, for a video that cannot be read so far.
    """
    import av

    clip = np.empty((count, size, size, 3), np.uint8)
    filled = decoded = 0
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or not stream.frames:
                raise UserError(f"{path}: received no pictures, expected a video that counts them")
            context: CodecContext | None = stream.codec_context
            if context is None:
                raise UserError(f"{path}: received pictures of a codec that FFmpeg does not know")
            context.thread_count = 1  # rows are decoded side by side
            announced = stream.frames
            begin = (announced - int(announced * middle)) // 2
            step = (announced - 2 * begin) / count
            wanted = begin + ((np.arange(count) + 0.5) * step).astype(int)
            for frame in container.decode(stream):
                while filled < count and wanted[filled] == decoded:
                    clip[filled] = frame.to_ndarray(format="rgb24", width=size, height=size)
                    filled += 1
                if filled == count:
                    return clip
                decoded += 1
    except (av.error.FFmpegError, OSError) as error:
        place = f"after frame {decoded}: " if decoded else ""
        raise UserError(f"{path}: {place}cannot be read: {error.strerror}") from error
    raise UserError(f"{path}: ends after {decoded} of {announced} frames: truncated")


def read_frames(
    paths: Sequence[Path],
    size: int,
    *,
    grey: bool = False,
    scale: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
) -> Array:
    """Return pictures as a clip (T, size, size, 3), or (T, size, size) where it is ``grey``.

    A square is cut out of each, of ``scale`` times its shorter side, and resized; ``place`` is
    where in the room there is: (0, 0) is left above, (1, 1) right below. A picture that is there
    several times is read once.

    Raises UserError, with the file, for one that is missing or cannot be read.
    """
    from PIL import Image

    read: dict[Path, Array] = {}
    for path in dict.fromkeys(paths):
        try:
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                side = scale * min(image.size)
                left, top = (p * (s - side) for p, s in zip(place, image.size, strict=True))
                picture = image.convert("L" if grey else "RGB").resize(
                    (size, size),
                    Image.Resampling.BILINEAR,
                    box=(left, top, left + side, top + side),
                )
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such frame") from error
        except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
        read[path] = np.asarray(picture)
    return np.stack([read[path] for path in paths])
