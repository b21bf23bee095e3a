"""Benchmarks: this project against the tools people would otherwise take, on the same work, in one command each.

    python -m benchmarks.dpo          preference training against TRL's DPOTrainer
    python -m benchmarks.sft          supervised fine-tuning against TRL's SFTTrainer, in two layouts of its rows
    python -m benchmarks.generation   drafts, reflections and refinements against transformers' generate
    python -m benchmarks.scaling      reading, rendering and planning at a size and at ten times that size
    python -m benchmarks.memory       peak memory of a training step against length and vocabulary, beside TRL

Each starts this project and the peer in turn, in processes of their own, and checks that both did the same work before
it prints a ratio. ``--help`` tells the rest; the peers need the extra ``bench``.
"""
