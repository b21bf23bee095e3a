"""The pages' plots: small SVG drawings that take their colours and their font from the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"  # stand-ins for the page's own colours
_PAGE_COLOURS = {INK: "var(--muted)", GRID: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
_RC: Any = {
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "esupport",  # equal files give equal bytes
    "text.parse_math": False,  # a name with $ in it is no formula
    "axes.formatter.useoffset": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Plot:
    """A drawing, and what the page writes above it: a title, and the names of its lines where there are two."""

    title: str
    svg: str
    names: tuple[str, ...] = ()


def number(value: Any) -> float:
    """A figure as a float; not a number where it is missing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def plot(
    name: str, title: str, draw: Callable[[Axes], None], lines: Sequence[str] = (), aligned: bool = False, height: float = 2.2
) -> Plot:
    """A plot with axes of the house's look, which ``draw`` draws on.

    Args:
        name: of this drawing alone in its page, letters, digits and hyphens.
        title: stands above the drawing.
        draw: what is drawn.
        lines: names of its lines; one alone is not named.
        aligned: axes of one size, in line with those of other such plots; else they leave their labels the room they need.
        height: in inches; all are 4.2 wide and grow with the page.
    """
    with rc_context(_RC):
        figure = Figure(figsize=(4.2, height), layout=None if aligned else "constrained")
        if aligned:
            figure.subplots_adjust(left=0.14, right=0.985, bottom=0.21, top=0.96)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False, bottom=False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_NO_METADATA, transparent=True)
    return Plot(title, _inline(file.getvalue(), name, title), tuple(lines) if len(lines) > 1 else ())


def _inline(svg: str, name: str, title: str) -> str:
    """A file's drawing as part of a page: the page's colours and font, ids of its own, no style for the rest of the page."""
    view = re.search(r'viewBox="([^"]*)"', svg)
    body = re.sub(r"<style.*?</style>", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.DOTALL)
    for stand_in, colour in _PAGE_COLOURS.items():
        body = body.replace(stand_in, colour)
    body = re.sub(r'font-family: [^;"]*; ', "", body)
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', body))
    body = re.sub(r' id="([\w.]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(?:xlink:)?(url\(|href=")#(\w+)', rf"\1#{name}-\2", body)
    return f'<svg viewBox="{view[1] if view else ""}" role="img" aria-label="{escape(title)}">{body}'
