"""Prompts are read: each trunk by itself, then what hangs off the trunks, flat.

So what a trunk gives depends on nothing else, and can be had again without reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esupport.generators.growing import Rows, Span
from esupport.models.attention import Layers
from esupport.models.forward import logits_of
from esupport.models.trunk import States
from esupport.rendering.packing import collate
from esupport.rendering.row import Row, common_prefix, grow
from esupport.rendering.template import Response

if TYPE_CHECKING:
    from peft import PeftModel

_PREFILL = 8192  # tokens of several trees whose branches are read in one forward: bounds memory

Ids = tuple[int, ...]
ReadTrunk = Callable[[Ids], States]


def read_trunk(policy: PeftModel, ids: Ids) -> States:
    """A trunk of these tokens, read by itself: equal tokens give equal bits."""
    return States.read(policy, collate([grow("trunk", ids, [_scored(ids)])], 0, 0).to(policy.device))


def prefill(
    policy: PeftModel, prompts: Sequence[Ids], trunks: Sequence[Ids], most: int, read: ReadTrunk
) -> tuple[Tensor, Rows]:
    """Logits behind each prompt, (prompts, vocabulary), and the rows that go on from there."""
    members: dict[Ids, list[int]] = {}
    for number, trunk in enumerate(trunks):
        members.setdefault(trunk, []).append(number)
    numbers, spans, trees, end = [], list[Span](), list[Row](), 0
    for tree, (trunk, own) in enumerate(members.items()):
        for prompt in (prompts[number] for number in own):
            point, first = common_prefix(trunk, prompt), end
            end = first + len(prompt) - point
            spans.append(Span(tree, point, first, end))
        trees.append(grow("prompts", trunk, [_scored(prompts[number]) for number in own]))
        numbers += own
    known = [read(trunk) for trunk in members]
    parts = [_branches(policy, [trees[i] for i in group], [known[i] for i in group]) for group in _groups(trees)]
    hidden = torch.cat([part.hidden for part in parts])
    last = [hidden[span.end - 1] if span.end > span.first else known[span.tree].hidden[span.point - 1] for span in spans]
    return logits_of(policy, torch.stack(last)), Rows.of(numbers, spans, known, _joined(parts), most)


def _scored(prompt: Ids) -> Response:
    return Response(prompt[:-1], prompt[-1:], 0)


def _groups(trees: Sequence[Row]) -> Iterator[list[int]]:
    """Trees whose branches are read together: a pure function of the trees."""
    group: list[int] = []
    for number, row in enumerate(trees):
        if group and sum(len(trees[i]) for i in group) + len(row) > _PREFILL:
            yield group
            group = []
        group.append(number)
    yield group


def _branches(policy: PeftModel, trees: Sequence[Row], trunks: Sequence[States]) -> States:
    """All branches of these trees, behind their trunks."""
    before = _joined(trunks)
    if not any(row.branches for row in trees):  # all prompts lie on their trunks
        return States(trunks[0].hidden[:0], {layer: (key[:, :0], value[:, :0]) for layer, (key, value) in before.items()})
    return States.read(policy, collate(trees, 0, 0).trunks_first().to(policy.device), before)


def _joined(parts: Sequence[States]) -> Layers:
    """Keys and values of all parts, one behind the other."""
    if len(parts) == 1:
        return parts[0].layers
    return {
        layer: (
            torch.cat([part.layers[layer][0] for part in parts], dim=1),
            torch.cat([part.layers[layer][1] for part in parts], dim=1),
        )
        for layer in parts[0].layers
    }
