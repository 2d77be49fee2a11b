"""Recipes: their keys and types, the reader, and the builders that make objects of them.

The only room that sees both recipes and classes. ``keys``, ``recipes``, ``reader`` and ``packaged`` load no
torch; the ``build*`` modules do. Not here: command lines (``scst.cli``), and anything that works without a
recipe.
"""
