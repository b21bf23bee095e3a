"""TRL's rows of a conversation, and what of a row or a batch of them is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.material import Unit
from benchmarks.work import Layout
from esupport.errors import UserError
from esupport.rendering.template import Response

IGNORED = -100  # the label of a token that is read and not learnt
TokenRow = dict[str, list[int]]


def rows(unit: Unit, layout: Layout) -> list[TokenRow]:
    """The rows of a conversation in the form that TRL's collators take."""
    if layout == "pair":
        return [
            {
                "prompt_ids": [*chosen.context],
                "chosen_ids": [*chosen.completion],
                "rejected_ids": [*rejected.completion],
            }
            for chosen, rejected in zip(unit[::2], unit[1::2], strict=True)
        ]
    if layout == "turn":
        return [labelled(response.ids, [response]) for response in unit]
    whole = max((response.ids for response in unit), key=len)
    if any(whole[: len(response.ids)] != response.ids for response in unit):
        raise UserError("a chat template that rewrites what was said allows no row a conversation")
    return [labelled(whole, unit)]


def labelled(ids: Sequence[int], responses: Sequence[Response]) -> TokenRow:
    """A row of ``ids`` in which the completions of ``responses`` are learnt; each response is a beginning of the row."""
    labels = [IGNORED] * len(ids)
    for response in responses:
        labels[len(response.context) : len(response.ids)] = response.completion
    return {"input_ids": [*ids], "labels": labels}


def length_of(row: TokenRow) -> int:
    """What a row is sorted by: its tokens, those that are read twice counted once or twice alike in all rows."""
    return sum(map(len, row.values()))


def sequences(row: TokenRow) -> list[tuple[int, int]]:
    """Tokens and targets of the sequences that the model reads for a row."""
    if "labels" in row:
        return [(len(row["labels"]), sum(label != IGNORED for label in row["labels"]))]
    return [(len(row["prompt_ids"]) + len(row[name]), len(row[name])) for name in ("chosen_ids", "rejected_ids")]


def labels_of(inputs: dict[str, Any]) -> Tensor:
    """(rows, length) targets of a forward, -100 elsewhere."""
    if "labels" in inputs:
        given: Tensor = inputs["labels"]
        return given.clone()
    ids: Tensor = inputs["input_ids"]
    return ids.masked_fill(inputs["completion_mask"] == 0, IGNORED)


def runs(labels: Tensor) -> list[tuple[int, ...]]:
    """The completions of a forward: runs of targets with nothing between them."""
    found: list[list[int]] = []
    for row in labels.tolist():
        inside = False
        for label in row:
            if label != IGNORED:
                found += [] if inside else [[]]
                found[-1].append(label)
            inside = label != IGNORED
    return [tuple(run) for run in found]
