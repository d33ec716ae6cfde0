"""Pictures, tables and pages of genotypes, runs and comparisons.

Importing this starts neither matplotlib nor rich; only drawing and printing do.
"""

from __future__ import annotations

from bmnas.report.comparison import ComparisonRow, comparison_rows, draw_comparison
from bmnas.report.history import history_parts, weights_parts
from bmnas.report.picture import draw_genotype
from bmnas.report.record import load_bundle, load_history, load_run
from bmnas.report.style import figure_of, write_figure
from bmnas.report.text import genotype_text

__all__ = [
    "ComparisonRow",
    "comparison_rows",
    "draw_comparison",
    "draw_genotype",
    "figure_of",
    "genotype_text",
    "history_parts",
    "load_bundle",
    "load_history",
    "load_run",
    "weights_parts",
    "write_figure",
]
