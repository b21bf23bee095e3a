"""The one forward of the project: the log-probability of each target token of packed tree rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from esupport.errors import UserError
from esupport.rendering.mask import attention_mask, visible
from esupport.rendering.packing import Batch, pack
from esupport.rendering.row import grow
from esupport.rendering.template import Response

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


@torch.no_grad()
def verify_tree_row(policy: PeftModel) -> None:
    """See that this model's tree row gives what its own forward gives, on a trunk with two branches.

    Raises:
        UserError: it does not: the model scales its logits, ignores the mask or the positions, or attends otherwise.
    """
    base = cast("PreTrainedModel", policy.get_base_model())
    vocabulary = base.config.get_text_config().vocab_size
    ids = [11 + (7919 * i) % (vocabulary - 11) for i in range(64)]
    replies = [Response(tuple(ids[:n]), tuple(ids[n + shift : n + shift + 6]), 0) for n, shift in ((40, 0), (20, 30), (30, 17))]
    (batch,) = pack([grow("probe", ids[:46], replies)], tokens_per_batch=1)
    was_training = policy.training
    policy.eval()
    got = target_logprobs(policy, batch.to(policy.device))
    own = []
    for reply in replies:
        whole = torch.tensor([reply.ids], device=policy.device)
        logits = policy(input_ids=whole, use_cache=False).logits[0, -1 - len(reply.completion) : -1].float()
        own.append(-functional.cross_entropy(logits, whole[0, -len(reply.completion) :], reduction="none"))
    apart = (got - torch.cat(own)).abs().mean().item()
    # how far apart is too far depends on the model's rounding: far less than a wrong mask does, here one without branch points
    unlimited = replace(batch, sees=torch.where(batch.branch > 0, len(ids), 0))
    wrong = (target_logprobs(policy, unlimited.to(policy.device)) - torch.cat(own)).abs().mean().item()
    policy.train(was_training)
    if not apart < max(1e-3, wrong / 5):
        raise UserError(
            f"model: {base.config.model_type} is not supported: its log-probabilities in a tree row are off by {apart:.2g}"
        )
