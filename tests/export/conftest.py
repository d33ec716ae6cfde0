from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bmnas_export import bundle
from few_calls import few_calls
from no_pictures import no_pictures
from one_registry import one_registry

__all__ = ["few_calls", "no_pictures", "one_registry"]

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
