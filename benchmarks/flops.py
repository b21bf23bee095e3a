"""The floating-point operations that training must take, and the share of the device's peak that was reached.

A frozen weight takes 4 a token (2 forward, 2 for the gradient that passes through; none for its own), the head's at target
tokens alone; attention takes 12 times its width for each key that a token sees, in each layer (4 forward, twice that
backward). The adapter's own, what is computed twice under checkpointing, and padding are not counted.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.meters import Meter
from benchmarks.work import Training


class Flops:
    """Adds up the operations of token rows for one model."""

    def __init__(self, policy: Any) -> None:
        base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        config = base.config.get_text_config()
        embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
        apart = {id(embedding), id(head)}
        frozen = [p for name, p in base.named_parameters() if "lora_" not in name and id(p) not in apart]
        self._per_token = 4 * sum(p.numel() for p in frozen)
        self._per_target = 4 * head.numel()
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self._per_sight = 12 * width * config.num_hidden_layers
        self.total = self.tokens = 0

    def add(self, tokens: int, sights: int, targets: int) -> None:
        """Rows of ``tokens``, in which queries see ``sights`` keys in all, with so many targets."""
        self.total += self._per_token * tokens + self._per_sight * sights + self._per_target * targets
        self.tokens += tokens

    def figures(self, work: Training, meter: Meter) -> dict[str, Any]:
        """Tokens without padding and, on a GPU whose peak is known, the utilisation of the counted steps."""
        found: dict[str, Any] = {"useful_tokens": self.tokens, "flops": self.total}
        if work.device == "cuda":
            from trl.trainer.utils import get_peak_flops

            found["gpu"] = torch.cuda.get_device_name()
            peak = get_peak_flops(found["gpu"], "bfloat16" if work.bf16 else "float32")
            seconds = meter.figures(work.warmup)["seconds"]
            found["utilisation"] = self.total / seconds / peak if peak and seconds else None
        return found
