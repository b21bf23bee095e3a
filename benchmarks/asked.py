"""What is asked for in the generation benchmark: what a round of the method asks about all supporter turns.

Drafts and findings decide what is asked later, and both sides must be asked the same. So the human reply stands in for the
draft, and the seeker's last words for each finding; the prompts are the project's own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.work import Writing
from esupport.config.schema_evolve import Contexts
from esupport.data.preference import Context, Finding
from esupport.data.source import Source
from esupport.evolution.contexts import choose
from esupport.generators.protocol import Request, Sampling, reply_request
from esupport.models.backbone import Backbone
from esupport.reflection.method import Method, deepest
from esupport.rendering.template import Renderer
from esupport.store import Store
from esupport.training.environment import make
from esupport.training.prepare import renderer_of

_FINDING = 60  # characters of the seeker's last words
_WARM_UP = 8  # new tokens of a request that is not counted


@dataclass(frozen=True)
class Asked:
    """Requests by step, in the order of the method, and a few to warm up with."""

    renderer: Renderer
    steps: dict[str, list[Request]]
    warm_up: list[Request]


def prepare(plain: dict[str, Any], work: Writing, backbone: Backbone) -> Asked:
    """All requests: a pure function of the data and the settings."""
    renderer = renderer_of(plain, backbone)
    source: Source = make(plain["data"], "data")
    with TemporaryDirectory() as folder:
        splits = source.read("data", Store(Path(folder)))
        train, valid = [*splits.train], [*splits.valid]
    method: Method = make(plain["reflection"], "reflection")
    choice = Contexts.model_validate(plain["contexts"])
    (contexts,), human = choose(train, choice, 1, renderer)
    draft, seed, after = Sampling(**plain["evolution"]["draft"]), plain["seed"], deepest(contexts)
    steps = {
        "draft": [reply_request(context, renderer, draft, seed, "draft") for context in contexts],
        "reflect": [
            request for c in contexts for request in method.reflect_requests(c, after[c.key], human[c.key], seed, 0).values()
        ],
        "refine": [method.refine_request(c, after[c.key], human[c.key], _findings(c, method), seed, 0) for c in contexts],
    }
    few = choice.model_copy(update={"per_round": 4})
    first = [reply_request(c, renderer, draft, seed, "draft") for c in choose(valid or train, few, 1, renderer)[0][0]]
    short = [replace(r, sampling=replace(r.sampling, max_new_tokens=_WARM_UP)) for r in first]
    if not work.sampled:
        steps = {name: [_likeliest(request) for request in requests] for name, requests in steps.items()}
        short = [_likeliest(request) for request in short]
    return Asked(renderer, {name: requests for name, requests in steps.items() if requests}, short)


def result(asked: Asked, texts: dict[str, list[str]], seconds: dict[str, float]) -> dict[str, Any]:
    """What a side reports: seconds and useful tokens by step, and the texts' hashes; no text leaves the process."""
    useful = {
        name: sum(len(ids) for ids in asked.renderer.tokenizer(written, add_special_tokens=False)["input_ids"])
        for name, written in texts.items()
    }
    return {
        "seconds": sum(seconds.values()),
        "step_seconds": seconds,
        "useful_tokens": useful,
        "requests": {name: len(requests) for name, requests in asked.steps.items()},
        "texts": {name: [hashlib.sha256(t.encode()).hexdigest()[:16] for t in written] for name, written in texts.items()},
    }


def _findings(context: Context, method: Method) -> dict[str, Finding]:
    said = context.turns[-1].text[:_FINDING]
    return {axis: Finding(text=said) for axis in method.axes_of(context)}


def _likeliest(request: Request) -> Request:
    return replace(request, sampling=replace(request.sampling, temperature=0.0))
