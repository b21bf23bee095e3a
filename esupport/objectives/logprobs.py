"""The one forward of the project: the log-probability of each target token of packed tree rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esupport.models.forward import hidden_states, logits_of
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# targets whose logits are in memory at one time, with their gradients and what makes them, a few times over: 26 megabytes
# each at 50 thousand tokens of vocabulary in float32
CHUNK = 128


def target_logprobs(policy: PeftModel | PreTrainedModel, batch: Batch) -> Tensor:
    """Log p(target | all it may see) for every target of ``batch``.

    The language-model head runs on the hidden states that predict a target and on no other, a chunk at a time; a chunk's
    logits are computed again for its gradient, so memory does not grow with vocabulary times length.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: packed tree rows.

    Returns:
        (n,) float32, in the order of ``batch.targets``.
    """
    hidden = hidden_states(policy, batch)[batch.parents]

    def logprobs(states: Tensor, targets: Tensor) -> Tensor:
        return -functional.cross_entropy(logits_of(policy, states), targets, reduction="none")

    chunks = zip(hidden.split(CHUNK), batch.targets.split(CHUNK), strict=True)
    return torch.cat([checkpoint(logprobs, *chunk, use_reentrant=False) for chunk in chunks])
