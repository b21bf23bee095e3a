"""Many continuations of few beginnings, decoded together: the tree row, growing.

Prompts of one family hang off one trunk. All are read in one flat forward; then each step adds one token to every row.
A row's keys are those of its trunk, kept once for its family, and its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from esupport.models.attention import Layers, Scores, layer_of
from esupport.models.forward import hidden_states, logits_of, through
from esupport.rendering.packing import collate
from esupport.rendering.row import Row, grow
from esupport.rendering.template import Response

if TYPE_CHECKING:
    from peft import PeftModel

LEAST_ROWS = 4  # 1 to 3 rows round differently from more
_PREFILL = 8192  # tokens of several trees that are read in one forward: bounds memory
_SHRINK = 0.75  # rows that are done are taken out when no more than this share goes on: each time copies what is kept

Draw = Callable[[Tensor, Sequence[int]], Tensor]
Done = Callable[[Sequence[int]], bool]


def decode(
    policy: PeftModel, prompts: Sequence[Sequence[int]], families: Sequence[str], most: int, draw: Draw, done: Done
) -> list[list[int]]:
    """New token ids of each prompt.

    Args:
        policy: the model, in eval mode.
        prompts: token ids.
        families: prompts of one family begin alike.
        most: how many tokens are written at most.
        draw: (rows,) next tokens, given (rows, vocabulary) logits and the prompts that the rows continue, by number.
        done: whether these tokens end a reply.
    """
    dummies = [0] * (LEAST_ROWS - len(prompts))
    asked = [*range(len(prompts)), *dummies]
    logits, rows = _read(policy, [prompts[at] for at in asked], [families[at] for at in asked], most)
    written: list[list[int]] = [[] for _ in rows.numbers]
    while True:
        tokens = draw(logits, rows.numbers)
        for number, token in zip(rows.numbers, tokens.tolist(), strict=True):
            if not done(written[number]):
                written[number].append(token)
        rows.written += 1
        if rows.written == most or all(map(done, written[: len(prompts)])):
            return written[: len(prompts)]
        going = [at for at, number in enumerate(rows.numbers) if not done(written[number])]
        if len(rows.numbers) > LEAST_ROWS and len(going) <= _SHRINK * len(rows.numbers):
            kept = _filled_up(going, len(rows.numbers))
            rows = rows.only(kept)
            tokens = tokens[kept]
        logits = logits_of(policy, through(policy, tokens[:, None], rows.positions()[:, None], rows)[:, 0])


def _filled_up(going: list[int], count: int) -> list[int]:
    """The rows that go on, and others where they are fewer than the least number."""
    done = [at for at in range(count) if at not in set(going)]
    return sorted([*going, *done[: max(0, LEAST_ROWS - len(going))]])


def _read(policy: PeftModel, prompts: Sequence[Sequence[int]], families: Sequence[str], most: int) -> tuple[Tensor, _Rows]:
    """Logits behind each prompt, (prompts, vocabulary), and the rows that go on from there."""
    members: dict[tuple[str, int], list[int]] = {}
    for number, (family, prompt) in enumerate(zip(families, prompts, strict=True)):
        members.setdefault((family, prompt[0]), []).append(number)
    trees: list[Row] = []
    for (family, _), own in members.items():
        hung = [Response(tuple(prompts[i][:-1]), (prompts[i][-1],), 0) for i in own]
        trees.append(grow(family, max((prompts[i] for i in own), key=len), hung))
    numbers = [i for own in members.values() for i in own]
    last, keys, values = [], [], []
    for group in _groups(trees):
        kept: Layers = {}
        hidden = hidden_states(policy, collate(group, 0, 0).to(policy.device), kept)
        at = [target + start for row, start in zip(group, _starts(group), strict=True) for target in row.targets.tolist()]
        last.append(hidden[at])
        keys.append([key for key, _ in kept.values()])
        values.append([value for _, value in kept.values()])
        kept.clear()  # so that each is let go as it is joined
    return logits_of(policy, torch.cat(last)), _Rows.of(trees, numbers, _joined(keys), _joined(values), most)


def _groups(trees: Sequence[Row]) -> Iterator[list[Row]]:
    """Trees that are read together: a pure function of the trees."""
    group: list[Row] = []
    for row in trees:
        if group and sum(map(len, group)) + len(row) > _PREFILL:
            yield group
            group = []
        group.append(row)
    yield group


def _joined(groups: list[list[Tensor]]) -> Iterator[Tensor]:
    """By layer, what the groups have kept of it; each is let go as the next is asked for."""
    for group in groups:
        group.reverse()
    while groups[0]:
        yield torch.cat([group.pop() for group in groups], dim=1)


def _starts(trees: Sequence[Row]) -> list[int]:
    return [0, *accumulate(map(len, trees[:-1]))]


@dataclass
class _Rows:
    """Rows that are being written; a structure that layers attend through.

    Attributes:
        numbers: (rows) which prompt each continues.
        tree, slot: (rows,) the trunk of each, and its place among the trunk's rows.
        slots: places of the trunk that has most rows.
        point: (rows,) how many of the trunk's tokens it sees.
        length: (rows,) tokens of its prompt.
        blank: (rows,) own columns before the first token: what a row has of its prompt stands at the right of ``rest``.
        rest: columns for what rows have of their prompts beside their trunks.
        written: new tokens of each row so far.
        trunk: by layer, keys and values of (trees, key heads, longest trunk, d).
        own: by layer, keys and values of (rows, key heads, rest + most, d).
    """

    numbers: list[int]
    tree: Tensor
    slot: Tensor
    slots: int
    point: Tensor
    length: Tensor
    blank: Tensor
    rest: int
    written: int
    trunk: list[tuple[Tensor, Tensor]]
    own: list[tuple[Tensor, Tensor]]
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, trees: Sequence[Row], numbers: list[int], keys: Iterator[Tensor], values: Iterator[Tensor], most: int) -> _Rows:
        """Rows for the targets of ``trees``, in their order, from each layer's (key heads, tokens of the trees, d)."""
        spans = []  # of each row: its tree, its branch's tokens in the batch, its point, its length
        for number, (row, start) in enumerate(zip(trees, _starts(trees), strict=True)):
            for target in row.targets.tolist():
                branch = int(row.branch[target])
                point = int(row.sees[target]) if branch else target + 1
                first = target + 1 - (int(row.positions[target]) + 1 - point)
                spans.append((number, start + first, start + target + 1, point, int(row.positions[target]) + 1))
        rest = max(end - first for _, first, end, _, _ in spans)
        trunks = [(start, start + row.trunk) for row, start in zip(trees, _starts(trees), strict=True)]
        longest = max(end - first for first, end in trunks)

        def gathered(values: Tensor) -> tuple[Tensor, Tensor]:
            trunk = values.new_zeros(len(trees), values.shape[0], longest, values.shape[2])
            own = values.new_zeros(len(spans), values.shape[0], rest + most, values.shape[2])
            for number, (first, end) in enumerate(trunks):
                trunk[number, :, : end - first] = values[:, first:end]
            for number, (_, first, end, _, _) in enumerate(spans):
                own[number, :, rest - (end - first) : rest] = values[:, first:end]
            return trunk, own

        layers = [(gathered(key), gathered(value)) for key, value in zip(keys, values, strict=True)]
        column = [torch.tensor(values, device=layers[0][0][0].device) for values in zip(*spans, strict=True)]
        tree, first, end, point, length = column
        return cls(
            numbers=numbers,
            tree=tree,
            slot=_slots(tree),
            slots=int(tree.bincount().max()),
            point=point,
            length=length,
            blank=rest - (end - first),
            rest=rest,
            written=0,
            trunk=[(key[0], value[0]) for key, value in layers],
            own=[(key[1], value[1]) for key, value in layers],
        )

    def only(self, kept: list[int]) -> _Rows:
        """These rows alone, and the trunks that they need; takes the keys and values away from this one."""
        index = torch.tensor(kept, device=self.tree.device)
        used, tree = self.tree[index].unique(return_inverse=True)
        whole = len(used) == len(self.trunk[0][0])
        for layer, ((trunk_key, trunk_value), (key, value)) in enumerate(zip(self.trunk, self.own, strict=True)):
            self.own[layer] = key[index], value[index]
            self.trunk[layer] = (trunk_key, trunk_value) if whole else (trunk_key[used], trunk_value[used])
        return _Rows(
            numbers=[self.numbers[at] for at in kept],
            tree=tree,
            slot=_slots(tree),
            slots=int(tree.bincount().max()),
            point=self.point[index],
            length=self.length[index],
            blank=self.blank[index],
            rest=self.rest,
            written=self.written,
            trunk=self.trunk,
            own=self.own,
        )

    def positions(self) -> Tensor:
        """(rows,) position of the token that is read next: the last one written."""
        self._biases = {}
        return self.length + self.written - 1

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """One token of each row: (rows, 1, heads, d). See :class:`esupport.models.attention.Structure`."""
        layer, column = layer_of(module), self.rest + self.written - 1
        keys, values = self.own[layer]
        keys[:, :, column], values[:, :, column] = key[:, :, 0], value[:, :, 0]
        keys, values = keys[:, :, : column + 1], values[:, :, : column + 1]
        trunk_keys, trunk_values = self.trunk[layer]
        asked = query.unflatten(1, (key.shape[1], -1))[:, :, :, 0] * how.scaling  # (rows, key heads, group, d)
        scores = torch.cat([self._of_trunk(asked, trunk_keys.mT), asked @ keys.mT], dim=-1)
        weights = (scores + self._bias(how.window, scores.dtype)).softmax(-1, dtype=torch.float32).to(value.dtype)
        on_trunk = trunk_keys.shape[2]
        attended = self._of_trunk(weights[..., :on_trunk], trunk_values) + weights[..., on_trunk:] @ values
        return attended.flatten(1, 2)[:, None]

    def _of_trunk(self, rows: Tensor, trunk: Tensor) -> Tensor:
        """(rows, key heads, group, n) of (rows, key heads, group, m), each row times its trunk's (key heads, m, n)."""
        _, heads, group, width = rows.shape
        placed = rows.new_zeros(len(trunk), self.slots, heads, group, width)
        placed[self.tree, self.slot] = rows
        product: Tensor = (placed.transpose(1, 2).flatten(2, 3) @ trunk).unflatten(2, (self.slots, group))
        return product.transpose(1, 2)[self.tree, self.slot]

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(rows, 1, 1, keys): 0 for what a row's new token sees of trunk and own columns, else minus infinity."""
        if window not in self._biases:
            device = self.tree.device
            at = self.length + self.written - 1
            on_trunk = torch.arange(self.trunk[0][0].shape[2], device=device)[None]
            columns = torch.arange(self.rest + self.written, device=device)[None]
            seen = torch.cat([on_trunk < self.point[:, None], columns >= self.blank[:, None]], dim=1)
            if window is not None:
                own = self.length[:, None] - self.rest + columns
                seen &= at[:, None] - torch.cat([on_trunk.expand(len(at), -1), own], dim=1) < window
            self._biases[window] = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)[
                :, None, None
            ]
        return self._biases[window]


def _slots(tree: Tensor) -> Tensor:
    """The place of each row among those of its tree."""
    same = (tree[:, None] == tree[None, :]).tril(-1)
    return same.sum(1)
