"""Where the time of a whole run of evolve.py goes: ``python -m benchmarks.evolve``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from benchmarks import options, plots
from benchmarks.parts import PARTS
from benchmarks.processes import Job, Result, alternate
from benchmarks.report import OURS, Report, Row, figure
from benchmarks.work import Evolving

_ABOUT = """Seconds of a run of evolve.py from an empty store, by part: forward passes (in training, scoring and evaluation),
backward passes, decoding, loading the model, and all else (imports excepted)."""
_NOTE = "All else is data, optimizer, checkpoints, filters, tables, pages and logs."
_COMPUTING = ("forward", "backward", "decoding")


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    made = options.parser("evolve", _ABOUT, repeats=1)
    options.add_data(made)
    options.add_device(made)
    given = made.parse_args(argv)
    work = Evolving(**options.common(given))
    work.plain()  # a mistake is told before anything runs
    runs = alternate({OURS: Job("benchmarks.parts:run", work)}, given.repeats, Console(stderr=True))
    report = Report("evolve", options.typed("evolve", argv), given.repeats, options.described(work), {}, [], {}, runs)
    report.rows = _rows(runs[OURS])
    report.notes = [_NOTE]
    report.show(options.console())
    report.write(given.out)
    plots.parts({row.name: row.sides[OURS] for row in report.rows[:-1]}, given.out / "evolve.png", "a run of evolve.py")
    print(report.last_line("outside"), flush=True)
    return 0


def _rows(results: Sequence[Result]) -> list[Row]:
    """A line a part, and the share of the time that lies outside forward, backward and decoding."""

    def row(name: str, value: Callable[[Result], float]) -> Row:
        return Row(name, "", {OURS: figure(results, value)})

    parts = [row(f"{part}, s", lambda result, part=part: float(result["parts"][part])) for part in PARTS]
    rest = row("all else, s", lambda result: result["seconds"] - sum(result["parts"].values()))
    whole = row("in all, s", lambda result: float(result["seconds"]))
    share = figure(results, lambda result: 1 - sum(result["parts"][part] for part in _COMPUTING) / result["seconds"])
    name = "share outside forward, backward and decoding"
    return [*parts, rest, whole, Row(name, "outside", {OURS: share}, {OURS: share.median}, 3)]


if __name__ == "__main__":
    options.told(main)
