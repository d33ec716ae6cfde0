"""Latency of parts of networks, each exported by itself and timed once: a table that is a file.

Batch 1, one thread. What is timed is a graph, so the figures are those of what will be served.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from bmnas.machine.costs import hardware, versions
from bmnas.machine.distributed import broadcast, is_rank_zero
from bmnas.machine.files import read_json, write_json
from bmnas.machine.schema import plain, read
from bmnas.strategies.target import Timer

FORMAT = "bmnas.latency/1"

_CHAIN = 32  # operations of the graph that says what one takes


@dataclass
class _Content:
    """The file: milliseconds on ``machine``.

    ``empty`` is a graph that does nothing, ``operation`` what one small operation adds. ``parts``
    are without what an empty graph takes, ``networks`` are whole ones. ``scale`` is by how much
    these take longer than their parts together.
    """

    format: str
    machine: Mapping[str, Any]
    empty: float
    operation: float
    parts: dict[str, float] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)
    scale: float | None = None


class LatencyTable:
    """The table in ``file``; rank zero has ``timer`` time what it lacks, and adds it.

    What another machine or other versions have timed does not count.
    """

    def __init__(self, file: Path, timer: Timer) -> None:
        self._file, self._timer = file, timer

    def part(self, key: str, module: nn.Module, arguments: Any) -> float:
        """Return what ``module``, called ``key``, adds to a network that runs it on these."""
        content = self._content
        return self._known(content.parts, key, module, arguments, less=content.empty)

    def network(self, key: str, module: nn.Module, arguments: Any) -> float:
        """Return what the whole network called ``key`` takes."""
        return self._known(self._content.networks, key, module, arguments)

    @property
    def empty(self) -> float:
        """What a graph takes that does nothing."""
        return self._content.empty

    @property
    def operation(self) -> float:
        """What one more small operation adds to a network."""
        return self._content.operation

    @property
    def scale(self) -> float | None:
        """How many times as long as their parts whole networks take; None: not known yet."""
        return self._content.scale

    @scale.setter
    def scale(self, found: float) -> None:
        self._content.scale = found
        self._write()

    @cached_property
    def _content(self) -> _Content:
        # Torch's threads count for nothing: graphs have one.
        machine = {k: v for k, v in hardware().items() if k != "threads"} | versions("onnxruntime")
        found = None
        if self._file.is_file():
            found = read(_Content, read_json(self._file), str(self._file))
        found = broadcast(found)
        if found is not None and (found.format, found.machine) == (FORMAT, machine):
            return found
        empty, chain = (self._time(_Chain(n), (torch.ones(1, 64),)) for n in (0, _CHAIN))
        return _Content(FORMAT, machine, empty, max(0.0, chain - empty) / _CHAIN)

    def _known(
        self,
        known: dict[str, float],
        key: str,
        module: nn.Module,
        arguments: Any,
        less: float = 0.0,
    ) -> float:
        if key not in known:
            known[key] = max(0.0, self._time(module, arguments) - less)
            self._write()
        return known[key]

    def _time(self, module: nn.Module, arguments: Any) -> float:
        if not is_rank_zero():
            return broadcast(0.0)
        tensors, unflattened = _flattened(arguments)
        return broadcast(self._timer(_Flat(module, unflattened).eval(), tensors))

    def _write(self) -> None:
        if is_rank_zero():
            write_json(self._file, plain(self._content))


class _Chain(nn.Module):
    """``count`` small operations, one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.count):
            x = x + x
        return x


class _Flat(nn.Module):
    """A module as one that takes tensors alone and returns tensors."""

    def __init__(self, module: nn.Module, unflattened: Callable[[Iterable[Tensor]], Any]) -> None:
        super().__init__()
        self.module, self.unflattened = module, unflattened

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found, _ = tree_flatten(self.module(*self.unflattened(tensors)))
        return tuple(found)


@dataclass(frozen=True)
class Part:
    """A module that a network ran on ``arguments``; those that run the same share their ``key``."""

    key: str
    module: nn.Module
    arguments: Any


class Trace(TorchDispatchMode):
    """What a network runs: its ``parts``, call by call, and how many operations ``between``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: list[Part] = []
        self.between = 0
        self._inside: list[str] | None = None

    def run(self, network: nn.Module, parts: Iterable[nn.Module], arguments: Any) -> Any:
        """Return what ``network`` gives for ``arguments``; none of ``parts`` is inside another."""
        handles = []
        for part in parts:
            handles.append(part.register_forward_pre_hook(self._begin))
            handles.append(part.register_forward_hook(self._end))
        try:
            with torch.no_grad(), self:
                return network(*arguments)
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, arguments: Any) -> None:
        self._inside = []

    def _end(self, module: nn.Module, arguments: Any, output: Any) -> None:
        inside, self._inside = self._inside or [], None
        digest = hashlib.sha256("\n".join(inside).encode()).hexdigest()[:8]
        # What it gives tells apart what its arguments and operations do not.
        shapes = " ".join(map(axes, _flattened((arguments, output))[0]))
        self.parts.append(Part(f"{type(module).__name__} {shapes} {digest}", module, arguments))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        if self._inside is not None:
            tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
            self._inside.append(f"{func} {' '.join(map(axes, tensors))}")
        elif not func.is_view:
            self.between += 1
        return func(*args, **(kwargs or {}))


def axes(x: Tensor) -> str:
    """Return the size of one sample, such as 8x64."""
    return "x".join(map(str, x.shape[1:])) or "1"


def _flattened(arguments: Any) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], Any]]:
    """Return the tensors in ``arguments``, also in dataclasses, and what puts them there again."""
    for found in tree_flatten(arguments)[0]:
        if dataclasses.is_dataclass(found):
            torch.export.register_dataclass(type(found))
    tensors, structure = tree_flatten(arguments)
    return tensors, lambda others: tree_unflatten(others, structure)
