from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bmnas_export import bundle, measure

from bmnas.machine.costs import measure_latency

SCHEMA = json.loads((files("bmnas_serve") / "manifest.schema.json").read_text("utf-8"))


@pytest.fixture(autouse=True, scope="session")
def _every_manifest_is_valid() -> Iterator[None]:
    """Hold whatever is exported in these tests against the published schema."""
    write: Callable[..., Any] = bundle._write_manifest

    def checked(folder: Path, *arguments: Any) -> Any:
        written = write(folder, *arguments)
        jsonschema.validate(json.loads((folder / "manifest.json").read_text()), SCHEMA)
        return written

    bundle._write_manifest = checked
    yield
    bundle._write_manifest = write


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # No test looks at the figures, and hundreds of runs take longer than the export.
    monkeypatch.setattr(measure, "_REPEATS", 3)
    monkeypatch.setattr(measure, "measure_latency", partial(measure_latency, warm_up=1))
