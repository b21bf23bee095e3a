"""Preference training on tree rows: exact, equal to TRL's losses, and against the reference that was asked for."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from families import conversation, small_model, tokenizer_for
from pairs import (
    Bench,
    Ids,
    Planted,
    alone,
    context_at,
    objective,
    pairs_of,
    plain_of,
    planted,
    renderer_of,
    scores_alone,
)
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor
from torch.nn.functional import softplus

from esupport.data.preference import Context, Finding, PreferencePair
from esupport.errors import DataFault, UserError
from esupport.evolution.learning import Learner
from esupport.evolution.rounds import Evolution
from esupport.models.slot import Slot
from esupport.objectives import losses
from esupport.objectives.dpo import Pairs, PreferenceOptimization
from esupport.objectives.logprobs import shares, target_logprobs
from esupport.objectives.reference import Scorer, check_start, score
from esupport.rendering.datamodule import Steps
from esupport.rendering.packing import Batch, pack, sizes
from esupport.rendering.pairs import render_pairs
from esupport.rendering.row import Floats, Row, tree
from esupport.rendering.rows import Rows, rows_digest
from esupport.rendering.template import Response

FAMILIES = ["llama", "qwen2", "gemma3"]
LOSSES: dict[str, dict[str, float]] = {
    "sigmoid": {"beta": 0.1},
    "sigmoid_norm": {"beta": 3.0},
    "ipo": {"beta": 1.0},
    "hinge": {"beta": 0.25},  # flat for some of the pairs
    "robust": {"beta": 0.1, "flipped": 0.15},
}


def named(loss: str) -> Callable[..., Tensor]:
    return functools.partial(getattr(losses, loss), **LOSSES[loss])


def by_the_book(loss: str, w: Tensor, v: Tensor, n_w: int, n_v: int) -> Tensor:
    """The loss of one pair from its two log-ratios, written down anew; -log sigma(x) is softplus(-x)."""
    beta, flipped = LOSSES[loss]["beta"], LOSSES[loss].get("flipped", 0.0)
    if loss == "sigmoid":
        return softplus(beta * (v - w))
    if loss == "sigmoid_norm":
        return softplus(beta * (v / n_v - w / n_w))
    if loss == "ipo":
        return (w / n_w - v / n_v - 0.5 / beta) ** 2
    if loss == "hinge":
        return torch.clamp(1 - beta * (w - v), min=0)
    right, wrong = softplus(beta * (v - w)), softplus(beta * (w - v))
    return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)


def nearby(family: str) -> Any:
    """A model whose weights are not far from those of ``small_model``: log-ratios of some nats, at which no loss is flat."""
    model = small_model(family)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.004 * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class Naive:
    """What one ordinary forward and backward per response gives."""

    model: Any
    planted: Planted  # with the nearby model's scores as the reference
    sums: dict[Ids, float]
    gradients: dict[Ids, Tensor]  # of each log-probability, over all weights


@functools.cache
def naive(family: str) -> Naive:
    model, bare = small_model(family), planted()
    sums, gradients = {}, {}
    for response in bare.in_order():
        model.zero_grad()
        value = alone(model, response)
        value.backward()
        sums[response.ids] = float(value.detach())
        gradients[response.ids] = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    model.zero_grad()
    return Naive(model, bare.scored(scores_alone(nearby(family), bare.in_order())), sums, gradients)


def expected(found: Naive, loss: str, nll_weight: float) -> tuple[float, Tensor]:
    """The mean over pairs of loss + nll_weight * chosen NLL a token, and its gradient by the chain rule."""
    reference = {}
    for row in found.planted.rows:
        reference |= {r.ids: float(v) for r, v in zip(found.planted.responses_of(row), row.reference, strict=True)}
    total, gradient = 0.0, torch.zeros_like(next(iter(found.gradients.values())))
    for pair in found.planted.pairs:
        sums = [torch.tensor(found.sums[r.ids], dtype=torch.float64, requires_grad=True) for r in pair]
        ratios = [s - reference[r.ids] for s, r in zip(sums, pair, strict=True)]
        n_w, n_l = (len(r.completion) for r in pair)
        value = (by_the_book(loss, *ratios, n_w, n_l) - nll_weight * sums[0] / n_w) / len(found.planted.pairs)
        slopes = torch.autograd.grad(value, sums)
        total += float(value.detach())
        gradient += sum(slope * found.gradients[r.ids] for slope, r in zip(slopes, pair, strict=True))
    return total, gradient


def dealt(rows: list[Row], budget: int, ranks: int) -> list[Batch]:
    """The batches of one step over all its ranks."""
    units = [[row] for row in rows]
    return [batch for rank in range(ranks) for batch in Steps(units, budget, rank, ranks)[tuple(range(len(units)))]]


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_log_probabilities_of_pairs_equal_one_forward_per_response(family: str) -> None:
    model, bare = small_model(family), planted()
    own = scores_alone(model, bare.in_order())
    assert max(len(ids) for ids in own) > 3 * 24, "contexts must outgrow the sliding window"
    rows = bare.scored(own).rows
    assert sum(row.branches for row in rows) < sum(row.responses for row in rows), "some are on trunks"
    for budget in (1, 700, 100_000):
        with torch.no_grad():
            for batch in pack(rows, budget):
                pairs = Pairs.of(target_logprobs(model, batch), batch)
                for ratio in (pairs.chosen_ratio, pairs.rejected_ratio):
                    torch.testing.assert_close(ratio, torch.zeros_like(ratio), atol=1e-4, rtol=0)
                both = torch.stack([pairs.chosen, pairs.rejected], 1).flatten()
                torch.testing.assert_close(both, batch.reference, atol=1e-4, rtol=0)
        measured = score(model, rows, budget, "32-true")
        for row, got in zip(rows, measured, strict=True):
            np.testing.assert_allclose(got, row.reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_equal_one_forward_per_response_whatever_the_packing(family: str, composed: Compose) -> None:
    found = naive(family)
    rows = found.planted.rows
    plain = plain_of(composed)
    plans = {
        "each context alone": [batch for row in rows for batch in pack([row], 1, sizes(rows))],
        "some together": pack(rows, 1000),
        "one batch": pack(rows, 100_000),
        "three ranks": dealt(rows, 700, 3),
        "more ranks than rows": dealt(rows, 700, len(rows) + 2),
    }
    assert [sum(len(batch.parts[1:]) or 1 for batch in plan) for plan in plans.values()] == [15, 3, 1, 5, 10]
    with torch.no_grad():
        logprobs = {name: [target_logprobs(found.model, batch) for batch in plan] for name, plan in plans.items()}
    for loss in LOSSES:
        for nll_weight in (0.0, 0.2):
            value, gradient = expected(found, loss, nll_weight)
            assert gradient.abs().max() > 1e-3
            module = objective(plain, found.model, loss=named(loss), nll_weight=nll_weight)
            for name, plan in plans.items():
                total = sum(float(module.loss(lp, batch)) for lp, batch in zip(logprobs[name], plan, strict=True))
                assert total == pytest.approx(value, abs=1e-4, rel=1e-5), (loss, nll_weight, name)
                if name != "each context alone" and (loss, nll_weight) != ("sigmoid_norm", 0.2):
                    continue  # a backward pass takes its time
                found.model.zero_grad()
                for share in chain.from_iterable(shares(found.model, batch, module.loss) for batch in plan):
                    share.backward()
                got = torch.cat([parameter.grad.flatten() for parameter in found.model.parameters()]).double()
                apart = float((got - gradient).abs().max() / gradient.abs().max())
                assert apart < 1e-4, (loss, nll_weight, name, apart)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_losses_equal_those_of_trl_on_its_own_batch(family: str, tmp_path: Path) -> None:
    """TRL's IPO is per token: it divides each log-ratio by its completion's tokens, as ours does (the paper's are sums)."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = tokenizer_for("qwen")
    examples = [
        {"prompt": f"{before}seeker: day {turn}, talk {talk}, it rained again. supporter:", "chosen": f" {hear}And you?",
         "rejected": f" Day {turn} will pass, talk {talk}. {hear * 2}"}
        for talk in range(2)
        for turn, hear in enumerate(["I hear you. ", "That is a lot for one week. ", ""])
        for before in [f"You listen. Talk {talk}. " + "seeker: rain. supporter: I see. " * turn]
    ]  # fmt: skip
    policy, reference = (gentle(family, seed) for seed in (0, 1))
    trainer = DPOTrainer(
        model=gentle(family, 0),
        ref_model=gentle(family, 1),
        args=DPOConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=len(examples),
            activation_checkpointing=False, max_length=None, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )  # fmt: skip
    collated = next(iter(trainer.get_train_dataloader()))
    assert len(collated["input_ids"]) == 2 * len(examples)
    rows = rows_of_trl(collated)
    assert len(rows) == 4, "of three prompts of a talk two share most of the way"
    assert sum(map(len, rows)) < 0.7 * int(collated["attention_mask"].sum()), "turns share their trunk"
    batches = pack([replace(row, reference=s) for row, s in zip(rows, score(reference, rows, 4000, "32"), strict=True)], 200)
    assert len(batches) == 3
    for loss, settings in LOSSES.items():
        trainer.beta, trainer.label_smoothing = settings["beta"], settings.get("flipped", 0.0)
        trainer.loss_types = [loss]
        trainer.model.zero_grad()
        theirs = trainer._compute_loss(trainer.model, collated, return_outputs=False)
        theirs.backward()
        policy.zero_grad()
        ours = torch.zeros(())
        for batch in batches:
            p = Pairs.of(target_logprobs(policy, batch), batch)
            each = named(loss)(p.chosen_ratio, p.rejected_ratio, p.chosen_length, p.rejected_length)
            share = each.sum() / (batch.step_responses / 2)
            share.backward()
            ours += share.detach()
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5), loss
        got, want = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (policy, trainer.model))
        assert float((got - want).abs().max() / want.abs().max()) < 1e-4, loss
    # other settings are told apart by far more than the bound
    trainer.loss_types, trainer.beta = ["sigmoid"], 0.2
    with torch.no_grad():
        other = trainer._compute_loss(trainer.model, collated, return_outputs=False)
    trainer.beta = 0.1
    with torch.no_grad():
        assert abs(float(other - trainer._compute_loss(trainer.model, collated, return_outputs=False))) > 1e-3


def gentle(family: str, seed: int) -> Any:
    """A random model whose log-ratios to one of another seed are some nats and not hundreds."""
    model = small_model(family, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.55)
    return model


def rows_of_trl(collated: dict[str, Tensor]) -> list[Row]:
    """Tree rows of exactly the token ids of a collated batch, in which the chosen ones come first; a row a conversation."""
    responses = []
    names = ("input_ids", "attention_mask", "completion_mask")
    for ids, read, scored in zip(*(collated[name].tolist() for name in names), strict=True):
        length, context = sum(read), sum(read) - sum(scored)
        assert scored[:length] == [0] * context + [1] * (length - context)
        responses.append(Response(tuple(ids[:context]), tuple(ids[context:length]), 0))
    half = len(responses) // 2
    pairs = sorted(zip(responses[:half], responses[half:], strict=True), key=lambda pair: len(pair[0].context))
    talks: dict[tuple[int, ...], list[Response]] = {}
    for pair in pairs:
        talks.setdefault(pair[0].context[:8], []).extend(pair)
    return [row for number, hung in enumerate(talks.values()) for row in tree(str(number), hung)]


# the module on the tiny model

MakeBench = Callable[..., Bench]
SIDES = ("chosen", "rejected")
AT_ONCE, ONE_BY_ONE = {"conversations_per_step": 3}, {"conversations_per_step": 1}


@pytest.fixture
def bench(composed: Compose, tmp_path: Path) -> MakeBench:
    def made(*overrides: str, folder: str = "bench") -> Bench:
        steady = ("objective.scheduler=null", "objective.optimizer.lr=1e-3")
        return Bench(plain_of(composed, *steady, *overrides), tmp_path / folder)

    return made


def learner_of(bench: Bench, callbacks: dict[str, Any] | None = None) -> Learner:
    plain = {**bench.plain, "evolution": {"epochs": bench.plain["trainer"]["max_epochs"]}, "callbacks": callbacks or {}}
    scorer = Scorer(bench.slot, bench.store, 2048, str(plain["trainer"]["precision"]))
    prepared: Any = SimpleNamespace(renderer=bench.renderer)
    return Learner(plain, prepared, bench.slot, bench.store, scorer, [], Console(quiet=True))


def by_hand(bench: Bench, policy: list[Floats], reference: list[Floats], numbers: list[int], beta: float) -> dict[str, float]:
    """Means over the pairs of the rows ``numbers`` of all that is logged, from the sums of one forward a response.

    Rewards are beta times the log-ratios; a negative beta says: per token.
    """
    normalised, beta = beta < 0, abs(beta)
    found: list[dict[str, float]] = []
    for number in numbers:
        responses = bench.planted.responses_of(bench.rows[number])
        for k in range(0, len(responses), 2):
            chosen, rejected = (float(policy[number][i]) for i in (k, k + 1))
            r_w, r_l = chosen - float(reference[number][k]), rejected - float(reference[number][k + 1])
            n_w, n_l = (len(responses[i].completion) for i in (k, k + 1))
            up, down = (beta * r_w / n_w, beta * r_l / n_l) if normalised else (beta * r_w, beta * r_l)
            found.append(
                {
                    "preference_loss": math.log1p(math.exp(down - up)),
                    "chosen_nll": -chosen / n_w,
                    "chosen_logprob": chosen,
                    "rejected_logprob": rejected,
                    "chosen_logratio": r_w / n_w,
                    "rejected_logratio": r_l / n_l,
                    "chosen_reward": up,
                    "rejected_reward": down,
                    "margin": up - down,
                    "accuracy": float(up > down),
                    "kl": -r_l / n_l,
                    "chosen_length": n_w,
                    "rejected_length": n_l,
                }
            )
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def close(got: dict[str, Any], want: dict[str, float], prefix: str = "") -> bool:
    return all(float(got[prefix + name]) == pytest.approx(value, abs=1e-4, rel=1e-4) for name, value in want.items())


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "robust"])
def test_before_training_all_log_ratios_are_0_and_the_loss_is_ln_2(loss: str, bench: MakeBench) -> None:
    ours = bench(f"objective/loss={loss}")
    start = ours.adapter("start", 1)
    module, _ = ours.fit(start, ours.measured(start), is_start=True, **AT_ONCE)
    (first,) = module.curve
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert max(abs(first[name]) for name in ("chosen_logratio", "rejected_logratio", "margin", "kl")) < 1e-5
    assert module.measure_pairs()["preference_loss"] < math.log(2) - 0.001, "and then it learns"


def with_dropout_on(bench: Bench, start: Path) -> list[Floats]:
    policy = bench.slot.load(start).train()
    torch.manual_seed(0)
    with torch.no_grad():
        return [sums_as_it_is(policy, row) for row in bench.rows]


def sums_as_it_is(policy: Any, row: Row) -> Floats:
    (batch,) = pack([row], 100_000)
    pairs = Pairs.of(target_logprobs(policy, batch), batch)
    return torch.stack([pairs.chosen, pairs.rejected], 1).flatten().numpy()


def but_one(scores: list[Floats], by: float) -> list[Floats]:
    """All the same but the chosen completion of the last pair."""
    last = scores[-1].copy()
    last[-2] += by
    return [*scores[:-1], last]


WRONG: dict[str, Callable[[Bench, Path], list[Floats]]] = {
    "another adapter": lambda bench, start: bench.measured(bench.adapter("other", 2)),
    "the base": lambda bench, start: bench.measured(None),
    "dropout left on": with_dropout_on,
    "not a number": lambda bench, start: but_one(bench.measured(start), math.nan),
    "one that is stale": lambda bench, start: but_one(bench.measured(start), 0.002),
    "chosen and rejected changed": lambda bench, start: [s.reshape(-1, 2)[:, ::-1].flatten() for s in bench.measured(start)],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reference_stops_the_run_before_anything_is_learnt(wrong: str, bench: MakeBench) -> None:
    ours = bench("model.lora.dropout=0.2")
    start = ours.adapter("start", 1)
    scores = WRONG[wrong](ours, start)
    ours.slot.load(start)
    before = ours.weights()
    message = (
        r"^objective: before training, policy and reference differ by \S+ nats on completion \d of talk \d \(bound 0\.001\): "
        r"the reference's scores are not those of the policy's start$"
    )
    with pytest.raises(UserError, match=message) as stopped:
        ours.fit(start, scores, is_start=True)
    if wrong in ("not a number", "one that is stale"):
        last = len(ours.rows[-1].reference) - 2
        assert f"completion {last} of {ours.rows[-1].name} " in str(stopped.value)
    assert all(torch.equal(before[name], value) for name, value in ours.weights().items())
    # the right one does not, with dropout in training and within the bound
    module, trainer = ours.fit(start, but_one(ours.measured(start), 0.0005), is_start=True)
    assert trainer.global_step == len(module.curve) == 1
    assert module.policy.training, "measuring leaves the model in train mode"
    assert not all(torch.equal(before[name], value) for name, value in ours.weights().items())


def test_of_many_rows_a_spread_few_are_scored_again() -> None:
    model, bare = small_model("llama"), planted()
    rows = bare.scored(scores_alone(model, bare.in_order())).rows * 20
    read: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    check_start(model, rows, 100_000, "32-true")
    assert 31 * min(map(len, rows)) < sum(read) <= 32 * max(map(len, rows)) < sum(map(len, rows))
    for wrong in (0, -1):
        stale = [*rows]
        stale[wrong] = replace(rows[wrong], reference=rows[wrong].reference + 1)
        with pytest.raises(UserError, match="policy and reference differ"):
            check_start(model, stale, 100_000, "32-true")


def test_another_reference_than_the_start_is_not_held_against_it_but_told(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    ours = bench("model.lora.dropout=0.2")
    start = ours.adapter("start", 1)
    want = by_hand(ours, ours.measured(start), ours.measured(None), [0, 1, 2], -3.0)
    with caplog.at_level(logging.INFO, logger="esupport"):
        module, _ = ours.fit(start, ours.measured(None), is_start=False)
    assert abs(module.curve[0]["chosen_logratio"]) > 0.01
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("esupport")]
    figures = re.match(
        r"before training, policy and reference differ by (\S+) \(chosen\) and (\S+) \(rejected\) nats a token", told
    )
    assert figures, told
    assert [float(one) for one in figures.groups()] == pytest.approx([want[f"{side}_logratio"] for side in SIDES], abs=1e-3)


def test_in_bfloat16_the_bound_is_per_token_and_a_wrong_adapter_is_still_seen(bench: MakeBench) -> None:
    ours = bench("model.dtype=bfloat16", "trainer.precision=bf16-mixed", "batching.tokens_per_batch=1")
    start, other = ours.adapter("start", 1), ours.adapter("other", 2)
    scorer = Scorer(ours.slot, ours.store, 4000, "bf16-mixed")
    kept, _ = scorer.scores(Rows.of(ours.rows), start)
    lengths = [np.bincount(row.response).astype(np.float32) for row in ours.rows]
    within, beyond = ([k + by * n for k, n in zip(kept, lengths, strict=True)] for by in (0.015, 0.03))
    for scores in (kept, within):
        module, _ = ours.fit(start, scores, is_start=True)
        assert len(module.curve) == 1
    wrong, _ = scorer.scores(Rows.of(ours.rows), other)
    for scores in (beyond, wrong):
        with pytest.raises(UserError, match=r"before training, policy and reference differ by .* \(bound 0\.\d+\): "):
            ours.fit(start, scores, is_start=True)


def test_the_reference_is_the_rounds_start_and_not_the_base(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After fine-tuning with an adapter, a reference with the adapter off is silently another model (LLaMA-Factory #8974)."""
    ours = bench()
    start = ours.adapter("start", 1)
    trained, scored = learner_of(ours).prefer(1, ours.corpus, start, start)
    kept, own, base = np.load(scored.folder / "scores.npy"), ours.measured(start), ours.measured(None)
    np.testing.assert_allclose(kept, np.concatenate(own), atol=1e-4)
    assert np.abs(np.concatenate(own) - np.concatenate(base)).max() > 1
    assert trained.inputs["reference"] == scored.key
    curve = [json.loads(line) for line in (trained.folder / "curve.jsonl").read_text().splitlines()]
    assert curve[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    # asked for by name, the base is the backbone alone, and its distance is logged
    other, scored = learner_of(ours).prefer(1, ours.corpus, start, None)
    np.testing.assert_allclose(np.load(scored.folder / "scores.npy"), np.concatenate(base), atol=1e-4)
    assert other.key != trained.key
    curve = [json.loads(line) for line in (other.folder / "curve.jsonl").read_text().splitlines()]
    assert close(curve[0], by_hand(ours, own, base, [0, 1, 2], -3.0))
    # the trap: the adapter is off while the reference is measured
    speaking = Slot.speaking
    monkeypatch.setattr(Slot, "speaking", lambda self, adapter: speaking(self, None))
    trap = bench(folder="trap")
    with pytest.raises(UserError, match="the reference's scores are not those of the policy's start"):
        learner_of(trap).prefer(1, trap.corpus, trap.adapter("start", 1), trap.folder / "start")


def test_the_base_is_without_the_adapter_that_the_model_was_given(bench: MakeBench) -> None:
    ours = bench()
    start = ours.adapter("start", 1)
    own, base = ours.measured(start), ours.measured(None)
    given = bench(f"model.adapter={start}", folder="given")
    scorer = Scorer(given.slot, given.store, 2048, "32-true")
    for adapter, want in ((None, base), (start, own), (given.adapter("other", 2), ours.measured(given.folder / "other"))):
        kept, _ = scorer.scores(Rows.of(given.rows), adapter)
        np.testing.assert_allclose(np.concatenate(kept), np.concatenate(want), atol=1e-4)


M0, M1, M2 = (Path(f"M{number}/adapter") for number in range(3))
BY_NAME: dict[tuple[str, str], list[tuple[Path, Path | None]]] = {  # what rounds 1 to 3 start from, and their reference
    ("previous", "round_start"): [(M0, M0), (M1, M1), (M2, M2)],
    ("previous", "sft"): [(M0, M0), (M1, M0), (M2, M0)],
    ("previous", "base"): [(M0, None), (M1, None), (M2, None)],
    ("sft", "round_start"): [(M0, M0), (M0, M0), (M0, M0)],
    ("sft", "base"): [(M0, None), (M0, None), (M0, None)],
}


@pytest.mark.parametrize("pairs", ["current", "cumulative"])
@pytest.mark.parametrize(("start", "reference"), BY_NAME)
def test_start_reference_and_pairs_of_each_round_are_those_named(
    start: Any, reference: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path | None]] = []
    learnt: list[list[str]] = []
    drafted: list[Path] = []

    def prefer(number: int, corpus: Any, start: Path, reference: Path | None) -> tuple[Any, Any]:
        asked.append((start, reference))
        return SimpleNamespace(folder=Path(f"M{number}"), key=f"M{number}"), SimpleNamespace(key="scores")

    def made(self: Evolution, number: int, adapter: Path) -> tuple[Any, dict[str, Any]]:
        drafted.append(adapter)
        return SimpleNamespace(folder=Path(f"pairs of {number}"), key=f"pairs {number}"), {}

    monkeypatch.setattr(Evolution, "_pairs", made)
    monkeypatch.setattr(Evolution, "_settings", lambda self, number: {})
    monkeypatch.setattr("esupport.evolution.rounds._kept", lambda stage: [stage.folder.name])
    silent = dict.fromkeys(("add", "system", "round", "pairs"), lambda *_: None)
    nothing: Any = SimpleNamespace(**silent, keys=lambda *_: [])
    nothing.ledger, nothing.console = nothing, Console(quiet=True)
    parts: dict[str, Any] = {
        "settings": SimpleNamespace(rounds=3, start=start, reference=reference, pairs=pairs),
        "learner": SimpleNamespace(prefer=prefer, render=lambda kept: learnt.append(kept)),
        "exam": SimpleNamespace(take=lambda *_: {"warnings": []}, drift=SimpleNamespace(stop=False)),
    }
    evolution = Evolution(**parts, output=nothing, **dict.fromkeys(("method", "contexts", "human", "writer")))  # type: ignore[arg-type]
    evolution.run(M0)
    assert asked == BY_NAME[start, reference]
    assert drafted == [M0, M1, M2], "drafts are always those of the system before"
    rounds = [f"pairs of {number}" for number in (1, 2, 3)]
    assert learnt == ([rounds[:1], rounds[:2], rounds] if pairs == "cumulative" else [[one] for one in rounds])


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.4), ("sigmoid_norm", -2.0)])
def test_logged_figures_are_those_computed_by_hand(loss: str, beta: float, bench: MakeBench) -> None:
    ours = bench(f"objective/loss={loss}", f"objective.loss.beta={abs(beta)}", "objective.optimizer.lr=0")
    start = ours.adapter("start", 1)
    own, others, more = ours.measured(start), ours.measured(ours.adapter("other", 2)), ours.measured(ours.adapter("more", 3))
    want = by_hand(ours, own, others, [0, 1, 2], beta)
    assert 0 < want["accuracy"] < 1
    # all in one step, over three batches
    module, trainer = ours.fit(start, others, held_out=more, **AT_ONCE, tokens_per_batch=1)
    (step,) = module.curve
    assert close(step, want)
    assert set(step) == {"step", *want}
    assert step["step"] == trainer.global_step == 1
    assert close(trainer.callback_metrics, want, "train/")
    assert close(trainer.callback_metrics, by_hand(ours, own, more, [0, 1, 2], beta), "val/")
    total = want["preference_loss"] + 0.2 * want["chosen_nll"]
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(total, abs=1e-4)
    measured = module.measure_pairs()
    assert measured.pop("pairs") == 7
    assert close(measured, want)
    assert set(measured) == set(want)
    # a conversation a step: each step's own pairs, and nothing of the steps before
    module, trainer = ours.fit(start, others, **ONE_BY_ONE)
    order = [number for (number,) in trainer.datamodule.sampler]
    assert [step.pop("step") for step in module.curve] == [1, 2, 3]
    for number, step in zip(order, module.curve, strict=True):
        assert close(step, by_hand(ours, own, others, [number], beta))


def test_rewards_of_every_loss_have_its_own_scale(bench: MakeBench) -> None:
    ours = bench()
    sums, reference = torch.tensor([-30.0, -80.0]), torch.tensor([-36.0, -72.0])
    pairs = Pairs.of_sums(sums, reference, torch.tensor([10.0, 40.0]))
    for loss, settings in LOSSES.items():
        module = objective(ours.plain, ours.slot.load(None), loss=named(loss))
        figures = module.figures(pairs, torch.tensor([0.5]))
        lengths = (10, 40) if loss in ("sigmoid_norm", "ipo") else (1, 1)
        chosen, rejected = (settings["beta"] * ratio / length for ratio, length in zip((6, -8), lengths, strict=True))
        assert float(figures["chosen_reward"]) == pytest.approx(chosen)
        assert float(figures["rejected_reward"]) == pytest.approx(rejected)
        assert float(figures["margin"]) == pytest.approx(chosen - rejected)
        assert float(figures["accuracy"]) == 1
        assert float(figures["kl"]) == pytest.approx(8 / 40)
        assert float(figures["chosen_logratio"]) == pytest.approx(0.6)


def warned(bench: Bench, start: Path, fall: float) -> list[str]:
    """Warnings of three steps in which the chosen completions stand ``fall`` nats a token below the reference, others above."""
    shifts = [np.bincount(row.response) * np.resize([fall, -fall], row.responses) for row in bench.rows]
    reference = [(own + shift).astype(np.float32) for own, shift in zip(bench.measured(start), shifts, strict=True)]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        module, _ = bench.fit(start, reference, **ONE_BY_ONE)
    assert [step["chosen_logratio"] for step in module.curve] == pytest.approx([-fall] * 3, abs=1e-4)
    return [str(one.message) for one in found if one.category is RuntimeWarning]


def test_a_fall_of_the_chosen_log_probability_warns_once(bench: MakeBench) -> None:
    ours = bench("objective.optimizer.lr=0", "objective.chosen_fall=0.75")
    start = ours.adapter("start", 1)
    (said,) = warned(ours, start, 0.8)
    assert said.startswith("step 1: the chosen completions lost 0.80 nats a token against the reference (bound 0.75); raise ")
    assert not warned(ours, start, 0.7)
    assert not warned(ours, start, -0.8)
    ours.plain["objective"]["chosen_fall"] = None
    assert not warned(ours, start, 5.0)


def test_packing_and_accumulation_leave_the_training_as_it_is(bench: MakeBench) -> None:
    ours = bench("trainer.max_epochs=3")
    start = ours.adapter("start", 1)
    scores = ours.measured(start)
    found = []
    for budget in (1, 500, 100_000):
        module, trainer = ours.fit(start, scores, is_start=True, conversations_per_step=2, tokens_per_batch=budget)
        assert trainer.global_step == 6
        found.append((module.curve, ours.weights()))
    first = ours.slot.load(start)
    moved = max(float((w - p.detach()).abs().max()) for w, p in zip(found[0][1].values(), trainable(first), strict=True))
    assert moved > 1e-3
    for curve, weights in found[1:]:
        assert max(float((weights[name] - found[0][1][name]).abs().max()) for name in weights) < 5e-3 * moved
        for ours_, theirs in zip(curve, found[0][0], strict=True):
            assert close(ours_, theirs)


def trainable(policy: Any) -> list[Tensor]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def test_a_rank_with_nothing_to_learn_joins_with_a_loss_of_0(bench: MakeBench) -> None:
    ours = bench()
    policy = ours.slot.load(ours.adapter("start", 1))
    units = [[replace(row, reference=s)] for row, s in zip(ours.rows, ours.measured(None), strict=True)]
    policy = ours.slot.load(ours.folder / "start")
    (batch,) = Steps(units, 1000, 4, 5)[0, 1, 2]
    assert len(batch.names) == 0
    assert batch.step_responses == 14, "it knows the step's pairs all the same"
    pairs = Pairs.of(target_logprobs(policy, batch), batch)
    assert {len(vector) for vector in vars(pairs).values()} == {0}
    module = objective(ours.plain, policy)
    loss = module.loss(target_logprobs(policy, batch), batch)
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in trainable(policy))
    assert set(module._sums) == set(by_hand(ours, ours.measured(None), ours.measured(None), [0], 1.0)) | {"pairs"}
    assert all(float(value) == 0 for value in module._sums.values())


class Forwards:
    """Counts forward passes of the backbone."""

    def __init__(self, bench: Bench) -> None:
        self.count = 0
        bench.slot.load(None).get_base_model().get_decoder().register_forward_hook(self._one)

    def _one(self, *_: Any) -> None:
        self.count += 1

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


def test_scores_are_measured_once_for_weights_rows_and_arithmetic(bench: MakeBench) -> None:
    ours = bench()
    start = ours.adapter("start", 1)
    forwards = Forwards(ours)

    def scores(rows: list[Row], adapter: Path | None, precision: str = "32-true", budget: int = 2048) -> tuple[bool, int]:
        _, stage = Scorer(ours.slot, ours.store, budget, precision).scores(Rows.of(rows), adapter)
        return stage.reused, forwards.taken()

    with ours.slot.speaking(start):
        ours.slot.trunks[1, 2] = "held"
    reused, count = scores(ours.rows, start)
    assert not reused
    assert count > 0
    assert not ours.slot.trunks, "scoring has the memory"
    assert scores(ours.rows, start) == (True, 0)
    assert scores(ours.rows, start, budget=100) == (True, 0), "packing is no part of what is measured"
    assert scores([replace(row, name="other") for row in ours.rows], start) == (True, 0)
    ours.slot.backbone.save(ours.slot.load(start), ours.folder / "elsewhere")
    assert scores(ours.rows, ours.folder / "elsewhere") == (True, 0), "the same adapter in another place"
    anew = [
        scores(ours.rows[:2], start),
        scores(ours.rows[::-1], start),
        scores(ours.rows, ours.adapter("other", 2)),
        scores(ours.rows, None),
        scores(ours.rows, start, "bf16-mixed"),
    ]
    assert all(not reused and count > 0 for reused, count in anew)


@pytest.mark.parametrize("name", ["ids", "positions", "sees", "branch", "targets", "parents", "response"])
def test_what_is_read_and_what_is_scored_tell_rows_apart(name: str) -> None:
    row = planted().rows[0]
    changed = getattr(row, name).copy()
    changed[-1] += 1
    assert rows_digest([replace(row, **{name: changed})]) != rows_digest([row])


def test_another_learning_rate_or_beta_trains_anew_against_the_same_scores(bench: MakeBench) -> None:
    ours = bench()
    start = ours.adapter("start", 1)
    first, scored = learner_of(ours).prefer(1, ours.corpus, start, start)
    found = {first.key}
    for key, value in (("optimizer", {**ours.plain["objective"]["optimizer"], "lr": 5e-4}), ("nll_weight", 0.3)):
        ours.plain["objective"][key] = value
        trained, again = learner_of(ours).prefer(1, ours.corpus, start, start)
        assert again.reused
        assert again.key == scored.key
        assert not trained.reused
        found.add(trained.key)
    assert len(found) == 3
    ours.plain["batching"]["tokens_per_batch"] = 300
    trained, _ = learner_of(ours).prefer(1, ours.corpus, start, start)
    assert trained.reused, "packing never changes the result"
    # a value a round: of round 2, the second
    ours.plain["objective"]["loss"]["beta"] = [3.0, 5.0]
    of_first, _ = learner_of(ours).prefer(1, ours.corpus, start, start)
    assert of_first.reused
    of_second, _ = learner_of(ours).prefer(2, ours.corpus, start, start)
    assert of_second.inputs["objective"]["loss"]["beta"] == 5.0


def test_a_damaged_file_of_scores_is_refused(bench: MakeBench) -> None:
    ours = bench()
    start = ours.adapter("start", 1)
    scorer = Scorer(ours.slot, ours.store, 2048, "32-true")
    kept, stage = scorer.scores(Rows.of(ours.rows), start)
    path, manifest = stage.folder / "scores.npy", stage.folder / "stage.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"^paths\.store: \S+/scores/[0-9a-f]{16} was altered \(scores\.npy\); remove it"):
        scorer.scores(Rows.of(ours.rows), start)
    listed = json.loads(manifest.read_text())
    for wrong in (np.concatenate(kept)[:-1], np.append(np.concatenate(kept)[:-1], np.float32("nan"))):
        np.save(path, wrong)
        listed["files"]["scores.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(listed))
        with pytest.raises(UserError, match=r"does not hold a score for each completion; remove it$"):
            scorer.scores(Rows.of(ours.rows), start)


def test_preference_training_killed_anywhere_and_started_again_equals_the_one_left_alone(bench: MakeBench) -> None:
    def learn(folder: str, kill_at: int | None = None) -> Any:
        ours = bench("trainer.max_epochs=2", "batching.conversations_per_step=1", "model.lora.dropout=0.2", folder=folder)
        start = ours.folder / "start"
        if not start.exists():
            ours.adapter("start", 1)
        last = {**ours.plain["callbacks"]["last"], "every_n_train_steps": 1}
        learner = learner_of(ours, {"last": last, "best": ours.plain["callbacks"]["best"]})
        if kill_at is None:
            return learner.prefer(1, ours.corpus, start, start)[0]

        def kill(module: PreferenceOptimization, batch: Any, index: int) -> None:
            if module.global_step == kill_at:
                raise ConnectionAbortedError("killed")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PreferenceOptimization, "on_train_batch_start", kill)
            with pytest.raises(ConnectionAbortedError):
                learner.prefer(1, ours.corpus, start, start)
        return None

    whole = learn("whole")
    curve = [json.loads(line) for line in (whole.folder / "curve.jsonl").read_text().splitlines()]
    assert [step["step"] for step in curve] == [1, 2, 3, 4, 5, 6]
    for stop in (2, 3):
        learn(f"killed {stop}", kill_at=stop)
        again = learn(f"killed {stop}")
        assert again.key == whole.key
        for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.jsonl"):
            assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
        assert sorted(again.files) == sorted(whole.files)


# pairs as rows


def test_pairs_of_a_conversation_hang_on_its_longest_context() -> None:
    renderer = renderer_of("qwen")
    one, two = (pairs_of(conversation(8, name=name), (1, 3, 3, 7)) for name in ("one", "two"))
    mixed = [one[3], two[0], one[0], two[3], one[2], two[1], one[1], two[2]]
    corpus = render_pairs("train", mixed, renderer, "stop")
    assert [[row.name for row in unit] for unit in corpus.units] == [["one"], ["two"]]
    assert (corpus.replies, corpus.branches, corpus.extra_trees, corpus.lost_replies) == (16, 14, 0, 0)
    assert corpus.turns == 2 * (1 + 3 + 3 + 7)
    assert corpus.targets == sum(len(row.targets) for unit in corpus.units for row in unit)
    longest = tuple(renderer.respond(one[3].context.answered(one[3].rejected), [(7, one[3].rejected)])[0].ids)
    row = corpus.units[0][0]
    assert tuple(row.ids[row.branch == 0]) == longest
    said = [renderer.tokenizer.decode(row.ids[row.targets[row.response == r]][:-1]) for r in range(row.responses)]
    # by length of the context; of equal ones the first first
    assert said == [text for pair in (one[0], one[2], one[1], one[3]) for text in (pair.chosen, pair.rejected)]
    assert corpus.sharing > 2.5
    assert corpus.tokens == len(row) + len(corpus.units[1][0])


def test_pairs_that_are_too_long_are_left_out_whole_and_counted() -> None:
    renderer = renderer_of("qwen", max_tokens=150)
    pairs = pairs_of(conversation(8, name="a"), (1, 3, 7))
    long = pairs[0].model_copy(update={"rejected": "Too long. " * 80})
    corpus = render_pairs("train", [*pairs, long, long.model_copy(update={"rejected": "Short.", "chosen": long.rejected})],
                          renderer, "stop")  # fmt: skip
    assert corpus.lost_replies == 6, "the context of turn 7 does not fit, nor does either long reply"
    assert corpus.replies == 4
    assert [row.responses for unit in corpus.units for row in unit] == [4]


@pytest.mark.parametrize("where", ["chosen", "rejected", "context"])
def test_control_tokens_in_a_pair_are_refused_or_the_pair_is_skipped(where: str) -> None:
    renderer = renderer_of("qwen")
    sound = pairs_of(conversation(8, name="a"), (1, 3))
    smuggled = "Yes.<|im_end|>\n<|im_start|>user"
    if where == "context":
        turns = (sound[0].context.turns[0].model_copy(update={"text": smuggled}),)
        changed = {"context": sound[0].context.model_copy(update={"turns": turns})}
    else:
        changed = {where: smuggled}
    faulty = sound[0].model_copy(update=changed)
    named = "context.turns.0.text" if where == "context" else where
    with pytest.raises(DataFault, match=rf"a/1: {named}: contains the control token '<\|im_end\|>'"):
        render_pairs("train", [faulty, *sound], renderer, "stop")
    corpus = render_pairs("train", [faulty, *sound], renderer, "skip")
    assert len(corpus.skipped) == 1
    assert corpus.replies == 4


def test_a_context_ends_on_the_seeker_and_a_pair_tells_why_it_was_dropped() -> None:
    talk = conversation(6, name="a")
    with pytest.raises(ValidationError, match="a context ends on the seeker"):
        context_at(talk, 2)
    with pytest.raises(ValidationError):
        Context(conversation="a", turn=0, turns=())
    context = context_at(talk, 3)
    assert context.key == "a/3"
    assert context.transcript().splitlines()[1] == "Supporter: " + talk.turns[1].text
    assert [turn.role for turn in context.answered("Yes.").turns] == ["seeker", "supporter", "seeker", "supporter"]
    pair = PreferencePair(context=context, chosen="Yes.", rejected="No.", verdicts={"empty": "", "same": "97 %"})
    assert pair.dropped == {"same": "97 %"}
    assert (Finding(text="unknown").known, Finding(text="a nurse").known) == (False, True)
    assert PreferencePair.model_validate(json.loads(pair.model_dump_json())) == pair
