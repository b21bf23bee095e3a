"""Preference training against TRL's DPOTrainer: ``python -m benchmarks.dpo``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import compare, options
from benchmarks.compare import Measure, Side
from benchmarks.processes import Result
from benchmarks.report import OURS, Report, Row, figure

PEER = "TRL"
_ABOUT = """Pairs a second of DPO: this project and TRL's DPOTrainer in turn, on the same pairs. A pair is a human reply and
another conversation's reply of similar length, after the same context; several turns of each conversation have one. TRL's
reference is computed beforehand, its fused head is always on (on a CPU it scores every position, targets or not), and it runs
at the fastest of 1, 2 and 4 pairs in a batch."""
_NOTE = """The reference is counted on both sides or on neither. With it, this project's check that policy and reference start
equal is counted too, over 32 conversations or all where there are fewer. Ratios are esupport over TRL; of tokens, TRL over
esupport."""


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 where the sides did not do the same work."""
    made = options.parser("dpo", _ABOUT, repeats=3)
    options.add_training(made)
    made.add_argument(
        "--chosen",
        choices=("other", "human"),
        default="other",
        help="the chosen reply: of another conversation, as the rejected one is, or the human one, which tree rows have anyway",
    )
    given = made.parse_args(argv)
    report = compare.measured(given, argv, [Side(PEER, "pair")], "dpo")
    measures = [*_measures(report.work["warmup"]), *compare.utilisation(report)]
    report.rows = [*compare.table(report, measures), _second_run(report)]
    report.notes = [f"{PEER}: {report.peers[PEER]['setting']}.", " ".join(_NOTE.split())]
    return compare.finish(report, given, measures)


def _measures(warmup: int) -> list[Measure]:
    def pairs(result: Result) -> float:
        return compare.counted(result, warmup, "completions") / 2

    def rate(result: Result) -> float:
        return pairs(result) / float(result["seconds"])

    def reference(result: Result) -> float:
        """Seconds a pair in passes without a gradient, over all pairs, those of the warm-up too."""
        passes = float(result["reference_seconds"] + result.get("check_seconds", 0.0))
        return passes / (compare.counted(result, 0, "completions") / 2)

    return [
        Measure("pairs a second", "pairs_per_second", rate, 3, titled="pairs a second"),
        Measure(
            "pairs a second, reference counted",
            "pairs_per_second_with_reference",
            lambda result: 1 / (1 / rate(result) + reference(result)),
            3,
            titled="... reference counted",
        ),
        Measure("peak memory, GB", "peak_memory", compare.gigabytes, 2, titled="peak memory, GB"),
        Measure(
            "tokens forwarded a pair",
            "tokens_forwarded",
            lambda result: float(result["forwarded_tokens"]) / pairs(result),
            0,
            inverse=True,
            titled="tokens forwarded a pair",
        ),
        Measure("reference, s a pair", "", reference, 3),
    ]


def _second_run(report: Report) -> Row:
    """What a second run on the same pairs spends on the reference, whatever its learning rate; its check of the start is not
    among it.
    """
    again = figure(report.runs[OURS], lambda result: float(result["second_reference_seconds"]))
    return Row("reference of a second run, s in all", "", {OURS: again}, digits=3)


if __name__ == "__main__":
    options.told(main)
