"""One backbone in memory, whose adapter can be any of a run's: M_0, M_1, ..., or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from esupport.errors import UserError, first_line
from esupport.models.backbone import Backbone
from esupport.models.forward import verify_tree_row
from esupport.models.trunk import States

if TYPE_CHECKING:
    from peft import PeftModel


class Slot:
    """Loads a backbone when it is first needed and puts adapters into its one place.

    Args:
        backbone: the model.
        seed: of a new adapter's weights.
        device: where the model is put, as ``cuda:0``.

    Attributes:
        trunks: what was read with the weights that are in place, by token ids; emptied when weights are loaded or scored.
    """

    def __init__(self, backbone: Backbone, seed: int, device: str) -> None:
        self.backbone, self.seed, self.device = backbone, seed, device
        self._policy: PeftModel | None = None
        self._fresh: dict[str, Any] = {}
        self._spoken: tuple[Path | None] | None = None  # whose weights are in place, if they were not trained since
        self.trunks: dict[tuple[int, ...], States] = {}

    def load(self, adapter: Path | None) -> PeftModel:
        """The policy with the weights of ``adapter``, a PEFT folder, or of a new adapter drawn from the seed."""
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        from esupport.models.fused import fuse

        self.trunks.clear()
        self._spoken = None
        if self._policy is None:
            loaded = self.backbone.load(self.seed)
            fuse(loaded)
            verify_tree_row(loaded.to(self.device))
            self._fresh = {name: value.cpu().clone() for name, value in get_peft_model_state_dict(loaded).items()}
            self._policy = loaded
        policy = self._policy.to(self.device)
        if adapter is not None:
            lora = self.backbone.lora
            refuse_other(adapter, name=self.backbone.name, alpha=lora.alpha, rslora=lora.rslora, dora=lora.dora)
        weights = self._fresh if adapter is None else load_peft_weights(str(adapter), device="cpu")
        try:
            wrong = cast("Any", set_peft_model_state_dict(policy, weights))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"model.lora: the adapter in {adapter} has another shape: {first_line(error)}") from None
        if wrong.unexpected_keys or set(weights) != set(self._fresh):
            raise UserError(f"model.lora: the adapter in {adapter} has other modules than this configuration")
        return policy

    @contextmanager
    def speaking(self, adapter: Path | None) -> Iterator[PeftModel]:
        """The policy in eval mode: with ``adapter``, or without any."""
        if self._spoken != (adapter,):
            self.load(adapter)
            self._spoken = (adapter,)
        policy = cast("PeftModel", self._policy)
        was_training = policy.training
        policy.eval()
        try:
            if adapter is None:
                with policy.disable_adapter():
                    yield policy
            else:
                yield policy
        finally:
            policy.train(was_training)


def refuse_other(adapter: Path, *, name: str, alpha: float, rslora: bool, dora: bool) -> None:
    """Raise ``UserError`` where an adapter was trained on another model, or at another scale: its weights would load, and mean
    something else.
    """
    found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for key, there, here in (
        ("name", found.get("base_model_name_or_path") or name, name),
        ("lora.alpha", found.get("lora_alpha"), alpha),
        ("lora.rslora", bool(found.get("use_rslora")), rslora),
        ("lora.dora", bool(found.get("use_dora")), dora),
    ):
        if there != here:
            raise UserError(f"model.{key}: the adapter in {adapter} was trained with {there}, this is {here}")
