from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_features import LENGTH, counted_runs, entry, made, opened
from tiny_tasks import changed, tiny_task

from bmnas.backbones import Backbone, InputSpec
from bmnas.features.cache import rows_hash, weights_hash
from bmnas.features.reshape import Pool
from bmnas.machine.errors import UserError
from bmnas.tasks import Task


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_runs(monkeypatch)


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.*")}


def test_features_are_those_of_the_backbone_pooled(tmp_path: Path) -> None:
    task = tiny_task()
    backbones = made(task)
    cache = opened(tmp_path, task, backbones)
    assert cache.names == tuple(f"{m}.{f}" for m in ("m0", "m1") for f in (1, 2, 3))
    batch = cache.samples("train").batch(torch.arange(5))
    inputs, labels = batch.inputs, batch.labels
    chosen = task.samples("train")[:5]
    assert labels.tolist() == task.labels[chosen].tolist()
    with torch.inference_mode():
        for name, backbone in backbones.items():
            x = torch.from_numpy(task.modality(name).data[chosen])
            expected = [Pool(LENGTH)(f) for f in backbone.eval().features(x)]
            found = [t for n, t in zip(cache.names, inputs, strict=True) if n.startswith(name)]
            for a, b in zip(found, expected, strict=True):
                assert torch.allclose(a, b, atol=1e-5)


def test_an_unchanged_cache_is_read_and_no_backbone_runs(tmp_path: Path, runs: list[int]) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    assert sum(runs) == 2 * 64  # train and validation of two modalities, the test part never
    runs.clear()
    before = stamps(tmp_path)
    again = opened(tmp_path, task, backbones)
    assert runs == []
    assert stamps(tmp_path) == before
    assert again.keys == first.keys
    assert again.seconds == first.seconds > 0
    assert all(torch.equal(first.arrays[n], again.arrays[n]) for n in first.names)


def test_a_changed_weight_makes_that_modality_anew(tmp_path: Path, runs: list[int]) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    runs.clear()
    with torch.no_grad():
        next(backbones["m1"].stages[0].parameters()).add_(0.01)
    second = opened(tmp_path, task, backbones)
    assert sum(runs) == 64
    assert (first.keys[0], first.keys[1]) == (second.keys[0], first.keys[1])
    assert first.keys[1] != second.keys[1]
    assert not torch.equal(first.arrays["m1.1"], second.arrays["m1.1"])


def test_what_a_new_entry_replaces_is_removed_and_nothing_else(tmp_path: Path) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    opened(tmp_path, task, backbones, length=9)
    for other in ("m0-extra", "m00-0123456789abcdef", "m0-x-0123456789abcdef"):
        shutil.copytree(entry(tmp_path), tmp_path / other)
    unreadable = tmp_path / "m0-0123456789abcdef"
    unreadable.mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    with torch.no_grad():
        next(backbones["m0"].stages[0].parameters()).add_(0.01)
    second = opened(tmp_path, task, backbones)
    after = {path.name for path in tmp_path.iterdir()}
    assert before - after == {f"m0-{first.keys[0][:16]}"}
    assert after - before == {f"m0-{second.keys[0][:16]}"}


def test_a_changed_buffer_counts_too(tmp_path: Path) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    name, buffer = next((n, b) for n, b in backbones["m0"].named_buffers() if "running_mean" in n)
    assert name
    buffer.add_(0.5)
    assert opened(tmp_path, task, backbones).keys[0] != first.keys[0]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_changed_data_counts_where_it_is_used(tmp_path: Path, part: str) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    data = task.modalities[0].data.copy()
    data[task.samples(part)[2]] += 1e-3  # type: ignore[arg-type]
    second = opened(tmp_path, changed(task, 0, data=data), backbones)
    assert (second.keys[0] == first.keys[0]) == (part == "test")
    assert second.keys[1] == first.keys[1]


def test_another_length_or_fewer_features_make_another_entry(tmp_path: Path) -> None:
    task = tiny_task()
    backbones = made(task)
    first = opened(tmp_path, task, backbones)
    longer = opened(tmp_path, task, backbones, length=9)
    assert longer.arrays["m0.1"].shape == (64, 9, first.arrays["m0.1"].shape[2])
    backbones["m0"].truncate(1)
    cut = opened(tmp_path, task, backbones)
    assert cut.names == ("m0.1", "m1.1", "m1.2", "m1.3")
    assert len({first.keys[0], longer.keys[0], cut.keys[0]}) == 3


def test_caches_of_several_types_lie_beside_each_other(tmp_path: Path, runs: list[int]) -> None:
    task = tiny_task()
    backbones = made(task)
    for dtype in ("float32", "float16", "bfloat16"):
        opened(tmp_path, task, backbones, dtype=dtype)
    runs.clear()
    for dtype in ("bfloat16", "float32", "float16"):
        opened(tmp_path, task, backbones, dtype=dtype)
    assert runs == []
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("m0-*/manifest.json")]
    assert sorted(m["dtype"] for m in manifests) == ["bfloat16", "float16", "float32"]


def test_arrays_are_memory_maps_and_nothing_is_copied(tmp_path: Path) -> None:
    task = tiny_task()
    cache = opened(tmp_path, task, made(task))
    files = {str(p) for p in tmp_path.rglob("*.npy")}
    maps = Path("/proc/self/maps").read_text().splitlines()
    for array in cache.arrays.values():
        pointer = array.data_ptr()
        ranges = [line.split() for line in maps if line.split()[-1] in files]
        assert any(
            int(r[0].split("-")[0], 16) <= pointer < int(r[0].split("-")[1], 16) for r in ranges
        )
    samples = cache.samples("train", "validation")
    assert all(samples.arrays[n].data_ptr() == cache.arrays[n].data_ptr() for n in cache.names)
    # Writing to what was read does not reach the file.
    before = stamps(tmp_path)
    cache.arrays["m0.1"][0] = 7.0
    assert not torch.equal(opened(tmp_path, task, made(task)).arrays["m0.1"][0], torch.tensor(7.0))
    assert stamps(tmp_path) == before


def test_shared_media_are_extracted_once(tmp_path: Path, runs: list[int]) -> None:
    task = tiny_task()
    index = np.arange(96) // 4
    shared = changed(task, 0, index=index, data=task.modalities[0].data[:30])
    backbones = made(shared)
    cache = opened(tmp_path, shared, backbones)
    rows = len(np.unique(index[task.samples("train", "validation")]))
    assert cache.arrays["m0.1"].shape[0] == rows
    assert sum(runs) == rows + 64
    samples = cache.samples("validation")
    inputs = samples.batch(torch.arange(len(samples))).inputs
    used = torch.from_numpy(np.searchsorted(cache.rows["m0"], index[task.samples("validation")]))
    assert torch.equal(inputs[0], cache.arrays["m0.1"][used])


def test_a_part_that_was_not_opened_is_refused(tmp_path: Path) -> None:
    task = tiny_task()
    cache = opened(tmp_path, task, made(task))
    with pytest.raises(ValueError, match="received part 'test', expected of train, validation"):
        cache.samples("train", "test")


def refused(folder: Path, task: Task, backbones: dict[str, Backbone], match: str) -> None:
    with pytest.raises(UserError, match=match) as line:
        opened(folder, task, backbones)
    assert "\n" not in str(line.value)
    assert str(entry(folder)) in str(line.value)
    assert "it will be made again" in str(line.value)


@pytest.mark.parametrize("place", [5, 60, 200, -3])
def test_a_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    task = tiny_task()
    backbones = made(task)
    opened(tmp_path, task, backbones)
    path = entry(tmp_path) / "2.npy"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    refused(tmp_path, task, backbones, r"2\.npy: damaged feature cache: received checksum")


@pytest.mark.parametrize("kept", [0, 40, 1000])
def test_a_truncated_or_missing_array_is_noticed(tmp_path: Path, kept: int) -> None:
    task = tiny_task()
    backbones = made(task)
    opened(tmp_path, task, backbones)
    path = entry(tmp_path) / "3.npy"
    path.write_bytes(path.read_bytes()[:kept])
    refused(tmp_path, task, backbones, r"3\.npy: damaged feature cache")
    path.unlink()
    refused(tmp_path, task, backbones, r"3\.npy: cannot be read: No such file")


@pytest.mark.parametrize(
    "changes", [{"key": "0" * 64}, {"crc32": None}, {"seconds": "long"}, {"key": None}]
)
def test_another_manifest_is_noticed(tmp_path: Path, changes: dict[str, object]) -> None:
    task = tiny_task()
    backbones = made(task)
    opened(tmp_path, task, backbones)
    path = entry(tmp_path) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(tmp_path, task, backbones, "damaged feature cache; delete this folder")


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    task = tiny_task()
    backbones = made(task)
    opened(tmp_path, task, backbones)
    (entry(tmp_path) / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged feature cache|not a JSON file") as line:
        opened(tmp_path, task, backbones)
    assert "\n" not in str(line.value)


def test_hashes_tell_names_shapes_types_and_values_apart() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 2)
    hashes = {weights_hash(linear)}
    hashes.add(weights_hash(torch.nn.Sequential(linear)))
    hashes.add(weights_hash(torch.nn.Linear(2, 4)))
    with torch.no_grad():
        linear.weight[0, 0] += 1e-6
    hashes.add(weights_hash(linear))
    hashes.add(weights_hash(linear.to(torch.bfloat16)))
    assert len(hashes) == 5
    data = np.arange(20.0).reshape(10, 2)
    rows = np.array([0, 3])
    assert rows_hash(data, rows) == rows_hash(data.copy(), rows)
    others = {
        rows_hash(data, rows[:1]),
        rows_hash(data, rows[::-1]),
        rows_hash(data.astype(np.float32), rows),
        rows_hash(data.reshape(10, 2, 1), rows),
        rows_hash(data, rows),
    }
    assert len(others) == 5


def test_a_backbone_without_weights_has_features_too(tmp_path: Path) -> None:
    class Raw(Backbone):
        family = "raw"
        types = ("sequence",)

        def __init__(self) -> None:
            super().__init__(InputSpec((5, 6), "float32", "raw"))
            self.stem = torch.nn.Identity()
            self.stages = torch.nn.ModuleList([torch.nn.Identity()])
            self.feature_names, self.feature_channels = ("1",), (6,)
            self.head = None

        def encode(self, rows: np.ndarray) -> np.ndarray:
            return rows

    task = tiny_task()
    cache = opened(tmp_path, task, {"m0": Raw(), "m1": Raw()})
    x = torch.from_numpy(task.modalities[0].data[task.samples("train")])
    assert torch.equal(cache.samples("train").batch(torch.arange(32)).inputs[0], Pool(LENGTH)(x))
