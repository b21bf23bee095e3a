"""The one forward of the project: the log-probability of each target token of packed tree rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esupport.models.forward import base_of, hidden_states, logits_of
from esupport.models.trunk import Trunk
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# targets whose logits are in memory at one time, with their gradients and what makes them, a few times over: 26 megabytes
# each at 50 thousand tokens of vocabulary in float32
CHUNK = 128

_Logprobs = Callable[[Tensor, Tensor], Tensor]


def shares(policy: PeftModel | PreTrainedModel, batch: Batch, loss: Callable[[Tensor, Batch], Tensor]) -> Iterator[Tensor]:
    """Numbers whose gradients add up to that of the batch's loss: one, or one for each of ``batch.parts``.

    Go backwards from each before the next is asked for: no more than a trunk and one part of it are in memory then.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: packed tree rows.
        loss: of log-probabilities, and of the batch or part they belong to; over the parts of a batch it is a sum.
    """
    if not batch.parts:
        yield loss(target_logprobs(policy, batch), batch)
        return
    trunk = Trunk(policy, batch.parts[0])
    for part in batch.parts[1:]:
        yield loss(target_logprobs(policy, part, trunk), part)
    yield trunk.gradient()


def target_logprobs(policy: PeftModel | PreTrainedModel, batch: Batch, trunk: Trunk | None = None) -> Tensor:
    """Log p(target | all it may see) for every target of ``batch``.

    The language-model head runs on the hidden states that predict a target and on no other, a chunk at a time, and a chunk's
    logits are not kept: memory does not grow with vocabulary times length. A head that is trained computes them again for
    its gradient.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: packed tree rows.
        trunk: of which ``batch`` is a part.

    Returns:
        (n,) float32, in the order of ``batch.targets``.

    Raises:
        ValueError: a gradient of a batch in parts: see :func:`shares`.
    """
    if batch.parts:
        if torch.is_grad_enabled():
            raise ValueError("the gradient of a batch in parts goes through its shares")
        trunk = Trunk(policy, batch.parts[0])
        return torch.cat([target_logprobs(policy, part, trunk) for part in batch.parts[1:]])
    hidden = (trunk.hidden_states(batch) if trunk else hidden_states(policy, batch))[batch.parents]

    def logprobs(states: Tensor, targets: Tensor) -> Tensor:
        return -functional.cross_entropy(logits_of(policy, states), targets, reduction="none")

    head = base_of(policy).get_output_embeddings()
    trained = any(weight.requires_grad for weight in head.parameters())
    of_chunk: Callable[..., Tensor] = partial(checkpoint, use_reentrant=False) if trained else _UnderFrozenHead.apply
    chunks = zip(hidden.split(CHUNK), batch.targets.split(CHUNK), strict=True)
    return torch.cat([of_chunk(logprobs, *chunk) for chunk in chunks])


class _UnderFrozenHead(torch.autograd.Function):
    """A chunk's log-probabilities, and at once their gradients: each is that of one target, which its own state decides."""

    @staticmethod
    def forward(ctx: Any, logprobs: _Logprobs, states: Tensor, targets: Tensor) -> Tensor:
        if not ctx.needs_input_grad[1]:
            return logprobs(states, targets)
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            found = logprobs(leaf, targets)
            found.sum().backward()
        ctx.save_for_backward(leaf.grad)
        return found.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (of_states,) = ctx.saved_tensors
        return None, (grads[0][:, None] * of_states).to(of_states.dtype), None
