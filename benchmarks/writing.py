"""Both sides of the generation benchmark: this project's generator, and transformers' ``generate`` on plain batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from benchmarks.asked import Asked, prepare, result
from benchmarks.meters import Meter, warm_up
from benchmarks.shapes import backbone_of
from benchmarks.work import Peer, Writing
from esupport.generators.local import ends_of_turn
from esupport.generators.protocol import Generator, Request, Sampling, write_all
from esupport.models.slot import Slot
from esupport.training.environment import make, quiet

Write = Callable[[Sequence[Request]], list[str]]


def ours(work: Writing) -> dict[str, Any]:
    """This project, as ``evolve.py`` writes: with an adapter, batches as its generator plans them."""
    quiet()
    meter, plain = Meter(work.device), work.plain()
    backbone = backbone_of(plain, work)
    asked = prepare(plain, work, backbone)
    slot = Slot(backbone, plain["seed"], "cuda:0" if work.device == "cuda" else "cpu")
    meter.watch(slot.load(None))
    generator: Generator = make(plain["generator"], "generator")(slot=slot, renderer=asked.renderer)
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        backbone.save(slot.load(None), adapter)
        return _timed(asked, meter, lambda requests: [reply.text.strip() for reply in write_all(generator, requests, adapter)])


def peer(work: Writing, settings: Peer) -> dict[str, Any]:
    """``model.generate`` on batches of requests sorted by length, padded on the left."""
    quiet()
    meter, plain = Meter(work.device), work.plain()
    backbone = backbone_of(plain, work)
    asked = prepare(plain, work, backbone)
    policy: Any = backbone.load(plain["seed"])
    if settings.merged:
        policy = policy.merge_and_unload()
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    base.set_attn_implementation("sdpa")  # ours is registered with the model: the peer has transformers' own
    policy.to(work.device).eval()
    meter.watch(policy)
    warm_up(policy, meter)
    return _timed(asked, meter, lambda requests: _sorted_batches(policy, asked, requests, settings.batch))


def _timed(asked: Asked, meter: Meter, write: Write) -> dict[str, Any]:
    """Write all steps in turn, with the clock on each."""
    write(asked.warm_up)
    texts, seconds, tokens = {}, {}, meter.tokens
    for name, requests in asked.steps.items():
        started = meter.now()
        texts[name] = write(requests)
        seconds[name] = meter.now()[0] - started[0]
    return {**result(asked, texts, seconds), "forwarded_tokens": meter.tokens - tokens, "peak_bytes": meter.peak()}


def _sorted_batches(policy: Any, asked: Asked, requests: Sequence[Request], rows: int) -> list[str]:
    prompts = [asked.renderer.prompt(request.messages, request.begun) for request in requests]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        written = _generate(policy, asked, [prompts[i] for i in batch], requests[batch[0]].sampling)
        for index, ids in zip(batch, written, strict=True):
            texts[index] = _text(asked, ids, requests[index].sampling)
    return texts


@torch.no_grad()
def _generate(policy: Any, asked: Asked, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """The ids that follow each prompt, up to the one that ends the reply, which is left out."""
    longest, ends = max(map(len, prompts)), sorted(ends_of_turn(policy, asked.renderer))
    ids = torch.tensor([[ends[0]] * (longest - len(row)) + row for row in prompts], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=policy.device)
    drawn: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], use_cache=True, **drawn
    )
    policy.generation_config = GenerationConfig(eos_token_id=ends)  # nothing is filled in from the model's own file
    whole: Tensor = policy.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        stopping_criteria=[_LineEnd(asked.renderer.line_breaks, longest)] if sampling.one_line else [],
    )
    rows = cast("list[list[int]]", whole[:, longest:].tolist())
    return [row[: min((row.index(end) for end in ends if end in row), default=len(row))] for row in rows]


class _LineEnd(StoppingCriteria):
    """A row is done when it has written a line break behind something else."""

    def __init__(self, breaks: list[int], start: int) -> None:
        self.breaks, self.start = torch.tensor(breaks), start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        written = input_ids[:, self.start :]
        broken = torch.isin(written, self.breaks.to(written.device))
        return broken[:, -1] & (~broken).any(dim=1)


def _text(asked: Asked, ids: list[int], sampling: Sampling) -> str:
    text = str(asked.renderer.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return text.split("\n")[0].strip() if sampling.one_line else text
