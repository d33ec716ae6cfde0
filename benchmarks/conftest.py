"""Fixtures of the benchmarks: one finished run on the embedded task, shared by all."""

from __future__ import annotations

from typing import Any

import pytest
from bmnas_export import export_bundle

import bmnas
from benchmarks.cases import Finished
from bmnas.cost import hardware, versions


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The whole path on ``digits`` with its preset."""
    task = bmnas.load_task("digits")
    run = tmp_path_factory.mktemp("digits") / "run"
    found = bmnas.search(task, run=run)
    trained = bmnas.train(found.run / "genotype.json", task)
    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, run / "bundle", scores=trained.metrics)
    return Finished(task, run, bundle.folder)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Add what the figures depend on to the saved JSON."""
    machine_info["bmnas"] = {"hardware": hardware(), "versions": versions()}
