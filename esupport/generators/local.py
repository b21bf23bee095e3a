"""Texts written by a model in this process, through ``transformers``: shared beginnings are read once.

Requests of one family hang off one trunk, as in the tree row: the longest prompt is read once, its cache is copied to the
requests' rows, and each row sees of it what it shares; the rest of its prompt and the reply follow.

Determinism: batches are a pure function of the requests, a batch decodes at least 4 rows, and each request draws from
noise of its own seed. So equal requests give equal texts on one machine, whatever was written before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, StoppingCriteria

from esupport.generators.protocol import Reply, Request, Sampling
from esupport.models.slot import Slot
from esupport.rendering.row import common_prefix
from esupport.rendering.template import Renderer

if TYPE_CHECKING:
    from peft import PeftModel

_LEAST_ROWS = 4  # batches of 1 to 3 rows round differently from larger ones
_MULTIPLE = 16  # lengths are rounded up, so that they seldom differ
_NUCLEUS = 512  # tokens among which the nucleus is looked for first


class Transformers:
    """Samples from the backbone, with an adapter or without.

    Args:
        slot: the model.
        renderer: renders messages and knows the token that ends a turn.
        rows: replies written at once; more are faster, and take more memory.
    """

    serves_policy = True

    def __init__(self, slot: Slot, renderer: Renderer, rows: int) -> None:
        self.slot, self.renderer, self.rows = slot, renderer, rows
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
        prompts = [self.renderer.prompt(request.messages, request.begun) for request in requests]
        with self.slot.speaking(adapter) as policy:
            ends = _ends_of_turn(policy, self.renderer)
            written = _decode(policy, requests, prompts, ends, self.renderer)
        return [
            _reply(self.renderer, row, ends, request.sampling)
            for row, request in zip(written.tolist(), requests, strict=False)  # dummies are left over
        ]


def _ends_of_turn(policy: PeftModel, renderer: Renderer) -> list[int]:
    stated = getattr(policy.generation_config, "eos_token_id", None)
    others = stated if isinstance(stated, list) else [stated]
    return sorted({renderer.end_of_turn, *(i for i in others if i is not None)})


def _decode(
    policy: PeftModel, requests: Sequence[Request], prompts: list[list[int]], ends: list[int], renderer: Renderer
) -> Tensor:
    """(rows, new tokens) ids that follow each prompt."""
    base = cast("Any", policy.get_base_model())
    device, sampling = policy.device, requests[0].sampling
    extra = max(0, _LEAST_ROWS - len(prompts))
    rows = [*prompts, *([prompts[0]] * extra)]  # dummies repeat the first row
    families = [request.family for request in [*requests, *([requests[0]] * extra)]]
    trunks, owner, shared = _trunks(rows, families)
    rests = [row[s:] for row, s in zip(rows, shared, strict=True)]
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    multiple = _MULTIPLE
    if window is not None and _padded(trunks) + _padded(rests) + sampling.max_new_tokens > window:
        # a gap in a row counts against the window: each reads its own prompt, and there is none
        trunks, owner, rests, multiple = [r[:-1] for r in rows], [*range(len(rows))], [r[-1:] for r in rows], 1
        shared = [len(trunk) for trunk in trunks]
    trunk_ids, trunk_mask = _left_padded(trunks, renderer.end_of_turn, device, _MULTIPLE)
    cache = DynamicCache(config=policy.config.get_text_config())
    positions = (trunk_mask.cumsum(-1) - 1).clamp(min=0)
    base.get_decoder()(
        input_ids=trunk_ids, attention_mask=trunk_mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    cache.batch_select_indices(torch.tensor(owner, device=device))
    rest, rest_mask = _left_padded(rests, renderer.end_of_turn, device, multiple)
    seen = trunk_mask[owner].clone()
    for number, (o, s) in enumerate(zip(owner, shared, strict=True)):
        seen[number, trunk_ids.shape[1] - len(trunks[o]) + s :] = 0
    stops: list[StoppingCriteria] = []
    if sampling.one_line:
        stops = [_LineBreak(renderer, trunk_ids.shape[1] + rest.shape[1])]
    # what is not asked for would be filled in from the model's own file: Qwen's has a repetition penalty
    cast("Any", policy).generation_config = GenerationConfig(eos_token_id=ends)
    written: Tensor = policy.generate(
        input_ids=torch.cat([trunk_ids[owner], rest], dim=1),
        attention_mask=torch.cat([seen, rest_mask], dim=1),
        past_key_values=cache,
        logits_processor=[_SeededSampling([*requests, *([requests[0]] * extra)])],
        stopping_criteria=stops,
        generation_config=GenerationConfig(
            do_sample=False,  # the noise is in the scores
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
            use_cache=True,
        ),
    )
    return written[: len(prompts), trunk_ids.shape[1] + rest.shape[1] :]


def _trunks(rows: list[list[int]], families: list[str]) -> tuple[list[list[int]], list[int], list[int]]:
    """The longest prompt of each family, for each row which of them it begins like, and for how many tokens.

    A trunk gives up its last token, so that the longest row has something to read.
    """
    names = list(dict.fromkeys(families))
    trunks = [max((r for r, f in zip(rows, families, strict=True) if f == name), key=len)[:-1] for name in names]
    owner = [names.index(family) for family in families]
    return trunks, owner, [common_prefix(trunks[o], row[:-1]) for row, o in zip(rows, owner, strict=True)]


def _padded(rows: list[list[int]], multiple: int = _MULTIPLE) -> int:
    return -(-max(map(len, rows)) // multiple) * multiple


def _left_padded(rows: list[list[int]], filler: int, device: torch.device, multiple: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of (rows, longest, rounded up)."""
    length = _padded(rows, multiple)
    ids = torch.tensor([[filler] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


class _SeededSampling(LogitsProcessor):
    """Temperature and nucleus; each row draws with its own request's seed, so its neighbours have no say in it.

    All scores but the drawn token's are made infinitely low: the likeliest token is then the sample.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.sampling = requests[0].sampling
        self.draws = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return scores
        probabilities = (scores.float() / self.sampling.temperature).softmax(-1)
        uniform = torch.cat([torch.rand(1, generator=draw) for draw in self.draws]).to(scores.device)[:, None]
        likeliest, where = probabilities.topk(min(_NUCLEUS, scores.shape[-1]))
        tokens = self._drawn(likeliest, where, uniform)
        # sorting all takes eight times as long, and orders equal scores otherwise: only rows with a wide nucleus
        wide = likeliest.sum(-1) < self.sampling.top_p
        if bool(wide.any()):
            tokens[wide] = self._drawn(*probabilities[wide].sort(dim=-1, descending=True), uniform[wide])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def _drawn(self, likeliest: Tensor, where: Tensor, uniform: Tensor) -> Tensor:
        """(rows, 1) tokens, given the probabilities from the highest on and where they stand."""
        kept = likeliest.cumsum(-1) - likeliest < self.sampling.top_p
        upto = (likeliest * kept).cumsum(-1)
        place = (upto <= uniform * upto[:, -1:]).sum(-1, keepdim=True)
        return where.gather(1, place.minimum(kept.sum(-1, keepdim=True) - 1))


class _LineBreak(StoppingCriteria):
    """A row ends with the first token that holds a line break, unless nothing stands before it."""

    def __init__(self, renderer: Renderer, start: int) -> None:
        self.start, self.tokens = start, torch.tensor(renderer.line_breaks)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        breaks = torch.isin(input_ids[:, self.start :], self.tokens.to(input_ids.device))
        return breaks[:, -1] & ~breaks.all(-1)


def _reply(renderer: Renderer, row: list[int], ends: list[int], sampling: Sampling) -> Reply:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    kept = row if stop is None else row[:stop]
    text = str(renderer.tokenizer.decode(kept, skip_special_tokens=True)).lstrip()
    if sampling.one_line:
        first, line_break, _ = text.partition("\n")
        return Reply(text=first.strip(), tokens=len(kept), finished=stop is not None or bool(line_break))
    return Reply(text=text.strip(), tokens=len(kept), finished=stop is not None)
