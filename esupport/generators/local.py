"""Texts written by a model in this process: shared beginnings are read once (:mod:`esupport.generators.prefill`).

Determinism: batches are a pure function of the requests, a batch decodes at least 4 rows, and each request draws from
noise of its own seed. So equal requests give equal texts on one machine, whatever was written before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from esupport.generators.decoding import decode
from esupport.generators.prefill import Ids, read_trunk
from esupport.generators.protocol import Reply, Request, Sampling, reply_of
from esupport.models.slot import Slot
from esupport.models.trunk import States
from esupport.rendering.row import common_prefix
from esupport.rendering.template import Message, Renderer

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_NUCLEUS = 512  # tokens among which the nucleus is looked for first


class Transformers:
    """Samples from the backbone, with an adapter or without.

    Args:
        slot: the model.
        renderer: renders messages and knows the token that ends a turn.
        rows: replies written at once; more are faster, and take more memory.
        trunk_cache_gb: memory for trunks that later steps and attempts begin with too; it changes no text.
    """

    serves_policy = True
    independent = False

    def __init__(self, slot: Slot, renderer: Renderer, rows: int, trunk_cache_gb: float) -> None:
        self.slot, self.renderer, self.rows, self.trunk_cache_gb = slot, renderer, rows, trunk_cache_gb
        self._told = False
        self.name = slot.backbone.name

    def identity(self) -> dict[str, Any]:
        """The model; where rows go together changes rounding, and so may change texts."""
        return {"generator": "transformers", "rows": self.rows, **self.slot.backbone.identity(), **self.renderer.identity()}

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Whole families, longest first, as many as fit into ``rows``; only equal sampling goes together."""
        families: dict[tuple[Sampling, str], list[int]] = {}
        for index, request in enumerate(requests):
            families.setdefault((request.sampling, request.family), []).append(index)
        sizes = [sum(len(m["content"]) for m in r.messages) for r in requests]
        order = sorted(families, key=lambda f: (repr(f[0]), -max(sizes[i] for i in families[f]), f[1]))
        batches: list[list[int]] = []
        sampling = None
        for family in order:
            members = families[family]
            for start in range(0, len(members), self.rows):
                piece = members[start : start + self.rows]
                if sampling != family[0] or len(batches[-1]) + len(piece) > self.rows:
                    batches.append([])
                batches[-1].extend(piece)
                sampling = family[0]
        return batches

    @torch.no_grad()
    def write(self, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
        """Replies to one planned batch."""
        prompts = [tuple(self.renderer.prompt(request.messages, request.begun)) for request in requests]
        trunks = self._trunks(requests, prompts)
        lasting = {trunk for trunk, request in zip(trunks, requests, strict=True) if request.trunk}
        sampling, breaks = requests[0].sampling, set(self.renderer.line_breaks)
        with self.slot.speaking(adapter) as policy:
            ends = ends_of_turn(policy, self.renderer)

            def done(tokens: Sequence[int]) -> bool:
                if not tokens or tokens[-1] in ends:
                    return bool(tokens)
                # a line ends with the first line break that something stands before
                return sampling.one_line and tokens[-1] in breaks and not breaks.issuperset(tokens)

            def read(trunk: Ids) -> States:
                return self._read(policy, trunk, trunk in lasting)

            written = decode(policy, prompts, trunks, sampling.max_new_tokens, SeededSampling(requests), done, read)
        return [_reply(self.renderer, row, ends, request) for row, request in zip(written, requests, strict=True)]

    def _trunks(self, requests: Sequence[Request], prompts: Sequence[Ids]) -> list[Ids]:
        """The trunk of each request: the one that it names, or else the longest prompt of its family."""
        families = [
            (r.family, prompt[0], *(m["content"] for m in r.trunk)) for r, prompt in zip(requests, prompts, strict=True)
        ]
        trunks: dict[tuple[Any, ...], Ids] = {}
        for family, request, prompt in zip(families, requests, prompts, strict=True):
            if not request.trunk:
                trunks[family] = max(trunks.get(family, ()), prompt, key=len)
            elif family not in trunks:
                trunks[family] = self._beginning(request.trunk, prompt)
        return [trunks[family] for family in families]

    def _beginning(self, messages: Sequence[Message], prompt: Ids) -> Ids:
        """Tokens that these messages begin with, whatever goes on behind them; ``prompt`` where it shares none of them."""
        *before, last = messages
        one, two = (self.renderer.prompt([*before, {**last, "content": last["content"] + more}]) for more in ("", "\n\n?"))
        named = tuple(one[: common_prefix(one, two)])
        return named if named[:1] == prompt[:1] else prompt

    def _read(self, policy: PeftModel, ids: Ids, lasting: bool) -> States:
        """A trunk, which is held for later steps if they begin with it and there is room; what was first stays."""
        held = self.slot.trunks
        trunk = held.get(ids) or read_trunk(policy, ids)
        if lasting and ids not in held:
            if trunk.bytes + sum(other.bytes for other in held.values()) <= self.trunk_cache_gb * 1e9:
                held[ids] = trunk.copied()
            elif self.trunk_cache_gb and not self._told:
                log.warning(
                    "generator.trunk_cache_gb: %g GB hold %d conversations; others are read again in each step and attempt",
                    *(self.trunk_cache_gb, len(held)),
                )
                self._told = True
        return States(trunk.hidden, dict(trunk.layers))  # taken apart layer by layer


def ends_of_turn(policy: PeftModel, renderer: Renderer) -> set[int]:
    """The tokens that end a reply: of the template, and of the model's own file."""
    stated = getattr(policy.generation_config, "eos_token_id", None)
    others = stated if isinstance(stated, list) else [stated]
    return {renderer.end_of_turn, *(i for i in others if i is not None)}


class SeededSampling:
    """Temperature and nucleus; each row draws with its own request's seed, so its neighbours have no say in it."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.sampling = requests[0].sampling
        self.draws = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, logits: Tensor, numbers: Sequence[int]) -> Tensor:
        """(rows,) tokens drawn from (rows, vocabulary) logits for the requests of these numbers; others are dummies."""
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = (logits / self.sampling.temperature).softmax(-1)
        known = [torch.rand(1, generator=self.draws[n]) if n < len(self.draws) else torch.zeros(1) for n in numbers]
        uniform = torch.cat(known).to(logits.device)[:, None]
        likeliest, where = probabilities.topk(min(_NUCLEUS, logits.shape[-1]))
        tokens = self._drawn(likeliest, where, uniform)
        # sorting all takes eight times as long, and orders equal scores otherwise: only rows with a wide nucleus
        wide = likeliest.sum(-1) < self.sampling.top_p
        if bool(wide.any()):
            tokens[wide] = self._drawn(*probabilities[wide].sort(dim=-1, descending=True), uniform[wide])
        return tokens[:, 0]

    def _drawn(self, likeliest: Tensor, where: Tensor, uniform: Tensor) -> Tensor:
        """(rows, 1) tokens, given the probabilities from the highest on and where they stand."""
        kept = likeliest.cumsum(-1) - likeliest < self.sampling.top_p
        upto = (likeliest * kept).cumsum(-1)
        place = (upto <= uniform * upto[:, -1:]).sum(-1, keepdim=True)
        return where.gather(1, place.minimum(kept.sum(-1, keepdim=True) - 1))


def _reply(renderer: Renderer, row: list[int], ends: set[int], request: Request) -> Reply:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    kept = row if stop is None else row[:stop]
    text = str(renderer.tokenizer.decode(kept, skip_special_tokens=True))
    return reply_of(request, text, len(kept), stop is not None)
