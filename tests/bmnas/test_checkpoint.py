from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bmnas.features.samples import FeatureSamples
from bmnas.machine.checkpoint import Checkpoint, Record
from bmnas.machine.errors import UserError
from bmnas.training.fit import fit
from bmnas.training.heads import head_for
from bmnas.training.settings import Recipe


def loop(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    schedule = CosineAnnealingLR(optimizer, T_max=20)
    return {"network": network, "optimizer": optimizer, "schedule": schedule}


def step(parts: dict[str, Any]) -> Record:
    loss = parts["network"](torch.randn(8, 3)).square().sum()
    parts["optimizer"].zero_grad()
    loss.backward()
    parts["optimizer"].step()
    parts["schedule"].step()
    return {"loss": loss.item(), "rate": parts["schedule"].get_last_lr()[0]}


def test_a_loop_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt", "me", tmp_path / "c.jsonl")
    whole = loop()
    records: list[Record] = checkpoint.restore(whole)
    assert records == []
    for epoch in range(6):
        records.append(step(whole))
        if epoch == 2:
            checkpoint.save(whole, records)
    # Other weights and another place in the stream of random numbers.
    again = loop(seed=5)
    torch.randn(17)
    restored = Checkpoint(tmp_path / "c.pt", "me").restore(again)
    assert restored == records[:3]
    restored += [step(again) for _ in range(3)]
    assert restored == records
    for name, tensor in whole["network"].state_dict().items():
        assert torch.equal(tensor, again["network"].state_dict()[name])


def test_the_journal_is_cut_to_what_was_saved(tmp_path: Path) -> None:
    journal = tmp_path / "c.jsonl"
    checkpoint = Checkpoint(tmp_path / "c.pt", "me", journal)
    records: list[Record] = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-300}]
    checkpoint.save({}, records)
    lines = journal.read_text()
    assert [json.loads(line) for line in lines.splitlines()] == records
    journal.write_text(lines + '{"epoch": 3}\n{"epo')
    assert Checkpoint(tmp_path / "c.pt", "me", journal).restore({}) == records
    assert journal.read_text() == lines
    journal.unlink()
    Checkpoint(tmp_path / "c.pt", "me", journal).restore({})
    assert journal.read_text() == lines


def test_a_checkpoint_of_another_owner_is_refused(tmp_path: Path) -> None:
    parts = loop()
    Checkpoint(tmp_path / "c.pt", "me").save(parts, [])
    before = {k: v.clone() for k, v in parts["network"].state_dict().items()}
    step(parts)
    changed = {k: v.clone() for k, v in parts["network"].state_dict().items()}
    with pytest.raises(UserError, match=r"c.pt: belongs to other settings, backbones or data"):
        Checkpoint(tmp_path / "c.pt", "you").restore(parts)
    assert all(torch.equal(changed[k], v) for k, v in parts["network"].state_dict().items())
    assert any(not torch.equal(before[k], changed[k]) for k in before)


def test_writing_takes_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("bmnas.machine.checkpoint.time.perf_counter", lambda: now)
    real = torch.save

    def slowly(*arguments: Any) -> None:
        nonlocal now
        now += 0.5
        real(*arguments)

    monkeypatch.setattr(torch, "save", slowly)
    checkpoint = Checkpoint(tmp_path / "c.pt", "me")
    assert checkpoint.due
    checkpoint.save({}, [])
    now = 110.4
    assert not checkpoint.due
    now = 110.6
    assert checkpoint.due


def test_of_short_epochs_the_last_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "due", False)
    real, saved = Checkpoint.save, list[int]()

    def save(self: Checkpoint, parts: Any, records: list[Record]) -> None:
        saved.append(len(records))
        real(self, parts, records)

    monkeypatch.setattr(Checkpoint, "save", save)
    checkpoint, parts = Checkpoint(tmp_path / "c.pt", "me"), loop()
    head, recipe = head_for("multiclass"), Recipe(3, 4, 0.1, 0.0)
    values = {"m.x": torch.randn(8, 1, 3)}
    rows = {"m": torch.arange(8)}
    samples = FeatureSamples(("m.x",), values, rows, torch.arange(8) % 3)
    network = parts["network"]

    def forward(inputs: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = network(inputs[0][:, 0])
        return logits

    found = fit(network, forward, samples, head, recipe, checkpoint=checkpoint, stage="s")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert json.loads(content["records"]) == found
    assert saved == [len(found)] == [3]


def test_seconds_go_on_counting(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "c.pt", "me").save({}, [])
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    earlier = {"seconds": 1000.0, "processor_seconds": 3000.0}
    torch.save({**content, **earlier}, tmp_path / "c.pt")
    again = Checkpoint(tmp_path / "c.pt", "me")
    assert again.seconds < 900
    again.restore({})
    assert 1000 < again.seconds < 2000
    assert 3000 < again.processor_seconds < 4000
    again.save({}, [])
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert content["processor_seconds"] > 3000


def test_what_a_loop_has_spent_goes_on_counting(tmp_path: Path) -> None:
    first = Checkpoint(tmp_path / "c.pt", "me")
    with first.meter.stage("train"):
        first.save({}, [])
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert content["costs"]["seconds"]["train"] > 0
    content["costs"] = {"seconds": {"train": 1000.0}, "peak_memory": {"resident_bytes": 1 << 60}}
    torch.save(content, tmp_path / "c.pt")
    again = Checkpoint(tmp_path / "c.pt", "me")
    again.restore({})
    with again.meter.stage("train"):
        pass
    assert 1000 < again.meter.seconds["train"] < 1100
    assert again.meter.peak_memory["resident_bytes"] == 1 << 60


def test_a_finished_loop_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt", "me")
    checkpoint.save({}, [])
    checkpoint.remove()
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_generator_is_restored(tmp_path: Path) -> None:
    torch.manual_seed(1)
    checkpoint = Checkpoint(tmp_path / "c.pt", "me")
    checkpoint.save({}, [])
    expected = torch.randn(3)
    checkpoint.restore({})
    assert torch.equal(torch.randn(3), expected)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Two GPUs as torch would tell of them; their generators."""
    states = [torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)]

    def restored(given: list[torch.Tensor]) -> None:
        states[:] = given

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(states))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored)
    return states


def test_the_generators_of_all_gpus_are_restored(tmp_path: Path, gpus: list[torch.Tensor]) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt", "me")
    checkpoint.save({}, [])
    gpus[1] = torch.tensor([9], dtype=torch.uint8)
    checkpoint.restore({})
    assert [int(state) for state in gpus] == [1, 2]


def test_another_number_of_gpus_is_one_line(tmp_path: Path, gpus: list[torch.Tensor]) -> None:
    Checkpoint(tmp_path / "c.pt", "me").save({}, [])
    gpus.pop()
    with pytest.raises(
        UserError, match="the generators of 2 GPUs, expected 1; resume with"
    ) as line:
        Checkpoint(tmp_path / "c.pt", "me").restore({})
    assert "\n" not in str(line.value)


def damaged(path: Path) -> str:
    with pytest.raises(UserError) as line:
        Checkpoint(path, "me").restore(loop())
    message = str(line.value)
    assert message.startswith(f"{path}: damaged checkpoint (")
    assert message.endswith("); start anew with --overwrite")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(5000)])
def test_garbage_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    damaged(tmp_path / "c.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_one_line(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "c.pt"
    Checkpoint(path, "me").save(loop(), [{"epoch": 1}])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    damaged(path)


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    parts = loop()
    weight = parts["network"][0].weight.detach()
    Checkpoint(path, "me").save(parts, [])
    whole = bytearray(path.read_bytes())
    whole[whole.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    assert "wrong checksum of" in damaged(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "bmnas.checkpoint/9"},
        {"states": {}},
        {"states": {"network": {}, "optimizer": {}, "schedule": {}}},
        {"states": [1, 2]},
        {"states": {"network": 3}},
        {"generator": torch.zeros(3)},
        {"generator": None},
        {"records": "[{"},
        {"records": None},
        {"seconds": "soon"},
        {"costs": None},
        {"costs": {"seconds": [], "peak_memory": {}}},
        {"costs": {"seconds": {"train": "long"}, "peak_memory": {}}},
        {"costs": {"seconds": {}, "peak_memory": {"resident_bytes": "much"}}},
    ],
)
def test_other_content_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "c.pt"
    Checkpoint(path, "me").save(loop(), [])
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    damaged(path)


def test_other_shapes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    Checkpoint(path, "me").save({**loop(), "network": nn.Linear(4, 4)}, [])
    damaged(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled_but_tensors(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    if zipped:
        torch.save({"format": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"format": Bomb()}))
    damaged(path)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_in_its_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "c.pt").mkdir()
    with pytest.raises(OSError, match=r"c\.pt"):
        Checkpoint(tmp_path / "c.pt", "me").save({}, [])
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_loss_that_is_not_finite_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Checkpoint(tmp_path / "c.pt", "me").save({}, [{"loss": float("nan")}])
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from bmnas.machine.checkpoint import Checkpoint

checkpoint = Checkpoint(Path(sys.argv[1]), "me")
checkpoint.save({"network": nn.Linear(2, 2)}, [])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save({"network": nn.Linear(200, 200)}, [])
except OSError as error:
    print(error.filename, error.strerror, sep="|")
"""


def test_a_full_disk_is_an_oserror_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{path}|File too large\n"
    network = nn.Linear(2, 2)
    assert Checkpoint(path, "me").restore({"network": network}) == []
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
