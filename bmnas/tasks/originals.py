"""Readers of public originals: MNIST's IDX files and the Free Spoken Digit Dataset's wav files."""

from __future__ import annotations

import gzip
import re
import wave
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.av_digits import SAMPLE_RATE
from bmnas.tasks.kinds import Array

_IDX_UBYTE = 8
_WAV = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[A-Za-z]+)_(?P<take>[0-9]+)\.wav")

#: What the pack holds; recordings that later versions of the data set add are left out.
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50


@dataclass(frozen=True)
class Recordings:
    """FSDD as arrays, in the order (digit, speaker, take).

    ``audio`` int16 holds all clips end to end, ``offsets`` (clips + 1,) int64 where each
    begins; ``label``, ``speaker`` (a row of ``speaker_names``) and ``take`` are (clips,) uint8.
    """

    audio: Array
    offsets: Array
    label: Array
    speaker: Array
    take: Array
    speaker_names: tuple[str, ...]


def read_idx(path: Path) -> Array:
    """Return the uint8 array of an IDX file, plain or gzip (``.gz``).

    Raises UserError, naming the file, when it is not such a file, is truncated or too long.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != bytes([0, 0, _IDX_UBYTE]):
                raise UserError(
                    f"{path}: received the first bytes {head.hex(' ') or 'of an empty file'}, "
                    "expected an IDX file of unsigned bytes (00 00 08 …)"
                )
            lengths = file.read(4 * head[3])
            if len(lengths) < 4 * head[3]:
                raise UserError(f"{path}: ends within its header: download it again")
            shape = tuple(np.frombuffer(lengths, dtype=">u4").tolist())
            expected = int(np.prod(shape, dtype=object))
            # One byte more than announced tells a longer file, however long it is.
            body = file.read(expected + 1)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read, perhaps truncated: {error}") from error
    if len(body) != expected:
        count = f"more than {expected:,}" if len(body) > expected else f"{len(body):,}"
        raise UserError(
            f"{path}: received {count} bytes of data, expected {expected:,} for the shape {shape}: "
            "download it again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def read_mnist(folder: Path) -> dict[str, Array]:
    """Return ``train_images`` (n, 28, 28), ``train_labels`` (n,), ``test_images``, ``test_labels``.

    The four files have their usual names, ``train-images-idx3-ubyte`` or
    ``train-images.idx3-ubyte`` and so on, with or without ``.gz``.

    Raises UserError when one is missing or damaged, or images and labels disagree.
    """
    arrays: dict[str, Array] = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        image_file = _find_idx(folder, f"{stem}-images", 3)
        label_file = _find_idx(folder, f"{stem}-labels", 1)
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise UserError(
                f"{image_file}: received the shape {images.shape}, expected (n, 28, 28)"
            )
        if labels.shape != (len(images),) or labels.max(initial=0) > 9:
            raise UserError(
                f"{label_file}: received {labels.size} labels up to {labels.max(initial=0)}, "
                f"expected {len(images)} from 0 to 9, as many as images"
            )
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels
    return arrays


def _find_idx(folder: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    for name in names:
        # Some archives unpack to a folder that has the file's own name.
        for path in (folder / name, folder / name / name):
            if path.is_file():
                return path
    raise UserError(f"{folder}: expected MNIST's {names[0]} (or {', '.join(names[1:])})")


def read_fsdd(folder: Path, speakers: tuple[str, ...] = SPEAKERS, takes: int = TAKES) -> Recordings:
    """Return the recordings ``{digit}_{speaker}_{take}.wav`` of ``folder``.

    ``folder`` holds the files, or is the data set's repository with its ``recordings``.

    Raises UserError when one is missing or not 8 kHz, mono, 16 bit.
    """
    inner = folder / "recordings"
    place = inner if inner.is_dir() else folder
    keys = [(d, s, t) for d in range(10) for s in range(len(speakers)) for t in range(takes)]
    found = {
        (int(m["digit"]), m["speaker"], int(m["take"])): path
        for path in (place.iterdir() if place.is_dir() else ())
        if (m := _WAV.fullmatch(path.name))
    }
    missing = [key for key in keys if (key[0], speakers[key[1]], key[2]) not in found]
    if missing:
        digit, speaker, take = missing[0]
        name = f"{digit}_{speakers[speaker]}_{take}.wav"
        raise UserError(
            f"{place}: {len(missing):,} of {len(keys):,} recordings are missing, "
            f"the first is {name}: expected all of the Free Spoken Digit Dataset"
        )
    clips = [read_wav(found[d, speakers[s], t]) for d, s, t in keys]
    label, speaker, take = np.array(keys, dtype=np.uint8).T.copy()
    return Recordings(
        audio=np.concatenate(clips),
        offsets=np.cumsum([0, *(len(clip) for clip in clips)], dtype=np.int64),
        label=label,
        speaker=speaker,
        take=take,
        speaker_names=speakers,
    )


def read_wav(path: Path) -> Array:
    """Return the samples (T,) int16 of a wav file of 8 kHz, mono, 16 bit.

    Raises UserError, naming the file, when it is anything else, empty or truncated.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            frames = file.getnframes()
            body = file.readframes(frames)
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{path}: not a wav file, or truncated: {error or 'it ends'}") from error
    if (rate, channels, width) != (SAMPLE_RATE, 1, 2):
        raise UserError(
            f"{path}: received {rate} Hz, {channels} channels, {8 * width} bit, "
            f"expected {SAMPLE_RATE} Hz, mono, 16 bit"
        )
    if len(body) != 2 * frames or not frames:
        raise UserError(
            f"{path}: received {len(body) // 2} samples, expected {frames or 'some'}: "
            "download it again"
        )
    return np.frombuffer(body, dtype="<i2").astype(np.int16)
