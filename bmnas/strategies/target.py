"""What a search aims at beside the score: what may be served, and what it costs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, cast

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.space import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Returns the milliseconds of one run of a module, exported by itself, on these inputs.
Timer = Callable[["nn.Module", Sequence["Tensor"]], float]

_DRAWS = 300  # among which one has to be within the limits
_MOST_DRAWS = 20 * _DRAWS  # for one network, in a space that has few within the limits
_ROOM = 1.05  # two measurements of one network may differ as much
_TRIES = 20  # for a mutation that is


@dataclass(frozen=True)
class Cost:
    """What is served takes ``latency_ms`` for a sample; its weights, backbones included.

    Without a table of latencies there is none.
    """

    latency_ms: float | None
    parameters: int


class Costs(Protocol):
    """Who says what networks cost; with ``heads`` unimodal networks' logits are added to theirs."""

    def predict(self, architecture: Architecture, *, heads: bool) -> Cost:
        """Return what is expected."""
        ...

    def measure(self, architecture: Architecture, *, heads: bool) -> Cost:
        """Return what the whole network costs, exported and timed."""
        ...


@dataclass(frozen=True)
class Target:
    """Limits of what is served, at batch 1 with one thread on this machine.

    ``timer`` finds latencies, see ``bmnas_export.time_module``; without a limit of latency it is
    not needed, but for a ``pareto`` search, which returns the front of score, latency and weights.
    Raises UserError for limits that cannot be.
    """

    max_latency_ms: float | None = None
    max_parameters: float | None = None
    timer: Timer | None = None
    pareto: bool = False

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if not 0 < limit < float("inf"):
                option = name.replace("_", "-")
                raise UserError(f"--{option}: received {limit:g}, expected more than 0")
        if self.times and self.timer is None:
            raise UserError(
                "a limit of latency, or a front, needs a timer: give bmnas_export.time_module"
            )

    @property
    def times(self) -> bool:
        """Whether latencies count."""
        return self.pareto or self.max_latency_ms is not None

    def record(self) -> dict[str, Any]:
        """Return what config.json says of it."""
        return {**self.limits, **({"pareto": True} if self.pareto else {})}

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are, by name."""
        limits = {"max_latency_ms": self.max_latency_ms, "max_parameters": self.max_parameters}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def keeps(self, cost: Cost) -> bool:
        """Tell whether ``cost`` is within the limits."""
        if self.max_parameters is not None and cost.parameters > self.max_parameters:
            return False
        if self.max_latency_ms is None:
            return True
        return cost.latency_ms is not None and cost.latency_ms <= self.max_latency_ms


@dataclass(frozen=True)
class Aim:
    """The ``target`` of one search, whose candidates ``final`` makes what is served.

    ``forms`` are with unimodal logits (True) and without, the preferred first.
    """

    target: Target
    costs: Costs
    final: Callable[[Any], Any]
    forms: tuple[bool, ...]

    def predict(self, candidate: Architecture, *, heads: bool) -> Cost:
        """Return what the network of ``candidate`` is expected to cost."""
        return self.costs.predict(self.final(candidate), heads=heads)

    def form(self, candidate: Architecture) -> bool | None:
        """Return the first form that is expected to be within the limits; None: there is none."""
        for heads in self.forms:
            if self.within(self.predict(candidate, heads=heads)):
                return heads
        return None

    def within(self, cost: Cost) -> bool:
        """Tell whether ``cost`` is within the limits, with some room for the latency."""
        latency = None if cost.latency_ms is None else _ROOM * cost.latency_ms
        return self.target.keeps(Cost(latency, cost.parameters))

    def keeps(self, candidate: Architecture) -> bool:
        """Tell whether ``candidate`` is expected to be within the limits."""
        return self.form(candidate) is not None

    def confirms(self, candidate: Architecture, heads: bool | None = None) -> bool:
        """Tell whether the whole network, measured, is within the limits too.

        With ``heads`` as given, else in its ``form``.
        """
        heads = self.form(candidate) if heads is None else heads
        if heads is None:
            return False
        return self.within(self.costs.measure(self.final(candidate), heads=heads))

    def check(self, space: SearchSpace[Any]) -> None:
        """Raise UserError where none of many networks that are drawn is within the limits."""
        draw, seen = Random("limits"), list[Cost]()
        for _ in range(_DRAWS):
            candidate = space.sample(draw)
            if self.keeps(candidate):
                return
            seen += self.costs_of(candidate)
        raise self.refusal(seen)

    def costs_of(self, candidate: Architecture) -> list[Cost]:
        """Return what ``candidate`` is expected to cost in each of its forms."""
        return [self.predict(candidate, heads=heads) for heads in self.forms]

    def refusal(self, seen: Sequence[Cost]) -> UserError:
        """Return the error that says the least there is, among ``seen``."""
        latency = min((cost.latency_ms for cost in seen if cost.latency_ms is not None), default=0)
        least = {
            "max_latency_ms": f"the fastest takes {latency:.3g} ms on this machine, "
            f"{_ROOM * latency:.3g} with room",
            "max_parameters": f"the smallest has {min(cost.parameters for cost in seen):,} weights",
        }
        given = self.target.limits
        options = " ".join(f"--{n.replace('_', '-')} {limit:g}" for n, limit in given.items())
        return UserError(
            f"{options}: of {len(seen) // len(self.forms):,} networks that were drawn none is "
            f"within it, backbones included; {', '.join(least[name] for name in given)}: allow more"
        )


class Within:
    """A search space without the architectures that ``aim`` does not keep; else it is ``space``."""

    def __init__(self, space: SearchSpace[Any], aim: Aim) -> None:
        self._space, self._aim = space, aim

    @classmethod
    def of(cls, space: SearchSpace[Any], aim: Aim) -> SearchSpace[Any]:
        """Return the space, which has all that ``space`` has."""
        return cast(SearchSpace[Any], cls(space, aim))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def sample(self, draw: Random) -> Any:
        """Return one that is drawn until it is within the limits.

        Raises UserError where so few are that drawing would not end.
        """
        seen = list[Cost]()
        for _ in range(_MOST_DRAWS):
            found = self._space.sample(draw)
            if self._aim.keeps(found):
                return found
            seen += self._aim.costs_of(found)
        raise self._aim.refusal(seen)

    def neighbours(self, genotype: Any) -> list[Any]:
        """Return those within the limits."""
        return list(filter(self._aim.keeps, self._space.neighbours(genotype)))

    def mutated(self, genotype: Any, draw: Random) -> Any:
        """Return a neighbour within the limits, or ``genotype`` where none is found."""
        for _ in range(_TRIES):
            found = self._space.mutated(genotype, draw)
            if self._aim.keeps(found):
                return found
        return genotype

    def crossed(self, first: Any, second: Any, draw: Random) -> tuple[Any, Any]:
        """Return two children; one that is not within the limits is its parent."""
        one, other = self._space.crossed(first, second, draw)
        keeps = self._aim.keeps
        return one if keeps(one) else first, other if keeps(other) else second

    def unfold(self, kept: Sequence[Any], level: int) -> list[Any]:
        """Return those within the limits; those ``kept`` where no choice is."""
        found = list(filter(self._aim.keeps, self._space.unfold(kept, level)))
        return found or list(kept)

    def genotypes(self) -> Iterator[Any]:
        """Yield those within the limits."""
        return filter(self._aim.keeps, self._space.genotypes())
