"""Texts of a run: who speaks, and what of it the ledger is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from esupport.errors import UserError
from esupport.evolution.ledger import Ledger
from esupport.generators.protocol import Generator, Reply, Request
from esupport.generators.stored import ask
from esupport.reflection.method import Speaker
from esupport.store import Store


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
        stage, replies = ask(self.store, step, generator, requests, adapter, self.console)
        if stage.reused:
            self.console.print(f"{step}: {len(requests)} texts were there already", markup=False, highlight=False)
        earlier = {"reflect": ("draft",), "refine": ("draft", "reflect")}.get(step, ())
        speaks = f"M{round_}" if step == "replies" else f"M{round_ - 1}"
        made_from = ["data", *(f"round-{round_}/{name}" for name in earlier), *([speaks] if adapter else [])]
        self.ledger.add(stage, round_, f"round-{round_}/{step}", self.ledger.keys(*made_from))
        return replies
