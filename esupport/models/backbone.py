"""A backbone with a LoRA adapter: where its weights are, how they are loaded, and how the adapter is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from esupport.errors import UserError, first_line
from esupport.models.recomputing import Checkpointing, recompute

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lora:
    """Low-rank adapter (Hu et al. 2021).

    Args:
        r: rank. alpha: scale numerator. dropout: on the adapter's input.
        targets: ``all-linear``, or the names of the modules to adapt.
        rslora: scale by alpha/sqrt(r) in place of alpha/r. dora: weight-decomposed adapter.
    """

    r: int
    alpha: float
    dropout: float
    targets: str | list[str]
    rslora: bool
    dora: bool


@dataclass(frozen=True)
class Backbone:
    """A causal language model with a chat template.

    Args:
        name: of the base model in the saved adapter.
        path: id on the hub or local folder; None where there is a ``builder``.
        revision: branch, tag or commit on the hub.
        builder: makes the model on this machine and returns its folder (:mod:`esupport.models.built`).
        gated: whether the hub asks for a token.
        dtype: of the frozen weights; the adapter is float32.
        load_in_4bit: NF4 quantisation of the frozen weights (needs bitsandbytes and a GPU).
        gradient_checkpointing: what is computed anew in the backward pass (:func:`esupport.models.recomputing.recompute`).
        instruction_in, template_kwargs: how the chat template is used (:class:`esupport.rendering.template.Renderer`).
        lora: the adapter to train.
        learning_rate, preference_learning_rate: the highest at which the adapter is trained; config files hand them to the
            optimizer of the objective.
        adapter: a PEFT folder to go on from in place of a new adapter.
    """

    name: str
    path: str | None
    revision: str
    builder: Callable[[], Path] | None
    gated: bool
    dtype: Literal["float32", "bfloat16", "float16"]
    load_in_4bit: bool
    gradient_checkpointing: Checkpointing
    instruction_in: Literal["system", "first_user"]
    template_kwargs: Mapping[str, Any]
    lora: Lora
    learning_rate: float
    preference_learning_rate: float
    adapter: str | None

    @cached_property
    def folder(self) -> str:
        """Where ``from_pretrained`` finds the weights: a local folder or an id on the hub."""
        if self.builder:
            return str(self.builder())
        path = str(self.path)
        return str(Path(path).expanduser()) if path.startswith("~") else path

    def identity(self) -> dict[str, Any]:
        """What decides the frozen model's words: weights (by content, or the commit on the hub) and their arithmetic."""
        from esupport.models.attention import NAME
        from esupport.models.weights import weights_digest

        local = Path(self.folder)
        return {
            "weights": weights_digest(local) if local.is_dir() else f"{self.folder}@{self._commit()}",
            "dtype": self.dtype,
            "load_in_4bit": self.load_in_4bit,
            "attention": NAME,
        }

    def _commit(self) -> str:
        """The commit that the revision names in the local cache; the revision itself before anything was downloaded."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.folder, "config.json", revision=self.revision)
        return Path(found).parent.name if isinstance(found, str) else self.revision

    def _revision(self) -> dict[str, str]:
        return {} if Path(self.folder).exists() else {"revision": self.revision}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with its chat template. Raises ``UserError`` where it cannot be had."""
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = self._load(AutoTokenizer.from_pretrained)
        return tokenizer

    def load(self, seed: int) -> PeftModel:
        """The frozen backbone with its adapter on top, in train mode. ``seed`` draws a new adapter's weights."""
        import torch
        from peft import prepare_model_for_kbit_training
        from transformers import AutoModelForCausalLM

        from esupport.models.attention import NAME

        base: PreTrainedModel = self._load(
            AutoModelForCausalLM.from_pretrained,
            dtype=getattr(torch, self.dtype),
            attn_implementation=NAME,
            use_safetensors=True,
            **self._quantisation(),
        )
        base.config.use_cache = False
        if self.load_in_4bit:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        recompute(base, self.gradient_checkpointing, self.lora.r)
        try:
            policy = self._adapt(base, seed)
        except ValueError as error:  # PEFT's word for modules or shapes that the model does not have
            raise UserError(f"model.{'adapter' if self.adapter else 'lora.targets'}: {first_line(error)}") from error
        # from_pretrained leaves the base in eval mode, in which gradient checkpointing is silently off
        policy.train()
        return policy

    def _adapt(self, base: PreTrainedModel, seed: int) -> PeftModel:
        import torch
        from peft import PeftModel, get_peft_model

        if self.adapter:
            return PeftModel.from_pretrained(base, str(Path(self.adapter).expanduser()), is_trainable=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cast("PeftModel", get_peft_model(base, self._lora_config()))

    def save(self, policy: PeftModel, folder: Path) -> None:
        """Write the adapter as a PEFT folder that ``peft`` loads alone, with its base model's name and no local path."""
        import json

        policy.save_pretrained(str(folder))
        written = folder / "adapter_config.json"
        config = json.loads(written.read_text())
        config["base_model_name_or_path"] = self.name
        if isinstance(config.get("target_modules"), list):
            config["target_modules"].sort()  # PEFT writes a set in hash order: sorted, equal runs give equal bytes
        written.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card names the local base folder

    def _lora_config(self) -> Any:
        from peft import LoraConfig

        targets = self.lora.targets if isinstance(self.lora.targets, str) else list(self.lora.targets)
        return LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora.dropout,
            target_modules=targets,
            use_rslora=self.lora.rslora,
            use_dora=self.lora.dora,
            task_type="CAUSAL_LM",
        )

    def _quantisation(self) -> dict[str, Any]:
        if not self.load_in_4bit:
            return {}
        import torch
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        }

    def _load(self, from_pretrained: Callable[..., Any], **settings: Any) -> Any:
        try:
            return from_pretrained(self.folder, trust_remote_code=False, **self._revision(), **settings)
        except (OSError, ImportError, ValueError) as error:
            raise UserError(f"model.path: cannot load {self.name}: {first_line(error)}") from error
