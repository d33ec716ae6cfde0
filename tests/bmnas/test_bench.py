"""Suites: what they run, that a killed one goes on, and what their report says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import write_tiny_task
from workers import in_this_process

from bmnas.lab.engines import JobRecord, Told, Workers
from bmnas.lab.job import Order
from bmnas.lab.runs import run_jobs
from bmnas.lab.suite import load_suite, suite_jobs, suite_names, write_report
from bmnas.machine.errors import UserError
from bmnas.pipeline.run_folder import Run
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.known import searched_cells
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.registry import load_architecture

SUITE = """
seeds = 1
strategies = ["bmnas"]
fusions = ["two_stream"]
[[task]]
name = "task.toml"
preset = "tiny-preset.toml"
"""
WAYS = ("search-bmnas", "fusion-two_stream")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    (tmp_path / "small.toml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_a_killed_suite_goes_on_and_its_report_leads_to_every_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(here / "out" / "task" / "0" / "search-bmnas")
    command = [sys.executable, "-m", "bmnas", "bench", "small.toml", "--out", "out"]
    # A process of its own, which the machine may kill like this.
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (first.path / "bundle").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (here / "out" / "report.json").exists()
    kept = first.network.stat().st_mtime_ns

    monkeypatch.setattr("bmnas.lab.engines.run_local", in_this_process)
    printed = bmnas_command("bench", "small.toml", "--out", "out", "--json")

    assert printed.status == 0, printed.err
    assert first.network.stat().st_mtime_ns == kept
    names = [row["name"] for row in json.loads(printed.out)["rows"]]
    alone = ["m0 alone", "m1 alone", "mean of unimodal logits"]
    ways = ["search bmnas", "fusion two_stream"]
    assert sorted(names) == sorted([*ways, *alone])
    report = json.loads((here / "out" / "report.json").read_text())
    assert [run["run"] for run in report["runs"]] == [f"task/0/{way}" for way in WAYS]
    for run in report["runs"]:
        metrics = Run(here / "out" / run["run"]).read_metrics().to_dict()
        assert run["score"] == metrics["test"]["score"]
        assert metrics["latency"]["onnxruntime"]["batch_1"]["median_ms"] > 0
    scores = [row["score"]["mean"] for row in report["rows"]]
    assert scores == sorted(scores, reverse=True)
    page = (here / "out" / "report.html").read_text()
    for shown in (page, (here / "out" / "report.md").read_text()):
        assert "task/0/fusion-two_stream" in shown
        assert "mean of unimodal logits" in shown
        assert "trained on train and validation and tested once." in shown
    assert "<svg" in page
    assert "src=" not in page
    assert "Degraded inputs" not in page

    bundle = first.path / "bundle" / "manifest.json"
    exported = bundle.stat().st_mtime_ns
    again = bmnas_command("bench", "small.toml", "--out", "out", "--robustness")
    assert again.status == 0, again.err
    # Nothing is made again for it.
    assert (first.network.stat().st_mtime_ns, bundle.stat().st_mtime_ns) == (kept, exported)
    measured = first.read_metrics()
    assert measured.robustness["m0"].scores[0] == measured.test_score
    report = json.loads((here / "out" / "report.json").read_text())
    assert sorted(row["name"] for row in report["robustness"]["task.toml"]) == sorted(ways)
    assert "Degraded inputs, task.toml" in (here / "out" / "report.html").read_text()
    assert "### Missing modality, task.toml" in (here / "out" / "report.md").read_text()


def test_a_suite_has_the_paper_s_recipe_and_linear_models(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmnas.lab.engines.run_local", in_this_process)
    wanted = SUITE.replace('["bmnas"]', '["bmnas", "paper"]')
    wanted = wanted.replace('fusions = ["two_stream"]', "fusions = []\nlinear = true")
    (here / "small.toml").write_text(wanted)
    preset = here / "tiny-preset.toml"
    text = re.sub(r"(?m)^rerank = .*$", "rerank = 1", preset.read_text())
    preset.write_text(re.sub(r"(?m)^unimodal_logits = .*$", "unimodal_logits = true", text))

    printed = bmnas_command("bench", "small.toml", "--out", "out", "--json")

    assert printed.status == 0, printed.err
    report = json.loads((here / "out" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    ways = ["search bmnas", "search paper", "linear fused"]
    others = ["linear m0", "linear m1", "m0 alone", "m1 alone", "mean of unimodal logits"]
    assert sorted(rows) == sorted([*ways, *others]) == sorted(report["ranks"])
    assert all(rows[way]["train_processor_seconds"]["mean"] > 0 for way in ways)
    # Two bits a label: each modality says one of them.
    assert rows["linear fused"]["score"]["mean"] > 0.8 > rows["linear m0"]["score"]["mean"]
    for way, reranked in (("bmnas", 1), ("paper", 0)):
        config = json.loads(
            (here / "out" / "task" / "0" / f"search-{way}" / "config.json").read_text()
        )
        assert config["strategy"] == "bmnas"
        assert config["search"]["rerank"] == reranked
        assert config["train"]["unimodal_logits"] == bool(reranked)
    assert "Mean rank over tasks" in (here / "out" / "report.md").read_text()
    jobs = suite_jobs(replace(load_suite("small.toml"), seeds=2))
    assert all(job.finished(here / "out") for job in jobs if job.seed == 0)
    # No seed changes linear models.
    assert [job.seed for job in jobs if job.way == "linear"] == [0]


def test_a_suite_has_searches_in_other_spaces_and_known_sequences(here: Path) -> None:
    wanted = SUITE.replace('["bmnas"]', '["random/mmnas"]')
    wanted = wanted.replace('fusions = ["two_stream"]', 'sequences = ["mcan"]')
    (here / "small.toml").write_text(wanted.replace("task.toml", "tiny_words:tiny_questions"))
    suite = load_suite("small.toml")
    jobs = [replace(job, stages=job.stages[:-1]) for job in suite_jobs(suite)]
    assert [job.stages for job in jobs] == [("search", "train"), ("train",)]

    run_jobs(jobs, here / "out", Workers((), 1, 0), in_this_process, device="cpu")
    rows, _ = write_report(suite, jobs, here / "out", "bmnas bench small.toml")

    alone = {"image alone", "question alone", "mean of unimodal logits"}
    assert {row.name for row in rows} == {"search random/mmnas", "sequence mcan", *alone}
    # The first is what the others are compared with.
    text = (here / "out" / "report.md").read_text()
    assert "search random/mmnas" in text.partition("Mean rank over tasks")[2]
    for job in jobs:
        genotype = load_architecture(Run(here / "out" / job.name).genotype)
        assert isinstance(genotype, MMnasGenotype)

    # Networks of modalities that have learned something else are not compared.
    for job in jobs:
        run = Run(here / "out" / job.name)
        found = run.read_metrics()
        assert found.test is not None
        words = {name: replace(own, metric="weighted_f1") for name, own in found.unimodal.items()}
        replace(found, unimodal=words, test=replace(found.test, unimodal_mean=None)).save(
            run.metrics
        )
    rows, _ = write_report(suite, jobs, here / "out", "bmnas bench small.toml")
    assert {row.name for row in rows} == {"search random/mmnas", "sequence mcan"}
    assert not any("best_unimodal" in row.measures for row in rows)


def test_a_task_is_done_before_the_next_one_is_begun(here: Path) -> None:
    (here / "other.toml").write_text((here / "task.toml").read_text())
    more = '[[task]]\nname = "other.toml"\npreset = "tiny-preset.toml"\n'
    (here / "small.toml").write_text(SUITE + more)
    asked: list[str] = []

    def none_is_done(orders: Sequence[Order], workers: Workers, told: Told) -> None:
        for order in orders:
            asked.append(order["job"]["name"])
            told(JobRecord(order["job"]["name"], state="done"))

    jobs = suite_jobs(load_suite("small.toml"))
    run_jobs(jobs, here / "out", Workers((), 1, 0), none_is_done, device="cpu")
    found = [".backbones" if name.startswith(".") else name for name in asked]
    first, second = ([f"{task}/0/{way}" for way in WAYS] for task in ("task", "other"))
    assert found == [".backbones", *first, ".backbones", *second]


def test_a_suite_has_the_recipes_of_both_papers(here: Path) -> None:
    wanted = SUITE.replace('["bmnas"]', '["mmnas", "paper", "paper/mmnas", "even/mmnas"]')
    (here / "small.toml").write_text(wanted.replace("task.toml", "tiny_words:tiny_questions"))
    jobs = {job.way: job for job in suite_jobs(load_suite("small.toml"))}
    own, cells, tokens = (jobs[f"search {name}"] for name in ("mmnas", "paper", "paper/mmnas"))
    assert [job.strategy for job in (own, cells, tokens)] == ["mmnas", "bmnas", "mmnas"]
    assert [job.looked_in.NAME for job in (own, cells, tokens)] == ["mmnas", "cells", "mmnas"]
    for job, norm in ((own, "layer"), (tokens, "official")):
        assert job.config.to_dict()["mmnas"]["norm"] == norm
    assert cells.backbones != tokens.backbones
    even = jobs["search even/mmnas"]
    assert even.looked_in.NAME == "mmnas"
    assert even.backbones == own.backbones
    assert even.config == own.config.override("mmnas", start="even") != own.config


def test_all_stands_for_every_fusion(here: Path) -> None:
    (here / "small.toml").write_text(SUITE.replace('["two_stream"]', '["all"]'))
    ways = load_suite("small.toml").ways()
    assert ways == ["search bmnas", *(f"fusion {name}" for name in FUSIONS)]


def test_a_device_that_is_not_there_is_told_before_the_first_run(here: Path) -> None:
    printed = bmnas_command("bench", "small.toml", "--out", "out", "--device", "cuda:9")
    assert "received device 'cuda:9'" in one_line_error(printed)
    assert not (here / "out").exists()


def test_suites_that_come_with_bmnas_can_be_read_and_have_runs() -> None:
    assert {"all-tasks", "digits", "digits-quick", "real-data"} <= set(suite_names())
    for name in suite_names():
        suite = load_suite(name)
        ways = suite.ways()
        assert len({way.replace(" ", "-").replace("/", "-") for way in ways}) == len(ways) >= 5


def test_a_suite_runs_each_module_on_all_pairs_but_what_was_searched(here: Path) -> None:
    wanted = 'modules = ["aoa", "searched"]\npairs = ["found", "late"]\n[[task]]'
    (here / "small.toml").write_text(SUITE.replace("[[task]]", wanted))
    assert load_suite("small.toml").ways() == [
        "search bmnas",
        "fusion two_stream",
        "module aoa/found",
        "module aoa/late",
        "module searched/late",
    ]


def test_a_module_may_name_its_own_pairs(here: Path) -> None:
    wanted = 'modules = ["searched/random", "aoa/found"]\n[[task]]'
    (here / "small.toml").write_text(SUITE.replace("[[task]]", wanted))
    assert load_suite("small.toml").ways()[2:] == ["module searched/random", "module aoa/found"]


def test_searched_cells_keep_their_steps_on_other_pairs() -> None:
    features = ("a.1", "a.2", "b.1", "b.2")
    cells = (
        Cell(("a.1", "b.1"), (Step("sum", ("x", "y")),)),
        Cell(("a.2", "cell1"), (Step("attention", ("y", "x")),)),
    )
    found = Genotype(features, 8, 2, cells)

    made = searched_cells(found, [("a.2", "b.2")], pairs_name="late")
    assert made.cells == (Cell(("a.2", "b.2"), cells[0].steps),)
    pairs = [("a.1", "b.1"), ("a.2", "b.2"), ("cell1", "cell2")]
    more = searched_cells(made, pairs, pairs_name="late")
    assert [cell.inputs for cell in more.cells] == pairs
    assert [cell.steps for cell in more.cells] == 3 * [cells[0].steps]
    assert made.provenance["fusion"] == "searched, late pairs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 1", "seeds = 0"), "seeds: received 0, expected from 1 to 1000"),
        (('["bmnas"]', "[]"), "strategies: received [], expected one that is not"),
        (('["bmnas"]', '["bmnas/here"]'), "strategies[0]: received 'bmnas/here', expected one of"),
        (
            ('["bmnas"]', '["random"]\nmodules = ["aoa/late"]'),
            "strategies: received ['random'], expected bmnas among them, whose pairs",
        ),
        (
            ("two_stream", "twostream"),
            "fusions[0]: received 'twostream', expected one of two",
        ),
        (("seeds = 1", "seed = 1"), "received key 'seed', expected only task"),
        (("[[task]]", "[[tasks]]"), "received key 'tasks'"),
        (('name = "task.toml"', "name = 3"), "task[0].name: received 3, expected a string"),
        (
            ("seeds = 1", 'modules = ["aoa"]'),
            "modules: received no pairs for them, expected some",
        ),
        (
            ("[[task]]", '[[task]]\nname = "task"\n[[task]]'),
            "task: received 'task', whose runs",
        ),
    ],
)
def test_a_malformed_suite_is_told_in_one_line(
    here: Path, change: tuple[str, str], message: str
) -> None:
    path = here / "small.toml"
    path.write_text(SUITE.replace(*change))

    with pytest.raises(UserError) as caught:
        load_suite("small.toml")
    assert str(caught.value).startswith(f"small.toml: {message}")


def test_runs_with_other_settings_are_not_taken_for_those_of_a_suite(here: Path) -> None:
    run = here / "out" / "task" / "0" / "search-bmnas"
    words = ("--task", "task.toml", "--preset", "tiny-preset.toml", "--run", run)
    assert bmnas_command("search", *words).status == 0
    preset = here / "tiny-preset.toml"
    preset.write_text(re.sub(r"(?m)^weight_decay = .*$", "weight_decay = 0.5", preset.read_text()))
    message = one_line_error(bmnas_command("bench", "small.toml", "--out", "out"))
    assert message.endswith("received 0.5; choose another folder with --out")


def test_every_task_is_looked_for_before_the_first_run(here: Path) -> None:
    path = here / "small.toml"
    path.write_text(f'{path.read_text()}[[task]]\nname = "other.toml"\n')
    message = one_line_error(bmnas_command("bench", "small.toml", "--out", "out"))
    assert message.startswith("other.toml: cannot be read")
    assert not (here / "out").exists()


def test_a_preset_that_is_not_there_is_told_before_the_first_run(here: Path) -> None:
    path = here / "small.toml"
    path.write_text(path.read_text().replace("tiny-preset.toml", "no-preset"))
    message = one_line_error(bmnas_command("bench", "small.toml", "--out", "out"))
    assert message.startswith("received preset 'no-preset'")
    assert not (here / "out").exists()


def test_what_the_command_cannot_use(here: Path) -> None:
    unknown = bmnas_command("bench", "digit")
    assert "received suite 'digit', expected all-tasks, answers" in one_line_error(unknown)
    slow = bmnas_command("bench", "real-data", "--quick")
    assert "--quick: received suite 'real-data'" in one_line_error(slow)
    nothing = bmnas_command("bench", "small.toml", "--report-only")
    assert "no run of the suite small is done yet" in one_line_error(nothing)
