"""The plots of an evaluation. A system has the same colour and mark everywhere, and no plot is read by colour alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from esupport.page.drawing import INK, Plot, number, plot

Estimates = Mapping[str, Mapping[str, Any]]  # value, low, high and n, by name
# told apart by people who do not see red and green, on white, in print; the marks have another period
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#b58900", "#56b4e9", "#332288", "#666666")
_MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("p", "⬟"), ("*", "★"))
MAIN = (
    "nll", "bleu_2", "rouge_l", "embedding", "distinct_2", "words", "judge_personality", "judge_emotion", "judge_situation",
    "judge_helpfulness", "judge_unhelpful", "judge_safety", "judge_swap", "feedback_auc", "safety", "dialogue_helpfulness",
)  # fmt: skip


class _Scale(NamedTuple):
    """A figure's unit, the ends of its scale, and what chance would give."""

    unit: str
    ends: tuple[float, float] | None = None
    chance: float | None = None


_SCALES = (  # the first whose pattern is that of the figure's name
    ("nll", _Scale("nats per token")),
    ("words", _Scale("words per reply")),
    ("distinct_.*", _Scale("share of distinct n-grams")),
    ("judge_swap", _Scale("share of replies", (0, 1), chance=0.5)),
    ("judge_(unhelpful|refused)", _Scale("share, lower is better", (0, 1))),
    ("feedback_auc", _Scale("area under the curve", (0, 1), chance=0.5)),
    ("(judge|dialogue)_.*", _Scale("mean rating, 1 to 5", (1, 5))),
    ("safety.*", _Scale("share of messages", (0, 1))),
    (".*", _Scale("score, a fraction")),
)
_WORDS = {"nll": "NLL", "auc": "AUC", "meteor": "METEOR", "bertscore": "BERTScore", "esconv": "ESConv", "pesc": "PESC"}
_NAME, _VALUE = 16, 28  # letters of a system's name, and of a problem or trait, beside an axis
_VALUES, _DOTS = 10, 400  # most values of a breakdown, and replies of a system in a scatter


@dataclass(frozen=True)
class Look:
    """How a system is shown: its name where there is little room, its colour, and its mark, as in plots and as a letter."""

    short: str
    colour: str
    marker: str
    sign: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each system, by name."""
    clipped = [_clipped(name, _NAME, _NAME // 2) for name in names]  # long names mostly differ at their ends
    short = [text if clipped.count(text) == 1 else f"{i}: {text}" for i, text in enumerate(clipped, 1)]
    styles = zip(names, short, cycle(_COLOURS), cycle(_MARKS), strict=False)
    return {name: Look(text, colour, *mark) for name, text, colour, mark in styles}


def label(name: str) -> str:
    """A figure's name in words: ``bleu_2`` is BLEU-2, ``judge_safety`` is judge: safety."""
    told = re.sub(r"^(judge|dialogue|safety|esconv|pesc)_", r"\1: ", name)
    told = re.sub(r"(bleu|rouge)_(\w)", lambda found: f"{found[1]}-{found[2]}".upper(), told)
    told = re.sub(r"distinct_(\d)", r"distinct-\1", told).replace("_", " ")
    return re.sub(r"\w+", lambda found: _WORDS.get(found[0], found[0]), told)


def bars(figures: Mapping[str, Estimates], shown: Mapping[str, Look]) -> list[Plot]:
    """The main figures, a panel each: a bar and an interval a system. ``figures`` are those of each system, by name."""
    drawn = []
    for name in MAIN:
        found = {system: figures[system].get(name, {}) for system in shown}
        if _measured(found):
            rows = [{system: one} for system, one in found.items()]
            draw = _rows(name, [look.short for look in shown.values()], rows, shown, with_bars=True)
            drawn.append(plot(f"bar-{name}", label(name), draw, height=0.75 + 0.26 * len(found)))
    return drawn


def over_rounds(figures: Mapping[str, Estimates], rounds: Mapping[str, int], shown: Mapping[str, Look]) -> list[Plot]:
    """The main figures of the systems that have a round, in its order; ``rounds`` by system."""
    order = sorted(rounds, key=lambda system: rounds[system])
    found = {name: {system: figures[system].get(name, {}) for system in order} for name in MAIN}
    there = sorted(set(rounds.values()))

    def draw(name: str) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            values = [number(one.get("value")) for one in found[name].values()]
            if len(there) == len(order):  # all of one run
                axes.plot(there, values, color=INK, linewidth=1)
            for system, value in zip(order, values, strict=True):
                look, x, one = shown[system], rounds[system], found[name][system]
                axes.vlines(x, number(one.get("low")), number(one.get("high")), color=look.colour)
                axes.plot(x, value, look.marker, color=look.colour, markersize=5)
            axes.grid(axis="y")
            axes.set_xlabel("round")
            axes.set_ylabel(_scale(name).unit)
            axes.set_xticks(there)
            axes.margins(x=0.15, y=0.15)
            axes.yaxis.set_major_locator(MaxNLocator(4))

        return on

    return [
        plot(f"round-{name}", label(name), draw(name)) for name in MAIN if len({rounds[s] for s in _measured(found[name])}) > 1
    ]


def breakdown(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, Look]) -> dict[str, list[Plot]]:
    """A dot and an interval for each value of a problem, emotion or trait and each system; by what it is broken down."""
    drawn: dict[str, list[Plot]] = {}
    for i, by in enumerate(dict.fromkeys(row["by"] for row in rows)):
        of = [row for row in rows if row["by"] == by and row["system"] in shown and math.isfinite(number(row["value"]))]
        people = {row["is"]: row["n"] for row in sorted(of, key=lambda row: row["n"])}  # the most of all systems and figures
        most = sorted(people, key=lambda value: (-people[value], value))[:_VALUES]
        names = [f"{_clipped(value, _VALUE)} ({people[value]})" for value in most]
        rest = f", the {len(most)} most frequent of {len(people)}" if len(people) > len(most) else ""
        for j, name in enumerate(dict.fromkeys(row["figure"] for row in of)):
            found = {(row["is"], row["system"]): row for row in of if row["figure"] == name}
            ones = [{s: found[value, s] for s in shown if (value, s) in found} for value in most]
            height = 0.75 + len(most) * max(0.26, 0.1 + 0.09 * len(shown))
            one = plot(f"by-{i}-{j}", label(name) + rest, _rows(name, names, ones, shown, with_bars=False), height=height)
            drawn.setdefault(by, []).append(one)
    return drawn


def lengths(replies: Mapping[str, Sequence[tuple[int, float]]], shown: Mapping[str, Look]) -> list[Plot]:
    """Length and rating of each reply, a panel a system, all on one scale; ``replies`` are characters and mean ratings."""
    longest = max((length for found in replies.values() for length, _ in found), default=0)

    def draw(look: Look, found: Sequence[tuple[int, float]]) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            axes.grid()
            axes.plot(*zip(*found[:_DOTS], strict=True), look.marker, color=look.colour, alpha=0.5, markersize=4, mew=0)
            axes.set_xlim(0, 1.05 * longest + 1)
            axes.set_ylim(0.8, 5.2)
            axes.set_xlabel("characters of the reply")
            axes.set_ylabel("mean of its ratings, 1 to 5")

        return on

    drawn = [(system, replies[system]) for system in shown if replies.get(system)]
    told = [system + (f", the first {_DOTS} of {len(found)}" if len(found) > _DOTS else "") for system, found in drawn]
    return [plot(f"length-{i}", told[i], draw(shown[system], found)) for i, (system, found) in enumerate(drawn)]


def _rows(
    name: str, names: Sequence[str], rows: Sequence[Estimates], shown: Mapping[str, Look], with_bars: bool
) -> Callable[[Axes], None]:
    """Draws rows of estimates by system, from the top, on the scale of the figure."""
    scale = _scale(name)

    def draw(axes: Axes) -> None:
        order = [[system for system in shown if system in row] for row in rows]
        for system, look in shown.items():
            ones = [row[system] for row in rows if system in row]
            y = [place + 0.7 * ((of.index(system) + 0.5) / len(of) - 0.5) for place, of in enumerate(order) if system in of]
            values, lows, highs = ([number(one.get(key)) for one in ones] for key in ("value", "low", "high"))
            if with_bars:
                left = scale.ends[0] if scale.ends else 0
                axes.barh(y, [value - left for value in values], left=left, color=look.colour, height=0.66, alpha=0.3)
                if math.isnan(values[0]):
                    axes.text(left, y[0], " n/a", va="center")
            axes.hlines(y, lows, highs, color=look.colour)
            axes.plot(values, y, look.marker, color=look.colour, markersize=4.5)
        axes.grid(axis="x")
        axes.set_xlabel(scale.unit)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if scale.ends:
            room = 0.02 * (scale.ends[1] - scale.ends[0])
            axes.set_xlim(scale.ends[0] - room, scale.ends[1] + room)
        if scale.chance is not None:
            axes.axvline(scale.chance, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))

    return draw


def _scale(name: str) -> _Scale:
    return next(scale for pattern, scale in _SCALES if re.fullmatch(pattern, name))


def _measured(found: Estimates) -> list[str]:
    return [system for system, one in found.items() if math.isfinite(number(one.get("value")))]


def _clipped(text: str, most: int, end: int = 0) -> str:
    """One line of at most so many letters, of which ``end`` are the last ones."""
    told = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return told if len(told) <= most else f"{told[: most - end]}…{told[len(told) - end + 1 :] if end else ''}"
