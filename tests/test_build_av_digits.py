from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import tiny_mnist, write_mnist, write_tiny_fsdd, write_wav

from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, check_test
from examples.av_digits import FILES, load, load_av_digits
from examples.build_av_digits import (
    SPEAKERS,
    TAKES,
    PairsPerDigit,
    Recordings,
    all_pairs,
    build_av_digits,
    image_pca,
    main,
    read_fsdd,
    read_mnist,
)

PACK = Path(os.environ.get("BMNAS_DATA", "nowhere")) / "av-digits"
SIZES = {"train": 24000, "val": 3000, "test": 3000}


def recordings() -> Recordings:
    keys = np.array(
        [(d, s, t) for d in range(10) for s in range(len(SPEAKERS)) for t in range(TAKES)]
    )
    label, speaker, take = keys.T.astype(np.uint8)
    nothing = np.zeros(0, dtype=np.int16)
    return Recordings(nothing, np.zeros(0, dtype=np.int64), label, speaker, take, SPEAKERS)


@pytest.fixture(scope="module")
def pairs() -> dict[str, Any]:
    mnist = tiny_mnist(2750, 320)
    drawn = all_pairs(mnist["train_labels"], mnist["test_labels"], recordings())
    return {"mnist": mnist, **drawn}


@pytest.mark.parametrize("split", ["take", "speaker"])
def test_pairs_agree_on_the_digit_and_share_nothing(pairs: dict[str, Any], split: str) -> None:
    found = recordings()
    for part, size in SIZES.items():
        images, clips = pairs[f"{split}_{part}"].T
        origin = "test" if part == "test" else "train"
        assert pairs[f"{split}_{part}"].shape == (size, 2)
        assert pairs[f"{split}_{part}"].dtype == np.int32
        labels = pairs["mnist"][f"{origin}_labels"][images]
        assert np.array_equal(labels, found.label[clips])
        assert np.bincount(labels).tolist() == [size // 10] * 10
        assert len(set(images.tolist())) == size
        assert len(set(Counter(clips.tolist()).values())) == 1
    train, val, test = (pairs[f"{split}_{part}"] for part in SIZES)
    assert not set(train[:, 0].tolist()) & set(val[:, 0].tolist())
    for a, b in ((train, val), (train, test), (val, test)):
        assert not set(a[:, 1].tolist()) & set(b[:, 1].tolist())


def test_parts_are_the_takes_and_speakers_of_the_pack(pairs: dict[str, Any]) -> None:
    found = recordings()
    takes = {p: set(found.take[pairs[f"take_{p}"][:, 1]].tolist()) for p in SIZES}
    assert takes == {"train": set(range(10, 50)), "val": set(range(5, 10)), "test": set(range(5))}
    speakers = {p: {SPEAKERS[s] for s in found.speaker[pairs[f"speaker_{p}"][:, 1]]} for p in SIZES}
    assert speakers == {
        "train": {"jackson", "nicolas", "theo", "yweweler"},
        "val": {"george"},
        "test": {"lucas"},
    }


def test_originals_that_are_too_few() -> None:
    mnist = tiny_mnist(10, 3)
    labels = mnist["train_labels"], mnist["test_labels"]
    with pytest.raises(UserError, match="received 10 train images of 0, expected at least 2700"):
        all_pairs(*labels, recordings())
    with pytest.raises(UserError, match=r"received 240 recordings of 0 for train, .* 7 images"):
        all_pairs(*labels, recordings(), PairsPerDigit(7, 3, 3))


def test_principal_components_of_two_known_directions() -> None:
    rng = np.random.default_rng(0)
    images = np.full((400, 28, 28), 100, dtype=np.uint8)
    images[:, 3, 4] = 100 + 50 * rng.choice([-1, 1], 400)
    images[:, 20, 9] = 100 + 10 * rng.choice([-1, 1], 400)
    pca = image_pca(images)
    x = images.reshape(-1, 784) / 255.0
    assert np.allclose(pca["mean"], x.mean(0))
    assert abs(pca["components"][0, 3 * 28 + 4]) > 0.99
    assert abs(pca["components"][1, 20 * 28 + 9]) > 0.99
    assert np.allclose(pca["eigenvalues"].sum(), x.var(0).sum())
    assert np.allclose(pca["eigenvalues"][0], (50 / 255) ** 2, rtol=0.02)
    assert pca["k25"] == 1
    largest = pca["components"][np.arange(64), np.abs(pca["components"]).argmax(1)]
    assert (largest > 0).all()
    assert np.allclose(pca["components"] @ pca["components"].T, np.eye(64), atol=1e-5)


def test_images_without_principal_components() -> None:
    with pytest.raises(UserError, match="all the same"):
        image_pca(np.zeros((5, 28, 28), dtype=np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (4000, 28, 28)).astype(np.uint8)
    with pytest.raises(
        UserError, match=r"64 components keep 1\d\.\d% of the variance, expected 25%"
    ):
        image_pca(noise)


@pytest.fixture(scope="module")
def tiny_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_mnist(folder / "mnist", tiny_mnist(2700, 300))
    write_tiny_fsdd(folder / "fsdd", SPEAKERS, TAKES)
    return folder


def test_a_pack_from_originals_is_a_task(tiny_originals: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    files = build_av_digits(
        tiny_originals / "mnist", tiny_originals / "fsdd", tmp_path / "pack", steps.append
    )
    assert {path.name for path in files} == set(FILES)
    assert {path.name for path in (tmp_path / "pack").iterdir()} == set(FILES)
    assert steps[0] == "reading MNIST"
    task = load(tmp_path / "pack")
    check_task(task)
    check_test(task)
    full = load_av_digits(tmp_path / "pack", image="full", audio="clean")
    image, audio = full.modalities
    pairs = np.load(tmp_path / "pack" / "pairs.npz")["take_val"]
    mnist = np.load(tmp_path / "pack" / "mnist.npz")
    validation = full.samples("validation")
    assert np.array_equal(image.data[validation], mnist["train_images"][pairs[:, 0]])
    assert np.array_equal(audio.rows_of(validation), pairs[:, 1])
    assert audio.data[pairs[0, 1], 0] // 1000 == full.labels[validation[0]]


def test_nothing_is_written_before_all_originals_are_good(
    tiny_originals: Path, tmp_path: Path
) -> None:
    fsdd = write_tiny_fsdd(tmp_path / "fsdd", SPEAKERS, TAKES)
    (fsdd / "3_theo_7.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"3_theo_7\.wav: not a wav file, or truncated"):
        build_av_digits(tiny_originals / "mnist", fsdd, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_folder_that_cannot_be_written(tiny_originals: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"mnist\.npz: cannot be written: "):
        build_av_digits(tiny_originals / "mnist", tiny_originals / "fsdd", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.data
@pytest.mark.skipif(not PACK.is_dir(), reason="BMNAS_DATA names no folder with av-digits")
def test_the_published_pack_from_its_originals(tmp_path: Path) -> None:
    published = {name: np.load(PACK / name) for name in FILES}
    write_mnist(tmp_path / "mnist", {k: published["mnist.npz"][k] for k in MNIST_ARRAYS})
    (tmp_path / "fsdd").mkdir()
    fsdd = published["fsdd.npz"]
    names, audio, offsets = fsdd["speaker_names"], fsdd["audio"], fsdd["offsets"]
    columns = zip(fsdd["label"], fsdd["speaker"], fsdd["take"], strict=True)
    for number, (digit, speaker, take) in enumerate(columns):
        path = tmp_path / "fsdd" / f"{digit}_{names[speaker]}_{take}.wav"
        write_wav(path, audio[offsets[number] : offsets[number + 1]])
    build_av_digits(tmp_path / "mnist", tmp_path / "fsdd", tmp_path / "pack")
    for name, expected in published.items():
        built = np.load(tmp_path / "pack" / name)
        assert built.files == expected.files
        for array in expected.files:
            assert built[array].dtype == expected[array].dtype
            if name == "mnist_pca.npz" and array != "k25":
                assert np.allclose(np.abs(built[array]), np.abs(expected[array]), atol=1e-5)
            else:
                assert np.array_equal(built[array], expected[array]), f"{name}: {array}"


MNIST_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def test_readers_give_what_the_pack_holds(tiny_originals: Path) -> None:
    mnist = read_mnist(tiny_originals / "mnist")
    assert mnist["train_images"].shape == (27000, 28, 28)
    assert len(read_fsdd(tiny_originals / "fsdd").label) == 3000


def test_missing_originals_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["build", "--mnist", folder, "--fsdd", folder, "--out", f"{folder}/pack"]
    )
    with pytest.raises(SystemExit, match=r"error: .*: expected MNIST's train-images"):
        main()
    assert list(tmp_path.iterdir()) == []
