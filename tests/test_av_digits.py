from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmnas.machine.errors import UserError
from bmnas.tasks import Task, check_task, check_test, load_task
from examples.av_digits import (
    fixed_length_clips,
    load,
    load_av_digits,
    load_speaker,
    noisy_clip,
    weak_images,
)

PACK = Path(os.environ.get("BMNAS_DATA", "nowhere")) / "av-digits"
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="BMNAS_DATA names no av-digits")


def test_noise_has_the_power_of_the_clip_and_a_seed_of_its_number() -> None:
    clip = (8000 * np.sin(np.arange(4000) / 3)).astype(np.int16)
    x = clip / 32768
    noise = noisy_clip(clip, 5) - x
    drawn = np.random.RandomState(7005).randn(4000)
    assert np.allclose(noise, drawn * x.std(), atol=1e-6)
    assert 10 * np.log10(np.var(x) / np.var(noise)) == pytest.approx(0, abs=0.2)
    assert not np.array_equal(noisy_clip(clip, 5), noisy_clip(clip, 6))


def test_clips_are_cut_or_filled_after_the_noise() -> None:
    audio = np.arange(1, 9501).astype(np.int16)
    clips = [audio[:500], audio[500:]]
    clean = fixed_length_clips(clips, noisy=False)
    assert (clean.shape, clean.dtype) == ((2, 8000), np.int16)
    assert clean[0, :500].tolist() == list(range(1, 501))
    assert not clean[0, 500:].any()
    assert np.array_equal(clean[1], audio[500:8500])
    noisy = fixed_length_clips(clips, noisy=True)
    assert noisy.dtype == np.float32
    assert not noisy[0, 500:].any()
    # The noise is that of the whole clip of 9,000 samples, not of what is kept of it.
    assert np.array_equal(noisy[1], noisy_clip(audio[500:], 1)[:8000])


def test_weak_images_are_a_projection() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 28, 28)).astype(np.uint8)
    components = np.linalg.qr(rng.normal(size=(784, 3)))[0].T.astype(np.float32)
    mean = rng.random(784, dtype=np.float32)
    weak = weak_images(images, mean, components)
    assert (weak.shape, weak.dtype) == ((6, 28, 28), np.float32)
    x = images.reshape(6, 784) / 255
    expected = (x - mean) @ components.T @ components + mean
    assert np.allclose(weak.reshape(6, 784), expected, atol=1e-5)


def small_pack(folder: Path, **changed: Any) -> Path:
    """Four files of ten images and five clips, right or not."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pairs = np.stack([np.arange(10), np.arange(10) // 2], axis=1).astype(np.int32)
    contents: dict[str, dict[str, Any]] = {
        "mnist": {
            f"{part}_{what}": value
            for part in ("train", "test")
            for what, value in (
                ("images", rng.integers(0, 256, (10, 28, 28)).astype(np.uint8)),
                ("labels", np.arange(10, dtype=np.uint8)),
            )
        },
        "fsdd": {"audio": np.ones(50, np.int16), "offsets": np.arange(0, 51, 10)},
        "pairs": {f"take_{part}": pairs for part in ("train", "val", "test")},
        "mnist_pca": {"mean": np.zeros(784), "components": np.eye(784)[:9], "k25": np.array(2)},
    }
    for name, arrays in contents.items():
        known = {key: changed.get(key, value) for key, value in arrays.items()}
        np.savez(folder / f"{name}.npz", **known)
    return folder


def test_a_small_pack_loads(tmp_path: Path) -> None:
    task = load(small_pack(tmp_path / "pack"))
    check_task(task)
    assert [len(task.samples(p)) for p in ("train", "validation", "test")] == [10, 10, 10]
    assert np.count_nonzero(task.modality("image").data[0]) == 2


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"offsets": np.array([0, 10, 5])}, "fsdd.npz: expected int16 audio, and offsets that cut"),
        ({"offsets": np.array([0, 99])}, "fsdd.npz: expected int16 audio"),
        ({"audio": np.ones(50)}, "fsdd.npz: expected int16 audio"),
        ({"take_val": np.zeros((4, 3), int)}, "pairs.npz: val: expected pairs (n, 2) of an image"),
        ({"take_test": np.array([[10, 0]])}, "pairs.npz: test: expected pairs (n, 2) of an image"),
        ({"take_train": np.array([[0, 5]])}, "an image below 10 and a clip below 5"),
        ({"train_images": np.zeros((10, 28))}, "mnist.npz: received train_images float64 (10, 28)"),
        ({"test_labels": np.zeros(9)}, "and test_labels (9,), expected uint8 (n, 28, 28) and (n,)"),
        ({"mean": np.zeros(9)}, "mnist_pca.npz: received mean (9,)"),
        ({"k25": np.array(10)}, "and k25 10, expected"),
        ({"k25": np.array([1, 2])}, "and k25 [1, 2], expected"),
    ],
)
def test_a_damaged_pack_is_named(tmp_path: Path, changed: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load(small_pack(tmp_path / "pack", **changed))
    assert expected in str(caught.value)


def test_a_truncated_file_of_the_pack(tmp_path: Path) -> None:
    path = small_pack(tmp_path / "pack") / "fsdd.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"fsdd\.npz: not an \.npz file, or a truncated one"):
        load(tmp_path / "pack")
    path.unlink()
    with pytest.raises(UserError, match=r"expected mnist\.npz, fsdd\.npz, .* not found in"):
        load(tmp_path / "pack")


@needs_pack
@pytest.mark.data
def test_the_published_pack() -> None:
    both = load_speaker(PACK), load_av_digits(PACK, split="speaker", image="full", audio="clean")
    for task in (load(PACK), *both):
        _check_published(task)
    assert [task.name for task in both] == ["av-digits-speaker", "av-digits-speaker-full-clean"]


def test_it_is_a_task_by_module_and_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pack(tmp_path / "av-digits")
    monkeypatch.setenv("BMNAS_DATA", str(tmp_path))
    task = load_task("examples.av_digits:load")
    assert (task.source, task.preset) == ({"task": "examples.av_digits:load"}, "default")


def _check_published(task: Task) -> None:
    check_task(task)
    check_test(task)
    assert np.bincount(task.part).tolist() == [24000, 3000, 3000]
    image, audio = task.modalities
    assert (image.data.shape, audio.data.shape) == ((30000, 28, 28), (3000, 8000))
    assert len(np.unique(audio.rows_of(task.samples("test")))) in (300, 500)
    numbers = np.load(PACK / "fsdd.npz")["label"]
    assert np.array_equal(numbers[audio.rows_of(np.arange(30000))], task.labels)


@needs_pack
@pytest.mark.data
def test_the_pack_is_found_where_bmnas_data_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_pack(tmp_path / "small"), tmp_path / "packs" / "av-digits")
    monkeypatch.setenv("BMNAS_DATA", str(tmp_path / "packs"))
    assert len(load().labels) == 30
    assert len(load(PACK.parent).labels) == 30000


def test_a_weak_image_does_not_depend_on_the_others_nor_on_threads() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    mean = rng.normal(size=784).astype(np.float32)
    components = rng.normal(size=(4, 784)).astype(np.float32)
    together = weak_images(images, mean, components)
    for number in range(0, 50, 7):
        alone = weak_images(images[number : number + 1], mean, components)
        assert np.array_equal(together[number : number + 1], alone)
