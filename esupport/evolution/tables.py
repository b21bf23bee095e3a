"""Tables of rounds and systems: on the console after each round, and rows for W&B and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from esupport.data.preference import PreferencePair
from esupport.page.document import CONTROL, NONE

_TURNS, _LETTERS = 3, 400  # of a context, and of a text, on the console
_WIDEST = 110  # columns of a console table: longer lines are hard to read
# figures of a system: label, form, and whether the change against M0 is told
_FIGURES = {
    "nll": ("held-out NLL per token", ".3f", True),
    "perplexity": ("held-out perplexity", ".2f", True),
    "replies": ("replies written", ",d", False),
    "reply_tokens": ("tokens per reply", ".1f", True),
    "length_ratio": ("length ratio to M0", ".2f", False),
    "distinct_2": ("distinct-2", ".3f", True),
    "repetition": ("repetition", ".3f", True),
    "unfinished": ("unfinished replies, share", ".3f", True),
    "kl_start": ("KL to the round's start", ".3f", False),
    "kl_sft": ("KL to M0", ".3f", False),
}
_NO_FIGURES = ("system", "round")


class Row(NamedTuple):
    """A figure of all systems, or its interval: for each system the value and the change against the first one."""

    label: str
    cells: list[tuple[str, str]]
    interval: bool


def show_round(
    console: Console,
    pairs: Sequence[PreferencePair],
    dropped: Sequence[PreferencePair],
    figures: Mapping[str, Any],
    count: int,
) -> None:
    """After a round: how many pairs were kept and dropped, and ``count`` of them in words, the last a dropped one."""
    console.print(Text(_counts(figures)))
    kept = pairs[: max(1, count - bool(dropped))]
    shown = [*kept, *dropped[: max(0, count - len(kept))]][:count]
    if not shown:
        return
    table = Table(show_header=False, width=min(console.width, _WIDEST))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for pair in shown:
        turns = [Text.assemble((f"{turn.role.capitalize()}: ", "bold"), _plain(turn.text)) for turn in pair.context.turns]
        inferred = [f"{axis}: {found}" for axis, found in _inferred(pair).items()]
        table.add_row("context", Text("\n").join(turns[-_TURNS:]))
        table.add_row("inferred", Text("\n").join(map(_plain, inferred or ["nothing"])))
        table.add_row("draft", _plain(pair.rejected))
        table.add_row("human reply" if pair.chosen_from == "human" else "refined", _plain(pair.chosen))
        table.add_row("verdict", _plain(_verdict(pair)), end_section=True)
    console.print(table)


def show_systems(console: Console, systems: list[dict[str, Any]]) -> None:
    """M0 against M1 against M2: each figure, and behind it the change against M0."""
    caption = "Behind a figure: the change against M0. KL: nats per token of the system's own replies."
    table = Table(title="Systems", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("held-out contexts", min_width=12)  # no word is cut, however many systems
    for system in systems:
        table.add_column(Text(str(system["system"])), justify="right")
    for row in compare(systems):
        table.add_row(Text(row.label), *(Text("  ".join(filter(None, cell))) for cell in row.cells))
    console.print(table)
    for system in systems:
        for warning in system.get("warnings") or []:
            console.print(Text(f"warning: {system['system']}: {warning}", style="yellow"))


def pair_rows(pairs: Sequence[PreferencePair]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a W&B table: context, what was inferred on each axis, draft, refined, verdict."""
    axes = list(dict.fromkeys(axis for pair in pairs for axis in pair.reflection))
    rows = []
    for pair in pairs:
        inferred = _inferred(pair)
        on_axes = [inferred.get(axis, "") for axis in axes]
        rows.append([pair.context.transcript(), *on_axes, pair.rejected, pair.chosen, _verdict(pair)])
    return ["context", *axes, "draft", "refined", "verdict"], rows


def compare(systems: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The systems' figures, a row each, an interval in a row of its own; figures that have no label here come last."""
    rows = []
    for key in dict.fromkeys([*_FIGURES, *(key for system in systems for key in system)]):
        label, form, relative = _FIGURES.get(key, (key.replace("_", " "), ".4g", True))
        values = [_finite(system.get(key)) for system in systems]
        if key in _NO_FIGURES or (key not in _FIGURES and all(value is None for value in values)):
            continue
        cells = []
        for index, value in enumerate(values):
            told = index > 0 and relative and value is not None and values[0] is not None
            cells.append((_form(value, form), _form((value or 0) - (values[0] or 0), f"+{form}") if told else ""))
        rows.append(Row(label, cells, interval=False))
        spans = [system.get(f"{key}_interval") for system in systems]
        if any(spans):
            ends = [" to ".join(_form(end, form) for end in span) if span else NONE for span in spans]
            rows.append(Row("95 % interval", [(end, "") for end in ends], interval=True))
    return rows


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _form(value: float | None, form: str) -> str:
    if value is None:
        return NONE
    return format(int(value) if form.endswith("d") else value, form)


def _counts(figures: Mapping[str, Any]) -> str:
    """One line: contexts, kept, dropped, and by which filters; and what refinements were written anew for."""
    counts: Mapping[str, int] = figures.get("filters") or {}
    by = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    idle = ", ".join(name for name, number in counts.items() if not number)
    told = "; ".join([by] * bool(by) + [f"none by {idle}"] * bool(idle))
    numbers = [f"{figures.get(key, NONE)} {key}" for key in ("contexts", "kept", "dropped")]
    refused = ", ".join(f"{name} {number}" for name, number in (figures.get("refused") or {}).items())
    anew = f" Refinements refused and written anew: {refused}." if refused else ""
    return f"Round {figures.get('round', NONE)}: {', '.join(numbers)}" + (f": {told}." if told else ".") + anew


def _plain(text: str) -> Text:
    """A text that is printed as it is, not as markup, cut where it is long."""
    cleaned = CONTROL.sub(" ", text)
    return Text(cleaned if len(cleaned) <= _LETTERS else f"{cleaned[:_LETTERS]} ...")


def _inferred(pair: PreferencePair) -> dict[str, str]:
    """What was inferred, by axis, with the words that show it."""
    return {axis: found.text + (f' ("{found.evidence}")' if found.evidence else "") for axis, found in pair.reflection.items()}


def _verdict(pair: PreferencePair) -> str:
    return "dropped by " + "; ".join(f"{name}: {reason}" for name, reason in pair.dropped.items()) if pair.dropped else "kept"
