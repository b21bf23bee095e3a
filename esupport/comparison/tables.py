"""The tables of an evaluation as Markdown and LaTeX, for W&B and on the console, and what stands below them in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from esupport.comparison.figures import ALPHA, too_few
from esupport.page.document import NONE

SIGNIFICANT, NOT_SIGNIFICANT, NOT_TESTED = "*", "n.s.", "n.t."  # behind a figure, the same in all tables and on the page
_INTERVALS = "95 % intervals over conversations in brackets."
_TEST = "paired approximate randomisation, at the level of {alpha} after Holm's correction for {tests} comparisons"
_LEGEND = (
    f"{SIGNIFICANT}: significantly different from {{baseline}}; {NOT_SIGNIFICANT}: not ({_TEST}); {NOT_TESTED}: not tested, "
    "because it restates another figure, says more of the judge than of the replies, or cannot be paired."
)
_WINS = (
    "How often the reply of the first system was judged better than that of the second; ties, and verdicts that change with "
    f"the order, count half. The test is that of the raw rate. {SIGNIFICANT}: significantly different from one half; "
    f"{NOT_SIGNIFICANT}: not ({_TEST}); {NOT_TESTED}: not tested."
)
_WIN_COLUMNS = ["win rate", "length-controlled", "p, corrected", "inconsistent"]
_FEW = (
    "No difference on so few conversations (up to {few}) can be significant: the smallest p that is possible there, times "
    "the number of comparisons, is not below {alpha}."
)
_CUT = {  # in words, by its name in metrics.json
    "contexts_left_out": "contexts too long to reply to",
    "turns_cut_of_contexts": "the oldest turns of long contexts",
    "conversations_dropped": "conversations of which nothing fits",
    "replies_lost": "human replies in the part of a conversation that does not fit",
    "turns_cut": "the oldest turns of long conversations",
    "faults": "faulty records",
}
# figures whose unit has few values by nature are read better with fewer digits
_FORMS = {"nll": ".3f", "perplexity": ".1f", "words": ".1f", "tokens": ".1f", "esconv_words": ".1f"}
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def mark(p: float | None) -> str:
    """What a corrected p-value is told as; None where there was no test."""
    return NOT_TESTED if p is None else NOT_SIGNIFICANT if p >= ALPHA else SIGNIFICANT


def marks(metrics: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """The mark of each value of a system other than the baseline, by figure and system; none where nothing was tested."""
    if not _tests(metrics)[0]:
        return {}
    found = {(one["figure"], one["one"]): one["p_corrected"] for one in metrics["comparisons"]}
    others = {one["system"]: one["figures"] for one in metrics["systems"] if one["system"] != metrics["baseline"]}
    places = [(name, system) for system, of in others.items() for name, one in of.items() if one["value"] is not None]
    return {place: mark(found.get(place)) for place in places}


def frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Figures by system as texts: value, interval, and the mark of the difference from the baseline."""
    told = marks(metrics)
    columns = {}
    for system in metrics["systems"]:
        of, figures = system["system"], system["figures"]
        columns[of] = {name: f"{cell(name, found)} {told.get((name, of), '')}".rstrip() for name, found in figures.items()}
    order = list(dict.fromkeys(figure for column in columns.values() for figure in column))
    return pd.DataFrame(columns, index=order).fillna(NONE)


def win_frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Win rates of each two systems as texts, the corrected p of the raw one and its mark, and verdicts that contradict."""
    rows = {}
    for one in metrics["win_rates"]:
        p = one["p_corrected"]
        tested = f"{NONE if p is None else format(p, '.3g')} {mark(p)}"
        counts = f"{one['counts']['inconsistent']} of {sum(one['counts'].values())}"
        rows[f"{one['one']} over {one['two']}"] = [cell("", one["raw"]), cell("", one["length_controlled"]), tested, counts]
    return pd.DataFrame.from_dict(rows, orient="index", columns=_WIN_COLUMNS)


def cell(figure: str, found: Mapping[str, Any]) -> str:
    """A value with its interval."""
    form = _FORMS.get(figure, ".3f")
    if found["value"] is None:
        return NONE
    if found["low"] is None:
        return format(found["value"], form)
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def note(metrics: Mapping[str, Any]) -> str:
    """What stands below the table of figures; nothing of tests where there are none."""
    tests = len(_tests(metrics)[0])
    legend = _LEGEND.format(baseline=metrics["baseline"], alpha=ALPHA, tests=tests)
    return " ".join([_INTERVALS, *([legend] if tests else []), *powerless(metrics)[0]])


def powerless(metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A sentence where conversations are too few for the tests of figures, and of win rates, to find anything; else none."""
    figures, wins = ([_FEW.format(few=few, alpha=ALPHA)] if (few := too_few(tests)) else [] for tests in _tests(metrics))
    return figures, wins


def cut(metrics: Mapping[str, Any]) -> str:
    """What was cut or left out before anything was measured, in one sentence; empty where that is nothing."""
    found = metrics.get("cut") or {}
    told = ", ".join(f"{words} ({found[name]:,})" for name, words in _CUT.items() if found.get(name))
    return told and f"Not everything was measured; cut or left out: {told}."


def markdown(metrics: Mapping[str, Any]) -> str:
    """The tables for a page in Markdown."""
    return "\n".join(f"{_piped(head, table)}\n\n{told}\n" for head, table, told in _tables(metrics))


def latex(metrics: Mapping[str, Any]) -> str:
    """The tables for a paper, each with its note as text below it; they need the package booktabs."""
    parts = []
    for _, table, told in _tables(metrics):
        styled = table.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1).format(escape="latex")
        below = rf"\par\smallskip\noindent{{\footnotesize {told.translate(_LATEX)}\par}}"
        parts.append(f"{styled.to_latex(hrules=True)}{below}\n")
    return "\n".join(parts)


def show(console: Console, metrics: Mapping[str, Any], figures: Sequence[str]) -> None:
    """The table on the console, of these figures as far as they are there."""
    table = frame(metrics)
    shown = Table(caption=note(metrics), caption_justify="left")
    shown.add_column("figure")
    for name in table.columns:
        shown.add_column(str(name), justify="right")
    for name, row in _rows(table):
        if name in figures:
            shown.add_row(name, *row)
    console.print(shown)


def _tests(metrics: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """On how many conversations each test of a figure rests, and each of a win rate."""
    figures = [one["n"] for one in metrics["comparisons"] if one["p"] is not None]
    return figures, [one["raw"]["n"] for one in metrics["win_rates"] if one["p"] is not None]


def _tables(metrics: Mapping[str, Any]) -> list[tuple[str, pd.DataFrame, str]]:
    """Each table with the head of its first column and the note below it."""
    found = [("figure", frame(metrics), note(metrics))]
    if metrics["win_rates"]:
        legend = _WINS.format(alpha=ALPHA, tests=len(_tests(metrics)[1]))
        found.append(("systems", win_frame(metrics), " ".join([_INTERVALS, legend, *powerless(metrics)[1]])))
    return found


def _piped(head: str, table: pd.DataFrame) -> str:
    rows = [[head, *table.columns], ["---"] * (1 + len(table.columns)), *([name, *row] for name, row in _rows(table))]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


def _rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    return [(str(name), [str(value) for value in row]) for name, row in zip(table.index, table.to_numpy(), strict=True)]
