from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from bmnas_export.measure import SampleInputs, latency_report, measure_session
from bmnas_serve.session import Session
from tiny_networks import tiny_network, tiny_task


def test_batches_of_1_and_64_are_timed_and_reported() -> None:
    task = tiny_task(("vector", "vector"), test=5)
    trained = tiny_network(task)
    seen: list[int] = []

    def run(arrays: dict[str, Any]) -> None:
        assert list(arrays) == ["m0", "m1"]
        seen.append(len(arrays["m0"]))

    described = SimpleNamespace(threads=3, providers=("CPUExecutionProvider",))
    runner = SimpleNamespace(describe=lambda: described)
    session = SimpleNamespace(run=run, runner=runner)
    inputs = SampleInputs(task, trained.task, trained.network)
    latency = measure_session(cast(Session, session), inputs, {1: 0.1})
    assert set(seen) == {1, 64}
    assert latency[64].repeats == 3
    report = latency_report(latency, cast(Session, session))
    assert report["onnxruntime"]["batch_1"] == latency[1].to_dict()
    assert (report["threads"], report["providers"]) == (3, ["CPUExecutionProvider"])
    # The threads are those of the session, not those of torch.
    assert "threads" not in report["hardware"]
    assert json.loads(json.dumps(report)) == report

    # What took long when it was compared with torch is not run again.
    seen.clear()
    latency = measure_session(cast(Session, session), inputs, {1: 0.1, 64: 2.0})
    assert set(seen) == {1}
    assert latency[64].to_dict() == {"median_ms": 2000.0, "p99_ms": 2000.0, "repeats": 1}
