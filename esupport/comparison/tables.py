"""The table of an evaluation as Markdown and LaTeX, for W&B and on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from esupport.comparison.figures import ALPHA
from esupport.page.document import NONE

NOT_SIGNIFICANT = "n.s."
_NOTE = (
    "95 % intervals over conversations in brackets. {mark}: not significantly different from {baseline} (paired approximate "
    "randomisation, Holm over {tests} comparisons, p >= 0.05). Perplexity and variants of published figures restate others "
    "and are not tested."
)
# figures whose unit has few values by nature are read better with fewer digits
_FORMS = {"nll": ".3f", "perplexity": ".1f", "words": ".1f", "tokens": ".1f", "esconv_words": ".1f"}


def frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Figures by system as texts: value, interval, and a mark where a difference from the baseline is not significant."""
    unclear = {
        (one["figure"], one["one"])
        for one in metrics["comparisons"]
        if one["p_corrected"] is not None and one["p_corrected"] >= ALPHA
    }
    columns = {}
    for system in metrics["systems"]:
        name, figures = system["system"], system["figures"]
        columns[name] = {
            figure: cell(figure, found) + (f" {NOT_SIGNIFICANT}" if (figure, name) in unclear else "")
            for figure, found in figures.items()
        }
    order = list(dict.fromkeys(figure for column in columns.values() for figure in column))
    return pd.DataFrame(columns, index=order).fillna(NONE)


def cell(figure: str, found: Mapping[str, Any]) -> str:
    """A value with its interval."""
    form = _FORMS.get(figure, ".3f")
    if found["value"] is None:
        return NONE
    if found["low"] is None:
        return format(found["value"], form)
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def note(metrics: Mapping[str, Any]) -> str:
    """What stands below the table."""
    tests = sum(one["p"] is not None for one in metrics["comparisons"])
    return _NOTE.format(mark=NOT_SIGNIFICANT, baseline=metrics["baseline"], tests=tests)


def markdown(metrics: Mapping[str, Any]) -> str:
    """The table for a page in Markdown."""
    table = frame(metrics)
    rows = [["figure", *table.columns], ["---"] * (1 + len(table.columns)), *([name, *row] for name, row in _rows(table))]
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([*lines, "", note(metrics), ""])


def latex(metrics: Mapping[str, Any]) -> str:
    """The table for a paper; it needs the package booktabs."""
    styled = frame(metrics).style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    table: str = styled.format(escape="latex").to_latex(hrules=True)
    return f"% {note(metrics)}\n{table}"


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


def _rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    return [(str(name), [str(value) for value in row]) for name, row in zip(table.index, table.to_numpy(), strict=True)]
