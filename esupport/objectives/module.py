"""What the objectives share: an optimizer step over batches, held-out likelihood, and a checkpoint of the adapter alone.

Optimisation is manual because a training item is a whole optimizer step: the loss is then a sum over all its targets
divided by their number, whatever the packing, the accumulation and the number of ranks.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from esupport.errors import UserError, first_line
from esupport.objectives.logprobs import shares, target_logprobs
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class NonFiniteLoss(UserError):
    """The loss of a batch is not a number or infinite; the message names step and conversations."""


class Objective(pl.LightningModule, ABC):
    """Base of the objectives.

    Args:
        policy: the model with its adapter; only what requires a gradient is trained, saved and restored.
        optimizer: makes the optimizer from the trainable parameters.
        scheduler: makes the learning-rate schedule from ``optimizer``, ``num_warmup_steps`` and
            ``num_training_steps`` (``transformers.get_scheduler``); None keeps the rate as it is.
        warmup: share of the steps over which the rate rises.
        gradient_clip: bound on the gradient's norm; None for no bound.
        monitor: the figure by which the best adapter is told; config files hand it to callbacks.
        seed: of dropout; each step draws from it anew, so that a resumed run drops what the whole run drops.

    Attributes:
        measured_at: the step at which the adapter was last measured on the held-out side.
    """

    def __init__(
        self,
        policy: PeftModel,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None,
        warmup: float,
        gradient_clip: float | None,
        monitor: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.make_optimizer, self.make_scheduler, self.warmup = optimizer, scheduler, warmup
        self.gradient_clip, self.monitor, self.seed = gradient_clip, monitor, seed
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the adapter, not the frozen weights
        self.measured_at: int | None = None
        self._held_out: dict[str, Tensor] = {}

    @abstractmethod
    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """The batch's share of the step's loss: a sum over its targets divided by the targets of the whole step.

        Args:
            logprobs: (n,) log-probability of each target under the policy.
            batch: the batch they belong to.
        """

    def on_fit_start(self) -> None:
        """Without what the trainer's ``deterministic`` brings along: filling all memory before it is written, for nothing."""
        cast("Any", torch.utils).deterministic.fill_uninitialized_memory = False

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule over the trainable parameters, stepped once an optimizer step."""
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        steps = self.planned_steps
        try:
            scheduler = self.make_scheduler(
                optimizer=optimizer, num_warmup_steps=math.ceil(self.warmup * steps), num_training_steps=steps
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"objective.scheduler: {first_line(error)}") from None
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run, resumed or not.

        Not ``trainer.estimated_stepping_batches``: asked for here, it sets the training loader up before a checkpoint's
        loader state is there to be loaded, and a run resumed in mid-epoch would silently replay its first batches.
        """
        trainer = self.trainer
        epoch, limit = len(cast("Any", trainer).datamodule.sampler), trainer.limit_train_batches
        if limit is not None:
            epoch = min(epoch, limit) if isinstance(limit, int) else int(epoch * limit)
        bounds = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            bounds.append(trainer.max_epochs * epoch)
        return min(bounds, default=epoch)

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        """One optimizer step over ``batches``."""
        optimizer = cast("Optimizer", self.optimizers())
        torch.manual_seed(_mix(self.seed, self.global_step, self.global_rank))
        total = torch.zeros((), device=self.device)

        def loss(logprobs: Tensor, part: Batch) -> Tensor:
            found = self.loss(logprobs, part)
            if not torch.isfinite(found):
                raise self._non_finite("loss", found, [part])
            total.add_(found.detach())
            # data-parallel training averages gradients over ranks; the loss is a sum over them
            return found * self.trainer.world_size

        left = sum(len(batch.parts) or 1 for batch in batches)
        for share in chain.from_iterable(shares(self.policy, batch, loss) for batch in batches):
            left -= 1
            self._add_gradient(share, last=not left)
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.policy.parameters() if p.grad is not None], self.gradient_clip or math.inf
        )
        if not torch.isfinite(norm):
            raise self._non_finite("gradient's norm", norm, batches)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad()
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]
        self.log("train/loss", self.sum_over_ranks(total), prog_bar=True)
        self.log("train/gradient_norm", norm)
        self.log("train/lr", rate)
        self.on_step_end()

    def _non_finite(self, what: str, value: Tensor, batches: list[Batch]) -> NonFiniteLoss:
        names = list(dict.fromkeys(name for batch in batches for name in batch.names))
        told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return NonFiniteLoss(
            f"objective.optimizer.lr: the {what} is {value.item()} at step {self.global_step} in the batch of {told}; lower "
            "the rate, or look at these conversations"
        )

    def on_step_end(self) -> None:
        """What else an objective logs of a step, when its weights have been stepped."""

    def held_out_names(self) -> list[str]:
        """The held-out corpora, in the order of the validation loaders."""
        return cast("list[str]", cast("Any", self.trainer).datamodule.held_out_names())

    def validation_step(self, batches: list[Batch], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the batches' negative log-likelihood and target count to their loader's sums."""
        name = self.held_out_names()[dataloader_idx].removesuffix("valid")
        for batch in batches:
            logprobs = target_logprobs(self.policy, batch).cpu().double()  # not every accelerator has float64
            sums = torch.stack([-logprobs.sum(), torch.tensor(float(len(logprobs)), dtype=torch.float64)])
            self._held_out[name] = self._held_out.get(name, torch.zeros_like(sums)) + sums

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all held-out targets, over batches and ranks: ``val/nll`` and ``val/perplexity``."""
        self.measured_at = self.global_step
        for name in [name.removesuffix("valid") for name in self.held_out_names() if name != "pairs_valid"]:
            nll, count = self.sum_over_ranks(self._held_out.pop(name))
            self.log(f"val/{name}nll", nll / count, prog_bar=not name)
            self.log(f"val/{name}perplexity", torch.exp(nll / count))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights alone."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def _add_gradient(self, value: Tensor, last: bool) -> None:
        """Go backwards from ``value``. Ranks exchange their gradients once a step: the last time."""
        strategy = self.trainer.strategy
        waits: AbstractContextManager[Any] = nullcontext()
        if not last and isinstance(strategy, ParallelStrategy):
            waits = strategy.block_backward_sync()
        with waits:
            self.manual_backward(value)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over the processes of the run."""
        if self.trainer.world_size == 1:
            return value
        return cast("Tensor", self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum"))


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
