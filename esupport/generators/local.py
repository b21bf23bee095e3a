"""Texts written by a model in this process: shared beginnings are read once (:mod:`esupport.generators.prefill`).

Determinism: batches are a pure function of the requests, a batch decodes at least 4 rows, and each request draws from
noise of its own seed. So equal requests give equal texts on one machine, whatever was written before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from esupport.generators.decoding import decode
from esupport.generators.growing import Read
from esupport.generators.prefill import Ids, read_trunk
from esupport.generators.protocol import Reply, Request, Sampling, reply_of
from esupport.models.slot import Slot
from esupport.rendering.row import common_prefix
from esupport.rendering.template import Renderer

if TYPE_CHECKING:
    from peft import PeftModel

_NUCLEUS = 512  # tokens among which the nucleus is looked for first


class Transformers:
    """Samples from the backbone, with an adapter or without.

    Args:
        slot: the model.
        renderer: renders messages and knows the token that ends a turn.
        rows: replies written at once; more are faster, and take more memory.
        held_gb: memory for trunks that later steps begin with too; they change no text.
    """

    serves_policy = True
    independent = False

    def __init__(self, slot: Slot, renderer: Renderer, rows: int, held_gb: float) -> None:
        self.slot, self.renderer, self.rows, self.held_gb = slot, renderer, rows, held_gb
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
        lasting = {trunk for trunk, request in zip(trunks, requests, strict=True) if request.shared}
        sampling, breaks = requests[0].sampling, set(self.renderer.line_breaks)
        with self.slot.speaking(adapter) as policy:
            ends = ends_of_turn(policy, self.renderer)

            def done(tokens: Sequence[int]) -> bool:
                if not tokens or tokens[-1] in ends:
                    return bool(tokens)
                # a line ends with the first line break that something stands before
                return sampling.one_line and tokens[-1] in breaks and not breaks.issuperset(tokens)

            def read(trunk: Ids) -> Read:
                return self._read(policy, trunk, trunk in lasting)

            written = decode(policy, prompts, trunks, sampling.max_new_tokens, SeededSampling(requests), done, read)
        return [_reply(self.renderer, row, ends, request) for row, request in zip(written, requests, strict=True)]

    def _trunks(self, requests: Sequence[Request], prompts: Sequence[Ids]) -> list[Ids]:
        """For each request the longest beginning of its family; what has not even its first token has a trunk of its own."""
        families = [(request.family, prompt[0]) for request, prompt in zip(requests, prompts, strict=True)]
        longest: dict[tuple[str, int], Ids] = {}
        for family, request, prompt in zip(families, requests, prompts, strict=True):
            longest[family] = max(longest.get(family, ()), self._beginning(request, prompt), key=len)
        return [longest[family] for family in families]

    def _beginning(self, request: Request, prompt: Ids) -> Ids:
        """What of its prompt a request shares with those of later steps, or all of it where that is not told."""
        if not request.shared:
            return prompt
        *before, last = request.messages
        cut = self.renderer.prompt([*before, {**last, "content": last["content"][: request.shared]}])
        return prompt[: max(1, common_prefix(prompt, cut))]

    def _read(self, policy: PeftModel, ids: Ids, lasting: bool) -> Read:
        """A trunk, which is held for later steps if they begin with it and there is room; what was first stays."""
        held: dict[Ids, Read] = self.slot.trunks
        trunk = held.get(ids) or read_trunk(policy, ids)
        if lasting and ids not in held:
            if trunk.bytes + sum(other.bytes for other in held.values()) <= self.held_gb * 1e9:
                held[ids] = trunk.copied()
            elif self.held_gb:
                warnings.warn("generator.held_gb: is full; what does not fit is read again by refinements", stacklevel=2)
        return Read(trunk.hidden, dict(trunk.layers))  # taken apart layer by layer


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
