"""Rows that are being written, in one batch: keys and values of their trunks, once for each trunk, and their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esupport.models.attention import Layers, Scores, layer_of
from esupport.models.trunk import States


class Span(NamedTuple):
    """Where a prompt lies: its tree, how much of the trunk it begins with, and its own tokens among those of all branches."""

    tree: int
    point: int
    first: int
    end: int


@dataclass
class Rows:
    """Rows that are being written; a structure that layers attend through.

    Attributes:
        numbers: (rows,) which prompt each continues.
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
    def of(cls, numbers: list[int], spans: Sequence[Span], trunks: Sequence[States], branches: Layers, most: int) -> Rows:
        """Rows of these spans of all branches; takes keys and values away, layer by layer."""
        rest, longest = max(span.end - span.first for span in spans), max(len(trunk.hidden) for trunk in trunks)

        def placed(values: Sequence[Tensor]) -> Tensor:
            trunk = values[0].new_zeros(len(values), values[0].shape[0], longest, values[0].shape[2])
            for place, value in zip(trunk, values, strict=True):
                place[:, : value.shape[1]] = value
            return trunk

        def owned(values: Tensor) -> Tensor:
            own = values.new_zeros(len(spans), values.shape[0], rest + most, values.shape[2])
            for place, span in zip(own, spans, strict=True):
                place[:, rest - (span.end - span.first) : rest] = values[:, span.first : span.end]
            return own

        layers = sorted(branches)
        own = [(owned(key), owned(value)) for key, value in map(branches.pop, layers)]
        sides = (zip(*(read.layers.pop(layer) for read in trunks), strict=True) for layer in layers)
        trunk = [(placed(keys), placed(values)) for keys, values in sides]
        tree, point, first, end = (torch.tensor(c, device=own[0][0].device) for c in zip(*spans, strict=True))
        return cls(
            numbers=numbers,
            tree=tree,
            slot=_slots(tree),
            slots=int(tree.bincount().max()),
            point=point,
            length=point + end - first,
            blank=rest - (end - first),
            rest=rest,
            written=0,
            trunk=trunk,
            own=own,
        )

    def only(self, kept: list[int]) -> Rows:
        """These rows alone, and the trunks that they need; takes the keys and values away from this one."""
        index = torch.tensor(kept, device=self.tree.device)
        used, tree = self.tree[index].unique(return_inverse=True)
        whole = len(used) == len(self.trunk[0][0])
        for layer, ((trunk_key, trunk_value), (key, value)) in enumerate(zip(self.trunk, self.own, strict=True)):
            self.own[layer] = key[index], value[index]
            self.trunk[layer] = (trunk_key, trunk_value) if whole else (trunk_key[used], trunk_value[used])
        return Rows(
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
