"""Task files of a user's own arrays, one line of TOML at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 30

HEAD = {
    "name": '"mine"',
    "kind": '"multiclass"',
    "data": '"mine.npz"',
    "labels": '"label"',
    "split": '"part"',
}
MODALITIES = {
    "a": {"array": '"a"', "type": '"vector"'},
    "b": {"array": '"b"', "type": '"vector"'},
}


def arrays(**changed: Any) -> dict[str, Any]:
    """Two vectors, three classes, ten samples in each part."""
    rng = np.random.default_rng(0)
    usual = {
        "a": rng.normal(size=(SAMPLES, 4)).astype(np.float32),
        "b": rng.normal(size=(SAMPLES, 2)).astype(np.float32),
        "label": np.arange(SAMPLES) // 3 % 3,
        "part": np.arange(SAMPLES) % 3,
    }
    return {**usual, **changed}


def write_task(
    folder: Path,
    *,
    modalities: dict[str, dict[str, str]] | None = None,
    held: dict[str, Any] | None = None,
    **keys: str,
) -> Path:
    """Write task.toml, and mine.npz that holds ``held``.

    ``keys`` are TOML values, an empty one drops its key.
    """
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mine.npz", **(arrays() if held is None else held))
    lines = [f"{key} = {value}" for key, value in {**HEAD, **keys}.items() if value]
    for name, table in (MODALITIES if modalities is None else modalities).items():
        lines += [f"[modality.{name}]", *(f"{key} = {value}" for key, value in table.items())]
    path = folder / "task.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def modality(name: str, **changed: str) -> dict[str, dict[str, str]]:
    """Return both modalities with other keys in the one called ``name``."""
    return {**MODALITIES, name: {**MODALITIES[name], **changed}}
