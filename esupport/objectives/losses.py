"""The losses as pure functions of vectors."""

from torch import Tensor


def sft_loss(logprobs: Tensor, step_targets: int) -> Tensor:
    """Supervised fine-tuning (phase 1 of the paper): -sum log P(y | x, P) over target tokens, over the step's targets.

    Args:
        logprobs: (n,) log-probability of each target token of a batch.
        step_targets: target tokens of the whole optimizer step; the batches' losses add up to the step's token mean.

    Returns:
        A scalar.
    """
    return -logprobs.sum() / step_targets
