"""Build the ``av-digits`` pack, four ``.npz`` files, from the public originals.

The pairing is that of the published pack: with the complete MNIST and the six speakers with
fifty takes each of FSDD, arrays and pairs come out equal to its arrays and pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_path
from bmnas.tasks.av_digits import PIXELS, SAMPLE_RATE
from bmnas.tasks.kinds import Array
from bmnas.tasks.originals import Recordings, read_fsdd, read_mnist

SEED = 20240501
COMPONENTS = 64
WEAK_VARIANCE = 0.25

_VALIDATION_SPEAKER = "george"
_TEST_SPEAKER = "lucas"
_CHUNK = 4096


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
