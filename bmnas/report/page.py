"""Self-contained HTML pages: drawings as inline SVG, tables, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from bmnas.report.style import figure_svg, printable

_STYLE = """
:root { color-scheme: light dark; --ink: #2b3640; --paper: #ffffff; --rule: #d5dade;
  --soft: #66717a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ec; --paper: #14191d;
  --rule: #39434b; --soft: #9aa6af; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.facts { color: var(--soft); }
figure { margin: 0; padding: 0.5rem; background: #ffffff; border: 1px solid var(--rule);
  border-radius: 0.5rem; overflow-x: auto; }
figure svg { display: block; margin: 0 auto; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.3rem; }
th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; }
th.number, td.number { text-align: right; }
pre { overflow-x: auto; font-size: 0.85rem; line-height: 1.35; }
"""

#: A section: heading, drawings or tables that follow it as HTML.
Section = tuple[str, str]


def page(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a whole page: title, a line of facts, and the sections with their headings."""
    shown = escape(printable(title))
    line = escape(" · ".join(printable(fact, 120) for fact in facts))
    body = "".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{shown}</h1>\n<p class="facts">{line}</p>\n{body}</body>\n</html>\n'
    )


def figure_html(figure: Any, prefix: str) -> str:
    """Return a figure as inline SVG; ``prefix`` keeps its ids apart from those of others."""
    svg = figure_svg(figure)
    svg = svg[svg.index("<svg") :]
    # The style that matplotlib writes would apply to the whole page.
    svg = svg.replace("*{stroke-linejoin", f"#{prefix}-drawing *{{stroke-linejoin")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return f'<figure id="{prefix}-drawing">\n{svg}</figure>\n'
