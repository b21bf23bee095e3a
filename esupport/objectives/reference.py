"""Log-probabilities that are measured once: a system's scores of completions, kept in the store.

The reference of preference training is a frozen adapter (or none) on the policy's own base weights. There is never a second
model: its weights are put into the policy's place, the completions are scored, and only the scores are kept
(:class:`esupport.rendering.row.Row`.reference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import Progress

from esupport.errors import UserError
from esupport.models.slot import Slot
from esupport.models.weights import weights_digest
from esupport.objectives.logprobs import target_logprobs
from esupport.rendering.packing import pack
from esupport.rendering.row import Floats, Row
from esupport.rendering.rows import WINDOW, Parts, Rows
from esupport.store import Stage, Store

if TYPE_CHECKING:
    from peft import PeftModel

# what a kept score means; a new definition is a new text
DEFINITION = "sum over a completion's tokens, end of turn included, of the float32 log-softmax at temperature 1"
# how far policy and reference may stand apart before training: nats a completion in float32, a token in bfloat16
FLOAT32_BOUND, BFLOAT16_BOUND = 1e-3, 2e-2
_CHECKED = 32  # rows that are scored again


class Scorer:
    """Scores tree rows under adapters of one backbone.

    Args:
        slot: the model.
        store: where scores are kept, by weights, arithmetic, token rows and definition, and nothing else.
        tokens_per_batch: bound on one forward pass.
        precision: the trainer's, since the reference must round as training does.
    """

    def __init__(self, slot: Slot, store: Store, tokens_per_batch: int, precision: str) -> None:
        self.slot, self.store = slot, store
        self.tokens_per_batch, self.precision = tokens_per_batch, precision

    def scores(self, rows: Rows, adapter: Path | None) -> tuple[Parts[Floats], Stage]:
        """Log-probability of each response of each row, (responses,) a row, and the stage that keeps them.

        Raises:
            UserError: a kept score is not a number, or there are not as many as responses.
        """
        inputs = {
            "definition": DEFINITION,
            "rows": rows.digest,
            "adapter": weights_digest(adapter) if adapter else None,
            "precision": "bf16" if "bf16" in self.precision else "32",
            **self.slot.backbone.identity(),
        }

        def make(folder: Path) -> None:
            self.slot.trunks.clear()  # what was written with the same weights is done: scoring has the memory
            with self.slot.speaking(adapter) as policy:
                measured = list(score(policy, rows, self.tokens_per_batch, self.precision, "log-probabilities"))
            np.save(folder / "scores.npy", np.concatenate(measured), allow_pickle=False)

        stage = self.store.stage("scores", inputs, make)
        kept = np.load(stage.folder / "scores.npy", allow_pickle=False)
        if len(kept) != rows.responses.sum() or not np.isfinite(kept).all():
            raise UserError(f"paths.store: {stage.folder} does not hold a score for each completion; remove it")
        return Parts(kept, np.cumsum([0, *rows.responses])), stage


@torch.no_grad()
def score(
    policy: PeftModel, rows: Sequence[Row], tokens_per_batch: int, precision: str, shown_as: str | None = None
) -> Iterator[Floats]:
    """Log-probability of each response of each row under ``policy`` as it is, in eval mode: (responses,) a row.

    Rows are read a window after the other. ``shown_as`` stands before a progress bar; None shows none.
    """
    was_training = policy.training
    policy.eval()
    try:
        with Progress(disable=shown_as is None) as bar:
            tell = partial(bar.advance, bar.add_task(shown_as or "", total=len(rows)))
            for start in range(0, len(rows), WINDOW):
                with _arithmetic(policy, precision):  # not while the scores are handed out
                    scores = _score(policy, rows[start : start + WINDOW], tokens_per_batch, tell)
                yield from scores
    finally:
        policy.train(was_training)


def _score(policy: PeftModel, rows: Sequence[Row], tokens_per_batch: int, tell: Callable[[float], None]) -> list[Floats]:
    """The scores of some rows; ``tell`` is given, with each batch, how many rows' worth of work it was."""
    numbered = [replace(row, name=str(number)) for number, row in enumerate(rows)]
    scores: list[list[float]] = [[] for _ in rows]
    batches = pack(numbered, tokens_per_batch)
    for batch in batches:
        sums = torch.zeros(len(batch.names), dtype=torch.float64)
        sums.index_add_(0, batch.response, target_logprobs(policy, batch.to(policy.device)).cpu().double())
        for number, of_response in zip(batch.names, sums.tolist(), strict=True):
            scores[int(number)].append(of_response)
        tell(len(rows) / len(batches))
    return [np.array(of_row, dtype=np.float32) for of_row in scores]


def check_start(policy: PeftModel, rows: Sequence[Row], tokens_per_batch: int, precision: str) -> None:
    """See that the policy, before its first step, is the reference: log-ratios are 0.

    All responses are scored again or, of more than 32 rows, those of 32 that are spread evenly: a wrong adapter, stale scores
    and dropout show in any, and a sweep over kept scores would else take a reference pass for each of its runs.

    The bound is 1e-3 nats a completion where all is float32; where weights or arithmetic are bfloat16, 0.02 nats a token, since
    packing changes their rounding.

    Raises:
        UserError: it is not: a wrong adapter, a stale score, or dropout.
    """
    coarse = "bf16" in precision or policy.dtype != torch.float32
    spread = [rows[at] for at in sorted({*np.linspace(0, len(rows) - 1, _CHECKED).round().astype(int).tolist()})]
    scores = [*score(policy, spread, tokens_per_batch, precision, "start seen to be the reference")]
    for row, now in zip(spread, scores, strict=True):
        lengths = np.bincount(row.response, minlength=row.responses)
        bound = BFLOAT16_BOUND * lengths if coarse else np.full(row.responses, FLOAT32_BOUND)
        apart = np.abs(now - row.reference)
        if not (apart <= bound).all():  # nan too
            worst = int(np.nan_to_num(apart - bound, nan=np.inf).argmax())
            raise UserError(
                f"objective: before training, policy and reference differ by {apart[worst]:.3g} nats on completion {worst} of "
                f"{row.name} (bound {bound[worst]:.3g}): the reference's scores are not those of the policy's start"
            )


def _arithmetic(policy: PeftModel, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic that the trainer's ``precision`` trains in."""
    if "bf16" not in precision:
        return nullcontext()
    return torch.autocast(policy.device.type, dtype=torch.bfloat16)
