"""Is what a search finds really the best? Searches on the space of a table, judged by the table.

    python -m benchmarks.search_quality TABLE.npz --backbones DIR --seeds 10 --out DIR

``TABLE.npz`` is what ``bmnas tabular build`` wrote, ``--backbones`` the folder of the backbones
that it used. Strategy bmnas searches with every seed on the features of those backbones, with the
table's settings, and what it finds is looked up: by Algorithm 1 alone, and after its short
trainings (rerank). Random search, local search and regularised evolution are replayed with as many
candidates as the same seconds would have trained. Work goes on where it was stopped. Prints a
Markdown table and writes one JSON file. Scores that decide are of validation; what is found is
judged by its mean test score.
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

import bmnas
from benchmarks.search_report import (
    found_row,
    kendall_tau,
    markdown,
    modalities,
    replay_row,
    truth,
)
from bmnas.features.cache import FeatureCache
from bmnas.lab.tables import Measured, Table, canonical, load
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import hardware, versions
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, write_json
from bmnas.machine.progress import Bars
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.one_shot import OneShot
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.rerank import SCREENED, train_single_path
from bmnas.tasks import reload_task
from bmnas.training.heads import head_for

_CPU = bmnas.Runtime(torch.device("cpu"), compile=False)
_REPLAYED = ("random", "local", "regularised")  # MFAS would be random search with so few candidates
#: The stages of Algorithm 1 itself.
_RELAXING = ("search_weights", "search_architecture", "validation")
_SECTIONS = ("unimodal", "search")


def main() -> None:
    """Search with every seed, replay, rank; print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--task", help="as for bmnas search --task; default: the table's")
    parser.add_argument("--data", type=Path, help="the folder of the task's data")
    parser.add_argument("--backbones", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rerank", type=int, help="short trainings; default: the table's")
    parser.add_argument("--ranked", type=int, default=3, help="supernets that rank all networks")
    parser.add_argument("--runs", type=Path, default=Path("runs/search-quality"))
    parser.add_argument("--out", type=Path, help="a folder for the JSON file")
    options = parser.parse_args()
    table = load(options.table)
    if options.task is None and options.data is None:
        task = reload_task(table.about["task"]["source"])
    else:
        task = bmnas.load_task(options.task or table.about["task"]["name"], options.data)
    sections = {name: table.about[name] for name in _SECTIONS}
    # No network is trained to the end here: of that stage the threshold alone is read.
    sections["train"] = {"threshold": table.about["train"]["threshold"]}
    config = Config.from_dict(sections, "the table's settings")
    config = config.override("search", rerank=options.rerank)
    ranked = min(options.ranked, options.seeds)
    report = {
        "table": options.table.name,
        "task": task.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python -m benchmarks.search_quality {options.table.name} --seeds "
        f"{options.seeds} --rerank {config.search.rerank} --ranked {ranked}",
        "hardware": hardware(),
        "versions": versions(),
        "search": config.to_dict()["search"],
        **measure(table, config, task, options.backbones, options.runs, options.seeds, ranked),
    }
    print(markdown(report))
    if options.out is not None:
        write_json(options.out / f"{report['date']}-search-quality-{task.name}.json", report)


def measure(
    table: Table,
    config: Config,
    task: bmnas.Task,
    backbones: Path,
    runs: Path,
    seeds: int,
    ranked: int,
) -> dict[str, Any]:
    """Return all that is measured, in the layout of the JSON file."""
    if config.search.rerank == 0:
        raise UserError("received settings without rerank, whose trainings tell a candidate's cost")
    cache = features(task, config, table.about["seed"], backbones, runs)
    setting = Setting(table, cache, config, runs)
    searches = [setting.search(seed) for seed in range(seeds)]
    rows = {
        "bmnas: Algorithm 1 alone": found_row(table, [s.derived for s in searches]),
        "bmnas": found_row(table, [s.found for s in searches]),
    }
    costs = {
        "bmnas: Algorithm 1 alone": np.mean([s.relax_seconds for s in searches]),
        "bmnas": np.mean([s.seconds for s in searches]),
    }
    candidate = float(np.mean([s.candidate_seconds for s in searches]))
    for name, seconds in costs.items():
        budget = max(1, round(seconds / candidate))
        rows[name] |= {"seconds": float(seconds), "as_candidates": budget}
        for strategy in _REPLAYED:
            row = replay_row(table, strategy, budget, seeds)
            rows[f"{strategy}, {budget} candidates"] = row
    return {
        "rows": rows,
        "seconds_of_a_candidate": candidate,
        "found": [search.facts(table) for search in searches],
        "truth": truth(table),
        "supernet": [setting.ranking(seed) for seed in range(ranked)],
    }


def features(
    task: bmnas.Task, config: Config, seed: int, backbones: Path, runs: Path
) -> FeatureCache:
    """Return the features of train and validation: a search reads no others."""
    context = RunContext(
        Run(runs), task, config, seed, backbones=backbones, runtime=_CPU, progress=Bars()
    )
    return context.features(
        {name: found.backbone for name, found in unimodal_networks(context).items()},
        ("train", "validation"),
        config.search.length,
        folder=runs / "features",
    )


@dataclass(frozen=True)
class Search:
    """What a search found: by Algorithm 1 alone, and in the end; what it took."""

    seed: int
    derived: Genotype
    found: Genotype
    relax_seconds: float
    seconds: float
    candidate_seconds: float

    def facts(self, table: Table) -> dict[str, Any]:
        """Return it as plain data, with what the table knows."""
        entries = {"derived": table.entry(self.derived), "found": table.entry(self.found)}
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            **{
                name: {
                    "network": canonical(entry.genotype),
                    "percentile": table.percentile(entry),
                    "regret": table.regret(entry),
                    "test": entry.test,
                }
                for name, entry in entries.items()
            },
        }


@dataclass(frozen=True)
class Setting:
    """A table, the features that it was made of, and a folder for the searches."""

    table: Table
    cache: FeatureCache
    config: Config
    runs: Path

    def search(self, seed: int) -> Search:
        """Search with ``seed``, or go on with it; a finished search is read."""
        folder = self.runs / str(seed)
        problem = self._problem(seed)
        if not (folder / "found.json").is_file():
            outcome = search_bilevel(problem)
            kept = {name: cost.seconds for name, cost in outcome.stages.items()}
            facts = {"cells": outcome.genotype.to_dict()["cells"], "seconds": kept,
                     "candidates": outcome.candidates}  # fmt: skip
            write_json(folder / "found.json", facts)
        facts = read_json(folder / "found.json")
        history = problem.checkpoint.restore({})
        best = [record for record in history if record["best"]][-1]
        seconds = facts["seconds"]
        return Search(
            seed,
            derived=problem.genotype(best["cells"]),
            found=problem.genotype(facts["cells"]),
            relax_seconds=sum(seconds[name] for name in _RELAXING),
            seconds=sum(seconds.values()),
            candidate_seconds=seconds["rerank"] / facts["candidates"],
        )

    def ranking(self, seed: int) -> dict[str, Any]:
        """Return how the supernet of a finished search ranks the table's networks.

        As Algorithm 1 leaves it, and trained on one path at a time, see ``train_single_path``.
        """
        problem, search = self._problem(seed), self.config.search
        supernet = Supernet(
            list(problem.train.channels.values()),
            cells=search.cells,
            steps=search.steps,
            channels=search.channels,
            length=search.length,
            classes=problem.classes,
            dropout=search.dropout,
        )
        checkpoint = self.runs / str(seed) / "checkpoint.pt"
        states = torch.load(checkpoint, weights_only=True)["states"]
        supernet.load_state_dict(states["supernet"])
        taus = {"seed": seed, "mixture": self._taus(problem, supernet)}
        draw = Random(seed)
        drawn = [problem.cells.sample(draw) for _ in range(SCREENED)]
        train_single_path(problem, drawn, supernet)
        return {**taus, "single_path": self._taus(problem, supernet)}

    def _taus(self, problem: SearchProblem, supernet: Supernet) -> dict[str, float]:
        """Return Kendall's tau of what the supernet and what the table say of all networks."""
        place = problem.head, problem.runtime.device
        one_shot = OneShot(supernet, problem.validation, *place, problem.seed)
        scores = [-one_shot.loss(genotype) for genotype in self.table.genotypes]
        several = [n for n, g in enumerate(self.table.genotypes) if modalities(g) > 1]
        taus = {}
        parts: tuple[Measured, ...] = ("validation", "test")
        for part in parts:
            true = self.table.scores(part)
            taus[part] = kendall_tau(scores, true)
            of_several = kendall_tau(np.array(scores)[several], true[several])
            taus[f"{part}_of_several_modalities"] = of_several
        return taus

    def _problem(self, seed: int) -> SearchProblem:
        folder, task = self.runs / str(seed), self.cache.task
        folder.mkdir(parents=True, exist_ok=True)
        settings = f"search-quality {seed} {self.cache.keys} {self.config.search}"
        return SearchProblem(
            train=self.cache.samples("train"),
            validation=self.cache.samples("validation"),
            classes=task.classes,
            head=head_for(task.kind, self.config.train.threshold),
            config=self.config.search,
            seed=seed,
            runtime=_CPU,
            checkpoint=Checkpoint(folder / "checkpoint.pt", settings, folder / "history.jsonl"),
            candidates=lambda: Checkpoint(folder / "rerank.pt", settings, folder / "rerank.jsonl"),
            progress=Bars(),
        )


if __name__ == "__main__":
    main()
