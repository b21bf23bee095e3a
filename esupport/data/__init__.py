"""Conversations: the record, the readers, the sources, and the shipped set."""
