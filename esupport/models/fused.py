"""LoRA's products with fewer passes over memory, and with less kept: on a CPU what lies between two costs as much as both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


class _Adapted(torch.autograd.Function):
    """W x + s B A x of an x that is made of the inputs, which are kept in its place.

    PEFT writes W x, B A x, s B A x and the sum in turn, and so do the gradients; here all is added up where it stands. The
    adapter's part comes first: checkpointing then knows the product with W, which it keeps, for the whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        made: Callable[..., Tensor] | None,
        scaling: float,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        x = made(*inputs) if made else inputs[0]
        flat = x.flatten(0, -2)
        low = flat @ a.T
        scaled = low * scaling
        result = scaled @ b.T if bias is None else torch.addmm(bias, scaled, b.T)
        result = result.addmm_(flat, weight.T)
        ctx.save_for_backward(weight, a, b, low, *inputs)
        ctx.made, ctx.scaling, ctx.bias = made, scaling, bias is not None
        return result.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, low, *inputs = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        to_low = (grad @ b).mul_(ctx.scaling)
        to_b = (grad.T @ low).mul_(ctx.scaling)
        leaves = [values.detach().requires_grad_() for values in inputs]
        with torch.enable_grad():
            x = ctx.made(*leaves) if ctx.made else leaves[0]
        to_a = to_low.T @ x.detach().flatten(0, -2)
        to_x = (grad @ weight).addmm_(to_low, a).view(x.shape)
        if ctx.made is None:
            return None, None, None, None, to_a, to_b, to_x
        x.backward(to_x)
        return None, None, None, None, to_a, to_b, *(leaf.grad for leaf in leaves)


def fuse(policy: PeftModel) -> None:
    """Have every plain LoRA layer of ``policy`` compute so; its weights, and how they are saved, stay what they are.

    Where a layer is merged, switched off, drops out or computes in mixed precision with weights of another, PEFT's own
    computation stands. Of a gated MLP, the gate and what it lets through are kept, and not what is made of them.
    """
    for module in policy.modules():
        if isinstance(module, Linear):
            module.forward = partial(_linear, module)  # type: ignore[method-assign]
        elif all(hasattr(module, part) for part in _PARTS) and _is_gated(module):
            module.forward = partial(_gated, module)


def _linear(module: Linear, x: Tensor, *others: Any, **settings: Any) -> Tensor:
    result = None if others or settings else _adapted(module, None, x)
    return type(module).forward(module, x, *others, **settings) if result is None else result


def _gated(mlp: Any, x: Tensor) -> Tensor:
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)

    def let_through(gate: Tensor, up: Tensor) -> Tensor:
        product: Tensor = mlp.act_fn(gate) * up
        return product

    result: Tensor | None = _adapted(mlp.down_proj, let_through, gate, up) if isinstance(mlp.down_proj, Linear) else None
    if result is None:
        result = mlp.down_proj(let_through(gate, up))
    return result


def _adapted(module: Linear, made: Callable[..., Tensor] | None, *inputs: Tensor) -> Tensor | None:
    """The layer's output, None where PEFT's own forward is to be asked."""
    base, names = module.get_base_layer(), [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or len(names) != 1 or type(base) is not nn.Linear:
        return None
    (name,) = names
    weight, dropout = base.weight, module.lora_dropout[name]
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else module.lora_A[name].weight.dtype
    drops = module.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
    if name in module.lora_variant or module.lora_bias[name] or weight.requires_grad or drops or weight.dtype != dtype:
        return None
    a, b = module.lora_A[name].weight.to(dtype), module.lora_B[name].weight.to(dtype)
    given = (values.to(dtype) for values in inputs)
    apply = cast("Callable[..., Tensor]", _Adapted.apply)
    return apply(made, module.scaling[name], weight, base.bias, a, b, *given)


@torch.no_grad()
def _is_gated(mlp: Any) -> bool:
    """Whether the module's own forward is that of a gated MLP: its parts may have other uses."""
    layer = mlp.down_proj.get_base_layer() if isinstance(mlp.down_proj, Linear) else mlp.down_proj
    weight = next(mlp.gate_proj.parameters())
    if type(layer) is not nn.Linear:
        return False
    x = torch.linspace(-1, 1, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None, None]
    return torch.allclose(mlp(x), _gated(mlp, x), rtol=1e-2, atol=1e-3)
