"""A feature cache of the size of NTU RGB-D's, searched with preset ntu-1 for one epoch.

    python -m benchmarks.ntu_epoch --out FILE.json

26,279 samples of train and validation have eight features of the real shapes, all made up: 6.4 GB
on the disk of ``--folder``, removed afterwards. The whole search is the epoch multiplied.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bmnas
from bmnas.cli.plan import PlannedData
from bmnas.lab.planning import made_up_task
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json
from bmnas.pipeline.config import load_preset
from bmnas.pipeline.search import search

_SAMPLES = 23_760, 2_519, 16_558  # of train, validation and test, as the paper counts
_PAPER_HOURS = 53.68  # BM-NAS, Table 8, on M40 cards, the backbones run at every step


def main() -> None:
    """Search for an epoch and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a disk with 7 GB free")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    report = measure(options.folder, _SAMPLES)
    print(json.dumps(report, indent=2))
    if options.out is not None:
        write_json(options.out, report)


def measure(folder: Path, parts: Sequence[int]) -> dict[str, Any]:
    """Return what an epoch takes; ``parts`` are the samples of train, validation and test."""
    preset = load_preset("ntu-1")
    task = made_up_task(PlannedData().channels(preset), parts)
    runtime = bmnas.Runtime.choose("cpu")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        config = preset.override("search", epochs=1)
        metrics = search(task, run=Path(name) / "run", config=config, runtime=runtime).metrics
        cache_bytes = sum(file.stat().st_size for file in Path(name).rglob("*.npy"))
    hours = metrics["seconds"]["search"] * preset.search.epochs / 3600
    return {
        "samples": sum(parts[:2]),
        "cache_bytes": cache_bytes,
        "seconds": metrics["seconds"],
        "peak_memory": metrics["peak_memory"]["search"],
        "whole_search_hours": hours,
        "paper_gpu_hours": _PAPER_HOURS,
        "hardware": hardware(),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
