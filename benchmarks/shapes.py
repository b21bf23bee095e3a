"""Models of given shapes whose weights are drawn, not read: for shapes that no one can download here, and for sweeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.work import Work
from esupport.models.backbone import Backbone
from esupport.training.environment import make

_DRAWN = "benchmarks.shapes.Drawn"


@dataclass(frozen=True)
class Drawn(Backbone):
    """A backbone in the shapes of a Llama configuration, with the tokenizer of the one that it takes the place of.

    Args:
        shape: keys of ``transformers.LlamaConfig``.
        device: where the weights are drawn.
        others: see :class:`esupport.models.backbone.Backbone`.
    """

    shape: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """The shapes: all of a kind have the same weights."""
        return {**super().identity(), "weights": f"drawn {sorted(self.shape.items())}"}

    def _load(self, from_pretrained: Any, **settings: Any) -> Any:
        from transformers import AutoModelForCausalLM

        if from_pretrained != AutoModelForCausalLM.from_pretrained:
            return super()._load(from_pretrained, **settings)
        return self._draw(settings)

    def _draw(self, settings: dict[str, Any]) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        tokenizer = self.tokenizer()
        config = LlamaConfig(**self.shape, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        kept = {name: settings[name] for name in ("dtype", "attn_implementation") if name in settings}
        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, **kept)


def backbone_of(plain: dict[str, Any], work: Work) -> Backbone:
    """The backbone of a benchmark: the configured one, or one drawn in ``work.shape``."""
    node = plain["model"]
    if work.shape:
        node = {**node, "_target_": _DRAWN, "shape": dict(work.shape), "device": work.device}
    backbone: Backbone = make(node, "model")
    return backbone
