"""Phase 1: supervised fine-tuning on the supporter's turns and the replayed instruction answers."""

from __future__ import annotations

from torch import Tensor

from esupport.objectives.module import Objective
from esupport.rendering.packing import Batch


class SupervisedFineTuning(Objective):
    """Maximises the likelihood of every target token; see :class:`esupport.objectives.module.Objective`."""

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """-sum log P(y | x, P) over the batch's target tokens, over those of the step: the paper's loss of phase 1."""
        return -logprobs.sum() / batch.step_targets
