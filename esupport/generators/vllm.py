"""Texts written by vLLM in this process: many times faster than ``transformers`` on a GPU; needs the extra ``vllm``.

Written to the documentation of vLLM 0.11. The tests have no GPU and run it against a stand-in only.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from esupport.errors import UserError, first_line
from esupport.generators.protocol import Reply, Request, in_pieces, reply_of
from esupport.models.slot import Slot
from esupport.models.weights import weights_digest
from esupport.rendering.template import Renderer


class VLLM:
    """Samples from the backbone, with an adapter or without. The engine starts with the first batch.

    Texts depend on how vLLM batches, so equal texts are not promised.

    Args:
        slot, renderer: the model and its chat template; the code adds them.
        rows: requests in a batch, after which a stopped step goes on; vLLM decides how many it writes at once.
        gpu_memory_utilization: share of the GPU's memory. max_model_len: longest prompt and reply together.
        max_lora_rank: at least the adapter's rank. tensor_parallel_size: GPUs that share the model.

    Raises:
        UserError: the package is missing, or the adapter is of a kind that vLLM does not load.
    """

    serves_policy = True
    independent = False

    def __init__(
        self,
        slot: Slot,
        renderer: Renderer,
        rows: int,
        gpu_memory_utilization: float,
        max_model_len: int | None,
        max_lora_rank: int,
        tensor_parallel_size: int,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError("generator: the package vllm is not installed; run: pip install -e '.[vllm]'")
        if slot.backbone.lora.dora:
            raise UserError("model.lora.dora: vLLM loads no such adapter; use generator=transformers")
        self.backbone, self.renderer, self.rows = slot.backbone, renderer, rows
        self.name = slot.backbone.name
        self._settings = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "max_lora_rank": max_lora_rank,
            "tensor_parallel_size": tensor_parallel_size,
        }

    def identity(self) -> dict[str, Any]:
        """The model and its arithmetic, of which the division among GPUs is a part."""
        return {
            "generator": "vllm",
            "tensor_parallel_size": self._settings["tensor_parallel_size"],
            **self.backbone.identity(),
            **self.renderer.identity(),
        }

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Pieces in the given order."""
        return in_pieces(len(requests), self.rows)

    def write(self, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
        """Replies to one planned batch."""
        prompts = [{"prompt_token_ids": self.renderer.prompt(request.messages, request.begun)} for request in requests]
        sampling = [self._sampling(request) for request in requests]
        try:
            written = self._engine.generate(prompts, sampling, lora_request=_lora(adapter), use_tqdm=False)
        except (ValueError, RuntimeError) as error:  # a prompt that is too long, an adapter it does not take
            raise UserError(f"generator: vLLM: {first_line(error)}") from error
        answers = ((request, answer.outputs[0]) for request, answer in zip(requests, written, strict=True))
        return [reply_of(request, out.text, len(out.token_ids), out.finish_reason == "stop") for request, out in answers]

    @cached_property
    def _engine(self) -> Any:
        backbone = self.backbone
        revision = None if Path(backbone.folder).exists() else backbone.revision
        try:
            return importlib.import_module("vllm").LLM(
                model=backbone.folder,
                revision=revision,
                tokenizer_revision=revision,
                dtype=backbone.dtype,
                quantization="bitsandbytes" if backbone.load_in_4bit else None,
                enable_lora=True,
                **self._settings,
            )
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"generator: vLLM cannot load {self.name}: {first_line(error)}") from error

    def _sampling(self, request: Request) -> Any:
        asked = request.sampling
        return importlib.import_module("vllm").SamplingParams(
            max_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=request.seed,
            # behind its beginning, a reply may start with a line break
            stop=["\n"] if asked.one_line and not request.begun else None,
            stop_token_ids=[self.renderer.end_of_turn],  # the model's own ends come from its generation_config.json
        )


def _lora(adapter: Path | None) -> Any:
    """The adapter under a number of its content: vLLM keeps adapters and read prompts by it. 28 bits, for it stores 32."""
    if adapter is None:
        return None
    digest = weights_digest(adapter)
    return importlib.import_module("vllm.lora.request").LoRARequest(digest, int(digest[:7], 16) + 1, str(adapter))
