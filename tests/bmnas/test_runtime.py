from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from bmnas.machine import runtime
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import PAYS_FROM, Runtime, seed_stage


def test_auto_takes_the_processor_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Runtime.choose() == Runtime(torch.device("cpu"), compile=False)


def test_auto_takes_the_accelerator_and_compiles_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Runtime.choose() == Runtime(torch.device("cuda"), compile=True, pays_from=PAYS_FROM)
    assert Runtime.choose(compile=True) == Runtime(torch.device("cuda"), compile=True)
    assert Runtime.choose("cuda:1", compile=False) == Runtime(torch.device("cuda:1"), False)
    assert Runtime.choose("cpu", compile=True) == Runtime(torch.device("cpu"), True)


@pytest.mark.parametrize("device", ["cuda", "cuda:2", "mps", "meta", "gpu", "", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0 if device == "cuda" else 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    there = "auto, cpu" + "".join(f", cuda:{n}" for n in range(count))
    with pytest.raises(UserError) as line:
        Runtime.choose(device)
    assert str(line.value) == f"received device {device!r}, expected one of those here: {there}"


def test_a_network_is_compiled_only_where_the_runtime_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = nn.Linear(2, 2)
    compiled: list[nn.Module] = []

    def compile_network(module: nn.Module) -> nn.Module:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of the user")
    assert Runtime(torch.device("cpu"), compile=False).compiled(network) is network
    assert compiled == []
    Runtime(torch.device("cpu"), compile=True).compiled(network)
    assert compiled == [network]
    # A loop that is shorter than compiling does without it, unless that was asked for.
    default = Runtime(torch.device("cpu"), compile=True, pays_from=100)
    assert default.compiled(network, steps=99) is network
    assert compiled == [network]
    default.compiled(network, steps=100)
    Runtime(torch.device("cpu"), compile=True).compiled(network, steps=1)
    assert compiled == [network] * 3


def test_a_stage_draws_the_same_whatever_was_drawn_before() -> None:
    seed_stage(3, "search")
    first = torch.randn(4)
    torch.randn(100)
    seed_stage(3, "search")
    assert torch.equal(torch.randn(4), first)


@pytest.mark.parametrize(("seed", "stage"), [(4, "search"), (3, "train")])
def test_seeds_and_stages_draw_differently(seed: int, stage: str) -> None:
    seed_stage(3, "search")
    first = torch.randn(4)
    seed_stage(seed, stage)
    assert not torch.equal(torch.randn(4), first)


@pytest.mark.parametrize("why", ["no home", "not to be written"])
def test_who_has_no_home_gets_a_temporary_folder_and_is_told(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def home() -> Path:
        if why == "no home":
            raise RuntimeError("Could not determine home directory.")
        return tmp_path / "file"

    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runtime._temporary_folder.cache_clear()
    folder = runtime.cache_folder()
    assert folder.parent == tmp_path
    assert runtime.cache_folder() == folder
    told = capsys.readouterr().err
    assert told.startswith(f"note: compiled code is kept in {folder}, as there is no home to")
    assert told.count("\n") == 1
    runtime._temporary_folder.cache_clear()
