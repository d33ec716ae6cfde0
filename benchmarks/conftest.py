"""Fixtures of the benchmarks: every way to fuse the embedded task, trained and exported once."""

from __future__ import annotations

from typing import Any

import pytest

import bmnas
from benchmarks.cases import TASK, WAYS, Finished
from bmnas.cli.export import export_run
from bmnas.lab.bench.jobs import Job, run_jobs
from bmnas.machine.costs import hardware, versions
from bmnas.machine.progress import Silent


@pytest.fixture(scope="session")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The runs of ``WAYS`` by name, each with genotype, trained network and bundle."""
    folder = tmp_path_factory.mktemp("ways")
    jobs = [Job(TASK, 0, way, folder / str(number)) for number, way in enumerate(WAYS)]
    runtime = bmnas.Runtime.choose("cpu", compile=False)
    run_jobs(jobs, runtime, export_run, Silent())
    task = bmnas.load_task(TASK.name)
    return {job.way: Finished(task, job.run, job.run / "bundle", job.shared) for job in jobs}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Add what the figures depend on to the saved JSON."""
    machine_info["bmnas"] = {"hardware": hardware(), "versions": versions()}
