"""Backbones and their adapters."""
