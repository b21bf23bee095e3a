"""The tiny model as a writer of texts, beside the plainest way to write them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from esupport.config.check import check_types
from esupport.config.command_line import composed as compose
from esupport.data.conversation import Conversation
from esupport.generators.local import Transformers
from esupport.generators.protocol import Request, Sampling, behind, seed_of
from esupport.models.slot import Slot
from esupport.rendering.template import Renderer
from esupport.store import Store

SAMPLING = Sampling(max_new_tokens=16, temperature=0.7, top_p=0.9)


class Local:
    """The tiny model with weights large enough that a wrong cache or mask shows, and what its decoder reads."""

    def __init__(self, slot: Any, renderer: Renderer, talks: list[Conversation]) -> None:
        self.slot, self.renderer, self.talks = slot, renderer, talks
        self.read: list[tuple[int, int]] = []  # rows and columns of each forward
        with slot.speaking(None) as policy:
            policy.get_base_model().get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        self.read.append(tuple((kwargs["inputs_embeds"] if ids is None else ids).shape[:2]))

    def generator(self, rows: int = 16, cache_gb: float = 1.0) -> Transformers:
        return Transformers(self.slot, self.renderer, rows, cache_gb)

    def requests(self, turns: int = 3, begun: str = "", **sampling: Any) -> list[Request]:
        """The first turns of each conversation, a family a conversation."""
        asked = replace(SAMPLING, **{"max_new_tokens": 8, **sampling})
        return [
            Request(f"{c.id}/{t}", c.id, tuple(self.renderer.messages(c, t)), begun, asked, seed_of(0, c.id, t))
            for c in self.talks
            for t in c.supporter_turns()[:turns]
        ]

    def written(self, requests: list[Request], rows: int = 16, adapter: Path | None = None, cache_gb: float = 1.0) -> list[str]:
        generator, texts = self.generator(rows, cache_gb), dict[int, str]()
        for batch in generator.plan(requests):
            replies = generator.write([requests[i] for i in batch], adapter)
            texts |= {i: reply.text for i, reply in zip(batch, replies, strict=True)}
        return [texts[i] for i in range(len(requests))]

    @torch.no_grad()
    def plainly(self, asked: Request, adapter: Path | None = None) -> str:
        """The likeliest token each time, from a forward over all that was said: no cache, no padding, no batch."""
        prompt = self.renderer.prompt(asked.messages, asked.begun)
        ids = list(prompt)
        with self.slot.speaking(adapter) as policy:
            while len(ids) < len(prompt) + asked.sampling.max_new_tokens:
                token = int(policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                if token == self.renderer.end_of_turn:
                    break
                ids.append(token)
        return behind(asked.begun, str(self.renderer.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)))


def sharpen(policy: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.dim() > 1 and "lora_" not in name:
                parameter.copy_(torch.empty_like(parameter).normal_(0, 0.3, generator=draw))


def tiny() -> Local:
    """The tiny model and four shipped conversations."""
    plain = check_types("train", compose("train", ["model=tiny", "rendering.max_tokens=100000"]))
    backbone = instantiate(plain["model"])
    renderer = Renderer(backbone.tokenizer(), "Support the seeker.", "system", {}, 100000)
    slot = Slot(backbone, 0, "cpu")
    sharpen(slot.load(None))
    with tempfile.TemporaryDirectory() as folder:
        return Local(slot, renderer, instantiate(plain["data"]).read("data", Store(Path(folder))).train[:4])
