"""What ``export --benchmark`` times, where it notes it, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bmnas_export import benchmark_bundle, export_bundle
from bmnas_export.verify import verify_bundle
from bmnas_serve import manifest as manifests
from tiny_networks import tiny_network, tiny_task
from tiny_runs import svg_texts

from bmnas.machine.errors import UserError
from bmnas.report.latency import Benchmark, latency_parts, latency_tables
from bmnas.report.record import load_record
from bmnas.report.style import figure_of
from bmnas.report.tables import bundle_tables
from bmnas.report.view import record_page, record_tables


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = tiny_task(("image", "vector"), test=5)
    trained = tiny_network(task)
    folder = tmp_path_factory.mktemp("benchmark") / "bundle"
    export_bundle(trained, task, folder, targets=("onnx-fp16",))
    threads, compiled = torch.get_num_threads(), []

    def fake_compile(network: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(network)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", fake_compile)
        found = benchmark_bundle(folder, trained, task, compiled=True)
    assert len(compiled) == 1
    assert torch.get_num_threads() == threads
    assert found == manifests.load(folder)
    return folder


def runs(folder: Path) -> list[dict[str, Any]]:
    return manifests.load(folder).latency["benchmark"]["runs"]


def test_every_target_is_timed_with_one_thread_and_all(timed: Path) -> None:
    every = manifests.load(timed).latency["threads"]
    found = {(run["target"], run["threads"], run["batch"]) for run in runs(timed)}
    assert found == {
        (target, threads, batch)
        for target in ("torch", "torch compiled", "onnx", "onnx-fp16")
        for threads in (1, every)
        for batch in (1, 8, 64)
    }
    assert all(0 < run["median_ms"] <= run["p99_ms"] for run in runs(timed))
    # The bundle is whole again: its digests are those of what it now says.
    assert verify_bundle(timed).problems == ()


def test_show_has_a_table_and_bars(timed: Path) -> None:
    manifest = json.loads((timed / "manifest.json").read_text())
    first = latency_tables(manifest)[0]
    assert first.title == "Milliseconds, 1 thread"
    assert first.columns == ("target", *(x for n in (1, 8, 64) for x in (f"batch {n}", "× torch")))
    assert [row[0] for row in first.rows] == ["torch", "torch compiled", "onnx", "onnx-fp16"]
    eager, quick = (Benchmark.of(manifest).median(name, 1, 8) for name in ("torch", "onnx"))
    assert eager is not None
    assert quick is not None
    assert first.rows[2][4] == f"{eager / quick:.1f}"
    [targets] = [t for t in bundle_tables(manifest) if t.title == "Bundle targets, on validation"]
    assert [row[:3] for row in targets.rows] == [("onnx-fp16", "model.fp16.onnx", "float16")]
    texts = svg_texts(figure_of(*latency_parts(manifest)))
    assert {"onnx-fp16", "batch 64", "1 thread", "milliseconds"} <= set(texts)
    assert not any("$" in text for text in texts)
    record = load_record(timed)
    titles = [table.title for table in record_tables(record)]
    assert "Milliseconds, 1 thread" in titles
    assert "Bundle sha256" not in titles
    assert "<h2>Latency</h2>" in record_page(record)


def test_a_manifest_without_a_benchmark_has_neither() -> None:
    for manifest in ({}, {"latency": {}}, {"latency": 3}):
        assert latency_tables(manifest) == latency_parts(manifest) == []


def test_figures_that_are_none_are_told() -> None:
    broken = {"latency": {"benchmark": {"runs": [{"target": "onnx", "median_ms": "fast"}]}}}
    with pytest.raises(UserError, match=r"latency\.benchmark: runs\[0\]"):
        latency_tables(broken)
