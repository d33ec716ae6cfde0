"""Strategy ``mmnas``: weights one path at a time, gates for the operations (Yu et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from bmnas.machine.errors import UserError
from bmnas.machine.schema import Range
from bmnas.spaces.mmnas.genotype import DEEPEST, Norm
from bmnas.spaces.registry import space_named
from bmnas.strategies.strategy import Strategy
from bmnas.training.settings import Count, Negatives, Rate, Size, unread_of_official

if TYPE_CHECKING:
    from bmnas.strategies.problem import Outcome, SearchProblem

Blocks = Annotated[int, Range(1, DEEPEST)]
Share = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True)
class MMnasConfig:
    """The supernet of MMnas and its search, section ``[mmnas]``; the rest is in ``[search]``.

    Chains of ``encoder`` and ``decoder`` blocks for tokens of ``width`` channels, in heads of
    ``head``; ``hidden`` and ``norm`` see ``MMnasGenotype``. What is found gets ``final_width``
    channels in the end; 0: as many. After a share ``warm_up`` of the epochs, alpha learns too, at
    every ``alpha_every``-th step, with rate ``alpha_lr``, from the share ``held_out`` of train,
    which weights do not see: samples of other rows of the second modality (``split = "rows"``), or
    the last in the file's order. ``start``: alpha prefers MCAN's operations, or none.

    ``steps = "official"``: gradients are clipped as of losses that are summed over the batch, or
    over ``gpu_batch`` samples of it, and the rate stays at ``max_lr`` after three epochs of
    warm-up. ``stale_momentum``: Adam goes on moving weights of operations that were
    not drawn, as in the official program. Of matching tasks, after a share ``hard_from`` of the
    epochs, the hardest of ``negatives`` wrong pairs of each row are trained on; 0: always any.
    """

    encoder: Blocks = 4
    decoder: Blocks = 6
    width: Size = 64
    head: Size = 16
    hidden: Size = 4
    norm: Norm = "layer"
    final_width: Annotated[int, Range(0, 65536)] = 0
    warm_up: Annotated[float, Range(0, below=1)] = 0.2
    alpha_every: Count = 5
    alpha_lr: Rate = 0.1
    held_out: Share = 0.2
    split: Literal["rows", "order"] = "rows"
    start: Literal["mcan", "even"] = "mcan"
    steps: Literal["cosine", "official"] = "cosine"
    gpu_batch: Annotated[int, Range(0)] = 0
    stale_momentum: bool = False
    negatives: Negatives = 0
    hard_from: Annotated[float, Range(0, 1)] = 0.05

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the settings that count for nothing beside the others."""
        if self.steps != "official":
            yield from unread_of_official((), self.gpu_batch)


class MMnas(Strategy):
    """The search of MMnas, then short trainings that compare what its supernet thinks best."""

    NAME = "mmnas"
    SPACE = "mmnas"
    SETTINGS = MMnasConfig
    TRAINS_SUPERNET = True
    READS = frozenset(
        {
            *("epochs", "batch_size", "dropout", "max_lr", "min_lr", "weight_decay"),
            *("candidate_epochs", "rerank", "warmup_steps", "cache_dtype"),
        }
    )
    PAPER: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "search": {"rerank": 0, "dropout": 0.1},
        "mmnas": {
            "norm": "official",
            "split": "order",
            "start": "mcan",
            "steps": "official",
            "stale_momentum": True,
            "negatives": 32,
        },
        "train": {
            "steps": "official",
            "dropout": 0.1,
            "min_lr": 0.0,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "negatives": 64,
        },
    }

    @classmethod
    def check_space(cls, space: str | None) -> None:
        """Raise UserError for a space that is not of encoders and decoders."""
        if space_named(space or cls.SPACE).NAME != cls.SPACE:
            raise UserError(
                f"strategy mmnas: received space {space}, which has no gates; expected space "
                f"{cls.SPACE}, or another strategy"
            )

    @classmethod
    def search(cls, problem: SearchProblem) -> Outcome[Any]:
        """Search with a supernet."""
        cls.check_space(problem.space)
        from bmnas.strategies.gates import search_with_gates

        return search_with_gates(problem)
