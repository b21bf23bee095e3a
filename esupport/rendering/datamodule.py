"""Loaders of optimizer steps and of validation batches: the plan is a pure function of seed and epoch.

A training item is a whole optimizer step of one rank, as a list of batches. So a checkpoint always stands between
steps, and the same plan is dealt to any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from esupport.errors import UserError
from esupport.rendering.corpus import Corpus
from esupport.rendering.packing import Batch, pack, sizes
from esupport.rendering.row import Row
from esupport.rendering.rows import WINDOW

Step = tuple[int, ...]


class StepSampler(Sampler[Step]):
    """Plans the optimizer steps of an epoch: ``per_step`` conversations each, in a shuffled order, with replay mixed in.

    Args:
        conversations: how many there are; they are numbered from 0.
        replay: how many replay examples there are; they are numbered on from the conversations.
        per_step: conversations in an optimizer step, over all ranks and batches.
        ratio: replay examples for each conversation, spread evenly over the steps.
        seed: of the order.

    Attributes:
        epoch: the epoch that the next iteration plans.
        skip: steps of it that were taken before.
    """

    def __init__(self, conversations: int, replay: int, per_step: int, ratio: float, seed: int) -> None:
        self.conversations, self.replay, self.per_step, self.ratio, self.seed = conversations, replay, per_step, ratio, seed
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return -(-self.conversations // self.per_step)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration plans; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Step]:
        order = np.random.default_rng([self.seed, self.epoch, 0]).permutation(self.conversations)
        for start in range(self.skip * self.per_step, self.conversations, self.per_step):
            end = min(start + self.per_step, self.conversations)
            yield (*map(int, order[start:end]), *self._replayed(start, end))

    def _replayed(self, start: int, end: int) -> list[int]:
        """Replay examples beside conversations ``start`` to ``end`` of this epoch, drawn from endless reshuffled rounds."""
        if not self.replay:
            return []
        seen = self.epoch * self.conversations
        first, last = (int((seen + at) * self.ratio + 0.5) for at in (start, end))
        return [self.conversations + self._draw(number) for number in range(first, last)]

    def _draw(self, number: int) -> int:
        cycle, at = divmod(number, self.replay)
        return int(_shuffled(self.seed, cycle, self.replay)[at])


@lru_cache(maxsize=2)  # neighbouring examples are drawn from one round
def _shuffled(seed: int, cycle: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, cycle, 1]).permutation(count)


class Steps(Dataset[list[Batch]]):
    """Optimizer steps by the numbers of their conversations: this rank's share, packed into batches."""

    def __init__(self, units: Sequence[Sequence[Row]], tokens_per_batch: int, rank: int, world_size: int) -> None:
        self.units, self.tokens_per_batch, self.rank, self.world_size = units, tokens_per_batch, rank, world_size

    def __getitem__(self, step: Step) -> list[Batch]:
        rows = sorted((row for number in step for row in self.units[number]), key=len, reverse=True)
        return pack(_share(rows, self.rank, self.world_size), self.tokens_per_batch, sizes(rows))


class Windows(Dataset[list[Batch]]):
    """A held-out corpus, a window of rows after the other: this rank's share of each, packed into batches."""

    def __init__(self, corpus: Corpus, tokens_per_batch: int, rank: int, world_size: int) -> None:
        self.corpus, self.tokens_per_batch, self.rank, self.world_size = corpus, tokens_per_batch, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.corpus.rows) // WINDOW)

    def __getitem__(self, index: int) -> list[Batch]:
        rows = self.corpus.rows[index * WINDOW : (index + 1) * WINDOW]
        share = _share(rows, self.rank, self.world_size)
        return pack(share, self.tokens_per_batch, (self.corpus.targets, self.corpus.replies))


class StepLoader(DataLoader[list[Batch]]):
    """Loads optimizer steps; its state, saved with a checkpoint, lets a resumed epoch go on where it stopped.

    Lightning sets the sampler's epoch after it has called ``iter``, so nothing may be decided before the first step is
    asked for: ``__iter__`` is a generator.
    """

    def __init__(self, steps: Steps, sampler: StepSampler) -> None:
        super().__init__(steps, batch_size=None, sampler=sampler)
        self._plan = sampler
        self._given = 0
        self._resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[list[Batch]]:  # type: ignore[override]
        state, self._resumed = self._resumed, {}
        # a checkpoint at an epoch's end is resumed in the next epoch, from its first step
        self._given = self._plan.skip = state["given"] if state.get("epoch") == self._plan.epoch else 0
        for step in super().__iter__():
            self._given += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the steps of it that were handed out."""
        return {"epoch": self._plan.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from ``state`` when next iterated, if the epoch is the same then."""
        self._resumed = state


def _share(rows: Sequence[Row], rank: int, world_size: int) -> Sequence[Row]:
    """A rank's rows; where there is none left for it, a token with nothing to learn: it must still join the exchange."""
    return rows[rank::world_size] or [rows[0].beginning(1)]


class RowDataModule(pl.LightningDataModule):
    """Training steps, and validation batches of the held-out conversations and of the held-out replay examples.

    Args:
        corpora: ``train`` and ``valid``; the instruction examples ``replay`` and ``replay_valid`` and the held-out preference
            pairs ``pairs_valid`` may be empty or not there.
        conversations_per_step: conversations in an optimizer step, over all ranks and batches.
        tokens_per_batch: bound on the tokens of one forward pass; more memory, fewer passes.
        replay_ratio: replay examples for each conversation.
        seed: of the order of conversations.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        conversations_per_step: int,
        tokens_per_batch: int,
        replay_ratio: float,
        seed: int,
    ) -> None:
        super().__init__()
        conversations, replayed = len(corpora["train"].units), len(corpora["replay"].units) if "replay" in corpora else 0
        if not conversations:
            raise UserError("data: no conversation is left to train on")
        self.corpora = corpora
        self.tokens_per_batch = tokens_per_batch
        self.sampler = StepSampler(conversations, replayed, conversations_per_step, replay_ratio, seed)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StepLoader:
        """Optimizer steps."""
        learnt: Any = [self.corpora[name].units for name in ("train", "replay") if name in self.corpora]
        return StepLoader(Steps(cast("Any", ConcatDataset(learnt)), self.tokens_per_batch, *self._ranks()), self.sampler)

    def held_out_names(self) -> list[str]:
        """The held-out corpora that hold anything."""
        return [name for name in ("valid", "replay_valid", "pairs_valid") if name in self.corpora and self.corpora[name].units]

    def val_dataloader(self) -> list[DataLoader[list[Batch]]]:
        """Batches of each held-out corpus: conversations, and replay examples and pairs where there are any."""
        held_out = [Windows(self.corpora[name], self.tokens_per_batch, *self._ranks()) for name in self.held_out_names()]
        return [DataLoader(windows, batch_size=None) for windows in held_out]
