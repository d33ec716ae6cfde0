"""Suites: what one runs, as a TOML file says it, and the report, whose rows are over seeds."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated

from bmnas.lab.engines import JobRecord
from bmnas.lab.job import LINEAR, SEARCHED, VARIANTS, Job, Stage, space_of_way, strategy_of_way
from bmnas.lab.runs import jobs_table, read_records, record_of
from bmnas.machine.costs import hardware, versions
from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml, write_json, write_text
from bmnas.machine.schema import NotEmpty, OneOf, Range, read
from bmnas.pipeline.config import Config, config_for
from bmnas.report.comparison import (
    ComparisonRow,
    comparison_rows,
    comparison_tables,
    draw_comparison,
    spread_of,
)
from bmnas.report.importance import importance_tables
from bmnas.report.metrics import UnimodalMetrics
from bmnas.report.page import Section, figure_html, page
from bmnas.report.ranking import mean_ranks, ranking_tables
from bmnas.report.record import Record, load_run
from bmnas.report.robustness import (
    RobustnessRow,
    draw_robustness,
    missing_tables,
    robustness_row,
)
from bmnas.report.tables import TextTable, html_tables, markdown, unimodal_together
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.fusions.table import FUSIONS, OF_PAIRS
from bmnas.spaces.mmnas.known import SEQUENCES
from bmnas.spaces.registry import SPACES
from bmnas.strategies import STRATEGIES
from bmnas.tasks import load_task

PAIRS = ("found", "late", "random")
MODULES = (*FUSION_MODULES, SEARCHED)
#: A module on pairs of its own.
_ON_PAIRS = tuple(f"{module}/{pairs}" for module in MODULES for pairs in PAIRS)
#: In place of the names of all fusions.
ALL = "all"
#: The strategy whose genotypes the known modules take their pairs of features from.
_PAIRS_FROM = "search bmnas"
#: A strategy in its own space, in another, or as in its paper.
_SEARCHES = (
    *STRATEGIES,
    *(f"{name}/{space}" for name in STRATEGIES for space in SPACES),
    *VARIANTS,
)


@dataclass(frozen=True)
class SuiteTask:
    """A task as for ``bmnas search --task``, its folder of data, and the preset, None the task's.

    ``data`` is looked for in the folder that ``BMNAS_DATA`` names, unless it is absolute.
    """

    name: str
    data: str | None = None
    preset: str | None = None

    @property
    def slug(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name.removesuffix(".toml"))

    @property
    def folder(self) -> Path | None:
        """The folder of the task's data; None where the task knows it."""
        return None if self.data is None else Path(os.environ.get("BMNAS_DATA", "."), self.data)


@dataclass(frozen=True)
class Suite:
    """Ways to fuse, each run on every ``task`` for ``seeds`` seeds from 0.

    ``strategies`` are names, or ``STRATEGY/SPACE`` for one in another space than its own; ``paper``
    is bmnas with the paper's recipe, ``paper/mmnas`` is mmnas with that of its paper,
    ``even/mmnas`` is mmnas with ``start = even``. The first is what the others are compared with.
    ``fusions`` may be ``all``, which are those for any kind of task. ``modules`` are known modules
    of the pool, or ``searched``, on each of ``pairs`` of features, or on the pairs that follow a
    name, as in ``aoa/found``. ``sequences`` are known ones of MMnas. ``linear`` asks for linear
    models of raw inputs too, which no seed changes: once. With ``robustness`` each network is
    tested once more with its inputs degraded. The file's tables ``[[task]]`` give ``task`` its
    name.
    """

    task: Annotated[tuple[SuiteTask, ...], NotEmpty()]
    strategies: Annotated[tuple[Annotated[str, OneOf(_SEARCHES)], ...], NotEmpty()]
    fusions: tuple[Annotated[str, OneOf((*FUSIONS, *OF_PAIRS, ALL))], ...] = ()
    modules: tuple[Annotated[str, OneOf((*MODULES, *_ON_PAIRS))], ...] = ()
    pairs: tuple[Annotated[str, OneOf(PAIRS)], ...] = ()
    sequences: tuple[Annotated[str, OneOf(tuple(SEQUENCES))], ...] = ()
    linear: bool = False
    seeds: Annotated[int, Range(1, 1000)] = 3
    robustness: bool = False
    name: str = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what does not fit together, by the name of the list."""
        if self.modules and "bmnas" not in self.strategies:
            found = "bmnas among them, whose pairs and Cells the modules take"
            yield "strategies", f"received {list(self.strategies)}, expected {found}"
        if not self.pairs and not set(self.modules) <= set(_ON_PAIRS):
            yield "modules", f"received no pairs for them, expected some of {', '.join(PAIRS)}"
        slugs = [task.slug for task in self.task]
        for task in self.task:
            if slugs.count(task.slug) > 1:
                folder = f"whose runs would lie in the folder {task.slug} of another task"
                yield "task", f"received {task.name!r}, {folder}, expected another name"

    def ways(self) -> list[str]:
        """Return the ways to fuse, as a job names them, each once."""
        modules = [
            f"module {on_pairs}"
            for name in self.modules
            for on_pairs in ([name] if "/" in name else [f"{name}/{p}" for p in self.pairs])
        ]
        found = [
            *(f"search {name}" for name in self.strategies),
            *(f"fusion {name}" for name in (FUSIONS if ALL in self.fusions else self.fusions)),
            # The searched Cells on the pairs that they were found with are the search itself.
            *(way for way in modules if way != f"module {SEARCHED}/found"),
            *(f"sequence {name}" for name in self.sequences),
            *([LINEAR] if self.linear else []),
        ]
        return list(dict.fromkeys(found))


#: The suites that come with bmnas.
_SUITES = resources.files("bmnas.lab") / "suites"


def suite_names() -> list[str]:
    """Return the names of the suites that come with bmnas."""
    return sorted(file.name.removesuffix(".toml") for file in _SUITES.iterdir())


def load_suite(source: str, *, quick: bool = False) -> Suite:
    """Return the suite of a name, its ``quick`` form where wanted, or that of a ``.toml`` file.

    Raises UserError, one line.
    """
    path = Path(source)
    if quick or not source.endswith(".toml"):
        ending = "-quick" if quick else ""
        have = [name.removesuffix(ending) for name in suite_names() if name.endswith(ending)]
        if source not in have:
            option, or_file = ("--quick: ", "") if quick else ("", ", or the path of a .toml file")
            raise UserError(
                f"{option}received suite {source!r}, expected {', '.join(have)}{or_file}"
                f"{close(source, have)}"
            )
        path = Path(str(_SUITES / f"{source}{ending}.toml"))
    suite = read(Suite, read_toml(path), str(path))
    return replace(suite, name=suite.name or path.stem)


def suite_jobs(suite: Suite) -> list[Job]:
    """Return the runs of ``suite``; raises UserError where a task or preset cannot be loaded."""
    return [
        job
        for task in suite.task
        for job in task_jobs(
            task, suite.ways(), seeds=range(suite.seeds), robustness=suite.robustness
        )
    ]


def task_jobs(
    wanted: SuiteTask, ways: Sequence[str], *, seeds: Sequence[int], robustness: bool = False
) -> list[Job]:
    """Return a run for each of ``seeds`` and ``ways`` to fuse on one task."""
    task = load_task(wanted.name, wanted.folder)
    last: tuple[Stage, ...] = ("train", "export")
    if robustness:
        last = (*last, "robustness")

    def folder(seed: int, way: str) -> str:
        return f"{wanted.slug}/{seed}/{way.replace(' ', '-').replace('/', '-')}"

    def config(way: str) -> Config:
        found = config_for(task, wanted.preset, space_of_way(way))
        match way.removeprefix("search "):
            case "even/mmnas":
                return found.override("mmnas", start="even")
            case name if name in VARIANTS:
                return found.as_in_the_paper(strategy_of_way(way))
        return found

    def stages(way: str) -> tuple[Stage, ...]:
        if way == LINEAR:
            return ("train",)
        return ("search", *last) if way.startswith("search ") else last

    return [
        Job(
            folder(seed, way),
            way,
            {"name": task.name, "source": task.source},
            seed,
            config(way),
            {"task": wanted.name, "way": way, "seed": seed},
            stages(way),
            after=folder(seed, _PAIRS_FROM) if way.startswith("module ") else None,
            space=space_of_way(way).NAME if "/" in way and way.startswith("search ") else None,
        )
        for seed in seeds
        for way in ways
        if way != LINEAR or seed == seeds[0]
    ]


def write_report(
    suite: Suite, jobs: Sequence[Job], folder: Path, command: str
) -> tuple[list[ComparisonRow], list[Path]]:
    """Write report.html, report.md and report.json for the ``jobs`` that are done.

    Returns the rows and the files. Paths in them are relative to ``folder``, which may be moved as
    a whole.
    """
    runs = [(job, load_run(folder / job.name)) for job in jobs]
    rows, records, robust = report_rows(runs), read_records(folder), _robustness(runs)
    done = [record_of(job, folder, JobRecord(job.name, state="done"), records) for job in jobs]
    trace = jobs_table(done, "Runs")
    worth = {
        task: {way: [run.metrics for run in group] for way, group in ways.items()}
        for task, ways in _by_way(runs).items()
    }
    tables = [*suite_tables(suite, rows), *importance_tables(worth), *missing_tables(robust)]
    machine, software = hardware(), versions()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    seeds = len({job.seed for job in jobs})
    facts = [
        f"Command: `{command}`.",
        f"{date}, {machine['processor']}, {machine['threads']} threads, torch {software['torch']}.",
        f"{len(jobs)} runs of {seeds} seed{'s' * (seeds > 1)}; ± is the sample standard deviation.",
        # A fact of its own: the page shortens long ones.
        "Each network is trained on train and validation and tested once.",
        *(
            ["Afterwards its test inputs were degraded; nothing was chosen by it."]
            if robust
            else []
        ),
    ]
    sections = [
        ("Tables", html_tables(tables)),
        *_figures(rows, robust),
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
        "robustness": {task: [row.to_dict() for row in own] for task, own in robust.items()},
        "ranks": mean_ranks(rows),
        "runs": [
            {**job.label, "run": job.name, "score": run.metrics.test_score} for job, run in runs
        ],
    }
    write_json(files[2], content)
    return rows, files


def suite_tables(suite: Suite, rows: Sequence[ComparisonRow]) -> list[TextTable]:
    """Return a table for each task, and last what they say together."""
    return [*comparison_tables(rows), *ranking_tables(rows, f"search {suite.strategies[0]}")]


def _figures(
    rows: Sequence[ComparisonRow], robust: Mapping[str, Sequence[RobustnessRow]]
) -> Iterator[Section]:
    for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
        drawn = [row for row in rows if row.task == task and "fusion_parameters" in row.measures]
        if drawn:  # of a suite that was stopped linear models may be all there is
            yield f"Score and cost, {task}", figure_html(draw_comparison(drawn), f"p{number}")
        if task in robust:
            figure = figure_html(draw_robustness(task, robust[task]), f"d{number}")
            yield f"Degraded inputs, {task}", figure


def report_rows(runs: Sequence[tuple[Job, Record]]) -> list[ComparisonRow]:
    """Return a row for each way to fuse, each modality alone, and what these say together.

    The best score comes first. Of linear models there is a row for all modalities and for each.
    """
    rows: list[ComparisonRow] = []
    for task, ways in _by_way(runs).items():
        linear = ways.pop(LINEAR, [])
        found = [
            replace(row, task=task, name=way)
            for way, group in ways.items()
            for row in comparison_rows(group)
        ]
        for group in [*ways.values()][:1]:
            mean = [None if r.metrics.test is None else r.metrics.test.unimodal_mean for r in group]
            if any(score is not None for score in mean):
                together = unimodal_together(group[0].metrics.metric)
                found.append(_with_score(found[0], together, mean))
            found += _alone(found[0], group, "{} alone")
        for row in comparison_rows(linear):
            measures = {key: row.measures[key] for key in row.measures if key != "best_unimodal"}
            fused = replace(row, task=task, name=f"{LINEAR} fused", measures=measures)
            found += [fused, *_alone(fused, linear, f"{LINEAR} {{}}")]
        rows += sorted(found, key=lambda row: -row.score.mean if row.score else 0.0)
    return rows


def _by_way(runs: Sequence[tuple[Job, Record]]) -> dict[str, dict[str, list[Record]]]:
    """Return the runs by task and by way to fuse."""
    found: dict[str, dict[str, list[Record]]] = {}
    for job, run in runs:
        found.setdefault(job.label["task"], {}).setdefault(job.way, []).append(run)
    return found


def _robustness(runs: Sequence[tuple[Job, Record]]) -> dict[str, list[RobustnessRow]]:
    """Return by task the ways whose runs were all measured, if there are any, the best first."""
    found: dict[str, list[RobustnessRow]] = {}
    for task, ways in _by_way(runs).items():
        rows = [robustness_row(way, [run.metrics for run in group]) for way, group in ways.items()]
        if known := [row for row in rows if row is not None]:
            found[task] = sorted(known, key=lambda row: -row.score.mean)
    return found


def _alone(like: ComparisonRow, runs: Sequence[Record], called: str) -> list[ComparisonRow]:
    """Return the rows of the modalities, which all runs of a task and a seed share."""
    return [
        _with_score(
            like,
            called.format(name),
            [run.metrics.alone.get(name, UnimodalMetrics()).test for run in runs],
        )
        for name in runs[0].metrics.alone
    ]


def _with_score(like: ComparisonRow, name: str, scores: Sequence[float | None]) -> ComparisonRow:
    score = spread_of(scores)
    kept = {key: like.measures[key] for key in ("best_unimodal",) if key in like.measures}
    return replace(like, name=name, measures=kept | ({"score": score} if score else {}))
