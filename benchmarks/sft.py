"""Supervised fine-tuning against TRL's SFTTrainer: ``python -m benchmarks.sft``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import compare, options
from benchmarks.compare import Measure, Side
from benchmarks.processes import Result

_ABOUT = """Supervised tokens a second of fine-tuning on every supporter turn: this project and TRL's SFTTrainer in turn, which
learns the same target tokens in two layouts: a row for each supporter turn with all that stands before it, and a row for each
conversation. TRL runs at the fastest of 1, 2 and 4 rows in a batch, padded or padding-free."""
_NOTE = "Ratios are esupport over TRL, in the order of the columns; of tokens, TRL over esupport."
SIDES = (Side("TRL by turn", "turn", padding_free=True), Side("TRL by conversation", "conversation", padding_free=True))


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 where the sides did not do the same work."""
    made = options.parser("sft", _ABOUT, repeats=3)
    options.add_training(made)
    given = made.parse_args(argv)
    report = compare.measured(given, argv, SIDES, "sft")
    measures = [*_measures(report.work["warmup"]), *compare.utilisation(report)]
    report.rows = compare.table(report, measures)
    report.notes = [f"{name}: {peer['setting']}." for name, peer in report.peers.items()] + [_NOTE]
    return compare.finish(report, given, measures)


def _measures(warmup: int) -> list[Measure]:
    def tokens(result: Result) -> float:
        return float(compare.counted(result, warmup, "tokens"))

    return [
        Measure(
            "supervised tokens a second",
            "supervised_tokens_per_second",
            lambda result: tokens(result) / float(result["seconds"]),
            1,
            titled="supervised tokens a second",
        ),
        Measure("tokens read a second, padding left out", "", lambda r: float(r["useful_tokens"]) / float(r["seconds"]), 0),
        Measure("peak memory, GB", "peak_memory", compare.gigabytes, 2, titled="peak memory, GB"),
        Measure(
            "tokens forwarded a supervised one",
            "tokens_forwarded",
            lambda result: float(result["forwarded_tokens"]) / tokens(result),
            1,
            inverse=True,
            titled="tokens forwarded a supervised one",
        ),
    ]


if __name__ == "__main__":
    options.told(main)
