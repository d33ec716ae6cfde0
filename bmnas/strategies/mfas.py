"""MFAS: sequential model-based search, level by level (Pérez-Rúa et al., CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.machine.schema import Range
from bmnas.spaces.mfas.genotype import DEEPEST
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.strategy import Candidate, Proposals, ProposingStrategy
from bmnas.training.settings import BatchSize, Count, Dropout, Rate, ShortTraining, Size

if TYPE_CHECKING:
    from bmnas.strategies.surrogate import ScorePool

_FIRST_CYCLE = 1  # epochs
_HOT, _COLD, _DECAY = 10.0, 0.2, 4.0
_SMALLEST = 1e-12  # of a score: one of zero comes last, and can still be drawn

T = TypeVar("T")


@dataclass(frozen=True)
class MFASConfig:
    """The search of MFAS, section ``[mfas]``; the defaults are those of the authors' program.

    ``sweeps`` times ``levels`` steps; each trains ``kept`` candidates (K) for ``epochs`` epochs,
    the first one all architectures of one layer. Candidates have fusion layers of ``inner_size``
    units, the final network of ``final_inner_size``. ``scalars`` weighs the modalities of a layer
    by learned scalars. Up to ``together`` candidates are trained as one network, which takes less
    time than one by one, as the authors do.
    """

    sweeps: Count = 3
    levels: Annotated[int, Range(1, DEEPEST)] = 4
    kept: Count = 15
    epochs: Count = 3
    batch_size: BatchSize = 20
    dropout: Dropout = 0.5
    max_lr: Rate = 1e-3
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-4
    inner_size: Size = 16
    final_inner_size: Size = 256
    scalars: bool = False
    together: Count = 32


class MFAS(ProposingStrategy):
    """Search any space with levels, several times over, led by a surrogate.

    Each step puts every choice for its level on the architectures kept so far. The first step asks
    for all of them; later ones have the surrogate predict their scores, draw K by these, ask for
    the K and let the surrogate learn from all that is known. The K drawn are kept. With the
    settings of the authors and 4 features of each of two modalities, 32 + 11 * 15 = 197 candidates
    are judged.
    """

    NAME = "mfas"
    SPACE = "mfas"
    SETTINGS = MFASConfig
    READS = frozenset({"cache_dtype"})
    RETURNS = 5

    settings: MFASConfig

    @classmethod
    def check_space(cls, space: str | None) -> None:
        """Raise UserError for a space without levels."""
        found = space_named(space or cls.SPACE)
        if found.levels is SearchSpace.levels:
            raise UserError(
                f"strategy mfas: received space {found.NAME}, which has no levels to go through; "
                f"expected space {cls.SPACE}, or another strategy"
            )

    def propose(self) -> Proposals:
        """Go through the levels of every sweep."""
        space, settings = self.space, self.settings
        kept: Sequence[Any] = self._first()
        pool = self._pool(len(space.encode(kept[0])[0]))
        heats = temperatures(settings.sweeps, space.levels)
        levels = [*range(space.levels)] * settings.sweeps
        for step, (level, heat) in enumerate(zip(levels, heats, strict=True)):
            generator = np.random.default_rng((self.seed, step))
            if step:
                unfolded = space.unfold(kept, level)
                predicted = pool.predict([space.encode(genotype) for genotype in unfolded])
                kept = draw(unfolded, predicted, settings.kept, heat, generator)
            scores = yield [Candidate(genotype, note={"step": step + 1}) for genotype in kept]
            pool.learn([space.encode(genotype) for genotype in kept], scores)
            if not step:
                kept = draw(kept, scores, settings.kept, heat, generator)

    @property
    def expected(self) -> int:
        """All of the first step, and K of every later one."""
        later = self.settings.sweeps * self.space.levels - 1
        return len(self._first()) + later * self.settings.kept

    @classmethod
    def training(cls, settings: MFASConfig) -> ShortTraining:
        """Return the short training of the authors."""
        return ShortTraining(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            max_lr=settings.max_lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            dropout=settings.dropout,
            together=settings.together,
            best=True,
            first_cycle=_FIRST_CYCLE,
        )

    def _first(self) -> list[Any]:
        """Return the candidates of the first step, in no order: a budget may end among them."""
        first = self.space.unfold([], 0)
        order = np.random.default_rng((self.seed, len(first))).permutation(len(first))
        return [first[number] for number in order]

    def _pool(self, width: int) -> ScorePool:
        import torch

        from bmnas.machine.runtime import seed_stage
        from bmnas.strategies.surrogate import ScorePool

        with torch.random.fork_rng(devices=[]):
            seed_stage(self.seed, "surrogate")
            return ScorePool(width)


def temperatures(sweeps: int, levels: int) -> list[float]:
    """Return the temperature T of every step, level by level of every sweep.

    The first is 10; after a step it is (10 - 0.2) exp(-(i + 1)² / 4²) + 0.2 with i = sweep * sweeps
    + level, both from 0. So it is in the authors' program, where each of three sweeps adds three to
    i for its four levels: 10, 9.41, 7.83, 5.78, 3.81, 3.81, 2.25, 1.23, 0.66, 0.66, 0.38, 0.26.
    """
    counts = [sweep * sweeps + level for sweep in range(sweeps) for level in range(levels)]
    cooled = [(_HOT - _COLD) * math.exp(-((i + 1) ** 2) / _DECAY**2) + _COLD for i in counts]
    return [_HOT, *cooled[:-1]]


def probabilities(scores: Sequence[float], temperature: float) -> np.ndarray:
    """Return p proportional to (score / sum of scores)^(1 / T), which adds up to 1."""
    # In logarithms: 1 / T = 5 of small scores would leave nothing in floating point.
    logs = np.log(np.maximum(np.asarray(scores, dtype=np.float64), _SMALLEST)) / temperature
    powered = np.exp(logs - logs.max())
    p: np.ndarray = powered / powered.sum()
    return p


def draw(
    candidates: Sequence[T],
    scores: Sequence[float],
    count: int,
    temperature: float,
    generator: np.random.Generator,
) -> list[T]:
    """Return ``count`` of ``candidates``, or all there are, drawn one after the other.

    A draw takes one of those left by their ``probabilities``.
    """
    p = probabilities(scores, temperature)
    count = min(count, len(candidates))
    chosen = generator.choice(len(candidates), count, replace=False, p=p)
    return [candidates[number] for number in chosen]
