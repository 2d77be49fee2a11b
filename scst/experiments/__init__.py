"""Experiment matrices: models x prompts x decodings, trained and evaluated one cell after the other.

``models`` reads the models of a recipe and spans their grids, ``plan`` resolves every run to its keys and
gives it a folder, ``runner`` runs what is not there yet, ``results`` collects values and ratios, ``tables``,
``figures`` and ``page`` show them.
"""
