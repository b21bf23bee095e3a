"""What a person sees of a run: the data summary before it, the table of results and the sample replies after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from esupport.training.prepare import Prepared

_LEGEND = (
    "replies and supervised tokens are learnt or measured; cut: oldest turns, lost: replies with them, dropped: conversations"
)


@dataclass(frozen=True)
class Sample:
    """A held-out context with the replies of the base model and of the trained one, and the human's."""

    conversation: str
    turn: int
    context: str
    base: str
    trained: str
    human: str


def show_data(console: Console, prepared: Prepared, tokens_per_batch: int) -> None:
    """What was read, a row a side; below it what else a reader must know."""
    table = Table(title="Data", title_justify="left", caption=_LEGEND, caption_justify="left")
    table.add_column("side")
    for heading in ("conversations", "turns", "replies", "tokens", "supervised", "cut", "lost", "dropped"):
        table.add_column(heading, justify="right")
    for corpus in prepared.corpora.values():
        if corpus.units or corpus.dropped:
            sizes = (len(corpus.units), corpus.turns, corpus.replies, corpus.tokens, corpus.targets)
            losses = (corpus.cut_turns, corpus.lost_replies, corpus.dropped)
            table.add_row(corpus.name, *(f"{n:,}" for n in (*sizes, *losses)))
    console.print(table)
    for line in _remarks(prepared, tokens_per_batch):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _remarks(prepared: Prepared, tokens_per_batch: int) -> list[str]:
    train = prepared.corpora["train"]
    lines = [f"A tree row shares contexts: {train.sharing:.1f} times fewer tokens than a row for each reply."]
    if train.branches and "pairs_valid" not in prepared.corpora:  # of pairs, one is a branch by design
        lines.append(f"The chat template renders some replies differently later: {train.branches} scored on branches.")
    lines += [line for corpus in prepared.corpora.values() for line in corpus.slow_paths(tokens_per_batch)]
    if train.openings:
        lines.append(f"{train.openings} opening supporter turns left out: the chat template begins with the seeker.")
    if prepared.duplicates:
        lines.append(f"{prepared.duplicates} copies of conversations left out.")
    if prepared.faults:
        lines.append(f"{len(prepared.faults)} faulty records skipped, the first: {prepared.faults[0]}")
    return lines


def show_results(console: Console, metrics: Mapping[str, Any]) -> None:
    """The figures of ``metrics.json`` that answer: did it learn, what did it cost, where is it?"""
    table = Table(title="Result", title_justify="left")
    table.add_column("held-out conversations")
    for heading in ("base model", "after training", "change"):
        table.add_column(heading, justify="right")
    for label, name, digits in (
        ("negative log-likelihood per token", "val/nll", 4),
        ("perplexity", "val/perplexity", 2),
        ("perplexity of instruction examples", "val/replay_perplexity", 2),
    ):
        if f"{name}_after" in metrics:
            _compare(table, label, metrics, name, digits)
    if table.rows:  # nothing is measured with trainer.limit_val_batches=0
        console.print(table)
    costs = Table(show_header=False)
    costs.add_row("supervised tokens", f"{metrics['train/supervised_tokens']:,} in {metrics['train/steps']} steps")
    costs.add_row(
        "training time", f"{metrics['train/seconds']:.0f} s, {metrics['train/supervised_tokens_per_s']:.0f} supervised tokens/s"
    )
    costs.add_row("whole run", f"{metrics['seconds']:.0f} s")
    costs.add_row("peak memory", f"{metrics['peak_memory_gb']:.2f} GB ({metrics['peak_memory_of']})")
    costs.add_row("adapter", Text(str(metrics["adapter_path"]), overflow="fold"))
    console.print(costs)


def _compare(table: Table, label: str, metrics: Mapping[str, Any], name: str, digits: int) -> None:
    before, after = metrics[f"{name}_before"], metrics[f"{name}_after"]
    table.add_row(label, f"{before:.{digits}f}", f"{after:.{digits}f}", f"{100 * (after - before) / before:+.1f} %")


def show_samples(console: Console, samples: Sequence[Sample]) -> None:
    """Held-out contexts with the base model's reply beside the new one."""
    for sample in samples:
        table = Table(show_lines=False, expand=True)
        for heading in ("base model", "after training"):
            table.add_column(heading, ratio=1)
        table.add_row(Text(sample.base), Text(sample.trained))
        console.print(Panel(Text(sample.context), title=Text(f"held out: {sample.conversation}"), title_align="left"))
        console.print(table)
    if samples:
        console.print("These replies come from a small model in an experiment. They are not care, nor advice.", style="dim")
