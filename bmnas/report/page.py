"""Self-contained HTML pages: drawings as inline SVG, tables, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bmnas.report.style import figure_svg, printable

#: A section: heading, drawings or tables that follow it as HTML.
Section = tuple[str, str]


def page(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a whole page: title, a line of facts, and the sections with their headings."""
    shown = escape(printable(title))
    line = escape(" · ".join(printable(fact, 120) for fact in facts))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
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
