from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import idx_bytes, tiny_mnist, write_mnist, write_tiny_fsdd, write_wav

from bmnas.machine.errors import UserError
from examples.build_av_digits import read_fsdd, read_idx, read_mnist, read_wav


def error_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("gz", [False, True])
def test_mnist_under_its_usual_names(tmp_path: Path, dot: str, gz: bool) -> None:
    arrays = tiny_mnist(3, 2)
    read = read_mnist(write_mnist(tmp_path / "mnist", arrays, dot=dot, gz=gz))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(read[name], array)
        assert read[name].dtype == np.uint8


def test_an_archive_that_unpacked_to_folders(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist", tiny_mnist(1, 1))
    for path in list(mnist.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        (path / path.name).write_bytes(content)
    assert read_mnist(mnist)["train_images"].shape == (10, 28, 28)


WHOLE = idx_bytes(np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "received the first bytes of an empty file, expected an IDX file"),
        (b"PNG!....", "received the first bytes 50 4e 47 21"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "expected an IDX file of unsigned bytes (00 00 08 …)"),
        (WHOLE[:4], "ends within its header: download it again"),
        (WHOLE[:7], "ends within its header: download it again"),
        (WHOLE[:-1], "received 11 bytes of data, expected 12 for the shape (3, 4): download it"),
        (WHOLE + b"x", "received more than 12 bytes of data, expected 12"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "cannot be read, perhaps truncated"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    message = error_of(read_idx, path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_truncated_gzip(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist", tiny_mnist(3, 2), gz=True)
    path = mnist / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:200], b"hello"):
        path.write_bytes(content)
        assert "cannot be read, perhaps truncated" in error_of(read_mnist, mnist)


def test_images_and_labels_that_disagree(tmp_path: Path) -> None:
    arrays = tiny_mnist(2, 2)
    short = {**arrays, "train_labels": arrays["train_labels"][:-1]}
    message = error_of(read_mnist, write_mnist(tmp_path / "a", short))
    assert "train-labels-idx1-ubyte: received 19 labels" in message
    assert "expected 20 from 0 to 9, as many as images" in message
    large = {**arrays, "test_labels": arrays["test_labels"] + np.uint8(1)}
    assert "labels up to 10" in error_of(read_mnist, write_mnist(tmp_path / "b", large))
    small = {**arrays, "test_images": arrays["test_images"][:, :20]}
    message = error_of(read_mnist, write_mnist(tmp_path / "c", small))
    assert "received the shape (20, 20, 28), expected (n, 28, 28)" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist", tiny_mnist(1, 1))
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    assert "expected MNIST's t10k-labels-idx1-ubyte (or t10k-" in error_of(read_mnist, mnist)
    assert "expected MNIST's train-images" in error_of(read_mnist, tmp_path / "nowhere")


def test_recordings_are_ordered_by_digit_speaker_and_take(tmp_path: Path) -> None:
    speakers = ("ann", "bob")
    write_tiny_fsdd(tmp_path / "repository" / "recordings", speakers, takes=12)
    found = read_fsdd(tmp_path / "repository", speakers, takes=12)
    keys = [(d, s, t) for d in range(10) for s in range(2) for t in range(12)]
    assert list(zip(found.label, found.speaker, found.take, strict=True)) == keys
    for number, (digit, speaker, take) in enumerate(keys):
        clip = found.audio[found.offsets[number] : found.offsets[number + 1]]
        assert clip.tolist() == [1000 * digit + 100 * speaker + take] * (1 + (digit + take) % 5)
    assert (found.audio.dtype, found.offsets.dtype) == (np.int16, np.int64)


def test_other_speakers_and_later_takes_are_left_out(tmp_path: Path) -> None:
    folder = write_tiny_fsdd(tmp_path / "fsdd", ("ann", "bob", "eve"), takes=4)
    found = read_fsdd(folder, ("bob",), takes=2)
    assert len(found.label) == 20
    assert found.audio[0] == 100


def test_missing_recordings_are_counted(tmp_path: Path) -> None:
    folder = write_tiny_fsdd(tmp_path / "fsdd", ("ann",), takes=3)
    (folder / "4_ann_1.wav").unlink()
    (folder / "7_ann_0.wav").unlink()
    message = error_of(read_fsdd, folder, ("ann",), 3)
    assert "2 of 30 recordings are missing, the first is 4_ann_1.wav" in message
    assert "30 of 30 recordings are missing" in error_of(read_fsdd, tmp_path / "no", ("ann",), 3)


def test_wav_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    clip = np.arange(20, dtype="<i2")
    for options, received in (
        ({"rate": 16000}, "received 16000 Hz, 1 channels, 16 bit"),
        ({"channels": 2}, "received 8000 Hz, 2 channels, 16 bit"),
        ({"width": 1}, "received 8000 Hz, 1 channels, 8 bit"),
    ):
        write_wav(path, clip, **options)
        assert f"{path}: {received}, expected 8000 Hz, mono, 16 bit" in error_of(read_wav, path)
    write_wav(path, clip[:0])
    assert "received 0 samples, expected some" in error_of(read_wav, path)
    write_wav(path, clip)
    assert read_wav(path).tolist() == clip.tolist()


@pytest.mark.parametrize("kept", [0, 3, 20, 40, 60])
def test_truncated_wav_files(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.wav"
    write_wav(path, np.arange(20, dtype="<i2"))
    path.write_bytes(path.read_bytes()[:kept])
    assert error_of(read_wav, path).startswith(f"{path}: ")
