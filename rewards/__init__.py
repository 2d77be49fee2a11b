"""Reward functions of captions: what researchers read and extend.

Here: the contract (``contract.py``, to be read first), the registry of names, the mixture, and one small
file per reward. ``scorers/`` computes, ``execution/`` calls. Not here: anything of ``scst``; rewards stand on
their own and work in TRL too. Torch is loaded only when a reward with a model is used.
"""
