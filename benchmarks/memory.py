"""Peak memory of a training step against length and vocabulary, beside TRL: ``python -m benchmarks.memory``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks import agreement, options, plots
from benchmarks.compare import gigabytes
from benchmarks.plots import Curves
from benchmarks.processes import Job, Result, alternate
from benchmarks.report import OURS, Figure, Report, Row, figure, ratio
from benchmarks.work import Layout, Peer, Training

Task = Literal["dpo", "sft"]

PEER = "TRL"
_ABOUT = """Peak memory of the process in optimizer steps of DPO and of SFT on a drawn conversation, by its length and by the
model's vocabulary: this project and TRL (one pair, or one row, in a batch; reference computed beforehand) in turn. The model's
weights are drawn; --model gives the adapter and the tokenizer."""
_NOTE = "Memory is the whole process's, libraries and weights included. Ratios are esupport over TRL."
_LAYOUTS: dict[Task, tuple[Layout, ...]] = {"dpo": ("pair",), "sft": ("turn", "conversation")}


@dataclass(frozen=True)
class Point:
    """A place in the grid: tokens of the conversation, and of the vocabulary."""

    task: Task
    length: int
    vocabulary: int


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 where the sides did not do the same work."""
    made = options.parser("memory", _ABOUT, repeats=1)
    options.add_device(made)
    made.add_argument("--checkpointing", action="store_true", help="recompute whole layers in the backward pass, on both sides")
    made.add_argument("--tasks", nargs="+", choices=_LAYOUTS, default=[*_LAYOUTS], help="what is trained")
    made.add_argument("--lengths", type=_numbers, default="512,1024,2048", help="tokens of the conversation")
    made.add_argument("--vocabularies", type=_numbers, default="4096,16384,65536", help="tokens of the model's vocabulary")
    made.add_argument("--width", type=options.positive, default=256, help="of the model")
    made.add_argument("--layers", type=options.positive, default=4, help="of the model")
    made.add_argument("--turns", type=options.positive, default=4, help="supporter turns of the conversation")
    given = made.parse_args(argv)
    # lengths at the middle vocabulary, vocabularies at the middle length
    length, vocabulary = (sizes[len(sizes) // 2] for sizes in (given.lengths, given.vocabularies))
    places = dict.fromkeys([(size, vocabulary) for size in given.lengths] + [(length, size) for size in given.vocabularies])
    points = [Point(task, *place) for task in given.tasks for place in places]
    runs: dict[str, list[Result]] = {OURS: [], PEER: []}
    rows: dict[tuple[Point, Layout], Row] = {}
    progress = Console(stderr=True)
    for point in points:
        jobs = _jobs(point, given)
        found = alternate(jobs, given.repeats, progress)
        for layout in _LAYOUTS[point.task]:
            rows[point, layout] = _row(point, layout, found[OURS], found[layout])
            runs[OURS] += found[OURS]
            runs[PEER] += found[layout]
    agreed = agreement.of_training(runs[OURS], runs[PEER], given.bf16)
    described = options.described(jobs[OURS].work) | {"points": [vars(point) for point in points]}
    peers = {PEER: {"setting": Peer().name, "layouts": _LAYOUTS}}
    command = options.typed("memory", argv)
    report = Report("memory", command, given.repeats, described, peers, [*rows.values()], {PEER: agreed}, runs)
    report.notes = [_NOTE]
    report.show(options.console())
    report.write(given.out)
    _draw(rows, length, vocabulary, given.out)
    shown = next(row for (point, _), row in rows.items() if point == Point(given.tasks[0], length, given.vocabularies[-1]))
    print(report.last_line(shown.key), flush=True)
    return 0 if report.agrees else 1


def _jobs(point: Point, given: argparse.Namespace) -> dict[str, Job]:
    shape: dict[str, Any] = {
        "vocab_size": point.vocabulary,
        "hidden_size": given.width,
        "intermediate_size": 4 * given.width,
        "num_hidden_layers": given.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": max(given.lengths),
        "tie_word_embeddings": True,
    }
    work = Training(
        **{**options.common(given), "shape": shape},
        task=point.task,
        steps=2,  # the second one has the optimizer's moments beside it
        warmup=0,
        per_step=1,
        turns=given.turns,
        held_out=1,
        length=point.length,
    )
    jobs = {OURS: Job("benchmarks.ours:train", work)}
    return jobs | {layout: Job("benchmarks.peers:train", work, Peer(layout)) for layout in _LAYOUTS[point.task]}


def _row(point: Point, layout: Layout, ours: list[Result], theirs: list[Result]) -> Row:
    sides = {OURS: figure(ours, gigabytes), PEER: figure(theirs, gigabytes)}
    name = f"{point.task} by {layout}, {point.length} tokens of {point.vocabulary}, GB"
    key = f"{point.task}_{layout}_{point.length}_{point.vocabulary}"
    return Row(name, key, sides, {PEER: ratio(sides[OURS], sides[PEER])})


def _draw(rows: dict[tuple[Point, Layout], Row], length: int, vocabulary: int, out: Path) -> None:
    panels = []
    for task in dict.fromkeys(point.task for point, _ in rows):
        for across, other, held in (("length", "vocabulary", vocabulary), ("vocabulary", "length", length)):
            sides: dict[str, dict[int, Figure]] = {}
            for (point, layout), row in rows.items():
                if point.task == task and getattr(point, other) == held:
                    size = getattr(point, across)
                    sides.setdefault(OURS, {})[size] = row.sides[OURS]
                    sides.setdefault(f"{PEER} by {layout}", {})[size] = row.sides[PEER]
            panels.append(Curves(f"{task}, {other} {held}", f"{across}, tokens", "peak memory, GB", sides))
    plots.lines(panels, out / "memory.png", "peak memory of the process in a training step", columns=2)


def _numbers(text: str) -> list[int]:
    return sorted({options.positive(part) for part in text.split(",")})


if __name__ == "__main__":
    options.told(main)
