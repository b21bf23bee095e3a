"""The plots of an evaluation. A system has the same colour and mark everywhere, and no plot is read by colour alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from esupport.page.drawing import INK, Plot, number, plot

Estimates = Mapping[str, Mapping[str, Any]]  # value, low, high and n, by name
# told apart by people who do not see red and green, on white, in print; the marks have another period
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#b58900", "#56b4e9", "#332288", "#666666")
_MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("p", "⬟"), ("*", "★"))
_MAIN = (
    "nll", "bleu_2", "rouge_l", "embedding", "distinct_2", "words", "judge_personality", "judge_emotion", "judge_situation",
    "judge_helpfulness", "judge_safety", "judge_swap", "feedback_auc", "safety", "dialogue_helpfulness",
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
    ("judge_refused", _Scale("share of replies", (0, 1))),
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
    lines = {name: _line(name) for name in names}
    half = _NAME // 2  # long names mostly differ at their ends
    clipped = {name: text if len(text) <= _NAME else f"{text[:half]}…{text[1 - half :]}" for name, text in lines.items()}
    told = list(clipped.values())
    short = {name: text if told.count(text) == 1 else f"{i}: {text}" for i, (name, text) in enumerate(clipped.items(), 1)}
    styles = zip(names, cycle(_COLOURS), cycle(_MARKS), strict=False)
    return {name: Look(short[name], colour, *mark) for name, colour, mark in styles}


def label(name: str) -> str:
    """A figure's name in words: ``bleu_2`` is BLEU-2, ``judge_safety`` is judge: safety."""
    told = re.sub(r"^(judge|dialogue|safety|esconv|pesc)_", r"\1: ", name)
    told = re.sub(r"(bleu|rouge)_(\w)", lambda found: f"{found[1]}-{found[2]}".upper(), told)
    told = re.sub(r"distinct_(\d)", r"distinct-\1", told).replace("_", " ")
    return re.sub(r"\w+", lambda found: _WORDS.get(found[0], found[0]), told)


def bars(figures: Mapping[str, Estimates], shown: Mapping[str, Look]) -> list[Plot]:
    """The main figures, a panel each: a bar and an interval a system. ``figures`` are those of each system, by name."""
    drawn = []
    for name in _MAIN:
        found = {system: figures[system].get(name, {}) for system in shown}
        if _measured(found):
            names, rows = [look.short for look in shown.values()], [{system: one} for system, one in found.items()]
            draw = _rows(name, names, rows, shown, with_bars=True)
            drawn.append(plot(f"bar-{name}", label(name), draw, height=0.75 + 0.26 * len(found)))
    return drawn


def over_rounds(figures: Mapping[str, Estimates], rounds: Mapping[str, int], shown: Mapping[str, Look]) -> list[Plot]:
    """The main figures of the systems that have a round, in its order; ``rounds`` by system."""
    order = sorted(rounds, key=lambda system: rounds[system])
    found = {name: {system: figures[system].get(name, {}) for system in order} for name in _MAIN}
    if len(set(rounds.values())) < 2:
        return []

    def draw(name: str) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            values = [number(one.get("value")) for one in found[name].values()]
            if len(set(rounds.values())) == len(rounds):  # of one run
                axes.plot([rounds[system] for system in order], values, color=INK, linewidth=1)
            for system, one in found[name].items():
                look, x = shown[system], rounds[system]
                axes.vlines(x, number(one.get("low")), number(one.get("high")), color=look.colour)
                axes.plot(x, number(one.get("value")), look.marker, color=look.colour, markersize=5)
            axes.grid(axis="y")
            axes.set_xlabel("round")
            axes.set_ylabel(_scale(name).unit)
            axes.set_xticks(sorted(set(rounds.values())))
            axes.margins(x=0.15, y=0.15)
            axes.yaxis.set_major_locator(MaxNLocator(4))

        return on

    return [plot(f"round-{name}", label(name), draw(name)) for name in _MAIN if len(_measured(found[name])) > 1]


def breakdown(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, Look]) -> dict[str, list[Plot]]:
    """A dot and an interval for each value of a problem, emotion or trait and each system; by what it is broken down."""
    drawn: dict[str, list[Plot]] = {}
    unique = count()
    for by in dict.fromkeys(row["by"] for row in rows):
        of = [row for row in rows if row["by"] == by and row["system"] in shown and math.isfinite(number(row["value"]))]
        people = {row["is"]: max(one["n"] for one in of if one["is"] == row["is"]) for row in of}
        most = sorted(people, key=lambda value: (-people[value], value))[:_VALUES]
        names = [f"{_head(value)} ({people[value]})" for value in most]
        rest = f", the {len(most)} most frequent of {len(people)}" if len(people) > len(most) else ""
        for name in dict.fromkeys(row["figure"] for row in of):
            found = {(row["is"], row["system"]): row for row in of if row["figure"] == name}
            ones = [{s: found[value, s] for s in shown if (value, s) in found} for value in most]
            height = 0.75 + len(most) * max(0.26, 0.1 + 0.09 * len(shown))
            draw = _rows(name, names, ones, shown, with_bars=False)
            drawn.setdefault(by, []).append(plot(f"by-{next(unique)}", label(name) + rest, draw, height=height))
    return drawn


def lengths(replies: Mapping[str, Sequence[tuple[int, float]]], shown: Mapping[str, Look]) -> list[Plot]:
    """Length and rating of each reply, a panel a system, all on one scale; ``replies`` are characters and mean ratings."""
    longest = max((length for found in replies.values() for length, _ in found), default=0)

    def draw(look: Look, found: Sequence[tuple[int, float]]) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            x, y = zip(*found[:_DOTS], strict=True)
            axes.grid()
            axes.plot(x, y, look.marker, color=look.colour, alpha=0.5, markersize=4, markeredgewidth=0)
            axes.set_xlim(0, 1.05 * longest + 1)
            axes.set_ylim(0.8, 5.2)
            axes.set_xlabel("characters of the reply")
            axes.set_ylabel("mean of its ratings, 1 to 5")

        return on

    told = {system: f"{system}, the first {_DOTS} of {len(r)}" if len(r) > _DOTS else system for system, r in replies.items()}
    drawn = [system for system in shown if replies.get(system)]
    return [plot(f"length-{i}", told[s], draw(shown[s], replies[s])) for i, s in enumerate(drawn)]


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


def _head(text: str) -> str:
    told = _line(text)
    return told if len(told) <= _VALUE else f"{told[:_VALUE]}…"


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
