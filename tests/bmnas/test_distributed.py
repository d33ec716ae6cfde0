"""Real processes of one run, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import bmnas_command, write_tiny_preset
from many_ranks import ended, run_ranks, started_ranks
from tiny_tasks import write_tiny_task
from torch import nn

from bmnas.machine import distributed, runtime
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime

SUPPORT = Path(__file__).parents[1] / "support"
SEARCH = (
    *("search", "--task", "task.toml", "--preset", "tiny-preset.toml"),
    *("--rerank", "1", "--epochs", "10"),
)
SHARED = ("--backbones", "backbones")


def test_ranks_agree_on_all_that_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(SUPPORT)]))
    first, second = run_ranks(tmp_path, SUPPORT / "rank_cases.py")
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert json.loads(first.out) == {"told": 0.0, "fit": 0.0, "search": 0.0, "seeds": 0.0}
    assert second.out == ""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run by two ranks, ``two``, and by one process, ``one``.

    The first made the ``backbones`` of both.
    """
    here = tmp_path_factory.mktemp("searched")
    # More rows than a batch of the extraction, so that both ranks have some.
    write_tiny_task(here, samples=400)
    write_tiny_preset(here)
    first, second = run_ranks(here, "-m", "bmnas", *SEARCH, "--run", "two", *SHARED)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    # One of them talks.
    assert first.err.splitlines()[-1] == "Next: bmnas train --genotype two/genotype.json"
    assert "cell1" in first.out.lower().replace(" ", "")
    assert (second.out, second.err) == ("", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert bmnas_command(*SEARCH, "--run", "one", *SHARED).status == 0
    return here


def records(run: Path, name: str = "history.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_two_ranks_leave_what_one_leaves(searched: Path) -> None:
    files = [{p.name for p in (searched / run).iterdir()} for run in ("one", "two")]
    # In the process of the tests runs draw nothing.
    assert files[1] == files[0] | {"architecture.svg", "history.svg"}
    config = json.loads((searched / "two" / "config.json").read_text())
    assert config["hardware"]["processes"] == 2
    one, two = (records(searched / run) for run in ("one", "two"))
    assert [list(r) for r in one] == [list(r) for r in two]
    assert [r["learning_rate"] for r in one] == [r["learning_rate"] for r in two]
    # The same samples in other parts, with other masks: alike, not equal.
    assert two[0]["train_loss"] == pytest.approx(one[0]["train_loss"], rel=0.3)
    keys = [metrics(searched / run) for run in ("one", "two")]
    assert [list(found["search"]) for found in keys] == [list(keys[0]["search"])] * 2


def test_two_ranks_search_as_well_as_one(searched: Path) -> None:
    one, two = (records(searched / run) for run in ("one", "two"))
    best = [max(r["validation_score"] for r in found) for found in (one, two)]
    # Chance is a quarter. Of 133 samples a few may differ: other masks, BatchNorm of other parts.
    assert best[0] > 0.85
    assert best[1] == pytest.approx(best[0], abs=0.06)
    # The curves end alike.
    for name in ("train_loss", "architecture_loss"):
        assert two[-1][name] == pytest.approx(one[-1][name], rel=0.25, abs=0.02)


def test_two_ranks_extract_what_one_extracts(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched)
    copy = tmp_path / "backbones"
    copy.mkdir()
    for path in (searched / "backbones").glob("*.safetensors"):
        (copy / path.name).write_bytes(path.read_bytes())
    words = (*SEARCH, "--epochs", "1", "--run", "alone", "--backbones", copy)
    assert bmnas_command(*words).status == 0
    entries = sorted((searched / "backbones" / "features").iterdir())
    assert len(entries) == 2
    for entry in entries:
        for path in entry.glob("*.npy"):
            arrays = [
                np.load(file, allow_pickle=False)
                for file in (path, copy / "features" / entry.name / path.name)
            ]
            assert len(arrays[0]) > 256
            # Of the same batches; another number of threads may add up in another order.
            np.testing.assert_allclose(*arrays, rtol=1e-5, atol=1e-6)


def test_two_ranks_train(searched: Path) -> None:
    words = ("train", "--genotype", "two/genotype.json", *SHARED, "--run", "trained")
    printed = run_ranks(searched, "-m", "bmnas", *words)
    assert [p.status for p in printed] == [0, 0], printed
    trained = searched / "trained"
    assert 0 < metrics(trained)["test"]["score"] <= 1
    assert (trained / "network.safetensors").is_file()
    assert not (trained / "train-checkpoint.pt").exists()


def test_two_ranks_pretrain_a_backbone(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    words = ("pretrain", "--task", "task.toml", "--modality", "m0", "--epochs", "3", "--json")
    printed = run_ranks(tmp_path, "-m", "bmnas", *words, "--batch-size", "16")
    assert [p.status for p in printed] == [0, 0], printed
    found = json.loads("".join(p.out for p in printed))
    assert (tmp_path / found["weights"]).is_file()
    lines = (tmp_path / "runs" / "tiny-m0" / "m0.jsonl").read_text().splitlines()
    assert found["validation"] == max(json.loads(line)["validation_score"] for line in lines)


def test_a_mistake_is_told_once_and_keeps_its_status(tmp_path: Path) -> None:
    printed = run_ranks(tmp_path, "-m", "bmnas", "search", "--task", "no.toml")
    assert [p.status for p in printed] == [2, 2]
    said = "".join(p.err for p in printed)
    assert said == "error: no.toml: cannot be read: No such file or directory\n"


FAILING = """
import sys
from bmnas.machine.distributed import barrier, joined, rank

with joined():
    if rank() == int(sys.argv[1]):
        raise ValueError("broken")
    barrier()
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_to_fail_ends_the_others_silently(failing: int, tmp_path: Path) -> None:
    printed = run_ranks(tmp_path, "-c", FAILING, failing)
    assert [p.status for p in printed] == [1, 1]
    assert printed[failing].err.splitlines()[-1].endswith("ValueError: broken")
    assert printed[1 - failing].err == ""


@pytest.mark.slow
def test_a_lost_rank_ends_the_others_and_the_run_goes_on(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched)
    words = (*SEARCH, *SHARED, "--run", "killed")
    with started_ranks(searched, "-m", "bmnas", *words) as (first, second):
        end = time.monotonic() + 120
        while not (searched / "killed" / "history.jsonl").exists():
            assert time.monotonic() < end
            assert second.poll() is None
            time.sleep(0.02)
        second.send_signal(signal.SIGKILL)
        printed = ended(first)
    assert printed.status == 1
    assert printed.err == "error: another process of this run was lost; go on with --resume\n"
    done = run_ranks(searched, "-m", "bmnas", *words, "--resume")
    assert [p.status for p in done] == [0, 0], done
    # As if it had never been stopped: the same code ran twice, with as many ranks.
    assert records(searched / "killed") == records(searched / "two")
    (searched / "killed" / "genotype.json").unlink()
    # How many ranks there are is no setting of the run.
    assert bmnas_command(*words, "--resume").status == 0


def test_one_process_has_nobody_to_tell() -> None:
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.is_rank_zero()
    batches = [torch.arange(3), torch.arange(3)]
    assert [b.tolist() for b in distributed.split_batches(batches)] == [[0, 1, 2], [0, 1, 2]]
    layer = nn.Linear(1, 1)
    assert distributed.data_parallel(layer, list(layer.parameters()), layer) is layer


def test_norms_of_found_networks_and_backbones_can_be_synchronised() -> None:
    """On CUDA data_parallel converts them; files keep their names."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert list(net.state_dict()) == list(before)
    assert net.eval()(torch.zeros(2, 2)).shape == (2, 3)


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
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=message):
        Runtime.choose(device, compiled)
    assert Runtime.choose("auto") == Runtime(torch.device("cpu"), compile=False)


def test_a_batch_too_small_for_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    with pytest.raises(UserError, match="received batches of 5 samples for 3 processes"):
        next(distributed.split_batches([torch.arange(5)]))
