"""Replies written by a model in this process, through ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel

    from esupport.rendering.template import Renderer


@torch.no_grad()
def write_replies(
    policy: PeftModel,
    renderer: Renderer,
    contexts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[str]:
    """One reply to each context, sampled in one left-padded batch.

    Args:
        policy: the model; its adapter speaks unless it is disabled.
        renderer: knows the tokenizer and the token that ends a turn.
        contexts: token ids, the generation prompt included.
        max_new_tokens: longest reply, in tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus of sampling.
        seed: of sampling.

    Returns:
        The replies' texts, stripped.
    """
    if not contexts:
        return []
    longest = max(len(context) for context in contexts)
    pad = renderer.tokenizer.pad_token_id
    filler = renderer.end_of_turn if pad is None else pad
    ids = torch.tensor([[filler] * (longest - len(c)) + list(c) for c in contexts], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts], device=policy.device)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    was_training = policy.training
    policy.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = policy.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=filler,
            eos_token_id=renderer.end_of_turn,
            use_cache=True,
            **(sampling if temperature > 0 else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
        )
    policy.train(was_training)
    return [text.strip() for text in renderer.tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)]
