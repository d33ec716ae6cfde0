"""A search of NTU's size on an accelerator, over random features."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import bmnas
from benchmarks.cases import synchronise
from benchmarks.gpu_report import Report, Setting
from bmnas.features.samples import FeatureSamples
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import peak_memory
from bmnas.machine.progress import Progress, Stage
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.settings import SearchConfig
from bmnas.training.heads import head_for

_TRAIN, _VALIDATION = 23_760, 2_519
_COPIED_ROWS = 4096  # a gigabyte: more than a processor's caches, and made in a moment
_COPIED_EPOCHS = 2


def whole(setting: Setting, report: Report) -> None:
    """Search with preset ntu-1, features on the device; goal: 10 s warm and 60 s cold on an H200.

    Cold is the first of a machine, warm a later one, which finds the compiled code on the disk.
    """
    _search(setting, report, _config(setting).epochs, rows=None)


def copied(setting: Setting, report: Report) -> None:
    """Search for some epochs with features that lie in the CPU's memory."""
    _search(setting, report, _COPIED_EPOCHS, rows=_COPIED_ROWS)


def _search(setting: Setting, report: Report, epochs: int, rows: int | None) -> None:
    device = setting.runtime.device
    train, validation = _samples(setting, rows)
    synchronise(device)
    report.add("samples", "train", len(train))
    report.add("samples", "validation", len(validation))
    runtime = setting.forms.get("compiled", setting.runtime)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        problem = SearchProblem(
            train=train,
            validation=validation,
            classes=setting.case.classes,
            head=head_for("multiclass"),
            config=dataclasses.replace(_config(setting), epochs=epochs),
            seed=0,
            runtime=runtime,
            checkpoint=Checkpoint(Path(folder) / "checkpoint.pt", "gpu"),
            candidates=lambda: Checkpoint(Path(folder) / "rerank.pt", "gpu"),
            progress=_Epochs(report),
        )
        found = search_bilevel(problem)
    report.add("seconds", "search", time.perf_counter() - started)
    for name, stage in found.stages.items():
        report.add("seconds", name, stage.seconds)
    report.add("result", "validation", found.validation)
    report.add("result", "compiled", runtime.compiles(problem.steps))
    report.add("result", "peak_memory", peak_memory())


def _config(setting: Setting) -> SearchConfig:
    config = bmnas.load_preset("ntu-1").search
    if not setting.tiny:
        return config
    case = setting.case
    return dataclasses.replace(
        config, channels=case.channels, length=case.length, epochs=2, batch_size=case.batch
    )


def _samples(setting: Setting, rows: int | None) -> tuple[FeatureSamples, FeatureSamples]:
    """Return train and validation over random features: on the device, or ``rows`` on the CPU."""
    case, device = setting.case, setting.runtime.device
    parts = (60, 24) if setting.tiny else (_TRAIN, _VALIDATION)
    count = sum(parts) if rows is None else min(rows, sum(parts))
    torch.manual_seed(0)
    arrays: dict[str, Tensor] = {}
    for number, channels in enumerate(case.channels_raw):
        array = torch.randn(count, case.length, channels, device=device)
        arrays[f"m.{number}"] = array if rows is None else array.cpu()
    labels = torch.randint(case.classes, (sum(parts),))
    index = torch.arange(sum(parts)) % count
    train, validation = (
        FeatureSamples(tuple(arrays), arrays, {"m": i}, part)
        for i, part in zip(index.split(parts), labels.split(parts), strict=True)
    )
    return train, validation


class _Epochs(Progress):
    """Notes when each epoch ended, so that a search that is stopped has told how far it came."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        """Run a stage whose units are noted."""
        yield _Noted(self._report)


class _Noted:
    def __init__(self, report: Report) -> None:
        self._report, self._done, self._started = report, 0, time.perf_counter()

    def advance(self, units: int = 1) -> None:
        """Note the seconds so far."""
        self._done += units
        if units:
            seconds = time.perf_counter() - self._started
            self._report.add("seconds_after_epoch", str(self._done), seconds)

    def message(self, text: str) -> None:
        """Keep it."""
