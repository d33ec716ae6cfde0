from __future__ import annotations

from functools import partial

import pytest
from bmnas_export import measure

from bmnas.machine.costs import measure_latency


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # No test looks at the figures, and hundreds of runs take longer than the export.
    monkeypatch.setattr(measure, "_REPEATS", 3)
    monkeypatch.setattr(measure, "measure_latency", partial(measure_latency, warm_up=1))
