"""All conversations of one side of a split as tree rows, with the counts that the data summary shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from esupport.data.conversation import Conversation
from esupport.errors import DataFault
from esupport.rendering.row import Row, tree
from esupport.rendering.template import Renderer


@dataclass
class Corpus:
    """Rendered conversations.

    Attributes:
        name: what they are, as ``train``.
        units: the rows of each conversation, mostly one.
        kept: these conversations.
        turns: turns of the conversations, less those that were cut at the beginning.
        replies: supporter turns that are scored.
        tokens: tokens of all rows.
        targets: tokens that are scored, the end-of-turn tokens among them.
        naive_tokens: tokens that one row per reply would take.
        cut_turns: turns dropped at the beginning of conversations that were too long.
        lost_replies: supporter turns lost with them.
        openings: opening supporter turns dropped because the template begins with the seeker.
        dropped: conversations of which nothing was left to learn.
        branches: replies scored on a branch because the template renders them differently later.
        extra_trees: rows beyond one a conversation, for templates that rewrite their beginning.
        skipped: faults of conversations left out under ``on_error=skip``.
    """

    name: str
    units: list[list[Row]] = field(default_factory=list)
    kept: list[Conversation] = field(default_factory=list)
    turns: int = 0
    replies: int = 0
    tokens: int = 0
    targets: int = 0
    naive_tokens: int = 0
    cut_turns: int = 0
    lost_replies: int = 0
    openings: int = 0
    dropped: int = 0
    branches: int = 0
    extra_trees: int = 0
    skipped: list[DataFault] = field(default_factory=list)

    @property
    def sharing(self) -> float:
        """Tokens of one row per reply over tokens of the tree rows."""
        return self.naive_tokens / self.tokens if self.tokens else 1.0

    def add(self, conversation: Conversation, renderer: Renderer) -> None:
        """Render one conversation. Raises ``DataFault`` where its text cannot be used."""
        rendered = renderer.render(conversation)
        self.cut_turns += rendered.cut_turns
        self.lost_replies += rendered.lost_replies
        if not rendered.responses:
            self.dropped += 1
            return
        rows = tree(conversation.id, rendered.responses)
        opened = conversation.turns[rendered.cut_turns].role == "supporter" and not renderer.keeps_opening
        self.kept.append(conversation)
        self.openings += opened
        self.turns += len(conversation.turns) - rendered.cut_turns - opened
        self.add_rows(rows, len(rendered.responses))

    def add_rows(self, rows: list[Row], replies: int) -> None:
        """The rows of one conversation, with so many replies to score."""
        self.units.append(rows)
        self.replies += replies
        self.tokens += sum(len(row) for row in rows)
        self.targets += sum(len(row.targets) for row in rows)
        self.naive_tokens += sum(row.naive_tokens for row in rows)
        self.branches += sum(row.branches for row in rows)
        self.extra_trees += len(rows) - 1


def render_all(
    name: str, conversations: Iterable[Conversation], renderer: Renderer, on_error: str, where: Mapping[str, str]
) -> Corpus:
    """Render ``conversations``; ``on_error`` is ``stop`` or ``skip``, ``where`` tells file and line by id."""
    corpus = Corpus(name)
    for conversation in conversations:
        try:
            corpus.add(conversation, renderer)
        except DataFault as found:
            fault = DataFault(where.get(conversation.id, conversation.id), found.field, found.reason)
            if on_error == "stop":
                raise fault from None
            corpus.skipped.append(fault)
    return corpus
