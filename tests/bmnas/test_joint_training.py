"""Backbones trained with the fusion network: in bfloat16, and with layers computed again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_tasks import CONFIG, tiny_task
from torch import Tensor

import bmnas
import bmnas.machine.runtime
from bmnas.backbones import build_backbone
from bmnas.backbones.waveform import WaveformBackbone
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config, load_preset
from bmnas.tasks.task import Modality, Task
from bmnas.training.settings import TrainConfig

JOINT = CONFIG.override("train", freeze_backbones=False, epochs=2)


def hub_task(folder: Path) -> Task:
    """Return a task of pictures and texts for two tiny networks of transformers."""
    pytest.importorskip("transformers")
    from hf_families import TEXTS, save_family

    task, draw = tiny_task(samples=48), np.random.default_rng(0)
    photos = draw.integers(0, 256, (48, 20, 24, 3), dtype=np.uint8)
    words = TEXTS[task.labels % len(TEXTS)]
    modalities = (
        Modality("photo", save_family("vit", folder / "v"), photos, backbone=f"hf:{folder / 'v'}"),
        Modality("words", save_family("bert", folder / "b"), words, backbone=f"hf:{folder / 'b'}"),
    )
    return dataclasses.replace(task, modalities=modalities)


def trained(
    task: Task, run: Path, config: Config, progress: Progress | None = None
) -> dict[str, Tensor]:
    made = bmnas.train_fusion("concat", task, run=run, config=config, progress=progress)
    return load_file(made.network)


def test_a_joint_training_with_less_memory_or_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas.machine.runtime, "proc_entry", lambda *names: "avx512_bf16")
    task = hub_task(tmp_path)
    assert (JOINT.train.precision, JOINT.train.gradient_checkpointing) == ("float32", False)
    plain, again, mixed = (
        trained(task, tmp_path / str(number), JOINT.override("train", **changes))
        for number, changes in enumerate(
            ({}, {"gradient_checkpointing": True}, {"precision": "bfloat16"})
        )
    )
    moved = [name for name, own in plain.items() if not torch.equal(own, mixed[name])]
    assert any(name.startswith("backbones.") for name in moved)
    for name, own in plain.items():
        assert torch.allclose(own.double(), again[name].double(), atol=1e-5), name
        assert mixed[name].dtype == own.dtype
        assert torch.allclose(own.double(), mixed[name].double(), atol=0.05), name


def test_what_a_network_is_given_is_made_in_full_precision() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4000)).astype(np.float32)
    modality = Modality("sound", "waveform", rows, sample_rate=8000)
    backbone = build_backbone(modality, classes=2, rows=rows).eval()
    assert isinstance(backbone, WaveformBackbone)
    (spectrum,) = (m for m in backbone.modules() if type(m).__name__ == "LogMel")
    x = torch.from_numpy(rows)
    runtime = Runtime(torch.device("cpu"), compile=False)
    with torch.no_grad():
        assert torch.equal(runtime.autocast(spectrum)(x), spectrum(x))
        assert not torch.equal(runtime.autocast(backbone)(x), backbone(x))


def test_what_would_count_for_nothing_is_refused(tmp_path: Path) -> None:
    config = JOINT.override("train", gradient_checkpointing=True)
    with pytest.raises(UserError, match="none of the backbones of m0, m1 can compute its layers"):
        trained(tiny_task(), tmp_path / "run", config)
    with pytest.raises(UserError, match="gradient-checkpointing: received true with frozen"):
        load_preset("digits-quick").override(
            "train", gradient_checkpointing=True, freeze_backbones=True
        )
    assert list(TrainConfig(gradient_checkpointing=True).problems()) == []


def test_a_processor_without_bfloat16_trains_in_float32_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas.machine.runtime, "proc_entry", lambda *names: "avx2")
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    files = [
        trained(tiny_task(), tmp_path / name, JOINT.override("train", precision=name), Notes())
        for name in ("bfloat16", "float32")
    ]
    assert all(torch.equal(own, files[1][name]) for name, own in files[0].items())
    assert "this processor has no products in bfloat16: going on in float32" in notes
