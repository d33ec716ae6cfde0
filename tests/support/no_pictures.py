"""Runs without pictures, which take longer than a tiny search, and runs with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bmnas.pipeline.search
import bmnas.pipeline.train
from bmnas.pipeline.search import write_pictures

_DRAWING = (bmnas.pipeline.search, bmnas.pipeline.train)


@pytest.fixture(autouse=True, scope="session")
def no_pictures() -> Iterator[None]:
    """Let runs of this process draw nothing, but for tests that ask for ``pictures``."""
    with pytest.MonkeyPatch.context() as patch:
        for module in _DRAWING:
            patch.setattr(module, "write_pictures", lambda *_: None)
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw, as they do for users."""
    for module in _DRAWING:
        monkeypatch.setattr(module, "write_pictures", write_pictures)
