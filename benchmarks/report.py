"""What a benchmark leaves: a table on the console, a JSON file, a plot, and one JSON object as the last line printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.agreement import Agreement

OURS = "esupport"  # this project's side
Result = dict[str, Any]  # what a process has measured


@dataclass(frozen=True)
class Figure:
    """A figure of one side over the repeats.

    Attributes:
        median, low, high: of the repeats.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """From the values of the repeats."""
        return cls(statistics.median(values), min(values), max(values))

    def record(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


def figure(results: Sequence[Result], value: Callable[[Result], float]) -> Figure:
    """``value`` over the repeats."""
    return Figure.of([value(result) for result in results])


def ratio(above: Figure, below: Figure) -> float:
    """The ratio of two medians."""
    return above.median / below.median if below.median else float("nan")


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure of each side and, where it says something, their ratio.

    Attributes:
        name: of the figure, with its unit.
        key: of the ratio in the JSON; empty where there is none.
        sides: the figure by side, this project's first.
        ratios: by the peer's name.
        digits: behind the point.
    """

    name: str
    key: str
    sides: dict[str, Figure]
    ratios: dict[str, float] = field(default_factory=dict)
    digits: int = 2


@dataclass
class Report:
    """A benchmark that has run.

    Attributes:
        name: of the benchmark.
        command: what was typed, without paths.
        repeats: processes of each side.
        work: what was done, without paths.
        peers: the peer's settings by its name, and what else was tried.
        rows: the table.
        agreements: by the peer's name.
        runs: the raw figures of each repeat, by side.
        notes: sentences below the table.
    """

    name: str
    command: str
    repeats: int
    work: dict[str, Any]
    peers: dict[str, Any]
    rows: list[Row]
    agreements: dict[str, Agreement]
    runs: dict[str, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether all sides did the same work: only then are there ratios."""
        return all(agreement.holds for agreement in self.agreements.values())

    def ratios(self) -> dict[str, Any]:
        """By figure and peer."""
        found = {row.key: row.ratios for row in self.rows if row.key and row.ratios}
        return {key: next(iter(r.values())) if len(r) == 1 else r for key, r in found.items()}

    def show(self, console: Console) -> None:
        """The table, what agreed, and the notes."""
        sides = list(dict.fromkeys(side for row in self.rows for side in row.sides))
        table = Table(title=f"{self.name}: median of {self.repeats} runs (least to most)")
        table.add_column("")
        for side in sides:
            table.add_column(side, justify="right")
        others = list(dict.fromkeys(other for row in self.rows for other in row.ratios)) if self.agrees else []
        for other in others:
            table.add_column("ratio" if len(others) == 1 else f"to {other}", justify="right")
        for row in self.rows:
            cells = [_cell(row.sides.get(side), row.digits) for side in sides]
            shown = [f"{row.ratios[other]:.2f}" if other in row.ratios else "" for other in others]
            table.add_row(row.name, *cells, *shown)
        console.print(table)
        for peer, agreement in self.agreements.items():
            verdict = "did the same work" if agreement.holds else "DID NOT DO THE SAME WORK: there are no ratios"
            told = ", ".join(f"{name} {value:.2g}" for name, value in agreement.figures.items())
            console.print(f"{peer} {verdict}: {told}", markup=False, highlight=False)
            for fault in agreement.faults:
                console.print(f"  {fault}", markup=False, highlight=False)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)

    def record(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "benchmark": self.name,
            "command": self.command,
            "machine": machine.description(),
            "repeats": self.repeats,
            "work": self.work,
            "peers": self.peers,
            "agree": self.agrees if self.agreements else None,
            "agreements": {peer: vars(agreement) for peer, agreement in self.agreements.items()},
            "figures": {row.name: {side: value.record() for side, value in row.sides.items()} for row in self.rows},
            "ratios": self.ratios() if self.agrees else None,
            "runs": self.runs,
        }

    def write(self, folder: Path) -> Path:
        """``NAME.json`` in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")
        return path

    def last_line(self, ratio: str) -> str:
        """The one JSON object; ``ratio`` is the key of the row that the benchmark is about."""
        if not self.agrees:
            faults = [f"{peer}: {fault}" for peer, a in self.agreements.items() for fault in a.faults]
            return json.dumps({"benchmark": self.name, "agree": False, "faults": faults})
        rounded = _rounded(self.ratios())
        agree = True if self.agreements else None  # where there is no peer, there is nothing to agree with
        return json.dumps({"benchmark": self.name, "agree": agree, "ratio": rounded.get(ratio), "ratios": rounded})


def _cell(value: Figure | None, digits: int) -> str:
    if value is None:
        return ""
    middle = f"{value.median:,.{digits}f}"
    if value.low == value.high:
        return middle
    return f"{middle} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value
