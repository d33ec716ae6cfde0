from __future__ import annotations

import pytest
from bmnas_export import latency


@pytest.fixture(autouse=True)
def _few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    # No test looks at the figures, and 200 runs per batch size take longer than the export.
    monkeypatch.setattr(latency, "_REPEATS", 3)
