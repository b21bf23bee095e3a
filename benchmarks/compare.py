"""Runs a training benchmark: tunes the peer, runs the sides in turn, compares what they did, reports."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console

from benchmarks import agreement, options, plots
from benchmarks.processes import Job, Result, alternate, tune
from benchmarks.report import OURS, Report, Row, figure, ratio
from benchmarks.work import Layout, Peer, Training


@dataclass(frozen=True)
class Side:
    """A peer: its name, and how its rows are laid out."""

    name: str
    layout: Layout
    padding_free: bool = False


@dataclass(frozen=True)
class Measure:
    """A line of the table to be.

    Attributes:
        name, key, digits: see :class:`benchmarks.report.Row`.
        value: the figure of one run.
        inverse: its ratio is the peer's over ours: what we take so many times less of.
        titled: what the plot calls it; empty leaves it out.
    """

    name: str
    key: str
    value: Callable[[Result], float]
    digits: int = 2
    inverse: bool = False
    titled: str = ""


def measured(given: argparse.Namespace, argv: Sequence[str], sides: Sequence[Side], task: Literal["dpo", "sft"]) -> Report:
    """Tune, run and compare; the report has no rows yet."""
    progress = Console(stderr=True)
    work = Training(
        **options.common(given),
        task=task,
        steps=given.steps,
        warmup=given.warmup,
        per_step=given.conversations_per_step,
        turns=given.turns,
        held_out=given.held_out,
        chosen=getattr(given, "chosen", "other"),
    )
    plain = work.plain()  # a mistake is told before anything runs
    jobs = {OURS: Job("benchmarks.ours:train", work)}
    peers: dict[str, Any] = {}
    for side in sides:
        jobs[side.name], peers[side.name] = _peer(side, work, plain, given, progress)
    runs = alternate(jobs, given.repeats, progress)
    compared = {side.name: agreement.of_training(runs[OURS], runs[side.name], work.bf16) for side in sides}
    described = options.described(work) | {
        "conversations_per_step": plain["batching"]["conversations_per_step"],
        "tokens_per_batch": plain["batching"]["tokens_per_batch"],
        "learning_rate": plain["objective"]["optimizer"]["lr"],
    }
    return Report(task, options.typed(task, argv), given.repeats, described, peers, [], compared, runs)


def _peer(
    side: Side, work: Training, plain: Mapping[str, Any], given: argparse.Namespace, progress: Console
) -> tuple[Job, dict[str, Any]]:
    """The peer's job under its best settings, or under those that were asked for, and what the report says of them."""
    target, further = "benchmarks.peers:train", options.further(given.peer)
    asked = Peer(side.layout, given.peer_batch, targets_only=given.peer_targets_only, further=further)
    chosen = Job(target, work, asked)
    tried: list[dict[str, Any]] = []
    if given.tune:
        per_step = plain["batching"]["conversations_per_step"]
        rows = per_step if side.layout == "conversation" else per_step * (given.turns or max(work.batches))
        small = replace(work, steps=1, warmup=1, held_out=0)  # a whole step: what is fastest on little is not so on much
        candidates = [
            Job(target, small, replace(asked, batch=batch, padding_free=padding_free))
            for batch in work.batches
            for padding_free in ((False, True) if side.padding_free and batch > 1 else (False,))
            if rows % batch == 0
        ]
        best, tried = tune(side.name, candidates, progress, agreement.bound(work.bf16))
        chosen = replace(best, work=work)
    setting = chosen.peer.name if chosen.peer else ""
    return chosen, {"setting": setting, "layout": side.layout, "tried": tried}


def counted(result: Result, warmup: int, what: Literal["completions", "tokens"]) -> int:
    """What was learnt in the counted steps."""
    return sum(step[what] for step in result["learnt"][warmup:])


def gigabytes(result: Result) -> float:
    """Peak memory in 10^9 bytes."""
    return float(result["peak_bytes"] / 1e9)


def utilisation(report: Report) -> list[Measure]:
    """The model FLOP utilisation, where all sides know it."""
    known = all(result.get("utilisation") for results in report.runs.values() for result in results)
    return [Measure("model FLOP utilisation", "utilisation", lambda r: float(r["utilisation"]))] if known else []


def table(report: Report, measures: Sequence[Measure]) -> list[Row]:
    """The measures over all runs, and their ratios to each peer's."""
    found = []
    for measure in measures:
        sides = {side: figure(results, measure.value) for side, results in report.runs.items()}
        ours = sides[OURS]
        ratios = {
            side: ratio(theirs, ours) if measure.inverse else ratio(ours, theirs)
            for side, theirs in sides.items()
            if side != OURS
        }
        found.append(Row(measure.name, measure.key, sides, ratios if measure.key else {}, measure.digits))
    return found


def finish(report: Report, given: argparse.Namespace, measures: Sequence[Measure]) -> int:
    """Show, write, draw, print the last line, whose ratio is that of the first measure; the command's exit status."""
    report.show(options.console())
    report.write(given.out)
    titles = {measure.name: measure.titled for measure in measures}
    panels = [(titles[row.name], row) for row in report.rows if titles.get(row.name)]
    plots.bars(panels, given.out / f"{report.name}.png", f"{report.name}, model {report.work['model']}")
    print(report.last_line(measures[0].key), flush=True)
    return 0 if report.agrees else 1
