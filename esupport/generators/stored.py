"""Texts through the store: requests are planned into batches, and each batch is kept as soon as it is written.

Replies of a generator that answers each request by itself (a server) are kept one by one, under ``<step>/.replies``: a set
with one request more asks for that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esupport.generators.protocol import BrokenOff, Generator, Reply, Request
from esupport.models.weights import weights_digest
from esupport.store import Stage, Store, key_of, read_lines, write_lines


def _inputs(generator: Generator, requests: Sequence[Request], adapter: Path | None) -> dict[str, Any]:
    """What decides the replies: the key of their stage."""
    return {
        "requests": key_of(_asked(requests)),
        "adapter": weights_digest(adapter) if adapter else None,
        **generator.identity(),
    }


def _asked(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """What is asked: all of the requests but what only saves time."""
    return [{name: value for name, value in asdict(request).items() if name != "trunk"} for request in requests]


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
    apart = _places(store, step, generator, requests, adapter)

    def make(folder: Path) -> None:
        written = _there(apart)
        left = [index for index in range(len(requests)) if index not in written]
        with _progress(console) as progress:
            task = progress.add_task(f"{step} ({generator.name})", total=len(requests), completed=len(written))
            for part in generator.plan([requests[i] for i in left]):
                batch = [left[i] for i in part]
                asked = [requests[i] for i in batch]
                if apart:
                    replies = _kept_apart(generator, asked, adapter, [apart[index] for index in batch])
                else:
                    # named by content: what was written under another plan cannot be mistaken for it
                    kept = folder / f".batch-{key_of(_asked(asked))}.jsonl"
                    if not kept.exists():
                        _keep(kept, generator.write(asked, adapter))
                    replies = _kept(kept)
                written.update(zip(batch, replies, strict=True))
                progress.update(task, completed=len(written))
        records = ({**one, "reply": written[index].model_dump()} for index, one in enumerate(_asked(requests)))
        write_lines(folder / "replies.jsonl", records)

    stage = store.stage(step, _inputs(generator, requests, adapter), make)
    return stage, [Reply(**line["reply"]) for line in read_lines(stage.folder / "replies.jsonl")]


def waiting(store: Store, step: str, generator: Generator, requests: Sequence[Request]) -> list[Request]:
    """Those of the requests to which :func:`ask` would have the generator reply, without an adapter."""
    if store.has(step, _inputs(generator, requests, None)):
        return []
    there = _there(_places(store, step, generator, requests, None))
    return [request for index, request in enumerate(requests) if index not in there]


def _places(
    store: Store, step: str, generator: Generator, requests: Sequence[Request], adapter: Path | None
) -> dict[int, Path]:
    """Where the replies of an independent generator are kept one by one, so that they are found among other requests."""
    if not generator.independent:
        return {}
    folder = store.root / step / ".replies" / key_of(_inputs(generator, (), adapter))
    return {index: folder / f"{key_of(one)}.jsonl" for index, one in enumerate(_asked(requests))}


def _kept_apart(generator: Generator, requests: Sequence[Request], adapter: Path | None, places: Sequence[Path]) -> list[Reply]:
    """Replies to a batch, each kept in a place of its own; those that came are kept where it breaks off."""
    try:
        replies = generator.write(requests, adapter)
    except BrokenOff as stopped:
        for number, reply in stopped.replies.items():
            _keep(places[number], [reply])
        raise
    for place, reply in zip(places, replies, strict=True):
        _keep(place, [reply])
    return replies


def _keep(path: Path, replies: Sequence[Reply]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, (reply.model_dump() for reply in replies))


def _kept(path: Path) -> list[Reply]:
    return [Reply(**line) for line in read_lines(path)]


def _there(places: Mapping[int, Path]) -> dict[int, Reply]:
    """The replies that are there; one that cannot be read is asked for again."""
    found = {}
    for index, place in places.items():
        with suppress(OSError, ValueError, TypeError):
            (found[index],) = _kept(place)
    return found


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
