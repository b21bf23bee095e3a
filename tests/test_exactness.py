"""The tree row gives the log-probabilities, the loss and the gradients of one forward per response."""

from __future__ import annotations

import unittest.mock
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, conversation, small_model, tokenizer_for
from transformers import PreTrainedModel

from esupport.errors import UserError
from esupport.models.attention import Blocks, Matrix
from esupport.models.forward import _BUCKETS, verify_tree_row
from esupport.models.recomputing import Checkpointing, recompute
from esupport.objectives.logprobs import shares, target_logprobs
from esupport.objectives.reference import score
from esupport.rendering.mask import pieces
from esupport.rendering.packing import Batch, pack
from esupport.rendering.row import Row, grow, split, tree
from esupport.rendering.template import Renderer, Response


def responses_of(template: str, count: int, turns: int = 8) -> list[list[Response]]:
    renderer = Renderer(tokenizer_for(template), "Support the seeker.", "system", {}, 1000)
    talks = [conversation(turns - 2 * (i % 3), name=f"talk {i}", words="and on " * i) for i in range(count)]
    return [list(renderer.render(talk).responses) for talk in talks]


def one_by_one(model: PreTrainedModel, response: Response) -> torch.Tensor:
    """Log-probabilities of a completion from a forward of this response alone, with the model's own mask."""
    ids = torch.tensor([response.ids])
    logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    targets = ids[0, 1:]
    return logprobs.gather(1, targets[:, None])[-len(response.completion) :, 0]


def by_response(model: PreTrainedModel, batch: Batch) -> dict[tuple[str, int], torch.Tensor]:
    logprobs = target_logprobs(model, batch)
    keys = [(batch.names[r], int(r) - batch.names.index(batch.names[r])) for r in batch.response]
    return {key: logprobs[[i for i, k in enumerate(keys) if k == key]] for key in dict.fromkeys(keys)}


def branched(all_responses: list[list[Response]]) -> list[Row]:
    """Rows with the replies on the trunk, and beside each two branches: another reply, and a shorter one."""
    rows = []
    for number, responses in enumerate(all_responses):
        hung = list(responses)
        for r in responses:
            hung.append(Response(r.context, (*r.completion[::-1], r.completion[-1]), r.turn))
            hung.append(Response(r.context, r.completion[:2], r.turn))
        rows.append(grow(f"talk {number}", responses[-1].ids, hung))
    return rows


@pytest.fixture(params=["pieces", "matrix", "blocks"])
def structure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each way to attend to tree rows, on the CPU: FlexAttention uncompiled, with the tokens that fill its buckets."""
    if request.param != "pieces":
        kind = Matrix if request.param == "matrix" else Blocks
        monkeypatch.setattr("esupport.models.forward.structure", kind)
    if request.param == "blocks":
        monkeypatch.setitem(_BUCKETS, "cpu", _BUCKETS["cuda"])
        torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("structure")
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_one_forward_per_response(family: str) -> None:
    model = small_model(family)
    responses = responses_of("qwen", 3)
    rows = branched(responses)
    assert max(len(r.ids) for r in responses[0]) > 3 * 24, "contexts must outgrow the sliding window"
    with torch.no_grad():
        for batch in pack(rows, tokens_per_batch=4000):
            for (name, index), got in by_response(model, batch).items():
                row = next(i for i, r in enumerate(rows) if r.name == name)
                own = responses[row]
                count = len(own)
                r = own[index % count] if index < count else own[(index - count) // 2]
                if index >= count:
                    first = (index - count) % 2 == 0
                    r = Response(r.context, (*r.completion[::-1], r.completion[-1]) if first else r.completion[:2], r.turn)
                torch.testing.assert_close(got, one_by_one(model, r), atol=8e-5, rtol=0)


def test_branches_of_a_template_that_rewrites_its_end_are_exact_too() -> None:
    model = small_model("llama")
    responses = responses_of("thinking", 1)[0]
    rows = tree("talk", responses)
    assert sum(row.branches for row in rows) == len(responses) - 1
    with torch.no_grad():
        got = by_response(model, pack(rows, 4000)[0])
        for index, response in enumerate(responses):
            torch.testing.assert_close(got["talk", index], one_by_one(model, response), atol=8e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_conversation_that_is_cut_is_exact_too_and_so_are_contexts_that_are_cut_elsewhere(family: str) -> None:
    model, talk = small_model(family), conversation(12, words="and on " * 2)
    longest = responses_of("qwen", 1, 12)[0][-1]
    renderer = Renderer(tokenizer_for("qwen"), "Support the seeker.", "system", {}, len(longest.ids) // 2)
    rendered = renderer.render(talk)
    assert rendered.cut_turns
    assert rendered.lost_replies
    # the last reply again, to a context cut two turns later: it shares the system text and reads the rest anew
    last = rendered.responses[-1]
    (later,) = renderer.respond(talk, [(last.turn, talk.turns[last.turn].text)], rendered.cut_turns + 2)
    responses = [*rendered.responses, later]
    row = grow("talk", last.ids, responses)
    assert row.branches == 1
    with torch.no_grad():
        got = by_response(model, pack([row], 4000)[0])
        for index, response in enumerate(responses):
            torch.testing.assert_close(got["talk", index], one_by_one(model, response), atol=8e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("budget", [4000, 1])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_block_masks_give_the_log_probabilities_and_gradients_of_the_cpu(family: str, budget: int) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = small_model(family, head_dim=16).to(device)  # FlexAttention takes no narrower heads
        logprobs: list[torch.Tensor] = []

        def loss(of_part: torch.Tensor, _: Batch, found: list[torch.Tensor] = logprobs) -> torch.Tensor:
            found.append(of_part.detach().cpu())
            return -of_part.sum() / 1000

        for batch in pack(branched(responses_of("qwen", 3)), budget):
            for share in shares(model, batch.to(device), loss):
                share.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((torch.cat(logprobs), gradient.cpu()))
    (here, by_hand), (there, compiled) = found
    torch.testing.assert_close(there, here, atol=1e-4, rtol=0)
    torch.testing.assert_close(compiled / by_hand.abs().max(), by_hand / by_hand.abs().max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_loss_on_ten_conversations_is_the_mean_of_transformers_on_the_same_labels(family: str) -> None:
    model = small_model(family)
    conversations = responses_of("qwen", 10)
    total, count = 0.0, 0
    with torch.no_grad():
        for responses in conversations:
            ids = torch.tensor([responses[-1].ids])
            labels = torch.full_like(ids, -100)
            for r in responses:
                labels[0, len(r.context) : len(r.ids)] = torch.tensor(r.completion)
            learnt = int((labels != -100).sum())
            total += float(model(input_ids=ids, labels=labels, use_cache=False).loss) * learnt
            count += learnt
        rows = [row for number, responses in enumerate(conversations) for row in tree(str(number), responses)]
        targets = sum(len(row.targets) for row in rows)
        assert targets == count
        for budget in (1, 700, 100_000):  # one row a batch, several batches, one batch
            loss = sum(float(-target_logprobs(model, batch).sum() / targets) for batch in pack(rows, budget))
            assert loss == pytest.approx(total / count, abs=1e-5)


def test_packing_and_accumulation_do_not_change_the_gradients() -> None:
    rows = [row for number, rs in enumerate(responses_of("qwen", 7)) for row in tree(str(number), rs)]
    targets = sum(len(row.targets) for row in rows)

    def gradients(budget: int) -> tuple[int, torch.Tensor]:
        model = small_model("mistral")
        batches = pack(rows, budget)
        for batch in batches:
            (-target_logprobs(model, batch).sum() / targets).backward()
        return len(batches), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (many, one_row_a_batch), (one, all_at_once) = gradients(1), gradients(100_000)
    assert many > 1
    assert one == 1
    scale = all_at_once.abs().max()
    torch.testing.assert_close(one_row_a_batch / scale, all_at_once / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_row_longer_than_a_batch_is_split_between_its_branches_and_nothing_changes(family: str) -> None:
    rows = branched(responses_of("qwen", 3))
    model: Any = small_model(family)
    whole = list(score(model, rows, 100_000, "32"))
    for budget in (1, 150, 300):
        parts = [part for row in rows for part in split(row, budget)]
        assert len(parts) > len(rows)
        for part in parts:
            points = set(part.sees[part.branch > 0].tolist())
            assert points, "what lies on the trunk goes along"
            room = max(budget - part.trunk, budget // 4)
            assert len(part) - part.trunk <= room or len(points) == 1, "only one context is longer"
            assert part.naive_tokens > 0
        assert sum(part.responses for part in parts) == sum(row.responses for row in rows)
        assert sum(part.naive_tokens for part in parts) == sum(row.naive_tokens for row in rows)
        for got, want in zip(score(model, rows, budget, "32"), whole, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
    trunk_alone = tree("talk", responses_of("qwen", 1)[0])[0]
    assert len(split(trunk_alone, 1)) == 1, "a trunk is never cut"


@pytest.mark.usefixtures("structure")
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_behind_one_trunk_give_the_log_probabilities_of_the_whole(family: str) -> None:
    (row,) = branched(responses_of("qwen", 1))
    model = small_model(family)
    with torch.no_grad():
        (whole,) = pack([row], 100_000)
        for budget in (1, 120):
            (batch,) = pack([row], budget)
            assert len(batch.parts) > 3
            torch.testing.assert_close(target_logprobs(model, batch), target_logprobs(model, whole), atol=1e-4, rtol=0)


def gradient(model: Any, row: Row, budget: int) -> torch.Tensor:
    """Of a sum of log-probabilities in which each token has a weight of its own."""

    def weighed(logprobs: torch.Tensor, part: Batch) -> torch.Tensor:
        return (logprobs * (1 + part.targets % 7)).sum()

    model.zero_grad()
    (batch,) = pack([row], budget)
    given = 0
    for share in shares(model, batch, weighed):
        share.backward()
        given += 1
    assert given == (len(batch.parts) or 1)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_parts_read_their_trunk_once_and_give_the_gradients_of_the_whole(family: str, checkpointing: Checkpointing) -> None:
    (row,) = branched(responses_of("qwen", 1))
    model: Any = small_model(family).train()
    recompute(model, checkpointing, rank=4)
    read: list[int] = []  # tokens of each forward
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    whole = gradient(model, row, 100_000)
    assert read == [len(row)]
    for budget in (1, 120):
        read.clear()
        found = gradient(model, row, budget)
        assert read[0] == row.trunk
        assert sum(read) == len(row), "each token once"
        assert max(read[1:]) <= 30, "and no more of them beside the trunk than there is room for"
        torch.testing.assert_close(found / whole.abs().max(), whole / whole.abs().max(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], ["lm_head"]])
def test_every_weight_of_an_adapter_gets_its_gradient_from_parts_wherever_it_is(targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    (row,) = branched(responses_of("qwen", 1))
    torch.manual_seed(0)
    policy: Any = get_peft_model(small_model("llama"), LoraConfig(target_modules=targets, init_lora_weights=False))
    whole, in_parts = gradient(policy, row, 100_000), gradient(policy, row, 1)
    torch.testing.assert_close(in_parts / whole.abs().max(), whole / whole.abs().max(), atol=1e-5, rtol=0)
    *_, trunk_alone = shares(policy, pack([row], 1)[0], lambda logprobs, _: logprobs.sum())
    policy.zero_grad()
    trunk_alone.backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad), (
        "ranks wait for each with the last of a step"
    )


def test_the_gradient_of_a_batch_in_parts_is_not_lost_in_silence() -> None:
    (batch,) = pack([branched(responses_of("qwen", 1))[0]], 1)
    with pytest.raises(ValueError, match="goes through its shares"):
        target_logprobs(small_model("llama"), batch)


def test_every_target_of_every_row_is_packed_once() -> None:
    rows = [row for number, rs in enumerate(responses_of("qwen", 9)) for row in tree(str(number), rs)]
    for budget in (1, 300, 900, 100_000):
        batches = pack(rows, budget)
        packed = sorted(
            (batch.names[r], int(t)) for batch in batches for r, t in zip(batch.response, batch.targets, strict=True)
        )
        assert packed == sorted((row.name, int(row.ids[t])) for row in rows for t in row.targets)
        longest = max(map(len, rows))
        assert all(batch.ids.numel() <= max(budget, longest) for batch in batches)
        assert sum(batch.ids.numel() for batch in batches) == sum(map(len, rows)), "nothing is padded"


def test_the_head_runs_on_target_positions_only() -> None:
    model = small_model("llama")
    batch = pack(tree("talk", responses_of("qwen", 1)[0]), 4000)[0]
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    target_logprobs(model, batch)
    assert seen == [len(batch.targets)]
    assert seen[0] < batch.ids.numel()


def test_other_attention_is_refused_by_name() -> None:
    model = small_model("llama")
    batch = pack(tree("talk", responses_of("qwen", 1)[0]), 4000)[0]
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match="model: attention eager knows no tree rows"):
        target_logprobs(model, batch)
    model.set_attn_implementation("tree")
    model.config.layer_types = ["chunked_attention"]
    with pytest.raises(UserError, match="chunked_attention take no tree rows"):
        target_logprobs(model, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_for_which_the_tree_row_is_not_exact_is_refused(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(small_model(family), LoraConfig(target_modules="all-linear"))
    verify_tree_row(policy)
    model = policy.get_base_model()
    forward = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = out.logits / 2  # as some families do, behind the head
        return out

    model.forward = scaled
    with pytest.raises(UserError, match="is not supported: its log-probabilities in a tree row are off by"):
        verify_tree_row(policy)


def test_a_cap_on_logits_is_kept_and_one_on_scores_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = small_model("gemma3")
    model.config.final_logit_softcapping = 2.0
    verify_tree_row(get_peft_model(model, LoraConfig(target_modules="all-linear")))
    (row,) = tree("talk", responses_of("qwen", 1)[0])
    with torch.no_grad():
        kept = target_logprobs(model, pack([row], 4000)[0])
        model.config.final_logit_softcapping = None
        assert (target_logprobs(model, pack([row], 4000)[0]) - kept).abs().max() > 0.1
    with unittest.mock.patch.dict(FAMILIES, {"gemma2": {"model_type": "gemma2", "attn_logit_softcapping": 50.0}}):
        policy = get_peft_model(small_model("gemma2"), LoraConfig(target_modules="all-linear"))
    with pytest.raises(UserError, match="model: tree rows know no attention with softcap"):
        verify_tree_row(policy)


def test_dropout_before_the_head_is_the_same_when_a_chunk_is_computed_again() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = small_model("llama")
    policy = get_peft_model(model, LoraConfig(target_modules=["lm_head"], lora_dropout=0.5, init_lora_weights=False))
    policy.train()
    batch = pack(tree("talk", responses_of("qwen", 1)[0]), 4000)[0]

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        torch.manual_seed(1)
        target_logprobs(policy, batch).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    again = gradient()
    with unittest.mock.patch("esupport.objectives.logprobs.checkpoint", lambda function, *given, **_: function(*given)):
        torch.testing.assert_close(again, gradient())


def test_branches_that_outgrow_their_trunk_are_not_computed_against_each_other() -> None:
    context = tuple(range(3, 43))
    long = [Response((*context, *range(100 + n, 200 + n)), (7, 8), 0) for n in range(3)]
    short = [Response(context, (50 + n, 51), 0) for n in range(3)]
    row = grow("talk", [*context, 9, 9], [*short, *long])
    found = list(pieces(row, 0))
    assert [(piece.point, piece.end - piece.first) for piece in found] == [(0, 42), (40, 6), (40, 102), (40, 102), (40, 102)]


def test_rounding_of_half_precision_layers_is_no_reason_to_refuse() -> None:
    """Norms in float32 around linear layers in bfloat16, as 4-bit models compute."""
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(small_model("llama"), LoraConfig(target_modules="all-linear"))
    for module in policy.modules():
        if isinstance(module, torch.nn.Linear):
            module.bfloat16()
            module.register_forward_pre_hook(lambda layer, args: (args[0].bfloat16(),))
            module.register_forward_hook(lambda layer, args, out: out.float())
    verify_tree_row(policy)
