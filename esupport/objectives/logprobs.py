"""The one forward of the project: the log-probability of each target token of packed tree rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from esupport.rendering.mask import attention_mask, visible
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def target_logprobs(policy: PeftModel | PreTrainedModel, batch: Batch) -> Tensor:
    """Log p(target | all it may see) for every target of ``batch``.

    The language-model head runs on the hidden states that predict a target and on no other.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: packed tree rows.

    Returns:
        (n,) float32, in the order of ``batch.targets``.
    """
    model = cast("Any", policy.get_base_model() if isinstance(policy, PeftModel) else policy)
    config = model.config.get_text_config()
    seen = visible(batch.tree, batch.branch, batch.sees, batch.positions)
    hidden = model.get_decoder()(
        input_ids=batch.ids,
        attention_mask=attention_mask(seen, batch.positions, config, model.dtype),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[batch.parents]).float()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 bends its logits behind the head
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -functional.cross_entropy(logits, batch.targets, reduction="none")
