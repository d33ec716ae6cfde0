"""Pictures, tables and pages of genotypes, runs and comparisons.

Importing this starts neither matplotlib nor rich; only drawing and printing do.
"""

from __future__ import annotations

from bmnas.report.comparison import draw_comparison
from bmnas.report.curves import draw_history, write_history
from bmnas.report.picture import architecture_svg, draw_genotype, write_architecture
from bmnas.report.record import load_bundle, load_history, load_run
from bmnas.report.rows import ComparisonRow, comparison_rows
from bmnas.report.style import write_figure
from bmnas.report.text import genotype_text
from bmnas.report.weights import draw_weights

__all__ = [
    "ComparisonRow",
    "architecture_svg",
    "comparison_rows",
    "draw_comparison",
    "draw_genotype",
    "draw_history",
    "draw_weights",
    "genotype_text",
    "load_bundle",
    "load_history",
    "load_run",
    "write_architecture",
    "write_figure",
    "write_history",
]
