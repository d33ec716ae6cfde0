"""A trace of some steps of a search, by torch.profiler, for Perfetto or TensorBoard."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from bmnas.machine.files import atomic_path

_STEPS = 4  # of each pass: some megabytes in all
_SHOWN = 10


@dataclass(frozen=True)
class TimedOperation:
    """An operation in the recorded steps: ``milliseconds`` in itself, what it calls left out.

    They are the device's on an accelerator, the processor's elsewhere. ``share`` is the fraction
    of all operations' milliseconds.
    """

    name: str
    calls: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The trace's file, how many steps it holds, and the operations that took longest."""

    trace: Path
    steps: int
    operations: tuple[TimedOperation, ...]


class StepRecorder:
    """Records the last weight steps and the first architecture steps of one epoch.

    The two lie beside each other, so that one trace holds both. The epoch is the second that runs,
    when nothing is left to compile, or the first where it is the only one. Draws no random number
    and changes none of the search's results. ``write`` writes the file, apart from the steps, whose
    time it would distort.
    """

    def __init__(self, trace: Path, device: torch.device) -> None:
        self._trace = trace
        self._on_device = device.type == "cuda"
        self._profiler: profile | None = None
        self._recorded: profile | None = None
        self._steps = 0
        self.profile: Profile | None = None

    @contextlib.contextmanager
    def recording(self, epochs: int, weights: int, architecture: int) -> Iterator[None]:
        """Be ready for ``epochs`` of so many steps of both passes, told by ``step`` one by one."""
        if epochs == 0:
            yield
            return
        epoch = min(epochs, 2) - 1
        boundary = epoch * (weights + architecture) + weights
        # The profiler wants one step to warm up.
        first = max(boundary - min(weights, _STEPS), 1)
        self._steps = boundary + min(architecture, _STEPS) - first
        activities = [ProfilerActivity.CPU]
        if self._on_device:
            activities.append(ProfilerActivity.CUDA)

        with profile(
            activities=activities,
            schedule=schedule(skip_first=first - 1, wait=0, warmup=1, active=self._steps, repeat=1),
            on_trace_ready=self._keep,
        ) as self._profiler:
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run one step, which the trace shows as ``name``."""
        if self._profiler is None:
            yield
            return
        with record_function(name):
            yield
        self._profiler.step()

    def write(self) -> None:
        """Write the trace, once it is complete; before that, and after it, do nothing.

        Raises OSError when the disk is full.
        """
        if self._recorded is None:
            return
        recorded, self._recorded = self._recorded, None
        with atomic_path(self._trace) as aside:
            recorded.export_chrome_trace(str(aside))
            _require_whole(aside)
        self.profile = Profile(self._trace, self._steps, self._operations(recorded))

    def _keep(self, recorded: profile) -> None:
        # The steps that follow cost nothing.
        self._profiler, self._recorded = None, recorded

    def _operations(self, recorded: profile) -> tuple[TimedOperation, ...]:
        clock = "self_device_time_total" if self._on_device else "self_cpu_time_total"
        found = [
            (float(getattr(event, clock)) / 1e3, event)
            for event in recorded.key_averages()
            if not event.is_user_annotation
        ]
        total = sum(milliseconds for milliseconds, _ in found) or 1.0
        found.sort(key=itemgetter(0), reverse=True)
        return tuple(
            TimedOperation(event.key, event.count, milliseconds, milliseconds / total)
            for milliseconds, event in found[:_SHOWN]
            if milliseconds > 0
        )


def profiled_step(
    recorder: StepRecorder | None, name: str
) -> contextlib.AbstractContextManager[None]:
    """Return the context for one step of a search, whether it is recorded or not."""
    return contextlib.nullcontext() if recorder is None else recorder.step(name)


def _require_whole(trace: Path) -> None:
    # The profiler's writer does not tell of a full disk.
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - 16))
        end = file.read().rstrip()
    if not end.endswith(b"}"):
        raise OSError(errno.ENOSPC, "the trace could not be written whole, is the disk full?")
