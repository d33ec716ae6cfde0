"""Fixtures of the benchmarks: every way to fuse the embedded task, trained and exported once."""

from __future__ import annotations

from typing import Any

import pytest

import bmnas
from benchmarks.cases import TASK, WAYS, Finished
from bmnas.cli.workers import workers
from bmnas.lab.engines import run_local
from bmnas.lab.runs import run_jobs
from bmnas.lab.suite import task_jobs
from bmnas.machine.costs import hardware, versions


@pytest.fixture(scope="session")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The runs of ``WAYS`` by name, each with genotype, trained network and bundle."""
    folder = tmp_path_factory.mktemp("ways")
    jobs = task_jobs(TASK, WAYS, seeds=[0])
    run_jobs(jobs, folder, workers(1, 0), run_local, device="cpu")
    task = bmnas.load_task(TASK.name)
    runs = [folder / job.name for job in jobs]
    return {
        job.way: Finished(task, run, run / "bundle", run / "backbones")
        for job, run in zip(jobs, runs, strict=True)
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Add what the figures depend on to the saved JSON."""
    machine_info["bmnas"] = {"hardware": hardware(), "versions": versions()}
