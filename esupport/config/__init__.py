"""Configuration: what keys there are and their types, and how a mistake is told. Nothing here imports torch."""
