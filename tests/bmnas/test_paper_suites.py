"""The suites of BM-NAS's tables, on small files in the exact formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from mmimdb_files import write_hdf5
from paper_files import make_narrow, write_all_of_egogesture, write_all_of_ntu
from tiny_tasks import CONFIG
from workers import in_this_process

from bmnas.lab.engines import Workers
from bmnas.lab.runs import run_jobs
from bmnas.lab.suite import load_suite, suite_jobs, write_report
from bmnas.pipeline.config import load_preset
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.ntu import load_ntu

FILES: dict[str, Callable[[Path], object]] = {
    "mmimdb": write_hdf5,
    "ntu": write_all_of_ntu,
    "egogesture": write_all_of_egogesture,
}
SUITES = {"paper-mmimdb": "mmimdb-1", "paper-ntu": "ntu-1", "paper-egogesture": "ego-1"}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    for name, write in FILES.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_finds_its_data_and_the_papers_settings(
    packs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMNAS_DATA", str(packs))
    suite = load_suite(name)
    jobs = suite_jobs(suite)
    assert len(jobs) == 5 * len(suite.ways())
    assert {job.config.preset for job in jobs} == {SUITES[name]}
    assert all(job.config == load_preset(SUITES[name]) for job in jobs)
    assert all(str(packs) in job.task["source"]["data"] for job in jobs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_runs_to_its_report(
    packs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMNAS_DATA", str(packs))
    make_narrow(monkeypatch)
    for load in (load_ntu, load_egogesture):
        monkeypatch.setitem(load.__kwdefaults__, "size", 12)
    monkeypatch.setattr("bmnas.tasks.mmimdb._HEIGHT", 48)
    monkeypatch.setattr("bmnas.tasks.mmimdb._WIDTH", 32)
    suite = dataclasses.replace(load_suite(name), seeds=1)
    # Large batches take most of the time; exports of these networks and trainings of their
    # backbones together with what joins them are tested elsewhere.
    monkeypatch.setattr("bmnas.pipeline.multimodal._LATENCY_BATCHES", (1,))
    config = CONFIG.override("train", freeze_backbones=True)
    jobs = [
        dataclasses.replace(job, config=config, stages=job.stages[:-1]) for job in suite_jobs(suite)
    ]
    records = run_jobs(jobs, tmp_path, Workers((), 1, 0), in_this_process, device="cpu")
    assert {record.state for record in records} == {"done"}
    rows, _ = write_report(suite, jobs, tmp_path, f"bmnas bench {name}")
    assert {row.name for row in rows} > set(suite.ways())
    assert all("fusion_parameters" in row.measures for row in rows if row.name in suite.ways())
