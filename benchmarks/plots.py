"""The plots of the benchmarks, as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from benchmarks.report import Figure, Row

# ours, then the peers; apart in grey too
_COLOURS = ("#1b6ca8", "#e0a030", "#8c8c8c", "#a33b3b")
_MARKERS = ("o", "s", "^", "D")
_DPI = 150


@dataclass(frozen=True)
class Curves:
    """A panel of lines.

    Attributes:
        title, across, up: of the panel and its axes.
        sides: the figure at each size, by side.
    """

    title: str
    across: str
    up: str
    sides: Mapping[str, Mapping[int, Figure]]


def bars(panels: Sequence[tuple[str, Row]], path: Path, title: str) -> None:
    """A panel a figure, a bar a side, with the median and the line from the least to the most of the repeats."""
    drawing = Drawing(figsize=(3.8 * max(1, len(panels)), 3.6), layout="constrained")
    drawing.suptitle(title)
    for axes, (name, row) in zip(_axes(drawing, 1, len(panels)), panels, strict=True):
        figures = list(row.sides.values())
        heights = [value.median for value in figures]
        errors = [[value.median - value.low for value in figures], [value.high - value.median for value in figures]]
        names = [textwrap.fill(side, 14) for side in row.sides]
        drawn = axes.bar(names, heights, yerr=errors, capsize=4, color=_COLOURS[: len(heights)])
        axes.bar_label(drawn, labels=[f"{height:.3g}" for height in heights], padding=3)
        axes.set_title(name, fontsize=10)
        axes.tick_params(axis="x", labelsize=9)
        axes.margins(y=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=_DPI)


def parts(figures: Mapping[str, Figure], path: Path, title: str) -> None:
    """A bar a part, with the median."""
    drawing = Drawing(figsize=(6.4, 0.9 + 0.4 * len(figures)), layout="constrained")
    drawing.suptitle(title)
    (axes,) = _axes(drawing, 1, 1)
    drawn = axes.barh(list(figures), [value.median for value in figures.values()], color=_COLOURS[0])
    axes.bar_label(drawn, labels=[f"{value.median:,.1f}" for value in figures.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=_DPI)


def lines(panels: Sequence[Curves], path: Path, title: str, columns: int) -> None:
    """Panels of lines in ``columns``, each with a band from the least to the most of the repeats."""
    rows = -(-len(panels) // columns)
    drawing = Drawing(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    drawing.suptitle(title)
    for axes, panel in zip(_axes(drawing, rows, columns), panels, strict=False):
        for colour, marker, (side, points) in zip(_COLOURS, _MARKERS, panel.sides.items(), strict=False):
            sizes = sorted(points)
            axes.plot(sizes, [points[s].median for s in sizes], marker=marker, color=colour, label=side)
            low, high = [points[s].low for s in sizes], [points[s].high for s in sizes]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.across)
        axes.set_ylabel(panel.up)
        highest = max(point.high for points in panel.sides.values() for point in points.values())
        axes.set_ylim(0, 1.25 * highest or 1)  # with room for the legend
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.sides) > 1:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    drawing.savefig(path, dpi=_DPI)


def _axes(drawing: Drawing, rows: int, columns: int) -> list[Axes]:
    found: Any = drawing.subplots(max(1, rows), max(1, columns), squeeze=False)
    return [axes for row in found for axes in row]
