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
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from esupport.errors import UserError
from esupport.models.pieces import Pieces
from esupport.rendering.mask import may_see, reach
from esupport.rendering.packing import Batch

NAME = "tree"


class Structure(Protocol):
    """What a layer attends through."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """(rows, n, heads, d) of (rows, heads, n, d) queries and (rows, key heads, length, d) keys and values.

        The queries are those of the last ``n`` tokens.
        """
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


Layers = dict[int, tuple[Tensor, Tensor]]  # by layer, keys and values of (key heads, length, d) each


@dataclass(frozen=True)
class Kept:
    """Attends as another structure does, and keeps what each layer is given."""

    layers: Layers
    inner: Structure

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        self.layers.setdefault(layer_of(module), (key[0], value[0]))  # not again where it is computed again for its gradient
        return self.inner.attend(module, query, key, value, how)


@dataclass(frozen=True)
class Behind:
    """Attends as another structure does, behind tokens whose keys and values are there already."""

    layers: Layers
    inner: Structure

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        keys, values = self.layers[layer_of(module)]
        key, value = torch.cat([keys[None], key], dim=2), torch.cat([values[None], value], dim=2)
        return self.inner.attend(module, query, key, value, how)


def layer_of(module: nn.Module) -> int:
    """The number of the layer that attends."""
    return int(cast("Any", module).layer_idx)


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
        before = key.shape[2] - query.shape[2]
        if before:  # one shape for all, since it is compiled for each: in a part, the trunk's attention is computed for nothing
            query = functional.pad(query, (0, 0, before, 0))
        attended, _ = flex_attention_forward(module, query, key, value, self.masks[how.window], scaling=how.scaling)
        return attended[:, before:]

    def _block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        tree, branch, sees, positions = self.batch.who
        length, farthest = len(tree), reach(self.batch.who, window)

        def seen(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return may_see(tree, branch, sees, positions, farthest, query, key)

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
            every, who = torch.arange(len(self.batch.ids), device=query.device), self.batch.who
            self.masks[how.window] = may_see(*who, reach(who, how.window), every[:, None], every)
        mask = self.masks[how.window][-query.shape[2] :]
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=how.scaling, enable_gqa=True
        )
        return attended.transpose(1, 2)
