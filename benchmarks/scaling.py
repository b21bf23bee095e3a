"""The data path at a size and at ten times that size: ``python -m benchmarks.scaling``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import options, plots
from benchmarks.compare import gigabytes
from benchmarks.planning import write_synthetic
from benchmarks.plots import Curves
from benchmarks.processes import Job, Result, alternate
from benchmarks.report import Figure, Report, Row, figure, ratio
from benchmarks.work import Planning
from esupport.errors import UserError

_ABOUT = """Time, memory and start-up of this project's data path (reading, checking, dividing, rendering, planning and packing
an epoch's steps; no model) on synthetic conversations: a tenth of them, and all, in turn."""
_NOTE = """Ratios are all conversations over a tenth of them. A start is the time to the first optimizer step's batches: the
first one reads and renders all, later ones find that in the store. Peak memory is that of the whole process, libraries
included."""
_TIMES = 10


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    made = options.parser("scaling", _ABOUT, repeats=2)
    made.add_argument("--conversations", type=options.positive, default=10_000, help="the larger of the two sizes")
    given = made.parse_args(argv)
    sizes = [given.conversations // _TIMES, given.conversations]
    if sizes[0] < _TIMES:
        raise UserError(f"--conversations: at least {_TIMES * _TIMES}, so that a tenth of them can be divided")
    with tempfile.TemporaryDirectory() as folder:
        jobs = {}
        for size in sizes:
            path = Path(folder) / f"{size}.jsonl"
            write_synthetic(path, size)
            work = Planning(**options.common(given), data=str(path), form="native")
            jobs[_name(size)] = Job("benchmarks.planning:plan", work)
        runs = alternate(jobs, given.repeats, Console(stderr=True))
    described = options.described(work) | {"data": "synthetic", "conversations": sizes}
    report = Report("scaling", options.typed("scaling", argv), given.repeats, described, {}, _rows(sizes, runs), {}, runs)
    report.notes = [" ".join(_NOTE.split())]
    report.show(options.console())
    report.write(given.out)
    _draw(report, sizes, given.out)
    print(report.last_line("seconds"), flush=True)
    return 0


def _name(size: int) -> str:
    return f"{size:,} conversations"


def _rows(sizes: Sequence[int], runs: dict[str, list[Result]]) -> list[Row]:
    def row(name: str, key: str, values: dict[str, Figure]) -> Row:
        small, large = (values[_name(size)] for size in sizes)
        return Row(name, key, values, {f"{_TIMES} times": ratio(large, small)})

    measures = (
        ("seconds", "seconds", lambda result: float(result["seconds"])),
        ("first start, s", "start_seconds", lambda result: float(result["start_seconds"])),
        ("later start, s", "second_start_seconds", lambda result: float(result["second_start_seconds"])),
        ("peak memory, GB", "peak_memory", gigabytes),
        ("... beyond that of the libraries, GB", "own_memory", lambda r: (r["peak_bytes"] - r["loaded_bytes"]) / 1e9),
        ("optimizer steps", "steps", lambda result: float(result["steps"])),
    )
    return [row(name, key, {side: figure(results, value) for side, results in runs.items()}) for name, key, value in measures]


def _draw(report: Report, sizes: Sequence[int], out: Path) -> None:
    def points(name: str) -> dict[str, dict[int, Figure]]:
        (row,) = (row for row in report.rows if row.name == name)
        return {"esupport": {size: row.sides[_name(size)] for size in sizes}}

    panels = [Curves(name, "conversations", name, points(name)) for name in ("seconds", "later start, s", "peak memory, GB")]
    plots.lines(panels, out / f"{report.name}.png", "data path without a model", columns=3)


if __name__ == "__main__":
    options.told(main)
