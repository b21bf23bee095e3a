"""All conversations of one side of a split as tree rows, with the counts that the data summary shows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from esupport.data.conversation import Conversation
from esupport.data.division import Numbers
from esupport.data.shelf import Shelf, View, write
from esupport.data.sides import Side
from esupport.errors import DataFault
from esupport.rendering.row import Floats, Row
from esupport.rendering.rows import SCHEMA, Parts, Rows, content, reader, record
from esupport.rendering.template import Renderer
from esupport.store import Store, write_json

_MANY = 1000  # conversations from which rendering takes long enough to be watched
_FORMAT = 3  # of rows on a shelf: another number has all rendered anew, as another way of rendering must


@dataclass(kw_only=True)
class Corpus:
    """Rendered conversations.

    Attributes:
        name: what they are, as ``train``.
        rows: all their rows.
        starts: (conversations + 1,) the first row of each conversation and, last, how many rows there are.
        lengths: (rows,) tokens of each row.
        trunks: (rows,) those of them that stand on its trunk.
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
        extra_trees: rows beyond one a conversation, for contexts cut elsewhere and templates that rewrite their beginning.
        skipped: faults of conversations left out under ``on_error=skip``.
    """

    name: str
    rows: Rows
    starts: Numbers
    lengths: Numbers
    trunks: Numbers
    kept: Sequence[Conversation]
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
    skipped: list[DataFault]

    @property
    def units(self) -> Parts[list[Row]]:
        """The rows of each conversation, mostly one."""
        return Parts(self.rows, self.starts)

    @property
    def sharing(self) -> float:
        """Tokens of one row per reply over tokens of the tree rows."""
        return self.naive_tokens / self.tokens if self.tokens else 1.0

    def slow_paths(self, tokens_per_batch: int) -> list[str]:
        """Which rows do not share all there is to share, or are longer than a batch: a sentence each; none where all do."""
        found = []
        if self.extra_trees:
            told = "rows more than conversations: contexts begin elsewhere, or the chat template renders earlier turns anew."
            found.append(f"{self.name}: {self.extra_trees} {told}")
        bound, rows = f"batching.tokens_per_batch={tokens_per_batch}", len(self.rows)
        in_parts = int(((self.lengths > tokens_per_batch) & (self.lengths > self.trunks)).sum())
        if in_parts:
            told = "their branches are read some at a time, those of one context together, behind a trunk that is read once."
            found.append(f"{self.name}: {in_parts} of {rows} rows are longer than {bound}: {told}")
        long = int((self.trunks > tokens_per_batch).sum())
        if long:
            told = "a trunk is never cut, so these batches take more memory."
            found.append(f"{self.name}: {long} of {rows} trunks are longer than {bound}: {told}")
        return found

    def scored(self, scores: Sequence[Floats]) -> Corpus:
        """The same with the scores of a reference, (responses,) for each row."""
        return replace(self, rows=self.rows.scored(scores))


class Tally:
    """What is noted while rows are rendered, a conversation at a time.

    Attributes:
        counts: of a corpus, by its attributes.
        kept: the numbers of the conversations that rows were made of.
        skipped: faults of conversations left out.
    """

    def __init__(self) -> None:
        self.counts, self.kept, self.skipped = Counter[str](), array("q"), list[DataFault]()
        self._starts, self._responses, self._content = array("q", [0]), array("q"), hashlib.sha256()
        self._lengths, self._trunks = array("q"), array("q")

    def add(self, rows: list[Row], replies: int) -> list[Row]:
        """Count and give back the rows of one conversation, with so many replies to score."""
        self._starts.append(self._starts[-1] + len(rows))
        self.counts.update(replies=replies, extra_trees=len(rows) - 1)
        for row in rows:
            self._content.update(content(row))
            self._responses.append(row.responses)
            self._lengths.append(len(row))
            self._trunks.append(row.trunk)
            self.counts.update(tokens=len(row), targets=len(row.targets), naive_tokens=row.naive_tokens, branches=row.branches)
        return rows

    def facts(self) -> dict[str, Any]:
        """The counts, the digest of the rows and the faults, for JSON."""
        faults = [[fault.where, fault.field, fault.reason] for fault in self.skipped]
        return {"counts": dict(self.counts), "digest": self._content.hexdigest()[:16], "skipped": faults}

    def arrays(self) -> dict[str, Numbers]:
        """The first row of each conversation; responses, tokens and trunk of each row; and the numbers of what was kept."""
        found = {"starts": self._starts, "responses": self._responses, "kept": self.kept}
        found |= {"lengths": self._lengths, "trunks": self._trunks}
        return {name: np.array(numbers, dtype=np.int64) for name, numbers in found.items()}


Render = Callable[[Tally], Iterator[list[Row]]]  # the rows of each conversation, noted in the tally


def hold(name: str, render: Render) -> Corpus:
    """What ``render`` makes, in memory: for the few that are made in a run."""
    tally = Tally()
    rows = [row for unit in render(tally) for row in unit]
    return _corpus(name, rows, tally.facts(), tally.arrays(), ())


def keep(name: str, render: Render, origin: Side[Any], renderer: Renderer, on_error: str, store: Store) -> Corpus:
    """What ``render`` makes of the records of ``origin``, on a shelf: a stage of ``store``, so that it is made once."""
    inputs = {"format": _FORMAT, "records": origin.key, "on_error": on_error, **renderer.contents}

    def make(folder: Path) -> None:
        tally = Tally()
        units = track(render(tally), f"rendering {name}", total=len(origin), disable=len(origin) < _MANY)
        write(folder / "rows.arrow", SCHEMA, (record(row) for unit in units for row in unit))
        np.savez(folder / "numbers.npz", allow_pickle=False, **tally.arrays())
        write_json(folder / "facts.json", tally.facts())

    folder = store.stage("rows", inputs, make).folder
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with np.load(folder / "numbers.npz", allow_pickle=False) as arrays:
        return _corpus(name, Shelf(folder / "rows.arrow", reader), facts, dict(arrays), origin)


def _corpus(name: str, rows: Sequence[Row], facts: dict[str, Any], arrays: dict[str, Numbers], origin: Sequence[Any]) -> Corpus:
    return Corpus(
        **facts["counts"],
        name=name,
        rows=Rows(rows, arrays["responses"], facts["digest"]),
        starts=arrays["starts"],
        lengths=arrays["lengths"],
        trunks=arrays["trunks"],
        kept=View(origin, arrays["kept"]),
        skipped=[DataFault(*fault) for fault in facts["skipped"]],
    )
