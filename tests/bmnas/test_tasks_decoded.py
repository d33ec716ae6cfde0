from __future__ import annotations

import os
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from tiny_tasks import changed, tiny_task

from bmnas.features.cache import rows_hash
from bmnas.machine.errors import UserError
from bmnas.tasks import check_task
from bmnas.tasks.decoded import DecodedRows, Kept
from bmnas.tasks.rows import DRAWS
from bmnas.tasks.task import Array

SHAPE = (96, 6, 3)
ALL = np.arange(96)


def read_npy(read: list[str], path: Path) -> Array:
    read.append(path.stem)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: received an empty file, expected an array")
    row: Array = np.load(path)
    return row


def shifted(read: list[str], path: Path, draws: Array) -> Array:
    row: Array = read_npy(read, path) + draws[0]
    return row


def itself(path: Path) -> Sequence[Path]:
    return [path]


def stored(folder: Path, data: Array) -> tuple[DecodedRows[Path], list[str]]:
    """Return the rows of ``data`` as files of their own, and the names of those that were read."""
    paths = [folder / f"{number:03}.npy" for number in range(len(data))]
    for path, row in zip(paths, data, strict=True):
        np.save(path, row)
    read: list[str] = []
    rows = DecodedRows(
        paths,
        partial(read_npy, read),
        data.shape[1:],
        data.dtype,
        folder=folder,
        files=itself,
        recipe="as it is",
        vary=partial(shifted, read),
    )
    return rows, read


@pytest.fixture
def data() -> Array:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_rows_are_those_of_the_files(tmp_path: Path, data: Array) -> None:
    rows, _ = stored(tmp_path, data)
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == (SHAPE, 3, data.dtype, 96)
    for numbers in ([5, 2, 2, 95], [1, 2, 90], []):
        key = np.array(numbers, dtype=np.int64)
        np.testing.assert_array_equal(rows[key], data[key])
    with pytest.raises(IndexError):
        rows[np.array([96])]


def test_a_row_asked_for_twice_is_decoded_once(tmp_path: Path, data: Array) -> None:
    rows, read = stored(tmp_path, data)
    rows[np.array([7, 3, 7])]
    assert sorted(read) == ["003", "007"]
    rows[np.array([7])]
    assert sorted(read) == ["003", "007", "007"]


def test_training_sees_what_the_draws_say(tmp_path: Path, data: Array) -> None:
    rows, read = stored(tmp_path, data)
    assert rows.varies
    numbers, draws = np.array([7, 3, 7]), np.random.default_rng(1).random((3, DRAWS))
    expected = data[numbers] + draws[:, :1, None]
    np.testing.assert_allclose(rows.varied(numbers, draws), expected.astype(np.float32))
    assert sorted(read) == ["003", "007", "007"]


def test_as_much_is_kept_as_fits(tmp_path: Path, data: Array) -> None:
    asked: list[int] = []

    def read(item: int) -> Array:
        asked.append(item)
        return data[item]

    kept = Kept(read, 10 * data[0].nbytes + 1)
    for _ in range(2):
        np.testing.assert_array_equal([kept(item) for item in range(96)], data)
    assert len(asked) == 96 + 86
    again = pickle.loads(pickle.dumps(Kept(np.load, 7)))  # noqa: S301
    assert isinstance(again, Kept)


def test_what_two_threads_read_at_once_is_kept_once(data: Array) -> None:
    both, asked = Barrier(2, timeout=10), list[int]()

    def read(item: int) -> Array:
        asked.append(item)
        if item == 0:
            both.wait()
        return data[item]

    kept = Kept(read, 2 * data[0].nbytes)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kept, [0, 0]))
    for item in (0, 1, 1):
        kept(item)
    assert asked == [0, 0, 1]


def test_a_broken_file_is_reported_and_the_rest_is_not_read(
    tmp_path: Path, data: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, read = stored(tmp_path, data)

    def slow(path: Path) -> Array:
        time.sleep(0.01)  # else all are read before the first is asked how it went
        return data[int(path.stem)]

    monkeypatch.setattr(np, "load", slow)
    (tmp_path / "001.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"001\.npy: received an empty file"):
        rows[ALL]
    assert len(read) < 96


def test_the_digest_follows_the_files(tmp_path: Path, data: Array) -> None:
    rows, read = stored(tmp_path, data)
    few = np.arange(4)
    before = rows_hash(rows, few)
    assert read == []
    assert rows_hash(rows, few) == before == rows_hash(pickle.loads(pickle.dumps(rows)), few)  # noqa: S301
    assert rows_hash(rows, few[:3]) != before
    os.utime(tmp_path / "090.npy", ns=(1, 1))
    assert rows_hash(rows, few) == before
    os.utime(tmp_path / "002.npy", ns=(1, 1))
    assert rows_hash(rows, few) != before
    (tmp_path / "003.npy").unlink()
    with pytest.raises(UserError, match=r"003\.npy: cannot be read: No such file"):
        rows_hash(rows, few)


def test_a_task_of_rows_is_checked_like_one_of_arrays(tmp_path: Path) -> None:
    task = tiny_task()
    data = np.asarray(task.modalities[0].data[ALL])
    data[0, 0, 0] = np.nan
    rows, read = stored(tmp_path, data)
    with pytest.raises(UserError, match="modality m0: NaN or infinite value in row 0, of sample 0"):
        check_task(changed(task, 0, data=rows))
    assert "002" not in read  # of the test part
    with pytest.raises(UserError, match=r"received float32 of shape \(96, 6, 3\), expected rows"):
        check_task(changed(task, 0, type="clip", data=rows))
