"""Reward functions and caption scorers.

Imports nothing of ``scst`` and no torch: usable on its own, and in TRL.
"""
