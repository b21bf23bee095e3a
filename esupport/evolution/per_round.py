"""Settings that may be a list with a value for each round."""

from __future__ import annotations

from typing import Any

# the keys of the objective that may be such a list
KEYS = ("beta", "lr")


def of_round(node: Any, round_: int) -> Any:
    """``node`` with the value of ``round_`` (from 1) in place of each list of values by round."""
    if isinstance(node, list):
        return node[round_ - 1]
    if not isinstance(node, dict):
        return node
    return {key: of_round(value, round_) if key in KEYS or isinstance(value, dict) else value for key, value in node.items()}
