"""Files of pictures, sounds, videos and texts, and folders of frames, as rows of one shape.

Packages that decode are imported when the first file is read; the extra ``media`` has them.
Legend: H height, W width, T frames or samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from bmnas_serve import media
from bmnas_serve.errors import DataError
from bmnas_serve.media import Fit, opened_file, opened_picture

from bmnas.machine.errors import UserError, few, one_line
from bmnas.tasks.kinds import Array
from bmnas.tasks.text_arrays import reading


@contextmanager
def telling(path: Path | None = None) -> Iterator[None]:
    """Turn DataError into a UserError that names ``path``."""
    try:
        yield
    except DataError as error:
        raise UserError(str(error) if path is None else f"{path}: {error}") from error


@contextmanager
def file_of(path: Path) -> Iterator[BinaryIO]:
    """Open a file to decode it; what is wrong with it is a UserError that names it."""
    with telling(path), opened_file(path) as file:
        yield file


def read_picture(path: Path, size: tuple[int, int], *, fit: Fit = "crop", grey: bool) -> Array:
    """Return a picture as ``bmnas_serve.media`` does; raises UserError with the file."""
    with file_of(path) as file:
        return media.read_picture(file, size, fit=fit, grey=grey)


def read_sound(path: Path, rate: int, samples: int) -> Array:
    """Return a sound as ``bmnas_serve.media`` does; raises UserError with the file."""
    with file_of(path) as file:
        return media.read_sound(file, rate, samples)


def read_video(path: Path, count: int, size: int, middle: float = 1.0) -> Array:
    """Return a video as ``bmnas_serve.media`` does; raises UserError with the file."""
    with telling(path):
        if not path.is_file():
            raise DataError("no such file")
        return media.read_video(str(path), count, size, middle)


def read_text(path: Path) -> str:
    """Return a file of UTF-8 text; raises UserError, with the file, for another."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8: save the text as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def picture_facts(path: Path) -> dict[str, Any]:
    """Return the size and mode of a picture, from its head alone; UserError as above."""
    with file_of(path) as file, opened_picture(file) as image:
        height, width = media.turned_size(image)
        return {"height": height, "width": width, "mode": image.mode}


def sound_facts(path: Path) -> dict[str, Any]:
    """Return rate, channels and seconds of a sound, from its head alone; UserError as above."""
    import soundfile

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(str(path)):
        info = soundfile.info(path)
        return {"rate": info.samplerate, "channels": info.channels, "seconds": info.duration}


def told_pictures(facts: Sequence[dict[str, Any]]) -> str:
    """Return sizes and modes of pictures, of which ``facts`` are those of ``picture_facts``."""
    sides = np.array([(one["height"], one["width"]) for one in facts])
    (low_h, low_w), (high_h, high_w) = sides.min(0), sides.max(0)
    modes = Counter(one["mode"] for one in facts)
    return f"{low_h}x{low_w} to {high_h}x{high_w} pixels, modes {', '.join(sorted(modes))}"


def told_sounds(facts: Sequence[dict[str, Any]]) -> str:
    """Return lengths, rates and channels of sounds, of which ``facts`` are ``sound_facts``."""
    seconds = [one["seconds"] for one in facts]
    rates, channels = ({one[key] for one in facts} for key in ("rate", "channels"))
    return (
        f"{min(seconds):.2f} to {max(seconds):.2f} s, {few(sorted(rates), 6)} Hz, channels "
        f"{few(sorted(channels), 6)}"
    )


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
