"""Run folders and manifests of a few lines, for tests of drawings and tables."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bmnas.report.style import figure_svg
from bmnas.spaces.cells.genotype import Cell, Genotype, Step

STEPS = (Step("attention", ("x", "y")), Step("sum", ("x", "step1")))
GENOTYPE = Genotype(("left.1", "right.1"), 8, 4, (Cell(("left.1", "right.1"), STEPS),))


def epoch(count: int, score: float, **changes: Any) -> dict[str, Any]:
    line = {
        "epoch": count,
        "learning_rate": 0.1 / count,
        "train_loss": 1.0 / count,
        "architecture_loss": 1.1 / count,
        "validation_loss": 1.2 / count,
        "validation_score": score,
        "best": False,
        "seconds": 0.5,
        "alpha": [[0.5, 0.4]],
        "beta": [[[0.5, 0.6], [0.7, 0.2, 0.6]]],
        "gamma": [[[0.1, 0.2, 0.4, 0.2, 0.1], [0.1, 0.5, 0.2, 0.1, 0.1]]],
        "cells": GENOTYPE.to_dict()["cells"],
    }
    return {**line, **changes}


METRICS: dict[str, Any] = {
    "metric": "accuracy",
    "unimodal": {"left": {"validation": 0.9, "test": 0.88, "parameters": 123}},
    "search": {"strategy": "bmnas", "best_epoch": 2, "validation": 0.97},
    "test": {"score": 0.96, "loss": 0.1, "samples": 360},
    "parameters": {"fusion": 12345, "classifier": 20, "backbones": 3000},
    "latency": {
        "torch": {"batch_1": {"median_ms": 1.5, "p99_ms": 2.5}},
        "onnxruntime": {"batch_1": {"median_ms": 0.25, "p99_ms": 0.5}},
        "threads": 2,
        "onnxruntime_threads": 4,
        "hardware": "a | b <script>",
    },
    "seconds": {"search": 20.0, "total": 50.0, "gpu_hours": 0},
}


def write_run(
    run: Path,
    *,
    history: list[dict[str, Any]] | str | None = None,
    metrics: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a run folder with three epochs; ``config`` changes its configuration."""
    run.mkdir()
    GENOTYPE.save(run / "genotype.json")
    lines = [epoch(1, 0.8, best=True), epoch(2, 0.9, best=True), epoch(3, 0.9)]
    lines = lines if history is None else history
    text = lines if isinstance(lines, str) else "".join(json.dumps(x) + "\n" for x in lines)
    (run / "history.jsonl").write_text(text)
    (run / "metrics.json").write_text(json.dumps(METRICS if metrics is None else metrics))
    base = {"task": {"name": "digits", "source": {}}, "strategy": "bmnas", "seed": 0}
    (run / "config.json").write_text(json.dumps({**base, "search": {"cells": 1}, **config}))
    return run


def svg_texts(figure: Any) -> list[str]:
    root = ElementTree.fromstring(figure_svg(figure))
    return ["".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")]


def scored(score: float, **changes: Any) -> dict[str, Any]:
    return {**METRICS, "test": {"score": score}, **changes}


def manifest() -> dict[str, Any]:
    tensor = {"name": "left", "shape": [-1, 8], "dtype": "float32", "meaning": "<b>half</b>"}
    return {
        "format": "bmnas.bundle/1",
        "name": "digits",
        "task": {"name": "digits", "kind": "multiclass"},
        "inputs": [tensor],
        "outputs": [{**tensor, "name": "logits"}],
        "class_names": ["0", "1"],
        "threshold": None,
        "genotype": GENOTYPE.to_dict(),
        "scores": {"test": {"accuracy": 0.96}},
        "files": {},
    }
