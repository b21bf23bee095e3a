"""Replies of each system to the same contexts, on what the human supporter said before, or on what the system itself said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from rich.console import Console

from esupport.comparison.systems import HUMAN, System
from esupport.data.conversation import Conversation, Turn
from esupport.data.preference import Context
from esupport.errors import UserError, first_line
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.quoting import harmless
from esupport.generators.protocol import HELD_OUT, Generator, Reply, Request, Sampling, reply_request
from esupport.generators.stored import ask
from esupport.rendering.contexts import context_of
from esupport.rendering.template import Renderer
from esupport.store import Store, read_lines

Replies = Callable[[Sequence[Request]], list[Reply]]


@dataclass(frozen=True)
class Manner:
    """In what manner systems are asked: all in the same.

    Args:
        renderer: of the requests.
        sampling, seed: of a reply, and of its sampling.
        max_tokens: bound on a context, of which the oldest turns are dropped, whole.
    """

    renderer: Renderer
    sampling: Sampling
    seed: int
    max_tokens: int

    def request(self, context: Context, step: str) -> Request:
        """For a reply to a context; ``step`` tells its draw from those of other steps."""
        return reply_request(context, self.renderer, self.sampling, self.seed, step)

    def context(self, whole: Conversation, turn: int) -> Context | None:
        """What stands before a turn; None where not even its last turn fits."""
        return context_of(whole, turn, self.renderer, self.max_tokens)


@dataclass(frozen=True)
class Replying:
    """How systems are asked for replies.

    Args:
        contexts: what is replied to, with the conversations.
        history: ``human``: the supporter's turns before the reply are the data's (teacher forcing); ``own``: the system's.
        manner: of what is asked.
        store, console: of the run.
    """

    contexts: Sequence[tuple[Context, Conversation]]
    history: Literal["human", "own"]
    manner: Manner
    store: Store
    console: Console

    def speaking(self, system: System) -> Replies:
        """Who answers requests as ``system``, through the store."""
        generator = cast(Generator, system.generator)
        return lambda asked: ask(self.store, "replies", generator, asked, system.adapter, self.console)[1] if asked else []

    def of(self, system: System) -> list[Answered]:
        """The replies of ``system``, in the order of the contexts."""
        if system.kind == "human":
            found = [Reply(text=_human(context, whole), tokens=0, finished=True) for context, whole in self.contexts]
            return [self._answered(system, *one, reply) for one, reply in zip(self.contexts, found, strict=True)]
        if system.file:
            return self._read(system, system.file)
        if self.history == "own":
            return self._on_own(system)
        replies = self.speaking(system)([self.manner.request(context, HELD_OUT) for context, _ in self.contexts])
        return [self._answered(system, *one, reply) for one, reply in zip(self.contexts, replies, strict=True)]

    def _answered(self, system: System, context: Context, whole: Conversation, reply: Reply) -> Answered:
        return Answered(
            system=system.name,
            context=context,
            reply=reply.text,
            human=_human(context, whole),
            tokens=None if system.kind == "human" else reply.tokens,
            finished=reply.finished,
        )

    def _on_own(self, system: System) -> list[Answered]:
        """Replies in conversations whose supporter turns are the system's, turn after turn, all conversations in step."""
        humans = {whole.id: whole for _, whole in self.contexts}
        last = {id_: max(c.turn for c, _ in self.contexts if c.conversation == id_) for id_ in humans}
        turns = {id_: [turn for turn in whole.supporter_turns() if turn <= last[id_]] for id_, whole in humans.items()}
        talks, found = dict(humans), dict[str, Answered]()
        for step in range(max(map(len, turns.values()), default=0)):
            ready = [talks[id_] for id_ in talks if step < len(turns[id_])]
            contexts = [self.manner.context(talk, turns[talk.id][step]) for talk in ready]
            asked = [context for context in contexts if context]
            replies = self.speaking(system)([self.manner.request(context, HELD_OUT) for context in asked])
            for context, reply in zip(asked, replies, strict=True):
                id_, turn = context.conversation, context.turn
                found[context.key] = self._answered(system, context, humans[id_], reply)
                before = talks[id_].turns
                said = (*before[:turn], Turn(role="supporter", text=harmless(reply.text)), *before[turn + 1 :])
                talks[id_] = talks[id_].model_copy(update={"turns": said})
        return [found[context.key] for context, _ in self.contexts if context.key in found]

    def _read(self, system: System, path: Path) -> list[Answered]:
        """Replies of another evaluation to the same contexts. Raises ``UserError`` where they are to others."""
        try:
            written = [Answered.model_validate(line) for line in read_lines(path)]
        except (OSError, ValueError) as error:
            raise UserError(f"systems.{system.name}: {path} is no file of replies: {first_line(error)}") from None
        names = sorted({one.system for one in written} - {HUMAN})
        if not names:
            raise UserError(f"systems.{system.name}: {path} holds no system's replies")
        if system.of not in names and (system.of or len(names) != 1):
            raise UserError(f"systems.{system.name}: {path} holds {', '.join(names)}; name one, as {path.name}#{names[0]}")
        # by key: another model's tokenizer may have cut a long context elsewhere
        found = {one.context.key: one for one in written if one.system == (system.of or names[0])}
        missing = [context.key for context, whole in self.contexts if not self._replied(found.get(context.key), context, whole)]
        if missing:
            raise UserError(f"systems.{system.name}: {path} has no reply to {missing[0]}; evaluate both on the same contexts")
        return [found[context.key].model_copy(update={"system": system.name}) for context, _ in self.contexts]

    def _replied(self, one: Answered | None, context: Context, whole: Conversation) -> bool:
        """Whether a reply was written to the same place of the same conversation, after the same words."""
        if one is None or one.human != _human(context, whole):
            return False
        last = min(len(one.context.turns), len(context.turns))  # of a longer one, an older turn may be cut
        return self.history == "own" or one.context.turns[-last:] == context.turns[-last:]


def _human(context: Context, whole: Conversation) -> str:
    return whole.turns[context.turn].text
