"""The training arguments of a recipe: their table of types and ranges, and their checks; no torch.

Not here: arguments of the project itself, which are keys (``scst.config``).
"""
