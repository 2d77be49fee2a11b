"""Reward functions and caption scorers.

Imports nothing of ``scst``, and loads torch only where a scorer has a model: usable on its own, and in TRL.
"""
