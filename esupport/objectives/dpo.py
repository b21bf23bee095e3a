"""Phase 2: preference optimisation on the branches of tree rows (DPO, Rafailov et al. 2023; step 6 of the method)."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from esupport.objectives.logprobs import target_logprobs
from esupport.objectives.losses import chosen_nll, ipo, sigmoid_norm
from esupport.objectives.module import Objective
from esupport.objectives.reference import check_start, score
from esupport.rendering.packing import Batch
from esupport.rendering.rows import Rows

log = logging.getLogger(__name__)

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_PER_TOKEN = (sigmoid_norm, ipo)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch as vectors of (pairs,).

    Attributes:
        chosen, rejected: log-probability under the policy, summed over the completion's tokens.
        chosen_ratio, rejected_ratio: log-ratio of policy to reference.
        chosen_length, rejected_length: in tokens, the end-of-turn token among them.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @classmethod
    def of(cls, logprobs: Tensor, batch: Batch) -> Pairs:
        """Sums over each completion's targets; ``logprobs`` are those of the batch's targets, (n,)."""
        nothing = torch.zeros(len(batch.names), device=logprobs.device)
        sums = nothing.index_add(0, batch.response, logprobs)
        lengths = nothing.index_add(0, batch.response, torch.ones_like(logprobs))
        return cls.of_sums(sums, batch.reference, lengths)

    @classmethod
    def of_sums(cls, sums: Tensor, reference: Tensor, lengths: Tensor) -> Pairs:
        """From vectors of (completions,), a chosen one before each rejected one."""
        ratios = sums - reference
        return cls(sums[::2], sums[1::2], ratios[::2], ratios[1::2], lengths[::2], lengths[1::2])


class PreferenceOptimization(Objective):
    """Makes the chosen completion likelier than the rejected one, against a reference measured before.

    Args:
        loss: of the four vectors that :mod:`esupport.objectives.losses` tells, with its beta.
        nll_weight: weight of the chosen completion's negative log-likelihood per token, beside the loss (RPO; Pang et al.
            2024). DPO alone lowers the chosen one's likelihood too, and replies decay.
        chosen_fall: warn when a step's chosen log-ratio falls below minus this, in nats a token; None never warns.
        reference_is_start: whether the reference is what the policy starts from; its log-ratios are then seen to be 0.
        others: see :class:`esupport.objectives.module.Objective`.

    Attributes:
        curve: what was logged, step by step.
    """

    def __init__(
        self, loss: PairLoss, nll_weight: float, chosen_fall: float | None, reference_is_start: bool, **others: Any
    ) -> None:
        super().__init__(**others)
        self.pair_loss, self.nll_weight, self.chosen_fall = loss, nll_weight, chosen_fall
        self.reference_is_start = reference_is_start
        self.curve: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._held_out_sums: dict[str, Tensor] = {}

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """The batch's share of the mean over the step's pairs of loss + nll_weight * chosen NLL per token."""
        pairs = Pairs.of(logprobs, batch)
        nll = chosen_nll(pairs.chosen, pairs.chosen_length)
        losses = self._losses(pairs)
        _add(self._sums, self.figures(pairs, losses))
        return (losses + self.nll_weight * nll).sum() / (batch.step_responses / 2)

    @torch.no_grad()
    def figures(self, pairs: Pairs, losses: Tensor) -> dict[str, Tensor]:
        """Sums over the pairs of a batch of what is logged, and their number under ``pairs``."""
        scale = self._beta()
        chosen, rejected = scale * pairs.chosen_ratio, scale * pairs.rejected_ratio
        if self._normalised():
            chosen, rejected = chosen / pairs.chosen_length, rejected / pairs.rejected_length
        return {
            "pairs": torch.tensor(float(len(losses)), device=losses.device),
            "preference_loss": losses.sum(),
            "chosen_nll": chosen_nll(pairs.chosen, pairs.chosen_length).sum(),
            "chosen_logprob": pairs.chosen.sum(),
            "rejected_logprob": pairs.rejected.sum(),
            "chosen_logratio": (pairs.chosen_ratio / pairs.chosen_length).sum(),
            "rejected_logratio": (pairs.rejected_ratio / pairs.rejected_length).sum(),
            "chosen_reward": chosen.sum(),
            "rejected_reward": rejected.sum(),
            "margin": (chosen - rejected).sum(),
            "accuracy": (chosen > rejected).float().sum(),
            # where the rejected ones are the reference's own samples, as drafts are of the round's start, minus their log-ratio
            # estimates KL(reference || policy) a token; of other pairs it is their fall alone
            "kl": (-pairs.rejected_ratio / pairs.rejected_length).sum(),
            "chosen_length": pairs.chosen_length.sum(),
            "rejected_length": pairs.rejected_length.sum(),
        }

    def _beta(self) -> float:
        return float(getattr(self.pair_loss, "keywords", {}).get("beta", 1.0))

    def _normalised(self) -> bool:
        return isinstance(self.pair_loss, functools.partial) and self.pair_loss.func in _PER_TOKEN

    def _losses(self, pairs: Pairs) -> Tensor:
        return self.pair_loss(pairs.chosen_ratio, pairs.rejected_ratio, pairs.chosen_length, pairs.rejected_length)

    def measure_pairs(self) -> dict[str, float]:
        """The logged figures over all training pairs, of the weights as they are, in eval mode."""
        rows = self._rows()
        scores = score(self.policy, rows, self._tokens_per_batch(), str(self.trainer.precision), "all pairs")
        found = (
            (sums, row.reference, np.bincount(row.response, minlength=row.responses))
            for row, sums in zip(rows, scores, strict=True)
        )
        vectors = (np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True))
        pairs = Pairs.of_sums(*map(torch.from_numpy, vectors))
        totals = {name: float(value) for name, value in self.figures(pairs, self._losses(pairs)).items()}
        count = totals.pop("pairs")
        return {"pairs": int(count), **{name: value / count for name, value in totals.items()}}

    def _rows(self) -> Rows:
        return cast("Rows", cast("Any", self.trainer).datamodule.corpora["train"].rows)

    def _tokens_per_batch(self) -> int:
        return int(cast("Any", self.trainer).datamodule.tokens_per_batch)

    def on_train_start(self) -> None:
        """Before anything is learnt: log-ratios are seen to be 0 where the reference is the start; else they are told."""
        if self.global_step > 0:
            return
        if self.reference_is_start:
            check_start(self.policy, self._rows(), self._tokens_per_batch(), str(self.trainer.precision))
            return
        apart = self.measure_pairs()
        log.info(
            "before training, policy and reference differ by %.4f (chosen) and %.4f (rejected) nats a token; loss %.4f",
            *(apart[name] for name in ("chosen_logratio", "rejected_logratio", "preference_loss")),
        )

    def on_step_end(self) -> None:
        """Log the step's means over its pairs, apart, and warn of a falling chosen log-probability."""
        means = self._means(self._sums)
        self._sums = {}
        self.curve.append({"step": self.global_step, **means})
        for name, value in means.items():
            self.log(f"train/{name}", value)
        if self.chosen_fall is not None and means["chosen_logratio"] < -self.chosen_fall:
            warnings.warn(
                f"step {self.global_step}: the chosen completions lost {-means['chosen_logratio']:.2f} nats a token against "
                f"the reference (bound {self.chosen_fall}); raise objective.nll_weight or beta, or lower the learning rate",
                RuntimeWarning,
                stacklevel=2,
            )
            self.chosen_fall = None  # once

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        whole = self.sum_over_ranks(torch.stack(list(sums.values())))
        totals = dict(zip(sums, whole.tolist(), strict=True))
        pairs = totals.pop("pairs")
        return {name: value / pairs for name, value in totals.items()}

    def validation_step(self, batches: list[Batch], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As every objective does; held-out pairs give the preference figures."""
        if self.held_out_names()[dataloader_idx] != "pairs_valid":
            super().validation_step(batches, batch_idx, dataloader_idx)
            return
        for batch in batches:
            pairs = Pairs.of(target_logprobs(self.policy, batch), batch)
            _add(self._held_out_sums, self.figures(pairs, self._losses(pairs)))

    def on_validation_epoch_end(self) -> None:
        """Log the likelihood of the held-out conversations and the figures of the held-out pairs."""
        super().on_validation_epoch_end()
        if self._held_out_sums:
            for name, value in self._means(self._held_out_sums).items():
                self.log(f"val/{name}", value)
            self._held_out_sums = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights, and the curve so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the curve."""
        self.curve = checkpoint.get("curve", [])


def _add(sums: dict[str, Tensor], figures: dict[str, Tensor]) -> None:
    for name, value in figures.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value
