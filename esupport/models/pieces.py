"""Attention piece by piece, on a CPU: nothing is computed for keys that no token of a piece sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
        kind, before = (how.window, query.dtype), key.shape[2] - query.shape[2]
        pieces = tuple(piece for piece in self.batch.pieces if piece.first >= before)
        if kind not in self.masks:
            seen = [piece.mask(self.batch.who, how.window) for piece in pieces]
            sharing = query.shape[1] // key.shape[1]
            self.masks[kind] = [None if mask is None else _additive(mask, query.dtype).repeat(sharing, 1) for mask in seen]
        apply = cast("Callable[..., Tensor]", _InPieces.apply)
        return apply(query, key, value, pieces, self.masks[kind], how.scaling)


class _InPieces(torch.autograd.Function):
    """PyTorch's CPU kernel on each piece. Autograd's own slices would each cost a gradient as large as the whole."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], masks: list[Tensor | None], scale: float
    ) -> Tensor:
        heads, key_heads, before = query.shape[1], key.shape[1], key.shape[2] - query.shape[2]
        out = query.new_empty(query.transpose(1, 2).shape)
        sums = []
        for piece, mask in zip(pieces, masks, strict=True):
            shared, own = _Shared(heads, key_heads, mask), slice(piece.first - before, piece.end - before)
            attended, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                shared.queries(query[:, :, own]),
                *shared.keys(piece.keys(key), piece.keys(value)),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            out[:, own] = shared.heads(attended).transpose(1, 2)
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.pieces, ctx.masks, ctx.scale = pieces, masks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        grad, before = grads[0].transpose(1, 2), key.shape[2] - query.shape[2]
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for piece, mask, logsumexp in zip(ctx.pieces, ctx.masks, sums, strict=True):
            shared, own = _Shared(query.shape[1], key.shape[1], mask), slice(piece.first - before, piece.end - before)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                shared.queries(grad[:, :, own]),
                shared.queries(query[:, :, own]),
                *shared.keys(piece.keys(key), piece.keys(value)),
                shared.queries(out.transpose(1, 2)[:, :, own]),
                logsumexp,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            to_query[:, :, own] = shared.heads(parts[0])
            for whole, part in zip((to_key, to_value), shared.gathered(*parts[1:]), strict=True):
                whole[:, :, piece.trunk : piece.trunk + piece.point] += part[:, :, : piece.point]
                whole[:, :, piece.first : piece.end] += part[:, :, piece.point :]
        return to_query, to_key, to_value, None, None, None


class _Shared(NamedTuple):
    """How query heads share key heads in a kernel that has equally many of both.

    Under a mask the queries that share keys stand one behind the other, so that keys are neither repeated nor their gradients
    summed; by order alone the kernel leaves out what is later, which it could not then.
    """

    query_heads: int
    key_heads: int
    mask: Tensor | None

    def queries(self, values: Tensor) -> Tensor:
        """(1, query heads, n, d) as the kernel takes them."""
        return values if self.mask is None else values.unflatten(1, (self.key_heads, -1)).flatten(2, 3)

    def heads(self, values: Tensor) -> Tensor:
        """What :meth:`queries` was given, of its result."""
        return values if self.mask is None else values.unflatten(2, (self.query_heads // self.key_heads, -1)).flatten(1, 2)

    def keys(self, *values: Tensor) -> list[Tensor]:
        """Each (1, key heads, n, d) as the kernel takes it."""
        times = self.query_heads // self.key_heads if self.mask is None else 1
        return [value.repeat_interleave(times, dim=1) for value in values] if times > 1 else [*values]

    def gathered(self, *grads: Tensor) -> list[Tensor]:
        """The gradients of what :meth:`keys` was given, of those of its result."""
        return [grad.unflatten(1, (self.key_heads, -1)).sum(2) for grad in grads] if self.mask is None else [*grads]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
