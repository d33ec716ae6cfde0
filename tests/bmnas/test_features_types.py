from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_features import CPU, made, opened
from tiny_tasks import tiny_task

from bmnas.backbones.conv import SequenceBackbone
from bmnas.features.files import MappedArrays, MappedFile, moved, to_file
from bmnas.machine.errors import UserError


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_takes_half_the_disc_and_rounds(
    tmp_path: Path, dtype: str, bits: int
) -> None:
    task = tiny_task()
    backbones = made(task)
    whole = opened(tmp_path, task, backbones)
    sizes = [p.stat().st_size for p in tmp_path.rglob("*.npy")]
    half = opened(tmp_path / "half", task, backbones, dtype=dtype)
    halves = [p.stat().st_size for p in (tmp_path / "half").rglob("*.npy")]
    header = 128
    assert sorted(halves) == sorted((size - header) // 2 + header for size in sizes)
    assert {str(array.dtype) for array in half.arrays.values()} == {f"torch.{dtype}"}
    assert set(half.keys).isdisjoint(whole.keys)
    found = half.samples("train").batch(torch.arange(8)).inputs
    expected = whole.samples("train").batch(torch.arange(8)).inputs
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.allclose(a, b, rtol=2.0**-bits, atol=1e-7)


def test_numbers_that_a_type_has_no_room_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task()
    backbones = made(task)
    whole = SequenceBackbone.features

    def large(self: SequenceBackbone, x: torch.Tensor) -> list[torch.Tensor]:
        first, *rest = whole(self, x)
        return [torch.full_like(first, -70000.0), *rest]

    monkeypatch.setattr(SequenceBackbone, "features", large)
    with pytest.raises(UserError) as line:
        opened(tmp_path, task, backbones, dtype="float16")
    assert str(line.value) == (
        "--cache-dtype float16: feature m0.1 has numbers up to 70000, expected at most 65504: "
        "give another type"
    )
    assert list(tmp_path.iterdir()) == []
    assert float(opened(tmp_path, task, backbones, dtype="bfloat16").arrays["m0.1"].max()) < -69000


def test_features_move_to_a_device_where_they_find_room(tmp_path: Path) -> None:
    task, device = tiny_task(), torch.device("meta")
    cache = opened(tmp_path, task, made(task))
    size = sum(array.nbytes for array in cache.arrays.values())
    there = cache.on(device, budget=size)
    assert {array.device.type for array in there.arrays.values()} == {"meta"}
    samples = there.samples("train")
    assert samples.resident
    assert samples.labels.tolist() == cache.samples("train").labels.tolist()
    files = cache.on(device, budget=size - 1)
    assert files == cache
    assert not files.samples("train").resident
    some = ("m1.2", "m0.1")
    few = cache.on(device, some, budget=size - 1).samples("validation")
    assert (few.resident, few.names) == (True, some)
    # A CPU has them already.
    assert cache.on(CPU, some).samples("train").names == some
    assert cache.on(CPU).arrays["m0.1"] is cache.arrays["m0.1"]


def test_what_moves_is_copied_whole_and_its_pages_are_counted(tmp_path: Path) -> None:
    read: list[tuple[int, int]] = []

    class Counted(MappedArrays):
        def read(self, rows: int, row_bytes: int) -> None:
            read.append((rows, row_bytes))

    np.save(tmp_path / "a.npy", np.arange(2500, dtype=np.float32).reshape(2500, 1, 1))
    arrays = Counted({"a.1": MappedFile(tmp_path / "a.npy", (2500, 1, 1))})
    # Copied, not taken over, though it is the same device.
    found = moved(arrays, ["a.1"], CPU)["a.1"]
    assert torch.equal(found, arrays["a.1"])
    assert found.data_ptr() != arrays["a.1"].data_ptr()
    assert read == [(1024, 4), (1024, 4), (452, 4)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_boxes_are_not_rounded(dtype: str) -> None:
    boxes = torch.tensor([[[0.5, 300.25, 20.0, 641.0]]])
    with pytest.raises(UserError, match=rf"--cache-dtype {dtype}: feature image.regions has boxes"):
        to_file(boxes, dtype, "image.regions")
    assert np.array_equal(to_file(boxes, "float32", "image.regions"), boxes.numpy())
