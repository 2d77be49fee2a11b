"""Explanations: axioms, sanity on scenes with one object, curves, files and the command line."""
