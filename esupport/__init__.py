"""Emotional support that fits the person: supervised fine-tuning and self-evolution of language models."""

__version__ = "0.1.0"
