"""Phase 1: supervised fine-tuning on the supporter's turns and the replayed instruction answers."""

from __future__ import annotations

from torch import Tensor

from esupport.objectives.losses import sft_loss
from esupport.objectives.module import Objective
from esupport.rendering.packing import Batch


class SupervisedFineTuning(Objective):
    """Maximises the likelihood of every target token; see :class:`esupport.objectives.module.Objective`."""

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """The batch's share of the mean negative log-likelihood of the step's target tokens."""
        return sft_loss(logprobs, batch.step_targets)
