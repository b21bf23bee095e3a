"""The adapter computes what PEFT's computes, and what is recomputed in the backward pass changes no gradient."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from families import conversation, small_model, tokenizer_for
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from esupport.models.fused import fuse
from esupport.models.recomputing import Checkpointing, recompute
from esupport.objectives.logprobs import target_logprobs
from esupport.rendering.packing import Batch, pack
from esupport.rendering.row import tree
from esupport.rendering.template import Renderer

RANK = 4


def adapted(dtype: torch.dtype = torch.float32, **settings: Any) -> PeftModel:
    """A small model whose adapter has learnt something."""
    base = small_model("llama").to(dtype)
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    policy = get_peft_model(base, config)
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return policy.train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    renderer = Renderer(tokenizer_for("qwen"), "Support the seeker.", "system", {}, 1000)
    rows = [row for n in range(3) for row in tree(str(n), renderer.render(conversation(name=str(n))).responses)]
    (packed,) = pack(rows, 100_000)
    return packed


def gradients(policy: PeftModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, and the gradient of their sum."""
    policy.zero_grad()
    torch.manual_seed(2)
    logprobs = target_logprobs(policy, batch)
    logprobs.sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}, {"use_dora": True}])
def test_fused_layers_give_what_peft_gives(settings: dict[str, Any], batch: Batch) -> None:
    policy = adapted(**settings)
    ours = copy.deepcopy(policy)
    fuse(ours)
    for got, want in zip(gradients(ours, batch), gradients(policy, batch), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5 * float(want.abs().max()), rtol=0)


def test_fused_layers_keep_less_and_leave_less_behind(batch: Batch) -> None:
    policy = adapted()
    before = bytes_held(policy, batch)
    fuse(policy)
    assert bytes_held(policy, batch) < 0.8 * before


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_an_mlp_is_left_alone_where_its_parts_have_other_uses(family: str) -> None:
    model = small_model(family)
    mlps = [module for module in model.modules() if hasattr(module, "down_proj")]
    assert mlps
    odd = mlps[0]
    whole = type(odd).forward
    odd.forward = lambda x: 2 * whole(odd, x)
    policy = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    fuse(policy)
    own = [isinstance(mlp.forward, partial) for mlp in mlps]
    assert own == [False, *[True] * (len(mlps) - 1)]


def test_fused_layers_on_coarser_weights_give_what_peft_gives(batch: Batch) -> None:
    policy = adapted(torch.bfloat16)
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    ours = copy.deepcopy(policy)
    fuse(ours)
    assert torch.equal(gradients(ours, batch)[0], gradients(policy, batch)[0])


def test_plain_layers_are_fused_others_are_left_and_the_weights_are_saved_as_ever() -> None:
    plain, dora, dropping = adapted(), adapted(use_dora=True), adapted(lora_dropout=0.3)
    for policy, fused in ((plain, True), (dora, False), (dropping, False)):
        before = {name: weight.clone() for name, weight in get_peft_model_state_dict(policy).items()}
        fuse(policy)
        layer = next(module for module in policy.modules() if isinstance(module, Linear))
        made_by = type(layer(torch.ones(1, 2, layer.in_features)).grad_fn).__name__
        assert (made_by == "_AdaptedBackward") is fused
        after = get_peft_model_state_dict(policy)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_a_fused_adapter_can_be_merged_and_taken_out_again() -> None:
    ids = torch.arange(20, 60)[None]
    for safe in (True, False):
        policy = adapted().eval()
        layer = next(module for module in policy.modules() if isinstance(module, Linear))
        apart, before = policy(ids).logits, layer.get_base_layer().weight.clone()
        fuse(policy)
        policy.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(policy(ids).logits, apart, atol=1e-4, rtol=1e-4)
        policy.unmerge_adapter()
        torch.testing.assert_close(layer.get_base_layer().weight, before)


def test_recomputing_keeps_less_changes_no_gradient_and_selective_multiplies_no_large_matrix_twice(batch: Batch) -> None:
    found: dict[Checkpointing, torch.Tensor] = {}
    multiplied: dict[Checkpointing, int] = {}
    held: dict[Checkpointing, int] = {}
    for kind in ("none", "selective", "full"):
        policy = adapted(lora_dropout=0.3)
        recompute(policy.get_base_model(), kind, RANK)
        fuse(policy)
        with FlopCounterMode(display=False) as flops:
            _, found[kind] = gradients(policy, batch)
        multiplied[kind] = flops.get_total_flops()
        held[kind] = bytes_held(policy, batch)
    for kind in ("selective", "full"):
        torch.testing.assert_close(found[kind], found["none"], atol=1e-6, rtol=1e-5)
    assert multiplied["none"] < multiplied["selective"] < 1.1 * multiplied["none"] < multiplied["full"]
    assert held["full"] < held["selective"] < 0.5 * held["none"]


def bytes_held(policy: PeftModel, batch: Batch) -> int:
    """What a forward has left in memory for its backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        logprobs = target_logprobs(policy, batch)
    assert len(logprobs)
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())
