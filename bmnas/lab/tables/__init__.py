"""The tabular benchmark: a space small enough to train completely, and searches replayed on it.

``load`` reads a table, ``bmnas.lab.tables.build`` makes one.
"""

from __future__ import annotations

from bmnas.lab.tables.replay import Replay, TableEvaluator, replay
from bmnas.lab.tables.table import Entry, Table, load
from bmnas.spaces.cells.canonical import canonical

__all__ = ["Entry", "Replay", "Table", "TableEvaluator", "canonical", "load", "replay"]
