"""Many continuations of few beginnings, decoded together: the tree row, growing.

Prompts of one family hang off one trunk. When all are read, each step adds one token to every row. A row's keys are those of
its trunk, kept once for its family, and its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from esupport.generators.prefill import Ids, ReadTrunk, prefill
from esupport.models.forward import logits_of, through

if TYPE_CHECKING:
    from peft import PeftModel

LEAST_ROWS = 4  # 1 to 3 rows round differently from more
_SHRINK = 0.75  # rows that are done are taken out when no more than this share goes on: each time copies what is kept

Draw = Callable[[Tensor, Sequence[int]], Tensor]
Done = Callable[[Sequence[int]], bool]


def decode(
    policy: PeftModel,
    prompts: Sequence[Ids],
    trunks: Sequence[Ids],
    most: int,
    draw: Draw,
    done: Done,
    read: ReadTrunk,
) -> list[list[int]]:
    """New token ids of each prompt.

    Args:
        policy: the model, in eval mode.
        prompts: token ids.
        trunks: of each prompt, what those of its family begin with; its first token is the prompt's.
        most: how many tokens are written at most.
        draw: (rows,) next tokens, given (rows, vocabulary) logits and the prompts that the rows continue, by number.
        done: whether these tokens end a reply.
        read: reads a trunk, or has it still.
    """
    dummies = [0] * (LEAST_ROWS - len(prompts))
    asked = [*range(len(prompts)), *dummies]
    logits, rows = prefill(policy, [prompts[at] for at in asked], [trunks[at] for at in asked], most, read)
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
