"""An extraction that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_features import counted_runs, entry, made, opened
from tiny_tasks import tiny_task

from bmnas.backbones.conv import SequenceBackbone
from bmnas.features import cache, files, samples


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_runs(monkeypatch)


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


@pytest.mark.parametrize("damage", ["shorter", "another", "text", "rows", "seconds", "beyond"])
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
    for key in ("rows", "seconds"):
        if key == damage:
            del manifest[key]
    changes = {"another": {"key": "0" * 64}, "beyond": {"rows": 601}}.get(damage, {})
    text = "half" if damage == "text" else json.dumps({**manifest, **changes})
    (aside / "manifest.json").write_text(text)
    runs.clear()
    again = opened(tmp_path, task, backbones)
    assert sum(runs) == 600
    assert again.keys == whole.keys
    assert {p.name: p.read_bytes() for p in place.glob("*.npy")} == before


@pytest.mark.parametrize(("noted", "left"), [(600, []), (256, [200, 144])])
def test_an_extraction_goes_on_in_batches_of_another_size(
    tmp_path: Path,
    runs: list[int],
    monkeypatch: pytest.MonkeyPatch,
    noted: int,
    left: list[int],
) -> None:
    task = tiny_task(samples=900)
    backbones = made(task)
    whole = opened(tmp_path, task, backbones)
    place = entry(tmp_path)
    aside = place.rename(place.with_name(f".{place.name}.part"))
    manifest = json.loads((aside / "manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps({**manifest, "rows": noted}))
    monkeypatch.setattr(samples, "AT_ONCE", 200)
    runs.clear()
    again = opened(tmp_path, task, backbones)
    assert runs == left
    for name in whole.names:
        torch.testing.assert_close(again.arrays[name], whole.arrays[name])


def test_an_entry_that_lacks_rows_does_not_get_its_name(tmp_path: Path) -> None:
    forms = {"1": files.Form("float32", (3, 1, 2))}
    with (
        pytest.raises(ValueError, match="received 2 rows, expected 3"),
        files.written(tmp_path / "entry", {}, forms) as writer,
    ):
        writer.write([{"1": np.zeros((2, 1, 2), np.float32)}], 2)
    assert not (tmp_path / "entry").exists()


CHILD = """
import os, resource, signal, sys
from pathlib import Path
import torch
from tiny_features import made, opened
from tiny_tasks import tiny_task
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
