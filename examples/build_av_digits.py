"""Build the av-digits pack, four ``.npz`` files, from MNIST and the Free Spoken Digit Dataset.

    python -m examples.build_av_digits --mnist DIR --fsdd DIR --out DIR

MNIST are its four IDX files, plain or ``.gz``; the recordings are those of the repository
Jakobovski/free-spoken-digit-dataset. The pairing is that of the published pack: with the complete
MNIST and the six speakers with fifty takes each, arrays and pairs come out equal to its own.
"""

from __future__ import annotations

import argparse
import gzip
import re
import wave
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_path
from bmnas.tasks.task import Array
from examples.av_digits import PIXELS, SAMPLE_RATE

SEED = 20240501
COMPONENTS = 64
WEAK_VARIANCE = 0.25

_VALIDATION_SPEAKER = "george"
_TEST_SPEAKER = "lucas"
_CHUNK = 4096
_IDX_UBYTE = 8
_WAV = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[A-Za-z]+)_(?P<take>[0-9]+)\.wav")

#: What the pack holds; recordings that later versions of the data set add are left out.
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50


@dataclass(frozen=True)
class PairsPerDigit:
    """How many pairs each digit gets in each part."""

    train: int = 2400
    val: int = 300
    test: int = 300


def build_av_digits(
    mnist: Path, fsdd: Path, out: Path, report: Callable[[str], None] = lambda step: None
) -> tuple[Path, ...]:
    """Build the pack in the folder ``out`` from MNIST's and FSDD's folders; return its files.

    ``report`` is called with a few words before each step. Every file appears whole or not at
    all, and none appears before all of the originals were read and found good.

    Raises UserError when an original is missing, damaged or incomplete, or ``out`` cannot be
    written.
    """
    report("reading MNIST")
    images = read_mnist(mnist)
    report("reading the spoken digits")
    recordings = read_fsdd(fsdd)
    pairs = all_pairs(images["train_labels"], images["test_labels"], recordings)
    report("principal components of the images")
    pca = image_pca(images["train_images"])
    contents: dict[str, dict[str, Any]] = {
        "mnist.npz": images,
        "fsdd.npz": {**vars(recordings), "sample_rate": np.int32(SAMPLE_RATE)},
        "mnist_pca.npz": pca,
        "pairs.npz": pairs,
    }
    for name, arrays in contents.items():
        report(f"writing {name}")
        _write_npz(out / name, arrays)
    return tuple(out / name for name in contents)


def all_pairs(
    train_labels: Array,
    test_labels: Array,
    recordings: Recordings,
    counts: PairsPerDigit | None = None,
) -> dict[str, Array]:
    """Return ``take_train`` … ``speaker_test``: int32 (n, 2), an MNIST index and a clip number.

    One ``RandomState(20240501)`` draws everything, first the split "take", then "speaker". For
    each split: a permutation of the train images of every digit, then of the test images of
    every digit; train takes its images from the front of the first, validation from the back,
    test from the front of the second. Then for each part and digit as many permutations of the
    part's clips of that digit, end to end, as the images need; and one shuffle of the part.

    Raises UserError when a digit has too few images, or clips that do not divide them.
    """
    counts = counts or PairsPerDigit()
    generator = np.random.RandomState(SEED)
    take, speaker = recordings.take, recordings.speaker
    names = recordings.speaker_names
    validation, test = names.index(_VALIDATION_SPEAKER), names.index(_TEST_SPEAKER)
    splits = {
        "take": {"train": take >= 10, "val": (take >= 5) & (take < 10), "test": take < 5},
        "speaker": {
            "train": (speaker != validation) & (speaker != test),
            "val": speaker == validation,
            "test": speaker == test,
        },
    }
    return {
        f"{split}_{part}": pairs
        for split, parts in splits.items()
        for part, pairs in _draw_pairs(
            generator, train_labels, test_labels, recordings.label, parts, counts
        ).items()
    }


def image_pca(images: Array) -> dict[str, Array]:
    """Return ``mean``, ``components``, ``eigenvalues`` and ``k25`` of uint8 images (n, 28, 28).

    Principal components of pixels / 255, centred, the largest eigenvalue first: ``mean`` (784),
    the first 64 ``components`` (64, 784), all ``eigenvalues`` (784) of the covariance (divided
    by n), float32. The entry of largest magnitude of each component is positive. ``k25`` is the
    smallest number of components that keep 25 % of the variance.

    Raises UserError when all images are the same, or 64 components keep less than 25 %.
    """
    total = np.zeros(PIXELS)
    for start in range(0, len(images), _CHUNK):
        total += images[start : start + _CHUNK].reshape(-1, PIXELS).sum(0, dtype=np.float64)
    mean = total / (255 * len(images))
    covariance = np.zeros((PIXELS, PIXELS))
    for start in range(0, len(images), _CHUNK):
        x = images[start : start + _CHUNK].reshape(-1, PIXELS) / 255.0 - mean
        covariance += x.T @ x
    ascending, vectors = np.linalg.eigh(covariance / len(images))
    eigenvalues = ascending[::-1]
    if eigenvalues[0] <= 0:
        raise UserError("MNIST's train images are all the same: download them again")
    components = vectors.T[::-1][:COMPONENTS]
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(COMPONENTS), largest])[:, None]
    kept = np.cumsum(eigenvalues) / eigenvalues.sum()
    if kept[COMPONENTS - 1] < WEAK_VARIANCE:
        raise UserError(
            f"received images of which {COMPONENTS} components keep {kept[COMPONENTS - 1]:.1%} of "
            f"the variance, expected {WEAK_VARIANCE:.0%}: use the images of MNIST"
        )
    return {
        "mean": mean.astype(np.float32),
        "components": components.astype(np.float32),
        "eigenvalues": eigenvalues.astype(np.float32),
        "k25": np.array(np.searchsorted(kept, WEAK_VARIANCE) + 1, dtype=np.int32),
    }


def _draw_pairs(
    generator: np.random.RandomState,
    train_labels: Array,
    test_labels: Array,
    clip_labels: Array,
    parts: Mapping[str, Array],
    counts: PairsPerDigit,
) -> dict[str, Array]:
    train = [generator.permutation(np.flatnonzero(train_labels == d)) for d in range(10)]
    test = [generator.permutation(np.flatnonzero(test_labels == d)) for d in range(10)]
    needed = {"train": (train, counts.train + counts.val), "test": (test, counts.test)}
    for part, (digits, least) in needed.items():
        for digit, numbers in enumerate(digits):
            if len(numbers) < least:
                raise UserError(
                    f"received {len(numbers)} {part} images of {digit}, expected at least {least}: "
                    "use the complete MNIST"
                )
    images = {
        "train": [p[: counts.train] for p in train],
        "val": [p[::-1][: counts.val] for p in train],
        "test": [p[: counts.test] for p in test],
    }
    drawn = {}
    for part, chosen in parts.items():
        rows = []
        for digit, image in enumerate(images[part]):
            clips = np.flatnonzero((clip_labels == digit) & chosen)
            if not len(clips) or len(image) % len(clips):
                raise UserError(
                    f"received {len(clips)} recordings of {digit} for {part}, expected a "
                    f"divisor of its {len(image)} images: use the complete data sets"
                )
            rounds = len(image) // len(clips)
            clip = np.concatenate([generator.permutation(clips) for _ in range(rounds)])
            rows.append(np.stack([image, clip], axis=1))
        drawn[part] = generator.permutation(np.concatenate(rows)).astype(np.int32)
    return drawn


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    # Through a file object: given a path, numpy would add ".npz" to the temporary name.
    try:
        with atomic_path(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


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


def main() -> None:
    """Build the pack that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("mnist", "fsdd", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    try:
        for path in build_av_digits(given.mnist, given.fsdd, given.out, report=print):
            print(path)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
