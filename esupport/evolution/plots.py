"""The plots of a run's report: systems beside each other, training step by step, where the pairs went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from esupport.page.drawing import FIRST, INK, SECOND, Plot, number, plot

Figures = Mapping[str, Any]
Lines = Mapping[str, Sequence[float]]  # a line's name and its heights; not a number where nothing was measured

_LOOKS: tuple[dict[str, Any], ...] = ({"color": FIRST}, {"color": SECOND, "linestyle": (0, (4, 2))})
# title, columns of curve.jsonl by name, a height to compare with
_CURVES: tuple[tuple[str, dict[str, str], float | None], ...] = (
    ("Loss", {"preference": "preference_loss", "NLL of the chosen": "chosen_nll"}, None),
    ("Margin", {"margin": "margin"}, 0),
    ("Accuracy", {"accuracy": "accuracy"}, 0.5),
    ("Log-ratio to the reference", {"chosen": "chosen_logratio", "rejected": "rejected_logratio"}, 0),
    ("KL to the reference, by its drafts", {"kl": "kl"}, 0),
)


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
                axes.vlines(range(len(ticks)), [span[0] for span in spans], [span[1] for span in spans], color=FIRST)
            if lines.keys() & steps.keys():
                axes.set_ylim(bottom=0)  # shares, often all 0
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.4, len(ticks) - 0.6)

        return on

    measured = [(title, _measured(lines), rule) for title, lines, rule in wanted]
    return [
        plot(f"systems-{i}", title, draw(lines, rule), tuple(lines), aligned=True)
        for i, (title, lines, rule) in enumerate(measured)
        if lines
    ]


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
                drawn[round_].append(plot(f"curve-{round_}-{index}", title, draw, tuple(found), aligned=True))
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
        colours = [INK, FIRST, SECOND, *[SECOND] * len(by_filter)]
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
    return plot(f"pairs-{figures.get('round')}", title, draw, height=0.35 + 0.24 * len(rows))


def _measured(lines: Lines) -> Lines:
    return {name: line for name, line in lines.items() if any(math.isfinite(y) for y in line)}


def _lines(axes: Axes, x: Sequence[float], lines: Lines, rule: float | None, points: bool) -> None:
    axes.grid(axis="y")
    if rule is not None:
        axes.axhline(rule, color=INK, linewidth=0.8)
    for look, line in zip(_LOOKS, lines.values(), strict=False):
        axes.plot(x, line, **look, marker="o" if points else "", markersize=3.5)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(4))
