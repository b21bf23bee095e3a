"""The job of ``evaluate.py``: systems, their replies, figures, tables and the page."""
