"""The sequential search of MFAS (Pérez-Rúa et al., CVPR 2019), replayed on a table of our space.

A level is a step of a Cell: its operation, its operands and, for the first step of a Cell, the
Cell's inputs. Levels that were not reached yet are ``zero`` steps. Each level of each sweep takes
all choices for it onto the K architectures kept; the first trains all of them, later ones let the
surrogate predict and train K drawn by these scores, which are kept. Surrogate, temperatures and
draws are those of ``bmnas search --strategy mfas``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.mfas.sampling import draw, temperatures
from bmnas.spaces.mfas.settings import MFASConfig
from bmnas.spaces.mfas.surrogate import ScorePool

if TYPE_CHECKING:
    from bmnas.lab.tables.replay import Problem

_WIDTH = 5  # numbers that describe a step


def sequential_search(problem: Problem) -> None:
    """Ask level by level, sweep by sweep, with the settings of MFAS; it may end by itself."""
    settings, space = MFASConfig(), problem.space
    seed = problem.random.randrange(1 << 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pool = ScorePool(_WIDTH)
    kept: list[Genotype] = []
    levels = [*range(space.levels)] * settings.sweeps
    heats = temperatures(settings.sweeps, space.levels)
    for number, (level, heat) in enumerate(zip(levels, heats, strict=True)):
        unfolded = space.unfold(kept, level)
        generator = np.random.default_rng((seed, number))
        if number == 0:
            problem.random.shuffle(unfolded)
            scores = [problem.score(genotype) for genotype in unfolded]
            trained = unfolded
            kept = draw(unfolded, scores, settings.kept, heat, generator)
        else:
            predicted = pool.predict([space.encode(genotype) for genotype in unfolded])
            kept = trained = draw(unfolded, predicted, settings.kept, heat, generator)
            scores = [problem.score(genotype) for genotype in trained]
        pool.learn([space.encode(genotype) for genotype in trained], scores)
