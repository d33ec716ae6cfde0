"""MNIST's IDX files and FSDD's wav files, written from arrays."""

from __future__ import annotations

import gzip
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


def idx_bytes(array: Array) -> bytes:
    """Return an IDX file of unsigned bytes."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def write_mnist(
    folder: Path, arrays: dict[str, Array], *, dot: str = "-", gz: bool = False
) -> Path:
    """Write the four files of ``train_images``, ``train_labels``, ``test_…`` into ``folder``."""
    folder.mkdir(exist_ok=True)
    for part, stem in (("train", "train"), ("test", "t10k")):
        for what, rank in (("images", 3), ("labels", 1)):
            body = idx_bytes(arrays[f"{part}_{what}"])
            path = folder / f"{stem}-{what}{dot}idx{rank}-ubyte{'.gz' if gz else ''}"
            path.write_bytes(gzip.compress(body, 1) if gz else body)
    return folder


def tiny_mnist(train: int, test: int) -> dict[str, Array]:
    """Bars of different brightness and a few bright pixels; every digit ``train`` times."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for part, count in (("train", 10 * train), ("test", 10 * test)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, 8:20, 12:16] = rng.integers(0, 256, (count, 1, 1))
        for _ in range(5):
            rows, columns = rng.integers(4, 24, (2, count))
            images[np.arange(count), rows, columns] = rng.integers(1, 256, count)
        arrays[f"{part}_images"] = images
        arrays[f"{part}_labels"] = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    return arrays


def write_wav(
    path: Path, samples: Array, *, rate: int = 8000, channels: int = 1, width: int = 2
) -> None:
    """Write a wav file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_tiny_fsdd(folder: Path, speakers: tuple[str, ...], takes: int) -> Path:
    """Write a clip of a few samples for every digit, speaker and take; its values name it."""
    folder.mkdir(exist_ok=True, parents=True)
    for digit in range(10):
        for number, speaker in enumerate(speakers):
            for take in range(takes):
                value = 1000 * digit + 100 * number + take
                clip = np.full(1 + (digit + take) % 5, value, dtype="<i2")
                write_wav(folder / f"{digit}_{speaker}_{take}.wav", clip)
    return folder
