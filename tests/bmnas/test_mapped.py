from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bmnas.features.files import MappedArrays, MappedFile
from bmnas.machine.errors import UserError

SHAPE = (4096, 8, 16)  # 2 MiB


def saved(folder: Path) -> tuple[Path, np.ndarray]:
    array = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    np.save(folder / "a.npy", array)
    return folder / "a.npy", array


def resident(path: Path) -> int:
    """The bytes of a mapped file in this process's memory, by the kernel's account."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if line.endswith(str(path)):
            inside = True
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
            inside = False
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc/self/smaps")
def test_pages_are_handed_back_and_read_again(tmp_path: Path) -> None:
    path, array = saved(tmp_path)
    pages = MappedArrays({"a": MappedFile(path, SHAPE)}, limit=1 << 20)
    mapped = pages["a"]
    assert torch.equal(mapped.clone(), torch.from_numpy(array))
    assert resident(path) > 1 << 20
    pages.read(len(array), mapped[0].nbytes)
    assert resident(path) == 0
    assert torch.equal(mapped.clone(), torch.from_numpy(array))


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc/self/smaps")
def test_no_more_stays_than_the_limit_and_one_read(tmp_path: Path) -> None:
    # Large enough for the system to map much more around a row than the row.
    shape = (16384, 8, 128)  # 64 MiB
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, shape)
    array[:] = np.arange(len(array))[:, None, None]
    array.flush()
    del array
    pages = MappedArrays({"a": MappedFile(tmp_path / "a.npy", shape)}, limit=8 << 20)
    mapped = pages["a"]
    peak = 0
    for number, rows in enumerate(torch.randperm(len(mapped)).split(4)):
        assert torch.equal(mapped[rows][:, 0, 0], rows.float())
        # The system's account takes a while to read.
        if number % 61 == 0:
            peak = max(peak, resident(tmp_path / "a.npy"))
        pages.read(len(rows), mapped[0].nbytes)
        if peak > 24 << 20:
            break
    assert 8 << 20 < peak <= 24 << 20


class Counted:
    """A mapped file that counts how often its pages are handed back."""

    def __init__(self, size: int) -> None:
        self.size, self.given_back = size, 0

    def __len__(self) -> int:
        return self.size

    def madvise(self, advice: int) -> None:
        assert advice == mmap.MADV_DONTNEED
        self.given_back += 1

    def map(self) -> tuple[torch.Tensor, Any]:
        return torch.zeros(1), self


def test_without_the_systems_account_what_is_read_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bmnas.features.files._ACCOUNT", Path("no such file"))
    small, large = Counted(1000), Counted(10_000_000)
    few = MappedArrays({"s": small}, limit=1000)  # type: ignore[dict-item]
    many = MappedArrays({"l": large, "s": small}, limit=1_000_000)  # type: ignore[dict-item]
    for _ in range(10):
        few.read(100, 100)
        many.read(4, 100)  # with what lies around: 262 kB
    assert small.given_back == large.given_back == 2
    for _ in range(100):
        few.read(100, 100)
    assert small.given_back == 2


def test_another_process_maps_the_files_anew(tmp_path: Path) -> None:
    path, array = saved(tmp_path)
    content = pickle.dumps(MappedArrays({"a": MappedFile(path, SHAPE)}, limit=7))
    assert len(content) < 1000
    again = pickle.loads(content)  # noqa: S301  # our own
    assert torch.equal(again["a"], torch.from_numpy(array))
    assert again._limit == 7


def test_another_shape_is_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with pytest.raises(UserError, match=r"received float32 \(4096, 8, 16\), expected float32 \(1,"):
        MappedFile(path, (1, 8, 16)).map()
