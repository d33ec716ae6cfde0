"""Engines of TensorRT for RTX, which are built without a GPU where the extra trt-rtx is installed.

As a plugin, which `make engines` loads, it has one built of every bundle that a test exports.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bmnas.machine.files import sha256_file

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
_built: set[str] = set()


def build_engine(model: Path) -> None:
    """Build an engine of the file ``model`` where that is possible, once; raises ExportError."""
    from bmnas_export.engines import write_engine

    digest = sha256_file(model)
    if INSTALLED and digest not in _built:
        with TemporaryDirectory() as folder:
            write_engine("tensorrt_rtx", Path(folder, "engine"), model, None)
        _built.add(digest)


@pytest.fixture(autouse=True, scope="session")
def _every_bundle_is_built() -> Iterator[None]:
    from bmnas_export import bundle

    def written(folder: Path, *arguments: Any) -> None:
        write(folder, *arguments)
        build_engine(folder / "model.onnx")

    write = bundle._write_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_write_samples", written)
        yield
