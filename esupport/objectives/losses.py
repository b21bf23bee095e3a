r"""The preference losses as pure functions of vectors.

They share one form. Of each pair they take the log-ratios of policy to reference,
:math:`r = \log \pi(y|x) - \log \pi_{ref}(y|x)`, summed over the tokens of a completion, for the chosen (w) and the rejected (l)
one, and the completions' lengths in tokens; all are vectors of (pairs,). They give a loss for each pair, (pairs,).
"""

from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def chosen_nll(chosen: Tensor, chosen_length: Tensor) -> Tensor:
    r"""The chosen one's own term, of its log-probability (RPO, Pang et al. 2024): :math:`-\log \pi(y_w|x) / |y_w|`."""
    return -chosen / chosen_length


def sigmoid(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float) -> Tensor:
    r"""DPO (Rafailov et al. 2023, eq. 7): :math:`-\log \sigma(\beta (r_w - r_l))`."""
    return -logsigmoid(beta * (chosen - rejected))


def sigmoid_norm(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float) -> Tensor:
    r"""Length-normalised DPO (Lambert et al. 2024, Tulu 3, eq. 6): :math:`-\log \sigma(\beta (r_w/|y_w| - r_l/|y_l|))`.

    A log-ratio per token is some 30 times smaller than a summed one, so beta is some 30 times larger.
    """
    return -logsigmoid(beta * (chosen / chosen_length - rejected / rejected_length))


def ipo(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float) -> Tensor:
    r"""IPO (Azar et al. 2023, eq. 17): :math:`(r_w/|y_w| - r_l/|y_l| - 1/(2\beta))^2`, per token, as TRL has it."""
    return (chosen / chosen_length - rejected / rejected_length - 1 / (2 * beta)) ** 2


def hinge(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float) -> Tensor:
    r"""SLiC's hinge (Zhao et al. 2023) on DPO's rewards: :math:`\max(0, 1 - \beta (r_w - r_l))`."""
    return relu(1 - beta * (chosen - rejected))


def robust(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float, flipped: float
) -> Tensor:
    r"""Robust DPO (Chowdhury et al. 2024, eq. 12) for labels of which a share :math:`\epsilon` = ``flipped`` < 0.5 is wrong.

    :math:`\frac{-(1-\epsilon) \log \sigma(\beta (r_w - r_l)) + \epsilon \log \sigma(-\beta (r_w - r_l))}{1 - 2 \epsilon}`
    """
    margin = beta * (chosen - rejected)
    return (-(1 - flipped) * logsigmoid(margin) + flipped * logsigmoid(-margin)) / (1 - 2 * flipped)
