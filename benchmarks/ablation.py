"""What is each part of the default recipe worth? Every part left out, on all tasks.

    BMNAS_DATA=path/to/packs python -m benchmarks.ablation --out FILE.json

Tasks are those of the suite all-tasks, in its order; a row is the default without one part, trained
and tested as ``bmnas train`` does. A part that a task's default has not is not left out of it.
Runs that are done are read, so one that was stopped goes on. Prints a Markdown table of test scores
with the processor seconds of the searches, and writes FILE.json. Hours.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmnas.cli.workers import workers
from bmnas.lab.engines import run_local
from bmnas.lab.job import Job
from bmnas.lab.runs import run_jobs
from bmnas.lab.suite import load_suite
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json
from bmnas.machine.progress import Bars
from bmnas.pipeline.config import config_for
from bmnas.pipeline.run_folder import Run
from bmnas.report.comparison import format_spread, spread_of
from bmnas.tasks import load_task

_OF_TEXTS = "the linear path of texts"
#: What is left out, by the settings that do so.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "features of unseen samples": {"unimodal": {"folds": 0}},
    "early stopping": {"unimodal": {"early_stopping": False}},
    _OF_TEXTS: {"unimodal": {"linear": False}},
    "unimodal logits": {"train": {"unimodal_logits": False}},
    "hand-made fusions as rivals": {"search": {"rivals": False}},
    "the mean of three networks": {"search": {"ensemble": 1}},
}


def jobs_of(wanted: Sequence[str] | None, seeds: int) -> list[Job]:
    """Return the runs of the tasks that are ``wanted``, None for all."""
    suite = load_suite("all-tasks")
    found = []
    for own in (t for t in suite.task if wanted is None or t.slug in wanted):
        task = load_task(own.name, own.folder)
        default = config_for(task)
        texts = any(modality.type == "text" for modality in task.modalities)
        for seed in range(seeds):
            for part, without in PARTS.items():
                config = default
                for section, values in without.items():
                    config = config.override(section, **values)
                if without and (config == default or (part == _OF_TEXTS and not texts)):
                    continue
                job = Job(
                    f"{own.slug}/{seed}/{part.replace(' ', '-')}",
                    "search bmnas",
                    {"name": task.name, "source": task.source},
                    seed,
                    config,
                    {"task": own.slug, "without": part, "seed": seed},
                    ("search", "train"),
                )
                found.append(job)
    return found


def rows_of(jobs: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
    """Return what came of each run that is done."""
    rows = []
    for job in (job for job in jobs if job.finished(folder)):
        metrics = Run(folder / job.name).read_metrics()
        seconds = metrics.processor_seconds
        rows.append({**job.label, "test": metrics.test_score, "search_seconds": seconds["search"]})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table: % on test, ± over seeds, in brackets the seconds of searches."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [f"| without | {' | '.join(tasks)} |", "|---|" + "---:|" * len(tasks)]
    for part in PARTS:
        cells = []
        for task in tasks:
            own = [row for row in rows if (row["task"], row["without"]) == (task, part)]
            if not own:
                cells.append("")
                continue
            score = spread_of([100 * row["test"] for row in own])
            seconds = spread_of([row["search_seconds"] for row in own])
            cells.append(f"{format_spread(score, '.2f')} ({format_spread(seconds, '.0f')})")
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", help="slugs of some tasks, such as digits")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    jobs = jobs_of(options.tasks, options.seeds)
    run_jobs(
        jobs,
        options.runs,
        workers(options.workers, 1),
        run_local,
        device="cpu",
        resume=True,
        progress=Bars(),
    )
    rows = rows_of(jobs, options.runs)
    print(table_of(rows))
    about = {"date": f"{datetime.date.today()}", "hardware": hardware(), "versions": versions()}
    write_json(options.out, {**about, "runs": rows})


if __name__ == "__main__":
    main()
