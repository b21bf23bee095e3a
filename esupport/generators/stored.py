"""Texts through the store: requests are planned into batches, and each batch is kept as soon as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esupport.generators.protocol import Generator, Reply, Request, digest
from esupport.models.weights import weights_digest
from esupport.store import Stage, Store, read_lines, write_lines


def inputs_of(generator: Generator, requests: Sequence[Request], adapter: Path | None) -> dict[str, Any]:
    """What decides the replies: the key of their stage."""
    return {
        "requests": digest(list(requests)),
        "adapter": weights_digest(adapter) if adapter else None,
        **generator.identity(),
    }


def ask(
    store: Store, step: str, generator: Generator, requests: Sequence[Request], adapter: Path | None, console: Console
) -> tuple[Stage, list[Reply]]:
    """Replies to ``requests``, in their order, and the stage that keeps them; a stopped one goes on after its last whole batch.

    Args:
        store: where they are kept.
        step: the stage's name.
        generator: who answers.
        requests: what is asked.
        adapter: of the model that answers; None for none.
        console: for the progress bar.
    """

    def make(folder: Path) -> None:
        written: dict[int, Reply] = {}
        with _progress(console) as progress:
            task = progress.add_task(f"{step} ({generator.name})", total=len(requests))
            for batch in generator.plan(requests):
                # named by content: what was written under another plan cannot be mistaken for it
                kept = folder / f".batch-{digest([requests[i] for i in batch])}.jsonl"
                if not kept.exists():
                    replies = generator.write([requests[i] for i in batch], adapter)
                    write_lines(kept, (reply.model_dump() for reply in replies))
                written.update(zip(batch, (Reply(**line) for line in read_lines(kept)), strict=True))
                progress.update(task, completed=len(written))
        records = (
            {**vars(request), "sampling": vars(request.sampling), "reply": written[index].model_dump()}
            for index, request in enumerate(requests)
        )
        write_lines(folder / "replies.jsonl", records)

    stage = store.stage(step, inputs_of(generator, requests, adapter), make)
    return stage, [Reply(**line["reply"]) for line in read_lines(stage.folder / "replies.jsonl")]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
