"""The report's plots: small SVG drawings that take their colours and their font from the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Figures = Mapping[str, Any]
Lines = Mapping[str, Sequence[float]]  # a line's name and its heights; not a number where nothing was measured

_INK, _GRID, _FIRST, _SECOND = "#010203", "#010204", "#010205", "#010206"  # stand-ins for the page's own colours
_PAGE_COLOURS = {_INK: "var(--muted)", _GRID: "var(--line)", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_LOOKS: tuple[dict[str, Any], ...] = ({"color": _FIRST}, {"color": _SECOND, "linestyle": (0, (4, 2))})
_RC: Any = {
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "esupport",  # equal files give equal bytes
    "text.parse_math": False,  # a name with $ in it is no formula
    "axes.formatter.useoffset": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
# title, columns of curve.jsonl by name, a height to compare with
_CURVES: tuple[tuple[str, dict[str, str], float | None], ...] = (
    ("Loss", {"loss": "loss"}, None),
    ("Margin", {"margin": "margin"}, 0),
    ("Accuracy", {"accuracy": "accuracy"}, 0.5),
    ("Log-ratio to the reference", {"chosen": "chosen_logratio", "rejected": "rejected_logratio"}, 0),
    ("KL to the reference", {"kl": "kl"}, 0),
)


@dataclass(frozen=True)
class Plot:
    """A drawing, and what the page writes above it: a title, and the names of its lines where there are two."""

    title: str
    svg: str
    names: tuple[str, ...] = ()


def number(value: Any) -> float:
    """A figure as a float; not a number where it is missing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def over_systems(systems: Sequence[Figures], rounds: Mapping[int, Figures]) -> list[Plot]:
    """How the systems differ, a plot a figure that was measured; ``rounds`` are the figures of the rounds by number."""
    ticks = [str(system["system"]) for system in systems]

    def column(key: str) -> list[float]:
        return [number(system.get(key)) for system in systems]

    def of_rounds(group: str, key: str, per: str | None = None) -> list[float]:
        found = [rounds.get(system.get("round") or 0, {}).get(group) or {} for system in systems]
        return [number(one.get(key)) / (number(one.get(per)) or math.nan if per else 1) for one in found]

    steps = {"reflection": "reflect", "refinement": "refine"}
    failures = {name: of_rounds(step, "unparsable", "asked") for name, step in steps.items()}
    wanted: list[tuple[str, Lines, float | None]] = [
        ("Held-out NLL per token, 95 % interval", {"nll": column("nll")}, None),
        ("Length of replies, ratio to M0", {"length": column("length_ratio")}, 1),
        ("Distinct-2", {"distinct-2": column("distinct_2")}, None),
        ("Repetition", {"repetition": column("repetition")}, None),
        ("KL, nats per token", {"to M0": column("kl_sft"), "to the round's start": column("kl_start")}, 0),
        ("Margin at the end of training", {"margin": of_rounds("training", "margin")}, 0),
        ("Unparsable, share", failures, 0),
    ]
    spans = [[number(end) for end in system.get("nll_interval") or [None, None]] for system in systems]

    def draw(lines: Lines, rule: float | None) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            _lines(axes, range(len(ticks)), lines, rule, points=True)
            if "nll" in lines:
                axes.vlines(range(len(ticks)), [span[0] for span in spans], [span[1] for span in spans], color=_FIRST)
            if lines.keys() & steps.keys():
                axes.set_ylim(bottom=0)  # shares, often all 0
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.4, len(ticks) - 0.6)

        return on

    measured = [(title, _measured(lines), rule) for title, lines, rule in wanted]
    return [_plot(f"systems-{i}", title, draw(lines, rule), lines) for i, (title, lines, rule) in enumerate(measured) if lines]


def curves(steps: Mapping[int, Sequence[Figures]]) -> dict[int, list[Plot]]:
    """What training did in each round, step by step; a figure has the same scale in all rounds."""
    drawn: dict[int, list[Plot]] = {round_: [] for round_ in steps}
    for index, (title, columns, rule) in enumerate(_CURVES):
        lines = {
            round_: _measured({name: [number(step.get(key)) for step in rows] for name, key in columns.items()})
            for round_, rows in steps.items()
        }
        heights = [y for found in lines.values() for line in found.values() for y in line if math.isfinite(y)]
        if not heights:
            continue
        heights += [] if rule is None else [rule]
        room = 0.08 * (max(heights) - min(heights)) or 0.1
        limits = (min(heights) - room, max(heights) + room)
        for round_, found in lines.items():
            if found:
                draw = _curve([step["step"] for step in steps[round_]], found, rule, limits)
                drawn[round_].append(_plot(f"curve-{round_}-{index}", title, draw, found))
    return drawn


def _curve(x: Sequence[float], lines: Lines, rule: float | None, limits: tuple[float, float]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        _lines(axes, x, lines, rule, points=len(x) < 16)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(min(x) - 0.4, max(x) + 0.4)  # the same in all plots, whatever was measured
        axes.set_ylim(limits)

    return draw


def where_pairs_went(figures: Figures) -> Plot:
    """A round's contexts, the pairs kept, and how many each filter dropped: a bar each."""
    by_filter = sorted((figures.get("filters") or {}).items(), key=lambda item: -number(item[1]))
    rows = [*((name, figures.get(name)) for name in ("contexts", "kept", "dropped")), *by_filter]
    counts = [0.0 if math.isnan(number(count)) else number(count) for _, count in rows]

    def draw(axes: Axes) -> None:
        colours = [_INK, _FIRST, _SECOND, *[_SECOND] * len(by_filter)]
        places = [i + (0.5 if i > 2 else 0) for i in range(len(rows))]  # a gap before the filters
        axes.barh(places, counts, color=colours, height=0.66, alpha=0.85)
        for place, count, (_, value) in zip(places, counts, rows, strict=True):
            axes.text(count + 0.015 * max(1, *counts), place, "n/a" if value is None else f"{count:.0f}", va="center")
        axes.set_yticks(places, [name.replace("_", " ") for name, _ in rows])
        axes.set_xlim(0, 1.12 * max(1, *counts))
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    title = "Contexts, pairs kept and dropped, drops by filter"
    return _plot(f"pairs-{figures.get('round')}", title, draw, {}, height=0.35 + 0.24 * len(rows))


def _measured(lines: Lines) -> Lines:
    return {name: line for name, line in lines.items() if any(math.isfinite(y) for y in line)}


def _lines(axes: Axes, x: Sequence[float], lines: Lines, rule: float | None, points: bool) -> None:
    axes.grid(axis="y")
    if rule is not None:
        axes.axhline(rule, color=_INK, linewidth=0.8)
    for look, line in zip(_LOOKS, lines.values(), strict=False):
        axes.plot(x, line, **look, marker="o" if points else "", markersize=3.5)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _plot(name: str, title: str, draw: Callable[[Axes], None], lines: Lines, height: float = 2.2) -> Plot:
    with rc_context(_RC):
        figure = Figure(figsize=(4.2, height), layout=None if lines else "constrained")
        if lines:
            figure.subplots_adjust(left=0.14, right=0.985, bottom=0.21, top=0.96)  # axes of one size, in line with each other
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
    body = re.sub(r'(url\(|)(?:xlink:)?(href="|)#(\w+)', rf"\1\2#{name}-\3", body)
    return f'<svg viewBox="{view[1] if view else ""}" role="img" aria-label="{title}">{body}'
