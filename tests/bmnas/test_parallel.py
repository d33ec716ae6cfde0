"""Real processes of one run, over gloo on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import bmnas_command, write_tiny_preset
from many_ranks import ended, run_ranks, start_ranks
from tiny_tasks import write_tiny_task

import bmnas.pipeline.search
from bmnas.machine.distribution import ranks
from bmnas.machine.distribution.share import current, shares
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime

SUPPORT = Path(__file__).parents[1] / "support"
SEARCH = ("search", "--task", "task.toml", "--preset", "tiny-preset.toml", "--rerank", "1")


def test_several_ranks_compute_what_one_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(SUPPORT)]))
    for printed in run_ranks(tmp_path, SUPPORT / "rank_cases.py"):
        assert printed.status == 0, printed.err
        if printed.out:
            apart = json.loads(printed.out)
    assert apart["fit"] < 1e-7  # logits come as float32; weights in float64 are nearer still
    assert apart["fusions"] < 1e-6  # their losses are sums in float32
    assert apart["search"] < 1e-5
    assert apart["told"] == 0


def test_a_process_may_work_alone_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_world_size", 4), ("get_rank", 3)):
        monkeypatch.setattr(ranks.dist, name, lambda value=value: value)
    with contextlib.suppress(KeyError), ranks.alone():
        assert (ranks.size(), ranks.rank()) == (1, 0)
        with ranks.alone():
            pass
        assert ranks.size() == 1
        raise KeyError
    assert (ranks.size(), ranks.rank()) == (4, 3)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``one`` of one rank, and ``two`` of two from the same backbones."""
    here = tmp_path_factory.mktemp("searched")
    # More rows than a batch of the extraction, so that both ranks have some.
    write_tiny_task(here, samples=400)
    write_tiny_preset(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each rank has
        one = bmnas_command(*SEARCH, "--run", "one")
        torch.set_num_threads(threads)
    assert one.status == 0, one.err
    (here / "backbones").mkdir()
    for path in (here / "one" / "backbones").glob("*.safetensors"):
        shutil.copy(path, here / "backbones")
    first, second = run_ranks(
        here, "-m", "bmnas", *SEARCH, "--run", "two", "--backbones", "backbones"
    )
    assert (first.status, second.status) == (0, 0), first.err + second.err
    # One of them talks.
    assert first.err.splitlines()[-1] == "Next: bmnas train --genotype two/genotype.json"
    assert first.err.count("Seconds:") == 1
    assert "cell1" in first.out.lower().replace(" ", "")
    assert (second.out, second.err) == ("", "")
    return here


def records(run: Path, name: str = "history.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def same_numbers(one: Any, two: Any) -> None:
    """Compare records in everything, numbers up to the rounding of other sums."""
    if isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            same_numbers(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same_numbers(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    else:
        assert one == two


def test_two_ranks_find_what_one_finds(searched: Path) -> None:
    for name in ("history.jsonl", "rerank.jsonl"):
        same_numbers(records(searched / "one", name), records(searched / "two", name))
    one, two = (json.loads((searched / n / "genotype.json").read_text()) for n in ("one", "two"))
    assert one["cells"] == two["cells"]
    files = [
        {str(p.relative_to(searched / run)) for p in (searched / run).rglob("*") if p.is_file()}
        for run in ("one", "two")
    ]
    assert {name for name in files[0] if not name.startswith("backbones")} == files[1]
    config = json.loads((searched / "two" / "config.json").read_text())
    assert config["hardware"]["processes"] == 2


def test_two_ranks_extract_what_one_extracts(searched: Path) -> None:
    entries = sorted((searched / "one" / "backbones" / "features").iterdir())
    assert len(entries) == 2
    for entry in entries:
        other = searched / "backbones" / "features" / entry.name
        for path in entry.glob("*.npy"):
            assert (other / path.name).read_bytes() == path.read_bytes()
            assert len(np.load(path, mmap_mode="r", allow_pickle=False)) > 256
        manifests = [json.loads((e / "manifest.json").read_text()) for e in (entry, other)]
        assert manifests[0].pop("seconds") > 0
        assert manifests[1].pop("seconds") > 0
        assert manifests[0] == manifests[1]


def test_two_ranks_train_what_one_trains(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(searched)
    monkeypatch.setattr(bmnas.pipeline.search, "write_pictures", lambda *args: None)
    words = ("train", "--genotype", "one/genotype.json", "--backbones", "backbones")
    assert bmnas_command(*words, "--run", "trained-by-one").status == 0
    printed = run_ranks(searched, "-m", "bmnas", *words, "--run", "trained-by-two")
    assert [p.status for p in printed] == [0, 0], printed
    one, two = (searched / f"trained-by-{n}" for n in ("one", "two"))
    same_numbers(records(one, "train.jsonl"), records(two, "train.jsonl"))
    scores = [json.loads((run / "metrics.json").read_text())["test"] for run in (one, two)]
    assert scores[0]["score"] == pytest.approx(scores[1]["score"], abs=0.01)
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-3)
    assert (two / "network.safetensors").is_file()
    assert not (two / "train-checkpoint.pt").exists()


def test_a_mistake_is_told_once_and_keeps_its_status(tmp_path: Path) -> None:
    printed = run_ranks(tmp_path, "-m", "bmnas", "search", "--task", "no.toml")
    assert [p.status for p in printed] == [2, 2]
    said = "".join(p.err for p in printed)
    assert said == "error: no.toml: cannot be read: No such file or directory\n"


@pytest.mark.slow
def test_a_lost_rank_ends_the_others_and_the_run_goes_on(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched)
    words = (*SEARCH, "--epochs", "12", "--backbones", "backbones")
    first, second = start_ranks(searched, "-m", "bmnas", *words, "--run", "killed")
    end = time.monotonic() + 120
    while not (searched / "killed" / "history.jsonl").exists():
        assert time.monotonic() < end
        assert second.poll() is None
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    ended(second)
    printed = ended(first)
    assert printed.status == 1
    assert printed.err == "error: another process of this run was lost; go on with --resume\n"
    # By one rank: how many there are is no setting of the run.
    assert bmnas_command(*words, "--run", "killed", "--resume").status == 0
    assert bmnas_command(*words, "--run", "whole").status == 0
    whole, killed = (records(searched / name) for name in ("whole", "killed"))
    assert len(whole) == len(killed) == 12
    for one, two in zip(whole, killed, strict=True):
        # Twelve epochs of training make more of a rounding than two.
        for key in ("learning_rate", "train_loss", "architecture_loss", "validation_loss"):
            assert one[key] == pytest.approx(two[key], rel=1e-2)


def test_one_process_shares_with_nobody() -> None:
    import torch

    assert (ranks.size(), ranks.rank(), ranks.writer()) == (1, 0, True)
    assert ranks.span(5) == range(5)
    batches = [torch.arange(3), torch.arange(3)]
    assert [b.tolist() for b in shares(batches)] == [[0, 1, 2], [0, 1, 2]]
    assert current() is None


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("unit", [1, 256])
def test_spans_are_the_whole(
    count: int, size: int, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "size", lambda: size)
    found: list[int] = []
    for number in range(size):
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        span = ranks.span(count, unit)
        assert not len(span) or span.start % unit == 0
        found += span
    assert found == list(range(count))


@pytest.mark.parametrize(
    ("device", "compiled", "message"),
    [
        ("cuda:0", None, "received device 'cuda:0', expected auto, cpu or cuda with several"),
        ("cpu", True, "received --compile with several processes"),
        ("cuda", None, "received process 1 on this machine, expected at most 0"),
    ],
)
def test_devices_of_several_ranks(
    device: str, compiled: bool | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=message):
        Runtime.choose(device, compiled)
    assert Runtime.choose("auto") == Runtime(torch.device("cpu"), compile=False)


def test_a_batch_smaller_than_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(ranks, "size", lambda: 3)
    monkeypatch.setattr(ranks, "from_writer", lambda value: value)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    with pytest.raises(UserError, match="received batches of 2 samples for 3 processes"):
        next(shares([torch.arange(2)]))
