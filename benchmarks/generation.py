"""Drafts, reflections and refinements against transformers' generate: ``python -m benchmarks.generation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks import agreement, compare, options
from benchmarks.compare import Measure
from benchmarks.processes import Job, Result, alternate, tune
from benchmarks.report import OURS, Report
from benchmarks.work import Peer, Writing

PEER = "generate"
_ABOUT = """Tokens a second of what a round of the method writes for all supporter turns of some conversations: drafts,
reflections and refinements, by this project and by transformers' generate in length-sorted batches, in turn. Both take the
likeliest token each time, so that the texts can be compared; with --sampled both sample, and only tokens are counted. The peer
runs at the faster of its adapter merged into the weights, and not merged."""
_NOTE = """Useful tokens are those of the texts alone. Ratios are esupport over generate; of forwarded tokens and of seconds,
generate over esupport."""


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 where the texts are not the same."""
    made = options.parser("generation", _ABOUT, repeats=3)
    options.add_data(made)
    options.add_device(made)
    made.add_argument("--conversations", type=options.positive, default=4, help="whose supporter turns all are written for")
    made.add_argument("--sampled", action="store_true", help="sample, as the method does")
    made.add_argument("--peer-batch", type=options.positive, default=8, help="requests in a batch of the peer's")
    made.add_argument("--tune", action=options.SWITCH, default=True, help="try the peer with its adapter merged and not")
    given = made.parse_args(argv)
    progress = Console(stderr=True)
    work = Writing(**options.common(given), conversations=given.conversations, sampled=given.sampled)
    work.plain()  # a mistake is told before anything runs
    target = "benchmarks.writing:peer"
    best = Job(target, work, Peer(batch=given.peer_batch))
    tried: list[dict[str, Any]] = []
    if given.tune:
        small = Writing(**options.common(given), conversations=1, sampled=given.sampled)
        settings = [Peer(batch=given.peer_batch, merged=merged) for merged in (False, True)]
        best, tried = tune(PEER, [Job(target, small, setting) for setting in settings], progress)
        best = Job(target, work, best.peer)
    runs = alternate({OURS: Job("benchmarks.writing:ours", work), PEER: best}, given.repeats, progress)
    agreements = {} if work.sampled else {PEER: agreement.of_texts(runs[OURS], runs[PEER])}
    setting = best.peer.name if best.peer else ""
    described = options.described(work) | {
        "requests": runs[OURS][0]["requests"],
        "generator_rows": work.plain()["generator"]["rows"],
    }
    peers = {PEER: {"setting": setting, "tried": tried}}
    report = Report("generation", options.typed("generation", argv), given.repeats, described, peers, [], agreements, runs)
    measures = _measures(list(runs[OURS][0]["step_seconds"]))
    report.rows = compare.table(report, measures)
    report.notes = [f"{PEER}: {setting}, sorted by length.", " ".join(_NOTE.split())]
    return compare.finish(report, given, measures)


def _measures(steps: Sequence[str]) -> list[Measure]:
    def useful(result: Result) -> float:
        return float(sum(result["useful_tokens"].values()))

    def of_step(step: str) -> Measure:
        return Measure(f"{step}, s", f"seconds_{step}", lambda r: float(r["step_seconds"][step]), 2, inverse=True)

    return [
        Measure(
            "useful tokens a second",
            "useful_tokens_per_second",
            lambda result: useful(result) / float(result["seconds"]),
            1,
            titled="useful tokens a second",
        ),
        Measure("seconds in all", "seconds", lambda result: float(result["seconds"]), 2, inverse=True),
        *(of_step(step) for step in steps),
        Measure(
            "tokens forwarded a useful one",
            "tokens_forwarded",
            lambda result: float(result["forwarded_tokens"]) / useful(result),
            1,
            inverse=True,
            titled="tokens forwarded a useful one",
        ),
        Measure("peak memory, GB", "peak_memory", compare.gigabytes, 2, titled="peak memory, GB"),
    ]


if __name__ == "__main__":
    options.told(main)
