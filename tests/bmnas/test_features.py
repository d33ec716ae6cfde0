from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_features import LENGTH, made, opened
from tiny_tasks import changed, tiny_task

from bmnas.backbones import Backbone, InputSpec
from bmnas.backbones.conv import SequenceBackbone
from bmnas.features import cache, files
from bmnas.features.cache import rows_hash, weights_hash
from bmnas.features.reshape import Pool
from bmnas.machine.errors import UserError
from bmnas.tasks import Task


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The batch sizes of every call of a backbone; a single row only asks for shapes."""
    sizes: list[int] = []
    whole = SequenceBackbone.features

    def features(self: SequenceBackbone, x: torch.Tensor) -> list[torch.Tensor]:
        sizes.extend([len(x)] if len(x) > 1 else [])
        return whole(self, x)

    monkeypatch.setattr(SequenceBackbone, "features", features)
    yield sizes
    monkeypatch.undo()


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


def entry(folder: Path) -> Path:
    return next(folder.glob("m0-*"))


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


def test_an_exception_in_between_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(tiny_task(samples=900), name="many")
    backbones = made(task)
    calls = 0
    whole = SequenceBackbone.features

    def features(self: SequenceBackbone, x: torch.Tensor) -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(self, x)

    monkeypatch.setattr(SequenceBackbone, "features", features)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, task, backbones)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(opened(tmp_path, task, backbones).arrays["m0.1"]) == 600


def test_rows_that_were_noted_are_not_computed_again(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(samples=900)
    backbones = made(task)
    expected = opened(tmp_path / "whole", task, backbones)
    runs.clear()
    monkeypatch.setattr(files, "SAVE_SECONDS", 0.0)
    to_file = cache.to_file

    def stopped(x: torch.Tensor, dtype: str, name: str) -> np.ndarray:
        if name == "m1.1" and len(runs) == 5:
            raise KeyboardInterrupt
        return to_file(x, dtype, name)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "to_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "stopped", task, backbones)
    (unfinished,) = (tmp_path / "stopped").glob(".m1-*.part")
    # More than what was noted, as a kill leaves it; a file that lacks some is not gone on with.
    with (unfinished / "2.npy").open("ab") as file:
        file.write(b"half a row")
    runs.clear()
    found = opened(tmp_path / "stopped", task, backbones)
    assert runs == [256, 88]
    assert found.keys == expected.keys
    assert all(torch.equal(found.arrays[n], expected.arrays[n]) for n in found.names)
    assert sorted(p.name[:3] for p in (tmp_path / "stopped").iterdir()) == ["m0-", "m1-"]


@pytest.mark.parametrize("damage", ["shorter", "another", "text"])
def test_unfinished_files_that_do_not_fit_are_made_anew(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    task = tiny_task(samples=900)
    backbones = made(task)
    whole = opened(tmp_path, task, backbones)
    place = entry(tmp_path)
    before = {p.name: p.read_bytes() for p in place.glob("*.npy")}
    aside = place.rename(place.with_name(f".{place.name}.part"))
    manifest = json.loads((aside / "manifest.json").read_text())
    if damage == "shorter":
        (aside / "2.npy").write_bytes(before["2.npy"][:-1])
    changes = {"another": {"key": "0" * 64}, "shorter": {}, "text": None}[damage]
    text = "half" if changes is None else json.dumps({**manifest, **changes})
    (aside / "manifest.json").write_text(text)
    runs.clear()
    again = opened(tmp_path, task, backbones)
    assert sum(runs) == 600
    assert again.keys == whole.keys
    assert {p.name: p.read_bytes() for p in place.glob("*.npy")} == before


CHILD = """
import os, resource, signal, sys
from pathlib import Path
import torch
from test_features import made, opened, tiny_task
from bmnas.backbones.conv import SequenceBackbone
from bmnas.features import files

if "noted" in sys.argv[2]:
    files.SAVE_SECONDS = 0.0
task = tiny_task(samples=900)
backbones = made(task)
calls, whole = 0, SequenceBackbone.features
def features(self, x):
    global calls
    calls += 1
    if "kill" in sys.argv[2] and calls == 7:  # in the middle of the second modality
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, x)
SequenceBackbone.features = features
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    opened(Path(sys.argv[1]), task, backbones)
except OSError as error:
    print(error.filename, error.strerror, sep="|")
"""


def child(folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "support"), str(here.parents[1])]
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), mode],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("mode", "left"), [("kill", 600), ("kill noted", 344)])
def test_after_a_kill_the_next_run_goes_on_and_clears_up(
    tmp_path: Path, runs: list[int], mode: str, left: int
) -> None:
    assert child(tmp_path, mode).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("m0-*"))) == 1
    assert len(list(tmp_path.glob(".m1-*.part"))) == 1
    assert list(tmp_path.glob("m1-*")) == []
    task = tiny_task(samples=900)
    cache = opened(tmp_path, task, made(task))
    assert sum(runs) == left  # of the second modality: the first was whole
    assert sorted(p.name[:3] for p in tmp_path.iterdir()) == ["m0-", "m1-"]
    assert len(cache.arrays["m1.1"]) == 600


def test_a_full_disk_is_an_exception_not_a_signal_and_leaves_nothing(tmp_path: Path) -> None:
    done = child(tmp_path, "full")
    assert (done.returncode, done.stderr) == (0, "")
    name, reason = done.stdout.strip().split("|")
    assert Path(name).parent == tmp_path
    assert reason == "File too large"
    assert list(tmp_path.iterdir()) == []


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
