"""What is computed anew in the backward pass, so that it need not be kept (gradient checkpointing; Chen et al. 2016)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Checkpointing = Literal["none", "selective", "full"]

_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def recompute(model: PreTrainedModel, checkpointing: Checkpointing, rank: int) -> None:
    """Have each layer of ``model`` keep less between its forward and its backward pass.

    Args:
        model: the frozen backbone.
        checkpointing: ``none`` keeps all; ``full`` keeps a layer's input alone, and computes the layer a second time;
            ``selective`` keeps what costs much to compute, products of matrices and attention, and computes the rest
            (norms, rotations, activations, and the adapter's own products) a second time.
        rank: the adapter's: a product over no more than so many numbers costs little.
    """
    if checkpointing == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if checkpointing == "selective":
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        settings["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_kept, rank))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)


def _kept(rank: int, _context: Any, operator: Any, *inputs: Any, **_others: Any) -> bool:
    """Whether the result of an operator is kept."""
    name = operator.name().removeprefix("aten::").partition(".")[0]
    if name in _PRODUCTS:
        left: Tensor = inputs[-2]
        return left.shape[-1] > rank
    return name in _ATTENTION
