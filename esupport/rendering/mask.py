"""The attention mask of tree rows, in the form that a model's attention implementation takes.

A token sees its own branch up to itself and, of its own tree's trunk, what stands before its branch point. Sliding
layers see of that only what is less than a window away, counted in positions, not in row indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esupport.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

IMPLEMENTATIONS = ("sdpa", "eager")
Mask = Tensor | dict[str, Tensor]


def visible(tree: Tensor, branch: Tensor, sees: Tensor, positions: Tensor) -> Tensor:
    """Which key each query sees.

    Args:
        tree, branch, sees, positions: (rows, length) integers; ``tree`` tells the packed trees of a row apart.

    Returns:
        (rows, length, length) booleans, query by key.
    """
    order = torch.arange(tree.shape[1], device=tree.device)
    same_tree = tree[:, :, None] == tree[:, None, :]
    same_branch = branch[:, :, None] == branch[:, None, :]
    earlier = order[:, None] >= order[None, :]
    trunk_before_branch_point = (branch[:, None, :] == 0) & (positions[:, None, :] < sees[:, :, None])
    return same_tree & torch.where(same_branch, earlier, trunk_before_branch_point)


def attention_mask(seen: Tensor, positions: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Mask:
    """The mask, or masks by layer type, that ``config``'s model takes as ``attention_mask``.

    Args:
        seen: (rows, length, length) booleans of :func:`visible`.
        positions: (rows, length) positions.
        config: the model's text configuration.
        dtype: the dtype of the attention scores, for eager attention, which adds the mask to them.

    Returns:
        (rows, 1, length, length): booleans for SDPA, 0 and the least number of ``dtype`` for eager attention.

    Raises:
        UserError: the model has layers that cannot take such a mask.
    """
    implementation = config._attn_implementation
    check_implementation(implementation)

    def form(mask: Tensor) -> Tensor:
        mask = mask[:, None]
        if implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    window: int | None = getattr(config, "sliding_window", None)

    def windowed() -> Tensor:
        apart = positions[:, :, None] - positions[:, None, :]
        return form(seen if window is None else seen & (apart < window))

    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return windowed()
    masks = {}
    for kind in sorted(set(layer_types)):
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"model: layers of type {kind} take no tree mask; use a model with full or sliding attention")
        masks[kind] = windowed() if kind == "sliding_attention" else form(seen)
    return masks


def check_implementation(name: str | None) -> None:
    """Raises ``UserError`` for an attention implementation that cannot take the tree mask."""
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attn_implementation: {name} takes no mask of its own shape, which the tree row needs; "
            f"use {' or '.join(IMPLEMENTATIONS)}"
        )
