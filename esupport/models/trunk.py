"""Tokens that are read once for all that stands behind them; in training, a trunk for the parts of its row, backwards too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esupport.models.attention import Layers
from esupport.models.forward import hidden_states
from esupport.rendering.packing import Batch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class States:
    """Tokens that were read: (length, width) states behind the last layer, and every layer's keys and values."""

    hidden: Tensor
    layers: Layers

    @classmethod
    def read(cls, policy: PeftModel | PreTrainedModel, batch: Batch, behind: Layers | None = None) -> States:
        """Of the tokens of ``batch``; of the others, where the first are those whose keys and values are given."""
        kept: Layers = {}
        return cls(hidden_states(policy, batch, kept, behind), kept)

    @property
    def bytes(self) -> int:
        """Memory that a copy takes."""
        return sum(states.nbytes for states in (self.hidden, *chain.from_iterable(self.layers.values())))

    def copied(self) -> States:
        """In memory of its own: what is a part of something larger, as of a filled-up batch, keeps all of that."""
        return States(self.hidden.clone(), {layer: (key.clone(), value.clone()) for layer, (key, value) in self.layers.items()})


class Trunk:
    """The trunk of a batch in parts.

    Its states, keys and values are handed to the parts cut off from its graph, so that each part's graph is gone when the
    gradient has gone through it. What all of them leave there for the trunk is :meth:`gradient`.

    Args:
        policy: a causal language model, with or without an adapter.
        batch: the trunk.
    """

    def __init__(self, policy: PeftModel | PreTrainedModel, batch: Batch) -> None:
        read, self.policy = States.read(policy, batch), policy
        self._read = [read.hidden, *chain.from_iterable(read.layers.values())]
        self._hidden, *layers = self._cut = [states.detach().requires_grad_(states.requires_grad) for states in self._read]
        self._layers = dict(zip(read.layers, zip(layers[::2], layers[1::2], strict=True), strict=True))

    def hidden_states(self, part: Batch) -> Tensor:
        """(length, width) states behind the last layer of the tokens of ``part``, of which the branches are read."""
        return torch.cat([self._hidden, hidden_states(self.policy, part, behind=self._layers)])

    def gradient(self) -> Tensor:
        """A number whose gradient is what the parts' gradients ask of the trunk.

        Every trained weight has a part in it, be it 0: ranks that exchange gradients with the last of a step wait for all.
        """
        left = [0 * weight.sum() for weight in self.policy.parameters() if weight.requires_grad]
        left += [(states * cut.grad).sum() for states, cut in zip(self._read, self._cut, strict=True) if cut.grad is not None]
        return torch.stack([number.float() for number in left]).sum()
