"""Files of pictures, sounds, videos and texts, and folders of frames, as rows of one shape.

Packages that decode are imported when the first file is read; the extra ``media`` has them.
Legend: H height, W width, T frames or samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bmnas.machine.errors import UserError, few, one_line
from bmnas.tasks.columns import reading
from bmnas.tasks.kinds import Array
from bmnas.tasks.pictures import PicturePlan

if TYPE_CHECKING:
    from av.codec.context import CodecContext
    from PIL.Image import Image as Picture

#: How a picture of another shape comes to its size: cut at the longer sides, filled up with black,
#: or stretched.
Fit = Literal["crop", "pad", "squeeze"]

_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIXTEEN_BIT = 257  # 65535 / 255
_MARGIN = 0.05  # seconds of sound beyond the end, for the resampler's filter


@contextmanager
def _opened(path: Path) -> Iterator[Picture]:
    """Open a picture; what is wrong with it, now or while its pixels are read, is a UserError."""
    from PIL import Image

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with reading(str(path)), Image.open(path, formats=_PICTURES) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def read_picture(
    path: Path,
    size: tuple[int, int],
    *,
    fit: Fit = "crop",
    grey: bool,
    plan: PicturePlan | None = None,
) -> Array:
    """Return a picture as (H, W, 3) RGB, or (H, W) where it is ``grey``, uint8; ``size`` is (H, W).

    It is turned as its EXIF orientation says. What is transparent becomes white, 16 bits become 8,
    and of an animation the first picture is taken. It is resized bilinearly, with antialiasing, or
    as a ``plan`` says, that of a pretrained network.

    Raises UserError, with the file, for one that is missing or cannot be read.
    """
    from PIL import Image, ImageOps

    height, width = size
    with _opened(path) as image:
        # A large JPEG is decoded at a half, a quarter or an eighth, never below what is needed.
        if plan is None:
            image.draft(None, (2 * max(size), 2 * max(size)))
        image = _opaque(ImageOps.exif_transpose(image), path).convert("L" if grey else "RGB")
        bilinear = Image.Resampling.BILINEAR
        if plan is not None:
            image = plan.placed(image)
        elif fit == "crop":
            image = ImageOps.fit(image, (width, height), bilinear)
        elif fit == "pad":
            image = ImageOps.pad(image, (width, height), bilinear, color=0)
        else:
            image = image.resize((width, height), bilinear)
        return np.asarray(image)


def _opaque(image: Picture, path: Path) -> Picture:
    """Return a picture of 8 bits without transparency."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise UserError(f"{path}: received pixels of 32 bits, expected 8 or 16")
        return Image.fromarray((values / _SIXTEEN_BIT).round().astype(np.uint8))
    if image.mode == "F":
        raise UserError(f"{path}: received pixels that are floats, expected 8 or 16 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image


def read_sound(path: Path, rate: int, samples: int) -> Array:
    """Return the beginning of a sound as float32 (T,), T being ``samples`` at ``rate`` a second.

    Channels are averaged, another rate is resampled (soxr, its high quality), and zeros fill up
    what is shorter.

    Raises UserError, with the file, for one that is missing, has no samples or cannot be read.
    """
    import soundfile
    import soxr

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(str(path)), soundfile.SoundFile(path) as file:
        own = file.samplerate
        wanted = math.ceil((samples / rate + _MARGIN) * own)
        sound = file.read(wanted, dtype="float32", always_2d=True).mean(1)
        if len(sound) < min(wanted, file.frames):
            raise UserError(f"{path}: ends after {len(sound)} of {file.frames} samples: truncated")
    if not len(sound):
        raise UserError(f"{path}: received a sound without samples")
    if not np.isfinite(sound).all():
        raise UserError(f"{path}: NaN or infinite value in the sound")
    if own != rate:
        sound = soxr.resample(sound, own, rate)
    row = np.zeros(samples, np.float32)
    row[: len(sound)] = sound[:samples]
    return row


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
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations on a side
        width, height = image.size[::-1] if turned else image.size
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
            if stream is None:
                raise UserError(f"{path}: received no pictures, expected a video")
            context: CodecContext | None = stream.codec_context
            if context is None:
                raise UserError(f"{path}: received pictures of a codec that FFmpeg does not know")
            context.thread_count = 1  # rows are decoded side by side
            announced = stream.frames
            if not announced:  # as in a .webm: they are counted by decoding twice
                announced = sum(1 for _ in container.decode(stream))
                container.seek(0)
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
