"""Scorers: captions and references to numbers, for rewards and for the metrics of a report alike.

Not here: reward classes (one level up), corpus values with intervals (``scst.metrics``).
"""
