"""A backbone's forward over packed tree rows, and the proof that it is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from esupport.errors import UserError, first_line
from esupport.models.attention import NAME, Behind, Kept, Layers, Structure, structure
from esupport.rendering.packing import Batch, collate
from esupport.rendering.row import Row, grow
from esupport.rendering.template import Response

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUCKETS = {"cuda": 512}  # lengths are rounded up where attention is compiled for each
_EXACT = 5e-3  # nats a token in float32, beyond which a forward is another one


def hidden_states(
    policy: PeftModel | PreTrainedModel, batch: Batch, kept: Layers | None = None, behind: Layers | None = None
) -> Tensor:
    """(n, width) states behind the last layer of the tokens of ``batch``, in their order.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: packed tree rows.
        kept: gets every layer's keys and values, of the ``n`` tokens.
        behind: keys and values of the first tokens, which are not read again: ``n`` are the others.
    """
    whole, length = bucketed(batch), len(batch.ids)
    tree, first = structure(whole), 0
    if behind is not None:
        tree, first = Behind(behind, tree), next(iter(behind.values()))[0].shape[1]
    if kept is not None:
        tree = Kept(kept, tree)
    states = through(policy, whole.ids[None, first:], whole.positions[None, first:], tree)[0, : length - first]
    if kept is not None:  # without what fills a bucket
        kept.update({layer: (key[:, : length - first], value[:, : length - first]) for layer, (key, value) in kept.items()})
    return states


def through(policy: PeftModel | PreTrainedModel, ids: Tensor, positions: Tensor, tree: Structure) -> Tensor:
    """(rows, length, width) states of (rows, length) ids at their positions, attended through ``tree``."""
    model = base_of(policy)
    _check(model)
    # a mask in four dimensions is taken as it is: the model makes none of its own, and the structure has no use for it
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return cast(
        "Tensor",
        model.get_decoder()(
            input_ids=ids, position_ids=positions, attention_mask=nothing, use_cache=False, tree=tree
        ).last_hidden_state,
    )


def logits_of(policy: PeftModel | PreTrainedModel, hidden: Tensor) -> Tensor:
    """(n, vocabulary) float32 logits of (n, width) hidden states."""
    base = base_of(policy)
    logits: Tensor = base.get_output_embeddings()(hidden).float()
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def base_of(policy: PeftModel | PreTrainedModel) -> Any:
    """The model under the adapter."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def _check(model: Any) -> None:
    config = model.config.get_text_config()
    if config._attn_implementation != NAME:
        raise UserError(f"model: attention {config._attn_implementation} knows no tree rows; load it with {NAME}")
    others = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    if others:
        raise UserError(f"model: layers of type {min(others)} take no tree rows; use a model with full or sliding attention")


def bucketed(batch: Batch) -> Batch:
    """The batch, filled up with tokens that nobody sees where its device has buckets."""
    more = -len(batch.ids) % _BUCKETS.get(batch.ids.device.type, 1)
    ids, positions, branch, sees = (
        functional.pad(t, (0, more)) for t in (batch.ids, batch.positions, batch.branch, batch.sees)
    )
    tree = functional.pad(batch.tree, (0, more), value=-1)
    return replace(batch, ids=ids, positions=positions, branch=branch, sees=sees, tree=tree)


@torch.no_grad()
def verify_tree_row(policy: PeftModel) -> None:
    """See that this model's tree row gives what its own forward gives, on a trunk with two branches.

    Raises:
        UserError: it does not: the model scales its logits, ignores the structure or the positions, or attends otherwise.
    """
    base = cast("PreTrainedModel", policy.get_base_model())
    vocabulary = base.config.get_text_config().vocab_size
    ids = [11 + (7919 * i) % (vocabulary - 11) for i in range(64)]
    replies = [Response(tuple(ids[:n]), tuple(ids[n + shift : n + shift + 6]), 0) for n, shift in ((40, 0), (20, 30), (30, 17))]
    row = grow("probe", ids[:46], replies)
    was_training = policy.training
    policy.eval()

    def off(probe: Row) -> float:
        batch = collate([probe], len(probe.targets), probe.responses).to(policy.device)
        logits = logits_of(policy, hidden_states(policy, batch)[batch.parents])
        got = -functional.cross_entropy(logits, batch.targets, reduction="none")
        return (got - own).abs().mean().item()

    try:
        own = torch.cat([_alone(policy, reply) for reply in replies])
        apart, wrong = off(row), off(replace(row, sees=np.where(row.branch > 0, 46, 0).astype(np.int32)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: {base.config.model_type} is not supported: {first_line(error)}") from error
    policy.train(was_training)
    # with coarser weights, rounding decides how far apart is too far: far less than missing branch points do
    exact = all(weight.dtype == torch.float32 for weight in base.parameters())
    if not apart < (_EXACT if exact else max(_EXACT, wrong / 5)):
        raise UserError(
            f"model: {base.config.model_type} is not supported: its log-probabilities in a tree row are off by {apart:.2g}"
        )


def _alone(policy: PeftModel, reply: Response) -> Tensor:
    """(completion,) log-probabilities by the model's own forward."""
    whole = torch.tensor([reply.ids], device=policy.device)
    logits = policy(input_ids=whole, use_cache=False).logits[0, -1 - len(reply.completion) : -1].float()
    return -functional.cross_entropy(logits, whole[0, -len(reply.completion) :], reduction="none")
