"""Metrics of captions: the table of them (``suite``), intervals (``bootstrap``), comparisons (``paired``).

Not here: the scorers themselves (``rewards.scorers``), files and pages (``scst.evaluation``).
"""
