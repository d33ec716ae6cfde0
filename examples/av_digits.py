"""An MNIST image and a spoken digit, in the manner of AV-MNIST: a task that Python code loads.

    bmnas search --task examples.av_digits:load --data DIR          # every speaker in every part
    bmnas search --task examples.av_digits:load_speaker --data DIR  # unseen speakers

DIR is a folder of four ``.npz`` files, which ``build_av_digits.py`` makes from the public
originals; without it they are looked for in the folder av-digits that BMNAS_DATA holds.
MNIST: Y. LeCun, C. Cortes, C. Burges. Speech: Z. Jackson et al., Free Spoken Digit Dataset,
doi 10.5281/zenodo.1342401.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.columns import read_npz
from bmnas.tasks.task import Array, Modality, Task

Split = Literal["take", "speaker"]
Image = Literal["weak", "full"]
Audio = Literal["noisy", "clean"]

FILES = ("mnist.npz", "fsdd.npz", "pairs.npz", "mnist_pca.npz")
PIXELS = 784
SAMPLE_RATE = 8000

#: One second. Clips last 0.14 to 2.28 s, median 0.42 s; 20 of the 3,000 are longer, and with
#: them 0.4 % of all samples are cut off.
CLIP_SAMPLES = 8000

_PARTS = ("train", "val", "test")
_NOISE_SEED = 7000
_CHUNK = 4096


def load(data: Path | None = None) -> Task:
    """Return the split "take": every speaker is in train, validation and test."""
    return load_av_digits(_folder(data), split="take")


def load_speaker(data: Path | None = None) -> Task:
    """Return the split "speaker": one unseen speaker each in validation and test."""
    return load_av_digits(_folder(data), split="speaker")


def load_av_digits(
    folder: Path, *, split: Split = "take", image: Image = "weak", audio: Audio = "noisy"
) -> Task:
    """Return the task of the pack in ``folder``: 24,000, 3,000 and 3,000 pairs, 10 classes.

    ``split``: "take" (every speaker in every part) or "speaker" (one unseen speaker each in
    validation and test). ``image`` (28, 28): "full" uint8, or "weak", float32 near [0, 1], what
    the 4 leading principal components leave (28 % of the variance, as in CentralNet and MFAS).
    ``audio`` (8000) at 8 kHz: "clean" int16, or "noisy", float32 with white noise at 0 dB over
    the whole clip, seed 7000 + clip; then cut after one second, or zeros added after its end.

    Raises UserError when a file of the pack is missing or damaged.
    """
    mnist = read_npz(
        folder / "mnist.npz", ["train_images", "train_labels", "test_images", "test_labels"]
    )
    fsdd = read_npz(folder / "fsdd.npz", ["audio", "offsets"])
    pairs = read_npz(folder / "pairs.npz", [f"{split}_{part}" for part in _PARTS])
    rows = [pairs[f"{split}_{part}"] for part in _PARTS]
    _check_pack(folder, mnist, fsdd, rows)
    clips = [fsdd["audio"][start:stop] for start, stop in pairwise(fsdd["offsets"])]
    # Test pairs count in MNIST's test images, the others in its train images.
    origin = ("train", "train", "test")
    images = np.concatenate(
        [mnist[f"{o}_images"][r[:, 0]] for o, r in zip(origin, rows, strict=True)]
    )
    labels = np.concatenate(
        [mnist[f"{o}_labels"][r[:, 0]] for o, r in zip(origin, rows, strict=True)]
    )
    numbers = np.concatenate([r[:, 1] for r in rows])
    return Task(
        name=_name(split, image, audio),
        kind="multiclass",
        modalities=(
            Modality("image", "image", images if image == "full" else _weak(folder, images)),
            Modality(
                "audio",
                "waveform",
                fixed_length_clips(clips, noisy=audio == "noisy"),
                index=numbers.astype(np.int64),
                sample_rate=SAMPLE_RATE,
            ),
        ),
        labels=labels.astype(np.int64),
        part=np.repeat(np.arange(3, dtype=np.uint8), [len(r) for r in rows]),
        class_names=tuple(str(k) for k in range(10)),
        licence="images CC BY-SA 3.0 (MNIST, as commonly stated), audio CC BY-SA 4.0 (FSDD)",
    )


def weak_images(images: Array, mean: Array, components: Array) -> Array:
    """Return what ``components`` (k, 784) leave of uint8 ``images`` (n, 28, 28), float32.

    The scale is that of pixels / 255; values may lie a little outside [0, 1].
    """
    weak = np.empty((len(images), PIXELS), dtype=np.float32)
    for start in range(0, len(images), _CHUNK):
        x = images[start : start + _CHUNK].reshape(-1, PIXELS).astype(np.float32) / 255
        # Not `@`: a BLAS rounds differently with another number of threads, and the cache of
        # features, which goes by the data's bytes, would be made again.
        kept = np.einsum("np,kp->nk", x - mean, components)
        weak[start : start + _CHUNK] = np.einsum("nk,kp->np", kept, components) + mean
    return weak.reshape(-1, 28, 28)


def noisy_clip(clip: Array, number: int) -> Array:
    """Return a clip (T,) int16 in [-1, 1) with white noise of its own power (0 dB), float32."""
    x = clip.astype(np.float32) / 32768
    noise = np.random.RandomState(_NOISE_SEED + number).randn(len(x)).astype(np.float32)
    noisy: Array = x + noise * (x.std() + np.float32(1e-8))
    return noisy


def fixed_length_clips(clips: Sequence[Array], *, noisy: bool) -> Array:
    """Return all clips cut or filled with zeros at their end: (clips, 8000) int16 or float32."""
    fixed = np.zeros((len(clips), CLIP_SAMPLES), dtype=np.float32 if noisy else np.int16)
    for number, clip in enumerate(clips):
        whole = noisy_clip(clip, number) if noisy else clip
        fixed[number, : len(clip)] = whole[:CLIP_SAMPLES]
    return fixed


def _folder(data: Path | None) -> Path:
    packs = os.environ.get("BMNAS_DATA")
    folders = [Path(packs) / "av-digits"] if packs else []
    if data is not None:
        # Both the pack itself and the folder of all packs are natural to give.
        folders = [data, data / "av-digits"]
    for folder in folders:
        if all((folder / name).is_file() for name in FILES):
            return folder
    where = f"in {' or '.join(map(str, folders))}" if folders else "without --data and BMNAS_DATA"
    raise UserError(
        f"av-digits: expected {', '.join(FILES)}, not found {where}: give --data DIR, or set "
        "BMNAS_DATA to the folder that holds av-digits/; `python -m examples.build_av_digits` "
        "builds them"
    )


def _weak(folder: Path, images: Array) -> Array:
    pca = read_npz(folder / "mnist_pca.npz", ["mean", "components", "k25"])
    mean, components, k = pca["mean"], pca["components"], pca["k25"]
    if (
        mean.shape != (PIXELS,)
        or components.ndim != 2
        or components.shape[1] != PIXELS
        or k.shape != ()
        or not 1 <= k <= len(components)
    ):
        shapes = f"mean {mean.shape}, components {components.shape} and k25 {k.tolist()}"
        expected = f"({PIXELS},), (n, {PIXELS}) and one of 1 to n"
        raise UserError(f"{folder / 'mnist_pca.npz'}: received {shapes}, expected {expected}")
    return weak_images(images, mean, components[: int(k)])


def _name(split: Split, image: Image, audio: Audio) -> str:
    usual = ("take", "weak", "noisy")
    chosen = zip((split, image, audio), usual, strict=True)
    return "-".join(["av-digits", *(value for value, default in chosen if value != default)])


def _check_pack(
    folder: Path, mnist: dict[str, Array], fsdd: dict[str, Array], rows: list[Array]
) -> None:
    """Refuse indices that point outside the arrays, so that damage is named where it is."""
    for part in ("train", "test"):
        images, labels = mnist[f"{part}_images"], mnist[f"{part}_labels"]
        if images.shape != (labels.size, 28, 28) or images.dtype != np.uint8 or labels.ndim != 1:
            raise UserError(
                f"{folder / 'mnist.npz'}: received {part}_images {images.dtype} {images.shape} and "
                f"{part}_labels {labels.shape}, expected uint8 (n, 28, 28) and (n,)"
            )
    audio, offsets = fsdd["audio"], fsdd["offsets"]
    if (
        offsets.ndim != 1
        or audio.ndim != 1
        or audio.dtype != np.int16
        or len(offsets) < 2
        or offsets[0] < 0
        or np.any(np.diff(offsets) <= 0)
        or offsets[-1] > len(audio)
    ):
        raise UserError(f"{folder / 'fsdd.npz'}: expected int16 audio, and offsets that cut it")
    limits = [len(mnist["train_images"])] * 2 + [len(mnist["test_images"])]
    for part, pairs, limit in zip(_PARTS, rows, limits, strict=True):
        whole = pairs.ndim == 2 and pairs.shape[1] == 2 and pairs.dtype.kind in "iu"
        if not whole or pairs.min(initial=0) < 0 or np.any(pairs >= (limit, len(offsets) - 1)):
            raise UserError(
                f"{folder / 'pairs.npz'}: {part}: expected pairs (n, 2) of an image below "
                f"{limit} and a clip below {len(offsets) - 1}: build the pack again"
            )
