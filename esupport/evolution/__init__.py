"""Rounds of self-evolution: what each one writes, and the report of a run."""
