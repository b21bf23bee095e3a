"""The job of train.py."""
