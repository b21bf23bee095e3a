"""Attention piece by piece, on a CPU: nothing is computed for keys that no token of a piece sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from esupport.rendering.mask import Piece
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from esupport.models.attention import Scores


@dataclass
class Pieces:
    """Piece by piece: nothing is computed for keys that no token of a piece sees."""

    batch: Batch
    masks: dict[tuple[int | None, torch.dtype], list[Tensor | None]] = field(default_factory=dict)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """See :class:`Structure`."""
        kind = (how.window, query.dtype)
        if kind not in self.masks:
            seen = [piece.mask(self.batch.branch, self.batch.positions, how.window) for piece in self.batch.pieces]
            self.masks[kind] = [None if mask is None else _additive(mask, query.dtype) for mask in seen]
        apply = cast("Callable[..., Tensor]", _InPieces.apply)
        return apply(query, key, value, self.batch.pieces, self.masks[kind], how.scaling)


class _InPieces(torch.autograd.Function):
    """PyTorch's CPU kernel on each piece. Autograd's own slices would each cost a gradient as large as the whole."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], masks: list[Tensor | None], scale: float
    ) -> Tensor:
        heads = query.shape[1]
        out = query.new_empty(query.transpose(1, 2).shape)
        sums = []
        for piece, mask in zip(pieces, masks, strict=True):
            attended, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, piece.first : piece.end],
                *_spread(piece, heads, key, value),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            out[:, piece.first : piece.end] = attended.transpose(1, 2)
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.pieces, ctx.masks, ctx.scale = pieces, masks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        grad = grads[0].transpose(1, 2)
        heads, key_heads = query.shape[1], key.shape[1]
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for piece, mask, logsumexp in zip(ctx.pieces, ctx.masks, sums, strict=True):
            own = slice(piece.first, piece.end)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, own],
                query[:, :, own],
                *_spread(piece, heads, key, value),
                out.transpose(1, 2)[:, :, own],
                logsumexp,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            to_query[:, :, own] = parts[0]
            for whole, part in ((to_key, parts[1]), (to_value, parts[2])):
                gathered = part.unflatten(1, (key_heads, heads // key_heads)).sum(2)
                whole[:, :, piece.trunk : piece.trunk + piece.point] += gathered[:, :, : piece.point]
                whole[:, :, own] += gathered[:, :, piece.point :]
        return to_query, to_key, to_value, None, None, None


def _spread(piece: Piece, heads: int, *values: Tensor) -> list[Tensor]:
    """Keys or values of a piece, repeated for the query heads that share them."""
    return [piece.keys(value).repeat_interleave(heads // value.shape[1], dim=1) for value in values]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
