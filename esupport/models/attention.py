"""Attention over packed tree rows, registered with transformers as the implementation ``tree``.

A forward is handed the rows' structure beside the ids, and each layer attends through it: on a CPU piece by piece, on CUDA
through FlexAttention's block mask, on other devices through one mask over everything. A forward without a structure attends
as ``sdpa`` does.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from esupport.errors import UserError
from esupport.models.pieces import Pieces
from esupport.rendering.mask import may_see, visible
from esupport.rendering.packing import Batch

NAME = "tree"


class Structure(Protocol):
    """What a layer attends through."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """(rows, length, heads, d) of (rows, heads, length, d) queries and (rows, key heads, length, d) keys and values."""
        ...


@dataclass(frozen=True)
class Scores:
    """How a layer scores keys: the scale, and a sliding window in positions."""

    scaling: float
    window: int | None


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree: Structure | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it.

    Raises:
        UserError: the model attends in a way that tree rows do not know.
    """
    strange = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    strange += ["values of another width"] if value.shape[-1] != query.shape[-1] else []
    if strange:
        raise UserError(f"model: tree rows know no attention with {strange[0]}")
    if tree is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **others,
        )
    if dropout:
        raise UserError("model: tree rows know no attention with dropout")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as it does for PyTorch's own attention
        query, key, value = (states.to(torch.get_autocast_dtype(kind)) for states in (query, key, value))
    how = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window)
    return tree.attend(module, query, key, value, how), None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def structure(batch: Batch) -> Structure:
    """The structure of a batch for the device it lies on."""
    kinds: dict[str, type[Pieces | Blocks]] = {"cpu": Pieces, "cuda": Blocks}
    return kinds.get(batch.ids.device.type, Matrix)(batch)


@dataclass
class Kept:
    """Attends as another structure does, and keeps every layer's keys and values: (key heads, length, d)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    inner: Structure | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        self.keys.append(key[0])
        self.values.append(value[0])
        return cast("Structure", self.inner).attend(module, query, key, value, how)


@dataclass
class Blocks:
    """FlexAttention: blocks of 128 by 128 that hold nothing to see are skipped.

    Beyond its limit of compilations PyTorch would go on uncompiled, with all scores in memory: that is an error here.
    """

    batch: Batch
    masks: dict[int | None, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch._dynamo.config.recompile_limit = 64  # training or not, with a window or not, in each arithmetic
        torch._dynamo.config.fail_on_recompile_limit_hit = True

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        from transformers.integrations.flex_attention import flex_attention_forward

        if how.window not in self.masks:
            self.masks[how.window] = self._block_mask(how.window)
        attended, _ = flex_attention_forward(module, query, key, value, self.masks[how.window], scaling=how.scaling)
        return attended

    def _block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        tree, branch, sees, positions = self.batch.tree, self.batch.branch, self.batch.sees, self.batch.positions
        length = len(tree)
        # as a tensor: a number would be compiled in, once for each
        reach = torch.tensor(length if window is None else window, device=tree.device)

        def seen(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return may_see(tree, branch, sees, positions, reach, query, key)

        # compiled, it needs no matrix of all tokens by all
        return create_block_mask(seen, None, None, length, length, device=str(tree.device), _compile=True)


@dataclass
class Matrix:
    """One mask of all queries by all keys, for devices that have nothing better."""

    batch: Batch
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = self.batch.ids.device.type
        warnings.warn(f"on {kind}, attention scores all tokens with all: slower than on cpu or cuda", stacklevel=2)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        if how.window not in self.masks:
            b = self.batch
            self.masks[how.window] = visible(b.tree, b.branch, b.sees, b.positions, how.window)
        mask = self.masks[how.window]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=how.scaling, enable_gqa=True)
        return attended.transpose(1, 2)
