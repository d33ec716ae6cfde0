"""Time and memory of a search against its sizes: N, M, F, C, L and samples.

    python -m benchmarks.scaling --million --out FILE.json --plot FILE.svg

One size changes at a time, the others stay at those of ``BASE``. Every point runs in a process of
its own, so that its peak of memory is its own. A step is forward, backward and Adam; samples are
trained on for one epoch of Algorithm 1, from files laid out as the feature cache is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import bmnas
from benchmarks.cases import StepCase, step
from bmnas.features.files import MappedArrays, MappedFile
from bmnas.features.samples import FeatureSamples
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import hardware, peak_memory, versions
from bmnas.machine.files import write_json
from bmnas.machine.progress import Progress
from bmnas.report.style import PALETTE
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.settings import SearchConfig
from bmnas.training.heads import head_for

WIDTH = 128  # channels of a raw feature
STEPS = 30
CLASSES = 10
MILLION = 1_000_000


@dataclass(frozen=True)
class Sizes:
    """What a search is given: Cells, steps, features, channels, length; samples of an epoch."""

    cells: int = 2
    steps: int = 2
    features: int = 8
    channels: int = 64
    length: int = 8
    samples: int = 0  # 0: single steps, on one batch that stays in memory


BASE = Sizes()
SERIES: dict[str, tuple[int, ...]] = {
    "cells": (1, 2, 4, 6, 8),
    "steps": (1, 2, 3, 4),
    "features": (2, 4, 8, 16),
    "channels": (32, 64, 128, 256),
    "length": (4, 8, 16, 32),
    "samples": (4_000, 16_000, 64_000),
}
#: In the paper's letters.
LABELS = {
    "cells": "Cells N",
    "steps": "steps M",
    "features": "features F",
    "channels": "channels C",
    "length": "length L",
    "samples": "samples",
}


def main() -> None:
    """Measure every point, write the figures, draw them; or measure one point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--plot", type=Path, help="the picture to draw")
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--million", action="store_true", help="a million samples too (8 GB)")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point is not None:
        print(json.dumps(measure(Sizes(**json.loads(options.point)))))
        return
    series = {name: [in_own_process(p) for p in points(name)] for name in options.only}
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "series": series,
    }
    if options.million:
        # All of it is read once: 9,259 steps of weights, 1,157 of the architecture, validation.
        report["million"] = in_own_process(replace(BASE, channels=32, samples=MILLION))
    print(json.dumps(report, indent=2))
    if options.out is not None:
        write_json(options.out, report)
    if options.plot is not None:
        draw(series, options.plot)


def points(name: str) -> list[Sizes]:
    """Return the sizes of one series."""
    return [replace(BASE, **{name: value}) for value in SERIES[name]]


def in_own_process(sizes: Sizes) -> dict[str, Any]:
    """Return what ``measure`` returns for ``sizes`` in a new process."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(asdict(sizes))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(sizes: Sizes) -> dict[str, Any]:
    """Return ``sizes``, seconds and peak memory: of a step, or of an epoch where there are samples.

    ``bytes`` is what the process had at its peak beyond what it had before.
    """
    before = peak_memory()["resident_bytes"]
    seconds = time_of_step(sizes) if sizes.samples == 0 else time_of_epoch(sizes)
    peak = peak_memory()["resident_bytes"]
    return {**asdict(sizes), "seconds": seconds, "bytes": peak - before, "resident_bytes": peak}


def time_of_step(sizes: Sizes) -> float:
    """Return the median seconds of a step."""
    case = StepCase(
        channels_raw=(WIDTH,) * sizes.features,
        channels=sizes.channels,
        length=sizes.length,
        cells=sizes.cells,
        steps=sizes.steps,
        classes=CLASSES,
    )
    call = step(case, Supernet, bmnas.Runtime.choose("cpu"))
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[STEPS // 3 :])


def time_of_epoch(sizes: Sizes) -> float:
    """Return the seconds of one epoch of Algorithm 1, a ninth of the samples for validation."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        train, validation = made_up_samples(sizes, Path(folder))
        problem = SearchProblem(
            train=train,
            validation=validation,
            classes=CLASSES,
            head=head_for("multiclass", 0.5),
            config=SearchConfig(channels=sizes.channels, length=sizes.length, epochs=1),
            seed=0,
            runtime=bmnas.Runtime.choose("cpu"),
            checkpoint=Checkpoint(Path(folder) / "checkpoint.pt", "scaling"),
            candidates=lambda: Checkpoint(Path(folder) / "candidates.pt", "scaling"),
            progress=Progress(),
        )
        return search_bilevel(problem).seconds


def made_up_samples(sizes: Sizes, folder: Path) -> tuple[FeatureSamples, FeatureSamples]:
    """Return training and validation samples whose features lie in files in ``folder``."""
    names = tuple(f"m.{f + 1}" for f in range(sizes.features))
    shape = (sizes.samples, sizes.length, WIDTH if sizes.samples < MILLION else 32)
    chunk = np.random.default_rng(0).standard_normal((1000, *shape[1:]), np.float32)
    files = {name: MappedFile(folder / f"{name}.npy", shape) for name in names}
    for mapped in files.values():
        with mapped.path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            for _ in range(sizes.samples // len(chunk)):
                file.write(chunk.tobytes())
    labels = torch.arange(sizes.samples) % CLASSES
    border = sizes.samples * 8 // 9
    parts = torch.arange(sizes.samples).tensor_split((border,))
    arrays = MappedArrays(files)
    train, validation = (FeatureSamples(names, arrays, {"m": part}, labels[part]) for part in parts)
    return train, validation


def draw(series: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time and memory against every size, on axes from zero: a line is linear growth."""
    figure = Figure(figsize=(2.6 * len(series), 4.8))
    axes = figure.subplots(2, len(series), squeeze=False)
    for column, (name, found) in enumerate(series.items()):
        values = [point[name] for point in found]
        unit = "ms a step" if name != "samples" else "s an epoch"
        factor = 1e3 if name != "samples" else 1.0
        rows: Sequence[tuple[str, list[float]]] = (
            (unit, [factor * point["seconds"] for point in found]),
            ("MiB", [point["bytes"] / 2**20 for point in found]),
        )
        for row, (label, heights) in enumerate(rows):
            axis = axes[row][column]
            axis.plot(values, heights, "o-", color=PALETTE[0])
            axis.set_xlim(0, None)
            axis.set_ylim(0, None)
            axis.set_ylabel(label)
            axis.set_xlabel(LABELS[name])
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
