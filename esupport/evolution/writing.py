"""Texts through the store: a step's requests are planned into batches, and each batch is kept as soon as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esupport.errors import UserError
from esupport.evolution.ledger import Ledger
from esupport.generators.protocol import Generator, Reply, Request, digest
from esupport.models.weights import weights_digest
from esupport.reflection.method import Speaker
from esupport.store import Store, read_lines, write_lines


class Writer:
    """Asks generators, once for each set of requests.

    Args:
        store: where what was written is kept.
        ledger: of the run.
        speakers: the generator of ``policy``, ``base`` and, if there is one, ``teacher``.
        console: for the progress bar.
    """

    def __init__(self, store: Store, ledger: Ledger, speakers: Mapping[Speaker, Generator], console: Console) -> None:
        self.store, self.ledger, self.speakers, self.console = store, ledger, speakers, console

    def speaker(self, by: Speaker) -> Generator:
        """The generator that speaks as ``by``. Raises ``UserError`` where there is none, or it cannot."""
        if by not in self.speakers:
            raise UserError("teacher: a reflection step is by a teacher and there is none; use generator@teacher=openai")
        generator = self.speakers[by]
        if by == "policy" and not generator.serves_policy:
            raise UserError(
                f"generator: {generator.name} cannot speak as M_t, which writes the drafts; use generator=transformers or "
                "vllm, and generator@teacher=... for reflection and refinement by another model"
            )
        return generator

    def ask(self, step: str, round_: int, requests: Sequence[Request], by: Speaker, adapter: Path | None) -> list[Reply]:
        """Replies to ``requests``, in their order; a stopped step goes on behind its last whole batch.

        Args:
            step: ``draft``, ``reflect``, ``refine`` or ``replies``: the stage's name in the store.
            round_: of the run; 0 is phase 1.
            requests: what is asked.
            by: who answers.
            adapter: M_t's, for ``policy``.
        """
        if not requests:
            return []
        generator = self.speaker(by)
        adapter = adapter if by == "policy" else None
        inputs = {
            "requests": digest(list(requests)),
            "adapter": weights_digest(adapter) if adapter else None,
            **generator.identity(),
        }

        def make(folder: Path) -> None:
            written: dict[int, Reply] = {}
            with self._progress() as progress:
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

        stage = self.store.stage(step, inputs, make)
        if stage.reused:
            self.console.print(f"{step}: {len(requests)} texts were there already", markup=False, highlight=False)
        earlier = {"reflect": ("draft",), "refine": ("draft", "reflect")}.get(step, ())
        made_from = [f"round-{round_}/{name}" for name in earlier] + ([f"M{round_ - 1}"] if adapter and round_ else [])
        self.ledger.add(stage, round_, f"round-{round_}/{step}", self.ledger.keys(*made_from))
        return [Reply(**line["reply"]) for line in read_lines(stage.folder / "replies.jsonl")]

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console)
