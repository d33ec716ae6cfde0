"""The tabular benchmark: a space small enough to train completely, and searches replayed on it.

``load`` reads a table, ``bmnas.tabular.build`` makes one.
"""

from __future__ import annotations

from bmnas.canonical import canonical
from bmnas.tabular.replay import Problem, Replay, replay
from bmnas.tabular.space import Space
from bmnas.tabular.table import Entry, Table, load

__all__ = ["Entry", "Problem", "Replay", "Space", "Table", "canonical", "load", "replay"]
