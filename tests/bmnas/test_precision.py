"""Algorithm 1 with its products in bfloat16: how near it stays, and where it is not to be had."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_problems import CPU, tiny_problem
from tiny_tasks import write_tiny_task
from torch import Tensor

import bmnas.machine.runtime
from bmnas.machine.progress import Progress
from bmnas.spaces.cells.primitives import Attention
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.bilevel import search_bilevel

SIZES = {"cells": 2, "steps": 2, "channels": 32, "length": 4, "classes": 5, "dropout": 0.0}


def gradients(supernet: Supernet, features: list[Tensor], mixed: bool) -> tuple[Tensor, Tensor]:
    """Return logits, and all gradients as one vector."""
    forward = CPU.autocast(supernet) if mixed else supernet
    logits = forward(features)
    assert logits.dtype == features[0].dtype
    F.cross_entropy(logits, torch.arange(len(logits)) % 5).backward()
    # Of an unused edge, or a bias that a BatchNorm takes away, nothing but noise.
    parts = [
        p.grad.flatten()
        for name, p in supernet.named_parameters()
        if p.grad is not None and not name.endswith("linear.bias")
    ]
    return logits.detach(), torch.cat(parts)


def test_products_in_bfloat16_change_little() -> None:
    torch.manual_seed(0)
    low = Supernet([24, 40, 16], **SIZES)  # type: ignore[arg-type]
    for module in low.modules():
        if isinstance(module, Attention):
            module.dropout.p = 0.0
    exact, full = copy.deepcopy(low).double(), copy.deepcopy(low)
    features = [torch.randn(16, 4, channels) for channels in (24, 40, 16)]
    wide = [x.double() for x in features]

    expected, slopes = gradients(exact, wide, mixed=False)
    for supernet, mixed, bound in ((full, False, 1e-4), (low, True, 0.06)):
        logits, found = gradients(supernet, features, mixed)
        assert (logits.double() - expected).norm() < bound * expected.norm()
        assert (found.double() - slopes).norm() < 5 * bound * slopes.norm()
    # It is bfloat16 indeed.
    assert not torch.equal(full(features), CPU.autocast(low)(features))


def test_a_search_in_bfloat16_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas.machine.runtime, "proc_entry", lambda *names: "avx512_bf16")
    histories = []
    for name, precision in (("a", "bfloat16"), ("b", "bfloat16"), ("c", "float32")):
        (tmp_path / name).mkdir()
        search_bilevel(tiny_problem(tmp_path / name, precision=precision))
        histories.append((tmp_path / name / "history.jsonl").read_text())
    assert histories[0] == histories[1] != histories[2]


def test_a_processor_without_bfloat16_goes_on_in_float32_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Notes(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    monkeypatch.setattr(bmnas.machine.runtime, "proc_entry", lambda *names: "avx2")
    notes = Notes()
    histories = []
    for precision in ("bfloat16", "float32"):
        (tmp_path / precision).mkdir()
        problem = tiny_problem(tmp_path / precision, precision=precision)
        search_bilevel(dataclasses.replace(problem, progress=notes))
        histories.append((tmp_path / precision / "history.jsonl").read_text())
    assert histories[0] == histories[1]
    assert notes.notes == ["this processor has no products in bfloat16: going on in float32"]


def test_the_option_is_recorded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ("search", "--task", "task.toml", "--preset", "tiny-preset.toml", "--run", "run")
    wrong = one_line_error(bmnas_command(*words, "--precision", "float8"))
    assert "--precision: received 'float8', expected one of float32, bfloat16" in wrong
    assert bmnas_command(*words, "--precision", "bfloat16").status == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["search"]["precision"] == "bfloat16"
    assert type(config["hardware"]["bfloat16"]) is bool
