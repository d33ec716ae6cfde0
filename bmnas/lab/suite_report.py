"""The report of a suite: rows over seeds, each number traceable to a run folder and a command."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bmnas.lab.engines import Result
from bmnas.lab.job import Job
from bmnas.lab.runs import jobs_table, read_records, record_of
from bmnas.lab.suite import Suite, commands
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json, write_text
from bmnas.report.comparison import (
    ComparisonRow,
    comparison_rows,
    comparison_tables,
    draw_comparison,
    spread_of,
)
from bmnas.report.metrics import UnimodalMetrics
from bmnas.report.page import Section, figure_html, page
from bmnas.report.record import RunRecord, load_run
from bmnas.report.tables import html_tables, markdown

#: A job that is done, and what its run folder says.
Done = tuple[Job, RunRecord]


def write_report(
    suite: Suite, jobs: Sequence[Job], folder: Path, command: str
) -> tuple[list[ComparisonRow], list[Path]]:
    """Write report.html, report.md and report.json for the ``jobs`` that are done.

    Returns the rows and the files. Paths in them are relative to ``folder``, which may be moved as
    a whole.
    """
    runs = [(job, load_run(folder / job.name)) for job in jobs]
    rows, records = report_rows(runs), read_records(folder)
    done = [record_of(job, folder, Result(job.name, "done"), records) for job in jobs]
    tables, trace = comparison_tables(rows), jobs_table(done, "Runs")
    machine, software = hardware(), versions()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    seeds = len({job.seed for job in jobs})
    facts = [
        f"Command: `{command}`.",
        f"{date}, {machine['processor']}, {machine['threads']} threads, torch {software['torch']}.",
        f"{len(jobs)} runs of {seeds} seed{'s' * (seeds > 1)}; ± is the sample standard deviation.",
        # A fact of its own: the page shortens long ones.
        "Each network is trained on train and validation and tested once.",
    ]
    sections = [
        ("Tables", html_tables(tables)),
        *_figures(rows),
        ("Where each number comes from", html_tables([trace])),
    ]
    plain = [fact.replace("`", "") for fact in facts]
    files = [folder / f"report.{suffix}" for suffix in ("html", "md", "json")]
    write_text(files[0], page(f"Suite {suite.name}", plain, sections))
    write_text(files[1], "\n".join([f"# {suite.name}", "", *facts, "", markdown([*tables, trace])]))
    content = {
        "suite": suite.name,
        "command": command,
        "date": date,
        "hardware": machine,
        "versions": software,
        "rows": [row.to_dict() for row in rows],
        "runs": [_traced(suite, job, run, folder) for job, run in runs],
    }
    write_json(files[2], content)
    return rows, files


def _figures(rows: Sequence[ComparisonRow]) -> Iterator[Section]:
    for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
        drawn = [row for row in rows if row.task == task and "fusion_parameters" in row.measures]
        yield f"Score and cost, {task}", figure_html(draw_comparison(drawn), f"p{number}")


def _traced(suite: Suite, job: Job, run: RunRecord, folder: Path) -> dict[str, Any]:
    task = next(task for task in suite.task if task.name == job.label["task"])
    made = {"score": run.metrics.test_score, "commands": commands(job, task, folder)}
    return {**job.label, "run": job.name, **made}


def report_rows(runs: Sequence[Done]) -> list[ComparisonRow]:
    """Return a row for each way to fuse, and one for what fuses nothing, the best score first.

    The latter are each modality alone, and the mean of the unimodal networks' logits.
    """
    rows: list[ComparisonRow] = []
    for task in dict.fromkeys(job.label["task"] for job, _ in runs):
        ways: dict[str, list[RunRecord]] = {}
        for job, run in runs:
            if job.label["task"] == task:
                ways.setdefault(job.way, []).append(run)
        found = [
            replace(row, task=task, name=way)
            for way, group in ways.items()
            for row in comparison_rows(group)
        ]
        found += _alone(found[0], next(iter(ways.values())))
        rows += sorted(found, key=lambda row: -row.score.mean if row.score else 0.0)
    return rows


def _alone(like: ComparisonRow, runs: Sequence[RunRecord]) -> list[ComparisonRow]:
    """Return the rows of the unimodal networks, which all runs of a task and a seed share."""
    alone: dict[str, list[float | None]] = {
        f"{name} alone": [run.metrics.unimodal.get(name, UnimodalMetrics()).test for run in runs]
        for name in runs[0].metrics.unimodal
    }
    alone["mean of unimodal logits"] = [
        None if run.metrics.test is None else run.metrics.test.unimodal_mean for run in runs
    ]
    rows = []
    for name, scores in alone.items():
        score = spread_of(scores)
        kept = {key: like.measures[key] for key in ("best_unimodal",) if key in like.measures}
        rows.append(replace(like, name=name, measures=kept | ({"score": score} if score else {})))
    return rows
