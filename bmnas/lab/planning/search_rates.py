"""How fast a search is: Algorithm 1 itself, and short trainings, on made-up features."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bmnas.features.samples import samples_per_epoch
from bmnas.lab.planning.settle import settle
from bmnas.lab.planning.synthetic import MadeUpFeatures
from bmnas.lab.planning.workload import Workload
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.progress import Silent
from bmnas.machine.runtime import Runtime
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.one_shot import SAMPLES, OneShot
from bmnas.strategies import STRATEGIES, Outcome, SearchProblem
from bmnas.strategies.bilevel import initial_supernet
from bmnas.strategies.problem import search_steps
from bmnas.strategies.rerank import SCREENED, train_single_networks
from bmnas.strategies.settings import SearchConfig
from bmnas.training.heads import head_for

_JUDGED = 20  # networks by the supernet
_CANDIDATES = 4  # networks that were drawn differ in what they cost
_CANDIDATE_EPOCHS = 3
_MOST = 4096


@dataclass(frozen=True)
class SearchRates:
    """Seconds of a sample in each stage of a search, for each seed of several at once.

    ``single_networks`` and ``rerank`` are of a sample in one epoch, their part of what such a
    training costs besides included. ``epoch`` is what an epoch of the search costs besides its
    passes; ``compile`` and ``screening`` are spent once.
    """

    weights: float
    architecture: float
    validation: float
    single_networks: float
    rerank: float
    screening: float
    epoch: float
    compile: float


@dataclass(frozen=True)
class SearchTrial:
    """Short searches for a workload on made-up features; checkpoints go to ``folder``."""

    workload: Workload
    features: MadeUpFeatures
    runtime: Runtime
    folder: Path

    def rates(self, budget: float) -> SearchRates:
        """Time all stages in about ``budget`` seconds, compilation apart."""
        settings = self.workload.search
        reranks, judges = settings.rerank > 0, settings.rerank >= self.workload.seeds
        outcomes = self._outcomes(
            "bmnas",
            dataclasses.replace(settings, epochs=1, rerank=0),
            budget / 2 if reranks else budget,
        )
        searched, stages = outcomes[-1], outcomes[-1].stages
        rates = {name: cost.seconds / max(cost.samples, 1) for name, cost in stages.items()}
        if reranks:
            epochs = min(settings.candidate_epochs, _CANDIDATE_EPOCHS)
            short = dataclasses.replace(settings, candidates=_CANDIDATES, candidate_epochs=epochs)
            own = budget / 4 if judges else budget / 2
            trained = self._outcomes("random", short, own)[-1].stages["candidates"]
            rates["rerank"] = trained.seconds / trained.samples
            if judges:
                rates["single_networks"] = self._single_networks(own)
                rates["screening"] = self._screening()
        return SearchRates(
            weights=rates["search_weights"],
            architecture=rates["search_architecture"],
            validation=rates["validation"],
            single_networks=rates.get("single_networks", 0.0),
            rerank=rates.get("rerank", 0.0),
            screening=rates.get("screening", 0.0),
            epoch=searched.seconds - sum(cost.seconds for cost in stages.values()),
            # Later searches find some of it done.
            compile=max(outcome.stages[COMPILE].seconds for outcome in outcomes),
        )

    def _single_networks(self, budget: float) -> float:
        """Return the seconds of a sample where the supernet is trained as one network."""
        settings = dataclasses.replace(self.workload.search, candidate_epochs=1)
        rates: list[float] = []

        def run(batches: int) -> float:
            problem = self._problem("bmnas", settings, batches, -1)
            supernet = initial_supernet(problem, 0).to(self.runtime.device)
            drawn = self._drawn(problem)
            started = time.perf_counter()
            train_single_networks(problem, drawn, supernet)
            seconds = time.perf_counter() - started
            # A part smaller than a batch is one batch, however many are asked for.
            rates.append(seconds / samples_per_epoch(len(problem.train), settings.batch_size))
            return seconds

        settle(run, 2, _MOST, budget)
        return rates[-1]

    def _drawn(self, problem: SearchProblem) -> list[Genotype]:
        draw = Random(0)
        return [problem.cells.sample(draw) for _ in range(_JUDGED)]

    def _screening(self) -> float:
        """Return the seconds of the supernet's judgement, told from that of a few networks."""
        work, device = self.workload, self.runtime.device
        count = min(SAMPLES, work.validation)
        batches = -(-count // work.search.batch_size)
        problem = self._problem("bmnas", work.search, batches, -1)
        validation = problem.validation.take(torch.arange(count))
        supernet = initial_supernet(problem, 0).to(device)
        drawn = self._drawn(problem)
        started = time.perf_counter()
        one_shot = OneShot(supernet, validation, problem.head, device, seed=0)
        made = time.perf_counter()
        for genotype in drawn:
            one_shot.loss(genotype)
        return made - started + (time.perf_counter() - made) * SCREENED / _JUDGED

    def _outcomes(
        self, strategy: str, config: SearchConfig, budget: float
    ) -> list[Outcome[Architecture]]:
        """Return what searches over more and more batches came to, the last one being measured."""
        outcomes: list[Outcome[Architecture]] = []

        def run(batches: int) -> float:
            problem = self._problem(strategy, config, batches, len(outcomes))
            found = STRATEGIES[strategy](problem)
            outcomes.append(found)
            compiling = found.stages[COMPILE].seconds if COMPILE in found.stages else 0.0
            return found.seconds - compiling

        settle(run, 2, _MOST, budget)
        return outcomes

    def _compiling(self) -> Runtime:
        """Return a runtime that compiles short searches where the long one is compiled."""
        work, runtime = self.workload, self.runtime
        steps = search_steps(work.search, work.train, work.validation)
        return dataclasses.replace(runtime, compile=runtime.compiles(steps), pays_from=0)

    def _problem(
        self, strategy: str, config: SearchConfig, batches: int, number: int
    ) -> SearchProblem:
        work, size = self.workload, config.batch_size
        # A part smaller than a batch is one batch; a larger one may be longer here than it is.
        train, validation = (
            batches * size if count >= size else count for count in (work.train, work.validation)
        )
        if strategy == "random":
            # Trained on one part and measured on the other: what that costs hangs on their ratio.
            validation = max(2, train * work.validation // work.train)
        folder = self.folder / f"{strategy} {number}"
        return SearchProblem(
            train=self.features.samples(train),
            validation=self.features.samples(validation),
            classes=work.outputs,
            head=head_for(work.kind),
            config=config,
            seed=0,
            runtime=self._compiling(),
            checkpoint=Checkpoint(folder / "checkpoint.pt", "plan", folder / "history.jsonl"),
            candidates=lambda: Checkpoint(folder / "rerank.pt", "plan"),
            progress=Silent(),
            seeds=work.seeds if strategy == "bmnas" else 1,
        )
