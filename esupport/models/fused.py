"""LoRA's forward with fewer passes over memory: what lies between two matrix products costs as much as they do, on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


class _Fused(LoraVariant):
    """W x + s B A x, where scaling and sum are part of the product with B; PEFT writes B A x, s B A x and the sum in turn."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_others: Any) -> Tensor:
        """(..., width) of (..., input) and the frozen layer's (..., width), as :class:`peft.tuners.lora.LoraVariant` has it."""
        first = module.lora_A[active_adapter]
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(first.weight.dtype)
        low: Tensor = first(module.lora_dropout[active_adapter](x))
        weight: Tensor = module.lora_B[active_adapter].weight
        scaling: float = module.scaling[active_adapter]
        if result.dtype != low.dtype:  # the frozen layer is coarser: the sum is taken in float32
            return result + low @ weight.T * scaling
        return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), weight.T, alpha=scaling).view_as(result)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The frozen weight and the adapter's part of it together, as in PEFT's own layer."""
        delta: Tensor = module.get_delta_weight(active_adapter)
        return orig_weight + delta.to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """The same, in place."""
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The frozen weight alone again."""
        delta: Tensor = module.get_delta_weight(active_adapter)
        return orig_weight - delta.to(orig_weight.dtype)


def fuse(policy: PeftModel) -> None:
    """Have every plain LoRA layer of ``policy`` compute so; its weights, and how they are saved, stay what they are."""
    for module in policy.modules():
        if isinstance(module, Linear):
            for name in module.lora_A:
                if name not in module.lora_variant and not module.lora_bias[name]:
                    module.lora_variant[name] = _Fused()
            if all(isinstance(module.lora_variant.get(name), _Fused) for name in module.lora_A):
                # PEFT would copy the input to float32, for autocast to copy it back
                module.cast_input_dtype_enabled = False
