"""Division of conversations into train, valid and test, from what must be known of each: its content and its group."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from esupport.data.conversation import Conversation, content_hash
from esupport.data.files import SPLITS
from esupport.data.preference import PreferencePair
from esupport.errors import UserError

Numbers = NDArray[np.int64]


class Entries:
    """Content and group of each conversation, in the order in which they were read: a few bytes each.

    Attributes:
        published: the numbers of the conversations that stand on each published side, or on the one side ``all``.
    """

    def __init__(self) -> None:
        self.published: dict[str, array[int]] = {}
        self._contents, self._groups = array("Q"), array("q")
        self._names: dict[str, int] = {}

    def add(self, side: str, conversation: Conversation) -> None:
        """The next conversation, read from the published ``side``."""
        self.published.setdefault(side, array("q")).append(len(self._contents))
        self._contents.append(int(content_hash(conversation.turns), 16))
        group = conversation.group
        self._groups.append(self._names.setdefault(group, len(self._names)) if group else -1)

    @property
    def contents(self) -> NDArray[np.uint64]:
        """:func:`content_hash` of each conversation, as a number."""
        return np.array(self._contents, dtype=np.uint64)

    def units(self) -> Iterator[str]:
        """What each conversation is drawn with: its group, or its copies."""
        names = list(self._names)
        for content, group in zip(self._contents, self._groups, strict=True):
            yield names[group] if group >= 0 else f"{content:016x}"

    def kept(self, sides: Mapping[str, Iterable[int]], limit: int | None) -> tuple[dict[str, Numbers], int]:
        """The sides without copies, at most ``limit`` on each, and the number of copies."""
        kept = {side: array("q") for side in SPLITS}
        seen: set[int] = set()
        duplicates = 0
        # test first: of two copies the one that is kept is the one held out
        for side in reversed(SPLITS):
            for number in sides.get(side, ()):
                content = self._contents[number]
                if content in seen:
                    duplicates += 1
                elif limit is None or len(kept[side]) < limit:
                    seen.add(content)
                    kept[side].append(number)
        return {side: np.array(numbers, dtype=np.int64) for side, numbers in kept.items()}, duplicates

    def refuse_straddling_groups(self, sides: Mapping[str, Sequence[int] | Numbers], key: str) -> None:
        """Raises ``UserError`` where a group stands on two sides; ``key`` names the source."""
        names, found = list(self._names), dict[int, str]()
        for side in SPLITS:
            for number in sides[side]:
                group = self._groups[number]
                if group >= 0 and found.setdefault(group, side) != side:
                    raise UserError(f"{key}: group {names[group]} is on two sides: {found[group]} and {side}")


class Pairs:
    """The conversation of each preference pair, in the order in which they were read."""

    def __init__(self) -> None:
        self._published: dict[str, list[int]] = {side: [] for side in (*SPLITS, "all")}
        self._names: dict[str, int] = {}
        self._conversations = array("q")

    def add(self, side: str, pair: PreferencePair) -> None:
        """The next pair, read from the published ``side``."""
        self._published[side].append(len(self._conversations))
        self._conversations.append(self._names.setdefault(pair.context.conversation, len(self._names)))

    def divided(self, share: float, seed: int, limit: int | None) -> dict[str, Numbers]:
        """Published sides as they are, else with ``share`` of the conversations held out; at most ``limit`` on each."""
        of = np.array(self._conversations, dtype=np.int64)
        train, valid = self._published["train"], self._published["valid"] or self._published["test"]
        rest = np.array(self._published["all"] if not train else [], dtype=np.int64)
        names = sorted(self._names, key=lambda name: rank(seed, name)) if len(rest) else []
        count = max(round(share * len(names)), min(1, len(names) - 1)) if share * len(names) else 0
        held_out = np.isin(of[rest], [self._names[name] for name in names[:count]])
        sides = {"train": [*train, *rest[~held_out]], "valid": [*valid, *rest[held_out]], "test": []}
        cut = {side: np.array(numbers[:limit], dtype=np.int64) for side, numbers in sides.items()}
        return {side: numbers[together(of[numbers])] for side, numbers in cut.items()}


def draw(units: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Divide by ``fractions``, a pure function of the seed and of what was said: the order of the file does not matter.

    Args:
        units: of each conversation, what it is drawn with: those of one unit go to one side together.
        fractions: share of each side.
        seed: of the draw.

    Returns:
        The numbers of the conversations on each side.
    """
    numbers: dict[str, int] = {}
    unit = np.fromiter((numbers.setdefault(name, len(numbers)) for name in units), dtype=np.int64)
    members, sizes = np.argsort(unit, kind="stable"), np.bincount(unit, minlength=1)
    ends = np.cumsum(sizes)
    drawn: dict[str, list[int]] = {side: [] for side in SPLITS}
    placed, bound = 0, 0.0
    queue = deque(sorted(numbers, key=lambda name: rank(seed, name)))
    for side in SPLITS:
        bound += fractions.get(side, 0.0)
        # a unit goes to a side while the side's share is not reached at its middle
        while queue and placed + sizes[numbers[queue[0]]] / 2 <= round(bound * len(unit)):
            number = numbers[queue.popleft()]
            drawn[side] += members[ends[number] - sizes[number] : ends[number]].tolist()
            placed += int(sizes[number])
    return drawn


def rank(seed: int, unit: str) -> bytes:
    """Where ``unit`` stands in a draw of ``seed``."""
    return hashlib.sha256(f"{seed}/{unit}".encode()).digest()


def together(names: Sequence[str] | Numbers) -> Numbers:
    """The order in which equal ``names`` stand together, those first that come first, each in their own order."""
    _, first, number = np.unique(np.asarray(names), return_index=True, return_inverse=True)
    return np.argsort(first[number], kind="stable")
