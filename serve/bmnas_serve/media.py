"""Pictures, sounds and videos as rows of one shape, in training as in serving.

Packages that decode are imported when the first file is read; the extra ``media`` has them.
Legend: H height, W width, T frames or samples.
"""

from __future__ import annotations

import importlib
import math
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.errors import DataError, DecoderError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: How a picture of another shape comes to its size: cut at the longer sides, filled up with black,
#: or stretched.
Fit = Literal["crop", "pad", "squeeze"]

#: Of pictures from strangers: how many pixels a file may announce, and how many may be decoded. A
#: JPEG is decoded at a fraction of its size where that is enough; the rest is four bytes a pixel,
#: and four times that for a moment where a part of it is transparent.
_MOST_ANNOUNCED, _MOST_DECODED = 64_000_000, 25_000_000

PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIXTEEN_BIT = 257  # 65535 / 255
_MARGIN = 0.05  # seconds of sound beyond the end, for the resampler's filter
_MOST_RATE, _MOST_CHANNELS = 768_000, 64  # of sounds: files that announce more are made up
#: What decoders raise at a damaged or made-up file. MemoryError comes of a header that announces
#: more than there can be.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, struct.error, zlib.error,
)  # fmt: skip


def decoder(package: str) -> Any:
    """Return a package that decodes; raises DecoderError that says how it is installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise DecoderError(
            f"the package {error.name} is not installed: pip install 'bmnas[media]'"
        ) from error


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what decoders raise at a damaged file into DataError."""
    try:
        yield
    except _DAMAGE as error:
        told = getattr(error, "error_string", None) or one_line(error, 200)
        raise DataError(f"cannot be read, perhaps truncated: {told}") from error


@dataclass(frozen=True)
class Placing:
    """Where the pixels of a picture go: resize, cut out the middle.

    ``size`` is (H', W') for ``keeps`` false, else (shorter side, 0), the sides keeping their ratio;
    None: as it is. ``crop`` (H', W') is then cut out of the middle, with zeros where that is
    smaller. ``resample`` is a number of Pillow's. An odd pixel is cut off at the end, as by
    transformers, or with ``rounded`` so that the first one left is even, as by torchvision.
    """

    size: tuple[int, int] | None
    keeps: bool
    crop: tuple[int, int] | None
    resample: int
    rounded: bool = field(default=False, kw_only=True)

    def placed(self, image: Picture) -> Picture:
        """Return a picture of Pillow's as (W', H')."""
        width, height = image.size
        down, across = self.resized(height, width)
        image = image.resize((across, down), self.resample)
        if self.crop is None:
            return image
        left, top = self.corner(down, across)
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return x and y of where the middle of a resized picture begins."""
        down, across = self.crop or (height, width)
        return self.begin(width, across), self.begin(height, down)

    def begin(self, size: int, middle: int) -> int:
        """Return the first pixel of a ``middle`` of so many pixels."""
        return round((size - middle) / 2) if self.rounded else (size - middle) // 2

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of a picture of (height, width) before the middle is cut out."""
        if self.size is None:
            return height, width
        if not self.keeps:
            return self.size
        short, long = sorted((height, width))
        side = self.size[0]
        longer = int(side * long / short)
        return (side, longer) if height <= width else (longer, side)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Return (H', W') of a picture of (height, width)."""
        return self.crop or self.resized(height, width)


@contextmanager
def opened_picture(file: BinaryIO) -> Iterator[Picture]:
    """Open a picture; what is wrong with it, now or while its pixels are read, is a DataError."""
    image = decoder("PIL.Image")
    try:
        with _reading():
            opened = image.open(file, formats=PICTURES)
            try:
                yield opened
            finally:
                # At once: whoever tells of an error may hold on to where it came from.
                opened.close()
    except image.DecompressionBombError as error:
        raise DataError(one_line(error)) from error
    except DataError as error:
        if isinstance(error.__cause__, decoder("PIL").UnidentifiedImageError):
            raise DataError(f"not a picture: expected {', '.join(PICTURES)}") from error
        raise


def turned_size(image: Picture) -> tuple[int, int]:
    """Return height and width of an open picture once it is turned."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations on a side
    width, height = image.size
    return (width, height) if turned else (height, width)


def _check_pixels(image: Picture, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise DataError(
            f"received a picture of {width} x {height} pixels, expected at most {most:,} in all"
        )


def read_picture(
    file: BinaryIO,
    size: tuple[int, int],
    *,
    fit: Fit = "crop",
    grey: bool,
    plan: Placing | None = None,
    bounded: bool = False,
) -> NDArray[np.uint8]:
    """Return a picture as (H, W, 3) RGB, or (H, W) where it is ``grey``, uint8; ``size`` is (H, W).

    It is turned as its EXIF orientation says. What is transparent becomes white, 16 bits become 8,
    and of an animation the first picture is taken. It is resized bilinearly, with antialiasing, or
    as a ``plan`` says, that of a pretrained network.

    Raises DataError for one that cannot be read, or, where it is ``bounded``, has too many pixels.
    """
    height, width = size
    with opened_picture(file) as image:
        if bounded:
            _check_pixels(image, _MOST_ANNOUNCED)
        operations, bilinear = decoder("PIL.ImageOps"), decoder("PIL.Image").Resampling.BILINEAR
        # A large JPEG is decoded at a half, a quarter or an eighth, never below what is needed.
        if plan is None:
            image.draft(None, (2 * max(size), 2 * max(size)))
        if bounded:
            _check_pixels(image, _MOST_DECODED)
        # Large pictures are not copied where nothing is to be done.
        operations.exif_transpose(image, in_place=True)
        image, mode = _opaque(image), "L" if grey else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if plan is not None:
            image = plan.placed(image)
        elif fit == "crop":
            image = operations.fit(image, (width, height), bilinear)
        elif fit == "pad":
            image = operations.pad(image, (width, height), bilinear, color=0)
        else:
            image = image.resize((width, height), bilinear)
        return np.asarray(image)


def _opaque(image: Picture) -> Picture:
    """Return a picture of 8 bits without transparency."""
    pillow = decoder("PIL.Image")
    opaque: Picture = image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise DataError("received pixels of 32 bits, expected 8 or 16")
        opaque = pillow.fromarray((values / _SIXTEEN_BIT).round().astype(np.uint8))
    elif image.mode == "F":
        raise DataError("received pixels that are floats, expected 8 or 16 bits")
    elif image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = pillow.new("RGBA", coloured.size, "white")
        opaque = pillow.alpha_composite(white, coloured)
    return opaque


def read_sound(file: BinaryIO, rate: int, samples: int) -> NDArray[np.float32]:
    """Return the beginning of a sound as float32 (T,), T being ``samples`` at ``rate`` a second.

    Channels are averaged, another rate is resampled (soxr, its high quality), and zeros fill up
    what is shorter.

    Raises DataError for one that has no samples or cannot be read.
    """
    soundfile, soxr = decoder("soundfile"), decoder("soxr")
    with _reading(), soundfile.SoundFile(file) as opened:
        own = opened.samplerate
        if own > _MOST_RATE or opened.channels > _MOST_CHANNELS:
            raise DataError(
                f"received {opened.channels} channels of {own} Hz, expected at most"
                f" {_MOST_CHANNELS} of {_MOST_RATE} Hz"
            )
        wanted = math.ceil((samples / rate + _MARGIN) * own)
        sound = opened.read(wanted, dtype="float32", always_2d=True).mean(1)
        if len(sound) < min(wanted, opened.frames):
            raise DataError(f"ends after {len(sound)} of {opened.frames} samples: truncated")
    if not len(sound):
        raise DataError("received a sound without samples")
    if not np.isfinite(sound).all():
        raise DataError("NaN or infinite value in the sound")
    if own != rate:
        sound = soxr.resample(sound, own, rate)
    row = np.zeros(samples, np.float32)
    row[: len(sound)] = sound[:samples]
    return row


def read_video(
    file: str | BinaryIO,
    count: int,
    size: int,
    middle: float = 1.0,
    *,
    container: str | None = None,
    most_pixels: int | None = None,
    most_seconds: float | None = None,
) -> NDArray[np.uint8]:
    """Return ``count`` frames of a video, squeezed to (count, size, size, 3) RGB uint8.

    They are the middle ones of ``count`` parts, equally long, of the ``middle`` of the video: of
    all, or of a fraction of its frames. ``container`` is FFmpeg's name of the only format that is
    tried. ``most_pixels`` bounds a frame, ``most_seconds`` the time that decoding takes.

    Raises DataError, with the frame, for a video that cannot be read so far.
    """
    av = decoder("av")
    clip = np.empty((count, size, size, 3), np.uint8)
    filled = decoded = 0
    begun = time.monotonic()
    try:
        with av.open(file, format=container) as opened:
            stream = next(iter(opened.streams.video), None)
            if stream is None:
                raise DataError("received no pictures, expected a video")
            context = stream.codec_context
            if context is None:
                raise DataError("received pictures of a codec that FFmpeg does not know")
            if most_pixels is not None and context.width * context.height > most_pixels:
                raise DataError(
                    f"received frames of {context.width} x {context.height} pixels, expected at"
                    f" most {most_pixels:,}"
                )
            context.thread_count = 1  # rows are decoded side by side
            announced = stream.frames
            if not announced:  # as in a .webm: they are counted by decoding twice
                announced = sum(1 for _ in _timely(opened.decode(stream), begun, most_seconds))
                opened.seek(0)
            begin = (announced - int(announced * middle)) // 2
            step = (announced - 2 * begin) / count
            wanted = begin + ((np.arange(count) + 0.5) * step).astype(int)
            for frame in _timely(opened.decode(stream), begun, most_seconds):
                while filled < count and wanted[filled] == decoded:
                    clip[filled] = frame.to_ndarray(format="rgb24", width=size, height=size)
                    filled += 1
                if filled == count:
                    return clip
                decoded += 1
    except (av.error.FFmpegError, OSError) as error:
        place = f"after frame {decoded}: " if decoded else ""
        raise DataError(f"{place}cannot be read: {error.strerror}") from error
    raise DataError(f"ends after {decoded} of {announced} frames: truncated")


def _timely(frames: Iterator[Any], begun: float, most_seconds: float | None) -> Iterator[Any]:
    """Yield frames; raises DataError when decoding takes longer than it may."""
    for frame in frames:
        if most_seconds is not None and time.monotonic() - begun > most_seconds:
            raise DataError(f"takes more than {most_seconds:g} s to decode: send a shorter video")
        yield frame


def container_of(file: BinaryIO) -> str:
    """Return FFmpeg's name of the format of a video, by its first bytes; raises DataError.

    Others, such as playlists, would have FFmpeg open further files and addresses.
    """
    head = file.read(12)
    file.seek(0)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise DataError("not a video: expected .mp4, .mov, .webm, .mkv or .avi")


def opened_file(path: Path) -> BinaryIO:
    """Open a file to read it; raises DataError when there is none, or it cannot be opened."""
    if not path.is_file():
        raise DataError("no such file")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
