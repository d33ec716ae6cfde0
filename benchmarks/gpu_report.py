"""What the parts of ``benchmarks.gpu`` share: their setting, and the file they write to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bmnas
from benchmarks.cases import NTU, SMALL, TINY, StepCase
from bmnas.machine.files import write_json


@dataclass(frozen=True)
class Setting:
    """Where and what to measure; ``compiled`` says whether torch.compile is measured too."""

    runtime: bmnas.Runtime
    tiny: bool
    compiled: bool

    @property
    def case(self) -> StepCase:
        """The supernet whose speed is measured."""
        return TINY if self.tiny else NTU

    @property
    def small(self) -> StepCase:
        """The supernet that is compared with float64 in lower precision."""
        return TINY if self.tiny else SMALL

    @property
    def forms(self) -> dict[str, bmnas.Runtime]:
        """The runtimes by name: eager, and compiled where that is asked for."""
        found = {"eager": self.runtime}
        if self.compiled:
            found["compiled"] = bmnas.Runtime(self.runtime.device, compile=True)
        return found


class Report:
    """Facts that are in the file as soon as they are known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.facts: dict[str, Any] = {}

    def add(self, section: str, name: str, fact: object) -> None:
        """Write ``fact`` down."""
        self.facts.setdefault(section, {})[name] = fact
        write_json(self._path, self.facts)
